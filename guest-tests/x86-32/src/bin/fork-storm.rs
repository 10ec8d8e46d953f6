//! Processes on several processors: address spaces are made by fork, their pages copied on write, switched to, and torn down;
//! what they hold is verified all the time, and at the end every page is back.
//!
//! `ops=N`: operations of each processor, 2,000 if nothing is said. `seed=N`.
#![no_std]
#![no_main]

use abi::options::guest::key;
use arch::page_fault;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use guest32::boot::Boot;
use guest32::exit::GuestStatus;
use guest32::interrupts::{Fault, PAGE_FAULT, expect_fault};
use guest32::ktap::{self, Outcome};
use guest32::memory::{self, Page, Pages};
use guest32::paging::{self, Mode, PRESENT, Space, WRITABLE};
use guest32::random::Random;
use guest32::smp::{self, Barrier};
use guest32::{cases, check, check_eq, processor};
use spin::Mutex;

guest32::main!(main);

/// As many processes at most.
const PROCESSES: usize = 24;
/// The pages that one can have, in several tables.
const SLOTS: usize = 12;
const AT: u32 = 1 << 30;
const STEP: u32 = 0x0011_3000;

struct Bench {
    ops: u64,
    seed: u64,
}

fn main(boot: &Boot) -> GuestStatus {
    smp::start_all();
    let bench = Bench { ops: boot.word(key::OPS).unwrap_or(2_000), seed: boot.word(key::SEED).unwrap_or(1) };
    ktap::run(&bench, cases![two_level, pae])
}

fn two_level(bench: &Bench) -> Outcome {
    storm(bench, Mode::TwoLevel)
}

fn pae(bench: &Bench) -> Outcome {
    storm(bench, Mode::Pae)
}

/// A page of a process.
#[derive(Clone, Copy)]
struct Slot {
    frame: Page,
    value: u32,
    /// Else it is shared, and copied on write.
    writable: bool,
}

struct Process {
    space: Space,
    slots: [Option<Slot>; SLOTS],
}

/// What all processors share.
struct World {
    mode: Mode,
    pages: Mutex<Pages>,
    processes: [Mutex<Option<Process>>; PROCESSES],
    /// The process that has each frame of free memory.
    owners: [AtomicU32; FRAMES],
}

const FRAMES: usize = ((memory::END - memory::START) >> 12) as usize;

static WORLDS: [World; 2] = [World::new(Mode::TwoLevel), World::new(Mode::Pae)];

fn storm(bench: &Bench, mode: Mode) -> Outcome {
    let world = WORLDS.iter().find(|world| world.mode == mode).expect("each mode has one");
    let homes = Mutex::new(());
    let barrier = Barrier::new();
    smp::run_on_all(|cpu| {
        let home = {
            let _one_by_one = homes.lock();
            Space::new(mode, &mut world.pages.lock())
        };
        home.enter();
        paging::set_write_protect(true);
        let mut random = Random::new(bench.seed * 64 + cpu.index() as u64);
        let outcome = (0..bench.ops).try_for_each(|_| world.operate(&mut random, home));
        barrier.wait();
        paging::set_write_protect(false);
        paging::leave();
        home.free(&mut world.pages.lock());
        outcome
    })?;
    world.processes.iter().filter_map(|process| process.lock().take()).for_each(|process| world.end(process));
    check_eq!(world.pages.lock().taken(), 0, "pages that did not come back");
    check!(world.owners.iter().all(|owners| owners.load(Relaxed) == 0));
    Ok(())
}

impl World {
    const fn new(mode: Mode) -> Self {
        Self {
            mode,
            pages: Mutex::new(Pages::from(memory::START)),
            processes: [const { Mutex::new(None) }; PROCESSES],
            owners: [const { AtomicU32::new(0) }; FRAMES],
        }
    }

    fn operate(&self, random: &mut Random, home: Space) -> Outcome {
        let index = random.below(PROCESSES as u64) as usize;
        let Some(mut place) = self.processes[index].try_lock() else { return Ok(()) };
        let outcome = match &mut *place {
            None => {
                *place = Some(self.begin());
                Ok(())
            }
            Some(process) if random.one_in(4) => {
                let other = random.below(PROCESSES as u64) as usize;
                if let Some(mut other) = self.processes[other].try_lock()
                    && other.is_none()
                {
                    *other = Some(self.fork(process));
                }
                Ok(())
            }
            Some(_) if random.one_in(12) => {
                place.take().into_iter().for_each(|process| self.end(process));
                Ok(())
            }
            Some(process) => self.run(process, random),
        };
        // Before another processor may take the process apart.
        home.load();
        outcome
    }

