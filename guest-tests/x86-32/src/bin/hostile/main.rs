//! A guest that tries at random all that a guest can do: instructions, control registers, MSRs, ports, devices' memory, page
//! tables, descriptors, task gates, breakpoints, hypercalls and interrupt commands.
//!
//! The second processor tries the inputs one after the other ([`input`]), each in the mode that is wanted and with tables of its
//! own, and comes back from each by whatever interrupts it ([`enter`]): each input ends in INT3. The first one ([`keeper`]) looks
//! after it. An input may well end the VM, which is as it should be: the others have to go on.
//!
//! Words: `--mode real|p32|pae|long|ring3`; `--seed N`, from which all inputs follow; `--seconds N`; `--first N` and `--inputs N`,
//! for some of the inputs alone; `--shadowed`, where there is no long mode; `--without-task-gates`; `--tell`, to have each input told before it
//! runs.
#![no_std]
#![no_main]

mod enter;
mod grammar;
mod input;
mod keeper;
mod world;

use abi::lines::Kinds;
use abi::options::guest as word;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use guest32::boot::Boot;
use guest32::exit::GuestStatus;
use guest32::smp::{self, Cpu, Task};
use guest32::{clock, println};

use input::{Campaign, Kind, Mode};

guest32::main!(main);

static MODE: AtomicU32 = AtomicU32::new(0);
static SEED: AtomicU32 = AtomicU32::new(0);
static FLAGS: AtomicU32 = AtomicU32::new(0);

const SHADOWED: u32 = 1 << 0;
const WITHOUT_TASK_GATES: u32 = 1 << 1;
const MODES: [Mode; 5] = [Mode::Real, Mode::TwoLevel, Mode::Pae, Mode::Long, Mode::User];

static TASK: Task<'static> = Task(&attack);

fn attack(_: Cpu) {
    let flags = FLAGS.load(Relaxed);
    keeper::attack(Campaign {
        mode: MODES[MODE.load(Relaxed) as usize % MODES.len()],
        seed: SEED.load(Relaxed),
        is_shadowed: flags & SHADOWED != 0,
        without_task_gates: flags & WITHOUT_TASK_GATES != 0,
    });
}

fn main(boot: &Boot) -> GuestStatus {
    let Some(mode) = boot.option::<Mode>(word::MODE) else {
        println!("# --mode real|p32|pae|long|ring3 is missing");
        return GuestStatus::Failed;
    };
    if smp::start_all() < 2 {
        println!("# two processors are needed");
        return GuestStatus::Failed;
    }
    let seed = boot.option(word::SEED).unwrap_or(1);
    let first = boot.option("--first").unwrap_or(0);
    let inputs = boot.option(word::INPUTS).unwrap_or(u32::MAX - first);
    let seconds = boot.option(word::SECONDS).unwrap_or(u32::MAX);
    let flag = |word, flag| if boot.has_word(word) { flag } else { 0 };
    MODE.store(MODES.iter().position(|one| *one == mode).unwrap_or_default() as u32, Relaxed);
    SEED.store(seed, Relaxed);
    FLAGS.store(flag(word::SHADOWED, SHADOWED) | flag(word::WITHOUT_TASK_GATES, WITHOUT_TASK_GATES), Relaxed);
    input::set_ram_end(boot.mem_upper().unwrap_or_default() * 1024 + (1 << 20));
    if boot.has_word("--tell") {
        keeper::tell_inputs();
    }
    println!("{}", Kinds(Kind::NAMES.iter().copied()));
    keeper::keep(&TASK, seed, clock::seconds(seconds.into()), first, first.saturating_add(inputs))
}
