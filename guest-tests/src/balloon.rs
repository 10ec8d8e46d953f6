//! Memory that processors use and give back, page by page, and never lose sight of.

use core::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};

use crate::hypercall::{Microhv, Refused};
use crate::ktap::Outcome;
use crate::pattern::{MOST_PAGES, Pattern};
use crate::ram::Area;
use crate::stress::Worker;
use crate::{check, smp};

/// Most pages in a step, but for the steps that take a whole 2 MiB.
const FEW: u64 = 64;
const MANY: u64 = 512;

/// Which pages some processor is working on.
static TAKEN: [AtomicBool; MOST_PAGES] = [const { AtomicBool::new(false) }; MOST_PAGES];

/// An area: all processors share the first half; each has a part of the second half to itself.
pub struct Balloon {
    hypervisor: Microhv,
    pattern: Pattern,
}

impl Balloon {
    /// The largest part of `area` of which the pattern can keep account, all of it given back.
    pub fn new(hypervisor: Microhv, seed: u64, area: Area) -> Result<Self, Refused> {
        let area = area.part(0, area.frames().min(MOST_PAGES as u64));
        hypervisor.release(area)?;
        TAKEN.iter().for_each(|taken| taken.store(false, Release));
        Ok(Self { hypervisor, pattern: Pattern::new(seed, area) })
    }

    /// Takes a few pages, own or common, and writes to them or gives them back; what they hold is verified before and after.
    pub fn step(&self, worker: &mut Worker<'_>) -> Outcome {
        let common = self.pattern.area().frames() / 2;
        let own = common / smp::count() as u64;
        let (start, length) =
            if worker.random.one_in(2) { (0, common) } else { (common + own * worker.cpu.index() as u64, own) };
        let most = if worker.random.one_in(64) { MANY } else { FEW };
        let wanted = 1 + worker.random.below(most.min(length));
        let first = start + worker.random.below(length - wanted + 1);
        let count = (first..first + wanted).take_while(|page| take(*page)).count() as u64;
        let outcome = self.work_on(worker, first, count);
        (first..first + count).for_each(leave);
        outcome
    }

    fn work_on(&self, worker: &mut Worker<'_>, first: u64, count: u64) -> Outcome {
        if count == 0 {
            return Ok(());
        }
        let pages = first..first + count;
        let whole = worker.random.one_in(16);
        if worker.random.one_in(3) {
            self.give_back(worker, first, count)?;
            // It is seen to be empty now, or when it is used next.
            if !worker.random.one_in(8) {
                return Ok(());
            }
        } else {
            for page in pages.clone() {
                self.pattern.verify(page, whole)?;
                worker.did(u64::from(self.pattern.write(page)));
            }
        }
        pages.into_iter().try_for_each(|page| self.pattern.verify(page, whole))
    }

    fn give_back(&self, worker: &mut Worker<'_>, first: u64, count: u64) -> Outcome {
        let written = (first..first + count).filter(|page| self.pattern.is_written(*page)).count() as u64;
        let released = self.hypervisor.release(self.pattern.area().part(first, count));
        check!(
            released.is_ok_and(|released| (written..=count).contains(&released)),
            "{released:?} pages of {count} released, {written} had been written"
        );
        (first..first + count).for_each(|page| self.pattern.forget(page));
        worker.did(count);
        Ok(())
    }

    /// Verifies all, when no processor works on it.
    pub fn verify(&self) -> Outcome {
        (0..self.pattern.area().frames()).filter(|page| self.pattern.is_written(*page)).try_for_each(|page| {
            check!(!TAKEN[page as usize].load(Acquire), "page {page} is still taken");
            self.pattern.verify(page, true)
        })
    }
}

fn take(page: u64) -> bool {
    !TAKEN[page as usize].swap(true, Acquire)
}

fn leave(page: u64) {
    TAKEN[page as usize].store(false, Release);
}