    fn begin(&self) -> Process {
        Process { space: Space::new(self.mode, &mut self.pages.lock()), slots: [None; SLOTS] }
    }

    /// The child shares all pages, and neither may write them.
    fn fork(&self, parent: &mut Process) -> Process {
        let mut child = self.begin();
        for (index, slot) in parent.slots.iter_mut().enumerate() {
            let Some(slot) = slot else { continue };
            slot.writable = false;
            self.owners(slot.frame).fetch_add(1, Relaxed);
            self.map(parent.space, index, *slot);
            self.map(child.space, index, *slot);
            child.slots[index] = Some(*slot);
        }
        child
    }

    /// Takes a process apart; no processor has its space loaded.
    fn end(&self, process: Process) {
        process.slots.into_iter().flatten().for_each(|slot| self.release(slot.frame));
        process.space.free(&mut self.pages.lock());
    }

    /// Loads the space, and does something to a few of its pages.
    fn run(&self, process: &mut Process, random: &mut Random) -> Outcome {
        process.space.load();
        for _ in 0..4 {
            let index = random.below(SLOTS as u64) as usize;
            match process.slots[index] {
                None => self.first_touch(process, index, random)?,
                Some(_) if random.one_in(8) => self.unmap(process, index)?,
                Some(slot) if random.one_in(2) => self.write(process, index, slot, random)?,
                Some(slot) => check_eq!(memory::peek(address(index)), slot.value, "page {index}"),
            }
        }
        Ok(())
    }

    fn first_touch(&self, process: &mut Process, index: usize, random: &mut Random) -> Outcome {
        check!(is_missing(address(index)));
        let frame = self.new_frame();
        let slot = Slot { frame, value: random.next_u64() as u32, writable: true };
        self.map(process.space, index, slot);
        memory::store(address(index), slot.value);
        process.slots[index] = Some(slot);
        check_eq!(frame.dword(0).load(Relaxed), slot.value, "page {index}");
        Ok(())
    }

    fn unmap(&self, process: &mut Process, index: usize) -> Outcome {
        process.space.pte(address(index), &mut self.pages.lock()).set(0);
        processor::invlpg(address(index));
        process.slots[index].take().into_iter().for_each(|slot| self.release(slot.frame));
        check!(is_missing(address(index)));
        Ok(())
    }

    /// Copies on write.
    fn write(&self, process: &mut Process, index: usize, old: Slot, random: &mut Random) -> Outcome {
        let mut slot = Slot { value: random.next_u64() as u32, writable: true, ..old };
        let store = || expect_fault(|| memory::store(address(index), slot.value));
        match store() {
            None => check!(old.writable, "page {index} is not to be written"),
            Some(fault) => {
                check!(
                    !old.writable && tells(&fault, page_fault::PRESENT | page_fault::WRITE, address(index)),
                    "page {index}: {fault:x?}"
                );
                let frame = self.new_frame();
                (0..4).for_each(|n| frame.dword(n).store(old.frame.dword(n).load(Relaxed), Relaxed));
                self.map(process.space, index, Slot { frame, ..slot });
                processor::invlpg(address(index));
                check_eq!(memory::peek(address(index)), old.value, "the copy of page {index}");
                check!(store().is_none(), "page {index} is writable now");
                self.release(old.frame);
                slot.frame = frame;
            }
        }
        process.slots[index] = Some(slot);
        check_eq!(slot.frame.dword(0).load(Relaxed), slot.value, "page {index}");
        Ok(())
    }

    fn map(&self, space: Space, index: usize, slot: Slot) {
        let writable = if slot.writable { WRITABLE } else { 0 };
        let entry = space.pte(address(index), &mut self.pages.lock());
        entry.set(u64::from(slot.frame.address()) | PRESENT | writable);
    }

    fn owners(&self, frame: Page) -> &AtomicU32 {
        &self.owners[((frame.address() - memory::START) >> 12) as usize]
    }

    fn new_frame(&self) -> Page {
        let frame = self.pages.lock().take();
        self.owners(frame).store(1, Relaxed);
        frame
    }

    fn release(&self, frame: Page) {
        if self.owners(frame).fetch_sub(1, Relaxed) == 1 {
            self.pages.lock().give(frame);
        }
    }
}

/// Where page `index` of a process is.
const fn address(index: usize) -> u32 {
    AT + index as u32 * STEP
}

fn is_missing(linear: u32) -> bool {
    expect_fault(|| memory::load(linear)).is_some_and(|fault| tells(&fault, 0, linear))
}

fn tells(fault: &Fault, error_code: u32, address: u32) -> bool {
    (fault.frame.vector, fault.frame.error, fault.cr2) == (PAGE_FAULT, error_code, address)
}
