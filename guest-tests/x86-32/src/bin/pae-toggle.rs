//! An entry of a page directory that is flipped between two page tables in two halves, in the architected order, while other
//! processors go through it: each access sees the one entry, the other, or none, and never a half of each.
//!
//! There are pauses of random lengths between the halves, so that accesses fall there, too. The lower halves lead to different
//! tables, and the upper halves differ in NX; fetches, from pages that the one table has alone and that both have, tell either
//! mixture from all that there may be: see [`LOOKS`]. `ops=N`: flips; 2,000 if nothing is said.
#![no_std]
#![no_main]

use abi::options::guest::key;
use arch::page_fault::{FETCH, PRESENT as PROTECTION};
use core::hint;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use guest32::boot::Boot;
use guest32::exit::GuestStatus;
use guest32::interrupts::{PAGE_FAULT, expect_fault};
use guest32::ktap::{self, Outcome};
use guest32::memory::{self, Page, Pages};
use guest32::paging::{self, ACCESSED, Entry, Mode, NO_EXECUTE, PRESENT, Space, TABLE, WRITABLE};
use guest32::random::Random;
use guest32::smp::{self, Barrier, Cpu};
use guest32::{cases, check, check_eq, println, processor, skip_unless};

guest32::main!(main);

/// A page that both tables have, and one that the other table lacks.
const BOTH: u32 = 1 << 30;
const ONLY_ONE: u32 = BOTH + 4096;
/// What the pages hold, and their code returns: by the one table, by the other.
const ONE: u32 = 0x1111_1111;
const OTHER: u32 = 0x2222_2222;
/// Where the code is in a page.
const CODE: u32 = 16;

/// In turns of a loop.
const LONGEST_PAUSE: u64 = 1_000;

/// What an access yields, or the error code of its page fault.
type Yield = Result<u32, u32>;

/// An access, and what comes of it by each entry, and by none.
struct Look {
    at: u32,
    access: fn(u32) -> u32,
    one: Yield,
    other: Yield,
    none: Yield,
}

/// The one entry is of the one table without NX, the other of the other table with it. By the other table without NX the second
/// look would yield [`OTHER`]; by the one table with NX the third would be a protection fault.
const LOOKS: [Look; 3] = [
    Look { at: BOTH, access: memory::peek, one: Ok(ONE), other: Ok(OTHER), none: Err(0) },
    Look { at: BOTH + CODE, access: memory::call, one: Ok(ONE), other: Err(PROTECTION | FETCH), none: Err(FETCH) },
    Look { at: ONLY_ONE + CODE, access: memory::call, one: Ok(ONE), other: Err(FETCH), none: Err(FETCH) },
];

struct Bench {
    flips: u64,
    space: Space,
    pde: Entry,
    /// What it holds by turns.
    values: [u64; 2],
}

fn main(boot: &Boot) -> GuestStatus {
    let flips = boot.word(key::OPS).unwrap_or(2_000);
    println!("# {} processors", smp::start_all());
    let pages = &mut Pages::from(memory::START);
    let space = Space::new(Mode::Pae, pages);
    let [one, other] = [pages.take(), pages.take()];
    let one_page = u64::from(filled(ONE, pages).address()) | PRESENT | WRITABLE;
    let other_page = u64::from(filled(OTHER, pages).address()) | PRESENT | WRITABLE;
    Entry::of(one, 0, Mode::Pae).set(one_page);
    Entry::of(one, 1, Mode::Pae).set(one_page);
    Entry::of(other, 0, Mode::Pae).set(other_page);
    let values = [u64::from(one.address()) | TABLE, u64::from(other.address()) | TABLE | NO_EXECUTE];
    let bench = Bench { flips, space, pde: space.pde(BOTH), values };
    ktap::run(&bench, cases![by_halves, by_halves_and_invlpg, whole])
}

/// A page that holds `value`, and code that returns it: MOV EAX, `value`; RET.
fn filled(value: u32, pages: &mut Pages) -> Page {
    let page = pages.take();
    page.dword(0).store(value, Relaxed);
    page.write(CODE as usize, &[0xb8]);
    page.write(CODE as usize + 1, &value.to_le_bytes());
    page.write(CODE as usize + 5, &[0xc3]);
    page
}

