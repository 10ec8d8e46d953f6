//! The other processor: it starts the one that tries the inputs, interrupts it, starts it anew where it is lost, and tells how
//! far it has come.

use abi::lines::Inputs;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use guest32::apic::{Apic, Delivery};
use guest32::exit::GuestStatus;
use guest32::interrupts;
use guest32::random::{Random, mix};
use guest32::smp::{self, Cpu, Task};
use guest32::{clock, console, println, tsc};

use crate::input::{Campaign, Input, Kind};
use crate::world;

/// The one that tries the inputs.
const ATTACKER: Cpu = Cpu::new(1);
const TIMER: u8 = 0xfe;
/// Between two looks.
const LOOK_MICROSECONDS: u64 = 5_000;
/// Looks without a sign of life, each of which brings an NMI, before it is started anew; it may just be waiting for its turn.
const LOOKS_UNTIL_RESTART: u32 = 60;
/// How long it may take to start anew.
const RESTART_SECONDS: u64 = 5;
/// Looks between two reports.
const LOOKS_PER_REPORT: u32 = 8;
/// Inputs until all tables are looked through for what was written wildly.
const INPUTS_PER_REPAIR: u32 = 128;

/// The number of the next input, and the one behind the last.
static NEXT: AtomicU32 = AtomicU32::new(0);
/// Each input is told before it runs.
static IS_TOLD: AtomicBool = AtomicBool::new(false);
static END: AtomicU32 = AtomicU32::new(0);
/// All of them have been tried.
static DONE: AtomicBool = AtomicBool::new(false);
static COUNTS: [AtomicU32; Kind::COUNT] = [const { AtomicU32::new(0) }; Kind::COUNT];
static RESTARTS: AtomicU32 = AtomicU32::new(0);

fn count(kind: Kind, number: u32) {
    let counter = &COUNTS[kind as usize];
    counter.store(counter.load(Relaxed) + number, Relaxed);
}

/// Has each input told before it runs.
pub(crate) fn tell_inputs() {
    IS_TOLD.store(true, Relaxed);
}

/// Tells how far it is. The input before may have left the UART in any state, and the line unfinished.
fn report() {
    console::init();
    let counts = COUNTS.iter().map(|counter| counter.load(Relaxed).into());
    println!("\n{}", Inputs { next: NEXT.load(Relaxed).into(), restarts: RESTARTS.load(Relaxed).into(), counts });
}

/// What the attacker does.
pub(crate) fn attack(campaign: Campaign) {
    world::write_all();
    let is_told = IS_TOLD.load(Relaxed);
    loop {
        let number = NEXT.load(Relaxed);
        if number >= END.load(Relaxed) {
            DONE.store(true, Relaxed);
            return;
        }
        // Before it runs: one that hangs is not tried again.
        NEXT.store(number + 1, Relaxed);
        if number.is_multiple_of(INPUTS_PER_REPAIR) {
            world::write_all();
        }
        let input = Input::new(campaign, number);
        count(input.kind, 1);
        if is_told {
            println!("# input {number}: {input}");
        }
        input.run();
    }
}

/// Has `task` run on the other processor for `ticks` of the TSC, or until it has tried the inputs from `first` to `end`.
pub(crate) fn keep(task: &'static Task<'static>, seed: u32, ticks: u64, first: u32, end: u32) -> GuestStatus {
    world::init();
    NEXT.store(first, Relaxed);
    END.store(end, Relaxed);
    // What the attacker sends to all; above the exceptions that are a fault of its own.
    (16..=255).for_each(interrupts::ignore);
    interrupts::ignore(2);
    let apic = Apic::here();
    let period = apic.ticks_during(|| clock::wait(clock::microseconds(LOOK_MICROSECONDS)));
    apic.start_timer(TIMER, true, period);

    let mut random = Random::new(mix(seed.into()));
    let (mut seen, mut looks, mut idle) = (u32::MAX, 0, 0);
    let started = tsc::read();
    smp::assign(ATTACKER, task);
    while tsc::read().wrapping_sub(started) < ticks && !DONE.load(Relaxed) {
        interrupts::halt_until_interrupt();
        apic.end_of_interrupt();
        let next = NEXT.load(Relaxed);
        idle = if next == seen { idle + 1 } else { 0 };
        seen = next;
        if idle >= LOOKS_UNTIL_RESTART {
            if !restart(task) {
                report();
                println!("# the processor does not start any more");
                return GuestStatus::Failed;
            }
            idle = 0;
        } else if idle > 0 {
            send(Delivery::Nmi);
        } else if random.one_in(16) && !storm(&mut random, task) {
            return GuestStatus::Failed;
        }
        looks += 1;
        if u32::is_multiple_of(looks, LOOKS_PER_REPORT) {
            report();
        }
    }
    report();
    GuestStatus::Passed
}

fn restart(task: &'static Task<'static>) -> bool {
    RESTARTS.store(RESTARTS.load(Relaxed) + 1, Relaxed);
    let is_up = smp::restart(ATTACKER, clock::seconds(RESTART_SECONDS));
    smp::assign(ATTACKER, task);
    is_up
}

fn send(delivery: Delivery) {
    Apic::here().send(delivery, ATTACKER.into());
}

/// Interrupts amid whatever it does. False if it is lost.
fn storm(random: &mut Random, task: &'static Task<'static>) -> bool {
    let times = random.below(32) as u32 + 1;
    match random.below(8) {
        0..3 => {
            (0..times).for_each(|_| send(Delivery::Nmi));
            count(Kind::NmiStorm, times);
        }
        3..5 => {
            (0..times).for_each(|_| send(Delivery::Fixed(random.below(256) as u8)));
            count(Kind::IpiStorm, times);
        }
        5..7 => {
            (0..times).for_each(|_| send(Delivery::StartUp(random.below(256) as u8)));
            count(Kind::SipiStorm, times);
        }
        _ => {
            count(Kind::InitStorm, 1);
            return restart(task);
        }
    }
    true
}
