//! One processor has 2 MiB pages split, collapsed and their writes logged, while all others write to them and verify what they
//! wrote.
//!
//! **Contents.** In each page each processor has a word of its own, of which it knows what it wrote last.
//!
//! **Logs.** Each block has an epoch, which is odd while its writes are being logged. A writer reads it before and after each
//! write. A write with the same even epoch on both sides lies between two logs: the second of them must have it. Any
//! other write was made during a log: that log must have it, or the next one. A page that is in neither was lost.
//!
//! Words: see [`guest::stress`]. A step is one operation of the first processor.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::hint;
use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};

use guest::boot::Boot;
use guest::cpuid::cpuid;
use guest::exit::GuestStatus;
use guest::hypercall::{Microhv, Refused};
use guest::ktap::{NotPassed, Outcome};
use guest::ram::{self, Block, Frame};
use guest::random::mix;
use guest::smp::{self, Cpu, PerCpu};
use guest::stress::{Stress, Worker};
use guest::{cases, check, check_eq, check_ok, clock, println};

guest::main!(main);

/// Few, so that a writer is often where something happens.
const MOST_BLOCKS: usize = 4;
const PAGES: usize = 512;
/// Pages that a writer stays with.
const FEW: usize = 8;
/// The logarithms of how many writes it makes to them.
const SHORTEST_STAY: u64 = 6;
const LONGEST_STAY: u64 = 16;

fn main(boot: &Boot) -> GuestStatus {
    Stress::new(boot, 1).run(cases![quiet_log_is_exact, split_and_collapse_keep_contents, no_write_is_lost])
}

/// The blocks to work on, all of them touched, and a frame for a bitmap.
fn blocks(stress: &Stress<'_>) -> Result<([Option<Block>; MOST_BLOCKS], usize, Frame), NotPassed> {
    let mut all = ram::largest_area(stress.boot).blocks();
    let bitmap = all.next();
    let mut blocks = [None; MOST_BLOCKS];
    let mut count = 0;
    for (slot, block) in blocks.iter_mut().zip(all) {
        (0..PAGES as u64).for_each(|page| block.frame(page).write(0, 0));
        *slot = Some(block);
        count += 1;
    }
    match bitmap {
        Some(bitmap) if count > 0 => Ok((blocks, count, bitmap.frame(0))),
        _ => Err(NotPassed::Skipped("too little memory")),
    }
}

/// A refusal that says no more than that the block was not in that form.
fn did(result: Result<(), Refused>) -> Result<bool, Refused> {
    match result {
        Ok(()) => Ok(true),
        Err(Refused::Invalid | Refused::Raced | Refused::NoMemory) => Ok(false),
        Err(refused) => Err(refused),
    }
}

/// While no other processor works, and with small pages, the dirty log has exactly the pages that were written.
fn quiet_log_is_exact(stress: &Stress<'_>) -> Outcome {
    let hypervisor = stress.hypervisor()?;
    let (blocks, _, bitmap) = blocks(stress)?;
    let Some(block) = blocks[0] else { unreachable!("there is one") };
    check_ok!(did(hypervisor.split(block)));
    check_ok!(hypervisor.start_dirty_log(block.into()));
    for round in 0..20 {
        let written = |page: u64| mix(stress.seed() ^ round << 32 ^ page).is_multiple_of(1 << (round % 10));
        let pages = (0..PAGES as u64).filter(|page| written(*page));
        pages.clone().for_each(|page| block.frame(page).write(page as usize, round));
        // Reading is no writing.
        (0..PAGES as u64).for_each(|page| _ = block.frame(page).read(1));
        check_eq!(check_ok!(hypervisor.log_dirty(block.into(), bitmap)), pages.count() as u64, "in round {round}");
        for page in 0..PAGES as u64 {
            check_eq!(is_set(bitmap, page), written(page), "page {page} in round {round}");
        }
        stress.did(1);
    }
    Ok(())
}

fn is_set(bitmap: Frame, page: u64) -> bool {
    bitmap.read(page as usize / 64) >> (page % 64) & 1 != 0
}