/// How the entry is written.
#[derive(Clone, Copy)]
enum Store {
    Halves,
    Whole,
}

fn by_halves(bench: &Bench) -> Outcome {
    toggle(bench, Store::Halves, false)
}

fn by_halves_and_invlpg(bench: &Bench) -> Outcome {
    toggle(bench, Store::Halves, true)
}

fn whole(bench: &Bench) -> Outcome {
    toggle(bench, Store::Whole, true)
}

/// How often what was seen.
#[derive(Default)]
struct Seen {
    one: AtomicU64,
    other: AtomicU64,
    none: AtomicU64,
}

fn toggle(bench: &Bench, store: Store, invlpg: bool) -> Outcome {
    skip_unless!(processor::has_nx(), "no NX: the upper halves would be the same");
    let (done, barrier, seen) = (AtomicBool::new(false), Barrier::new(), Seen::default());
    bench.pde.set(bench.values[0]);
    let outcome = smp::run_on_all(|cpu| {
        processor::set_nx(true);
        bench.space.enter();
        barrier.wait();
        let outcome = if cpu.is_boot() { flip(bench, store, invlpg, &seen) } else { look_until(&done, &seen) };
        if cpu.is_boot() {
            done.store(true, Relaxed);
        }
        barrier.wait();
        paging::leave();
        outcome
    });
    let [one, other, none] = [&seen.one, &seen.other, &seen.none].map(|count| count.load(Relaxed));
    println!("# {one} accesses by the one entry, {other} by the other, {none} by none");
    outcome?;
    check!(one > 0 && other > 0, "both entries are to be seen");
    Ok(())
}

fn flip(bench: &Bench, store: Store, invlpg: bool, seen: &Seen) -> Outcome {
    let mut random = Random::new(bench.flips);
    for turn in 0..bench.flips {
        let is_other = turn % 2 == 1;
        let value = bench.values[usize::from(is_other)];
        match store {
            Store::Halves => bench.pde.set_by_halves(value, || pause(&mut random)),
            Store::Whole => bench.pde.set(value),
        }
        if invlpg {
            see_exactly(is_other, turn)?;
            // No other processor writes it, but for the accessed bit.
            check_eq!(bench.pde.get(), value | ACCESSED, "in turn {turn}");
            [&seen.one, &seen.other][usize::from(is_other)].fetch_add(1, Relaxed);
        } else {
            check_eq!(bench.pde.get() & !ACCESSED, value, "in turn {turn}");
            pause(&mut random);
            if turn % 63 == 0 {
                look_at_all(seen)?;
            }
        }
    }
    Ok(())
}

/// None, or up to what accesses by others take.
fn pause(random: &mut Random) {
    if random.one_in(2) {
        (0..random.below(LONGEST_PAUSE)).for_each(|_| hint::spin_loop());
    }
}

/// What the processor that wrote the entry sees behind its INVLPG is by that entry.
fn see_exactly(is_other: bool, turn: u64) -> Outcome {
    for (index, look) in LOOKS.iter().enumerate() {
        let expected = if is_other { look.other } else { look.one };
        check_eq!(look.access_anew(), expected, "look {index} in turn {turn}");
    }
    Ok(())
}

fn look_until(done: &AtomicBool, seen: &Seen) -> Outcome {
    while !done.load(Relaxed) {
        look_at_all(seen)?;
    }
    Ok(())
}

fn look_at_all(seen: &Seen) -> Outcome {
    for (index, look) in LOOKS.iter().enumerate() {
        let count = match look.access_anew() {
            yielded if yielded == look.one => &seen.one,
            // The third look can't tell this from the other.
            yielded if yielded == look.none => &seen.none,
            yielded => {
                check_eq!(yielded, look.other, "look {index} of {:?}", Cpu::current());
                &seen.other
            }
        };
        count.fetch_add(1, Relaxed);
    }
    Ok(())
}

impl Look {
    /// With no translation from before.
    fn access_anew(&self) -> Yield {
        processor::invlpg(self.at);
        let mut value = 0;
        match expect_fault(|| value = (self.access)(self.at)) {
            None => Ok(value),
            Some(fault) => {
                assert!((fault.frame.vector, fault.cr2) == (PAGE_FAULT, self.at), "{fault:x?}");
                Err(fault.frame.error)
            }
        }
    }
}
