//! An entry of a page directory that is flipped between two page tables in two halves, in the architected order, while other
//! processors read through it: each read sees a page of the one table, a page of the other, or a fault, and nothing else.
//!
//! The tables' addresses differ in both halves of the entry where the memory allows it, and in NX else, so that a half of one
//! and a half of the other are an entry that leads nowhere, or has a right that neither gives. `ops=N`: flips; 2,000 if nothing
//! is said.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use guest32::boot::Boot;
use guest32::exit::Verdict;
use guest32::interrupts::{PAGE_FAULT, expect_fault};
use guest32::ktap::{self, Outcome};
use guest32::memory::{self, Pages};
use guest32::paging::{self, Entry, Mode, NO_EXECUTE, PRESENT, Space, TABLE, WRITABLE};
use guest32::smp::{self, Barrier, Cpu};
use guest32::{cases, check, check_eq, println, processor};

guest32::main!(main);

const AT: u32 = 1 << 30;
/// What the pages hold: by a table of the one, by a table of the other, and by what no entry leads to.
const ONE: u32 = 0x1111_1111;
const OTHER: u32 = 0x2222_2222;
const NEITHER: u32 = 0x3333_3333;

struct Bench {
    flips: u64,
    space: Space,
    pde: Entry,
    /// What it holds by turns.
    values: [u64; 2],
}

fn main(boot: &Boot) -> Verdict {
    let flips = boot.word("ops").unwrap_or(2_000);
    let cpus = smp::start_all();
    println!("# {cpus} processors");
    let pages = &mut Pages::from(memory::START);
    let space = Space::new(Mode::Pae, pages);
    let nx = if processor::has_nx() { NO_EXECUTE } else { 0 };
    let mut table = |content: u32| {
        let (table, page) = (pages.take(), pages.take());
        page.dword(0).store(content, Relaxed);
        Entry::of(table, 0, Mode::Pae).set(u64::from(page.address()) | PRESENT | WRITABLE);
        u64::from(table.address())
    };
    // In between lies a table that none of the two values names.
    let one = table(ONE);
    table(NEITHER);
    let other = table(OTHER) | nx;
    let values = [one | TABLE, other | TABLE];
    let bench = Bench { flips, space, pde: space.pde(AT), values };
    ktap::run(&bench, cases![by_halves, by_halves_and_invlpg, whole])
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

/// What the readers saw.
#[derive(Default)]
struct Seen {
    one: AtomicU64,
    other: AtomicU64,
    faults: AtomicU64,
}

fn toggle(bench: &Bench, store: Store, invlpg: bool) -> Outcome {
    let (done, barrier, seen) = (AtomicBool::new(false), Barrier::new(), Seen::default());
    bench.pde.set(bench.values[0]);
    let outcome = smp::run_on_all(|cpu| {
        if processor::has_nx() {
            processor::set_nx(true);
        }
        bench.space.enter();
        barrier.wait();
        let outcome = if cpu.is_boot() { flip(bench, store, invlpg, &seen) } else { read_until(&done, &seen) };
        if cpu.is_boot() {
            done.store(true, Relaxed);
        }
        barrier.wait();
        paging::leave();
        outcome
    });
    let [one, other, faults] = [&seen.one, &seen.other, &seen.faults].map(|count| count.load(Relaxed));
    println!("# {one} reads by the one table, {other} by the other, {faults} faults");
    outcome?;
    check!(one > 0 && other > 0, "both tables are to be seen");
    Ok(())
}

fn flip(bench: &Bench, store: Store, invlpg: bool, seen: &Seen) -> Outcome {
    for turn in 0..bench.flips {
        let value = bench.values[turn as usize & 1];
        match store {
            Store::Halves => bench.pde.set_by_halves(value),
            Store::Whole => bench.pde.set(value),
        }
        if invlpg {
            processor::invlpg(AT);
            // What this processor reads behind its INVLPG is by the new table.
            let (expected, count) = [(ONE, &seen.one), (OTHER, &seen.other)][turn as usize & 1];
            check_eq!(memory::peek(AT), expected, "in turn {turn}");
            count.fetch_add(1, Relaxed);
        } else if turn % 63 == 0 {
            processor::invlpg(AT);
            look(seen)?;
        }
    }
    Ok(())
}

fn read_until(done: &AtomicBool, seen: &Seen) -> Outcome {
    while !done.load(Relaxed) {
        look(seen)?;
        processor::invlpg(AT);
    }
    Ok(())
}

fn look(seen: &Seen) -> Outcome {
    let mut value = 0;
    let fault = expect_fault(|| value = memory::peek(AT));
    match fault {
        // Not present: never a reserved bit, and never a right that is missing.
        Some(fault) => {
            check_eq!(
                (fault.frame.vector, fault.frame.error, fault.cr2),
                (PAGE_FAULT, 0, AT),
                "cpu {:?}",
                Cpu::current()
            );
            seen.faults.fetch_add(1, Relaxed);
        }
        None if value == ONE => {
            seen.one.fetch_add(1, Relaxed);
        }
        None => {
            check_eq!(value, OTHER, "cpu {:?}", Cpu::current());
            seen.other.fetch_add(1, Relaxed);
        }
    }
    Ok(())
}