fn split_and_collapse_keep_contents(stress: &Stress<'_>) -> Outcome {
    let hypervisor = stress.hypervisor()?;
    let (blocks, _, _) = blocks(stress)?;
    let Some(block) = blocks[0] else { unreachable!("there is one") };
    let value = |page: u64, round: u64| mix(stress.seed() ^ page << 32 ^ round);
    let mut done = [0, 0];
    for round in 0..20 {
        (0..PAGES as u64).for_each(|page| block.frame(page).write(3, value(page, round)));
        let collapse = round % 2 == 0;
        let result = if collapse { hypervisor.collapse(block) } else { hypervisor.split(block) };
        let worked = check_ok!(did(result));
        done[usize::from(collapse)] += u64::from(worked);
        for page in 0..PAGES as u64 {
            check_eq!(block.frame(page).read(3), value(page, round), "page {page} in round {round}");
        }
    }
    println!("# {} splits, {} collapses", done[0], done[1]);
    stress.did(done[0] + done[1]);
    // The first may have found it as it was to be.
    check!(done[0] >= 9 && done[1] >= 9);
    Ok(())
}

/// What the processors know of a block's pages.
struct Known {
    epoch: AtomicU64,
    /// Pages that were written between two logs and while one was made, by the number of the second, and of that, log.
    certain: [Flags; 2],
    uncertain: [Flags; 2],
    /// Pages that must be in the next log, because they are not in the last one.
    due: Flags,
}

struct Flags([AtomicBool; PAGES]);

impl Flags {
    const fn new() -> Self {
        Self([const { AtomicBool::new(false) }; PAGES])
    }

    fn set(&self, page: usize) {
        self.0[page].store(true, Release);
    }

    fn take(&self, page: usize) -> bool {
        self.0[page].load(Acquire) && self.0[page].swap(false, Acquire)
    }
}

static KNOWN: [Known; MOST_BLOCKS] = [const {
    Known {
        epoch: AtomicU64::new(0),
        certain: [const { Flags::new() }; 2],
        uncertain: [const { Flags::new() }; 2],
        due: Flags::new(),
    }
}; MOST_BLOCKS];

/// How often each processor has written its word of each page.
static COUNTS: PerCpu<[[AtomicU32; PAGES]; MOST_BLOCKS]> =
    PerCpu::new([const { [const { [const { AtomicU32::new(0) }; PAGES] }; MOST_BLOCKS] }; Cpu::MOST]);

/// Odd while the processor writes.
static WRITES: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(0) }; Cpu::MOST]);

struct Storm {
    seed: u64,
    hypervisor: Microhv,
    blocks: [Option<Block>; MOST_BLOCKS],
    count: usize,
    bitmap: Frame,
}

fn no_write_is_lost(stress: &Stress<'_>) -> Outcome {
    let hypervisor = stress.hypervisor()?;
    let (blocks, count, bitmap) = blocks(stress)?;
    let storm = Storm { seed: stress.seed(), hypervisor, blocks, count, bitmap };
    for block in blocks.into_iter().flatten() {
        // Of its words all but the first, which was touched, may hold what the tests before have left.
        check_ok!(hypervisor.release(block.into()));
        (0..PAGES as u64).for_each(|page| block.frame(page).write(0, 0));
        check_ok!(hypervisor.start_dirty_log(block.into()));
    }
    stress.on_all(|worker| {
        if !worker.cpu.is_boot() {
            while !stress.is_stopped() {
                storm.stay(stress, worker)?;
            }
            return Ok(());
        }
        while worker.goes_on() {
            storm.operate(worker)?;
            if smp::count() == 1 {
                storm.stay(stress, worker)?;
            }
        }
        stress.stop();
        Ok(())
    })?;
    for block in 0..count {
        storm.log(block)?;
        stress.did(1);
    }
    smp::run_on_all(|cpu| {
        for (block, page) in (0..count).flat_map(|block| (0..PAGES).map(move |page| (block, page))) {
            storm.verify(cpu, block, page)?;
        }
        Ok(())
    })
}

impl Storm {
    fn block(&self, block: usize) -> Block {
        self.blocks[block].expect("below the count")
    }

    /// Has a block take the other form, or logs its writes twice, with nothing in between that flushes.
    fn operate(&self, worker: &mut Worker<'_>) -> Outcome {
        let block = worker.random.below(self.count as u64) as usize;
        if worker.random.one_in(3) {
            worker.did(2);
            self.log(block)?;
            clock::wait(clock::microseconds(worker.random.below(500)));
            return self.log(block);
        }
        let worked = match check_ok!(did(self.hypervisor.collapse(self.block(block)))) {
            true => true,
            false => check_ok!(did(self.hypervisor.split(self.block(block)))),
        };
        worker.did(u64::from(worked));
        Ok(())
    }

    /// Logs a block's writes, and compares with what the writers know.
    fn log(&self, block: usize) -> Outcome {
        let known = &KNOWN[block];
        let epoch = known.epoch.load(Relaxed);
        known.epoch.store(epoch + 1, SeqCst);
        let result = self.hypervisor.log_dirty(self.block(block).into(), self.bitmap);
        known.epoch.store(epoch + 2, SeqCst);
        check_ok!(result);
        for writer in smp::cpus().filter(|cpu| *cpu != Cpu::current()) {
            wait_for_write(WRITES.of(writer));
        }
        let log = epoch as usize / 2 % 2;
        for page in 0..PAGES {
            let logged = is_set(self.bitmap, page as u64);
            let (certain, due) = (known.certain[log].take(page), known.due.take(page));
            let at = self.block(block).frame(page as u64).gpa();
            check!(logged || !certain, "{at} was written before log {} of its block began", epoch / 2);
            check!(logged || !due, "{at} was written during the log before log {}", epoch / 2);
            if known.uncertain[log].take(page) && !logged {
                known.due.set(page);
            }
        }
        Ok(())
    }

    /// Writes to a few pages again and again, and stays in guest mode meanwhile: a translation that should be gone is used.
    fn stay(&self, stress: &Stress<'_>, worker: &mut Worker<'_>) -> Outcome {
        let block = worker.random.below(self.count as u64) as usize;
        let pages: [usize; FEW] = core::array::from_fn(|_| worker.random.below(PAGES as u64) as usize);
        let writes = 1 << (SHORTEST_STAY + worker.random.below(LONGEST_STAY - SHORTEST_STAY + 1));
        for page in pages.into_iter().cycle().take(writes).take_while(|_| !stress.is_stopped()) {
            self.verify(worker.cpu, block, page)?;
            self.write(worker.cpu, block, page);
        }
        // An exit, after which no translation is an old one on the emulators: what went to the wrong frame is missed.
        cpuid(0, 0);
        pages.into_iter().try_for_each(|page| self.verify(worker.cpu, block, page))
    }

    fn write(&self, cpu: Cpu, block: usize, page: usize) {
        let (known, writes) = (&KNOWN[block], WRITES.of(cpu));
        writes.fetch_add(1, SeqCst);
        let count = COUNTS.of(cpu)[block][page].fetch_add(1, Relaxed) + 1;
        let before = known.epoch.load(SeqCst);
        self.block(block).frame(page as u64).write(word(cpu, page), self.value(cpu, block, page, count));
        fence(SeqCst);
        let after = known.epoch.load(SeqCst);
        let flags = if before == after && before.is_multiple_of(2) { &known.certain } else { &known.uncertain };
        flags[before as usize / 2 % 2].set(page);
        writes.fetch_add(1, Release);
    }

    fn verify(&self, cpu: Cpu, block: usize, page: usize) -> Outcome {
        let count = COUNTS.of(cpu)[block][page].load(Relaxed);
        let frame = self.block(block).frame(page as u64);
        let expected = if count == 0 { 0 } else { self.value(cpu, block, page, count) };
        check_eq!(frame.read(word(cpu, page)), expected, "{cpu:?}'s word at {}, after {count} writes", frame.gpa());
        Ok(())
    }

    fn value(&self, cpu: Cpu, block: usize, page: usize, count: u32) -> u64 {
        let place = (cpu.index() << 16 | block << 12 | page) as u64;
        mix(self.seed ^ place << 32 ^ u64::from(count))
    }
}

/// A processor's word in a page; not the first, which is touched by others.
fn word(cpu: Cpu, page: usize) -> usize {
    1 + cpu.index() * 31 + page % 31
}

/// Until the write that is being made, if one is, has been noted.
fn wait_for_write(writes: &AtomicU64) {
    let seen = writes.load(SeqCst);
    while seen % 2 == 1 && writes.load(Acquire) == seen {
        hint::spin_loop();
    }
}
