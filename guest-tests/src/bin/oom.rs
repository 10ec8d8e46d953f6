//! The hypervisor's frame allocator fails by plan: at the first allocation of an operation, at the second, and so on, until the
//! operation passes without meeting the failure.
//!
//! After each failure memory holds what it held, and the operation passes when it is tried again.
//!
//! Words: see [`guest::stress`]; a step is one operation. `--die`: all allocations fail from a moment on, which is the guest's
//! end.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use abi::options::guest as word;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::hypercall::{AllocationFailures, Microhv, Refused};
use guest::ktap::{NotPassed, Outcome};
use guest::ram::{self, Area, Block, Frame};
use guest::random::mix;
use guest::stress::{Stress, Worker};
use guest::{cases, check, check_eq, check_ok, console, println};

guest::main!(main);

/// No operation makes more allocations.
const MOST_ALLOCATIONS: u64 = 64;
/// Pages that are touched one by one.
const TOUCHED: u64 = 20;

fn main(boot: &Boot) -> GuestStatus {
    if boot.has_word(word::DIE) {
        return Stress::new(boot, 1).run(cases![touch_without_memory]);
    }
    Stress::new(boot, 1).run(cases![one_failure_is_survived])
}

/// The hypervisor must end this VM at a touch.
fn touch_without_memory(stress: &Stress<'_>) -> Outcome {
    let hypervisor = stress.hypervisor()?;
    let area = ram::largest_area(stress.boot);
    check_ok!(hypervisor.release(area));
    println!("# no allocation succeeds from here on");
    console::drain();
    check_ok!(hypervisor.fail_allocations(AllocationFailures::All));
    for index in 0..area.frames() {
        area.frame(index).write(0, index);
    }
    check!(false, "all memory was touched, and none of it is there");
    Ok(())
}

fn one_failure_is_survived(stress: &Stress<'_>) -> Outcome {
    let hypervisor = stress.hypervisor()?;
    let area = ram::largest_area(stress.boot);
    let mut blocks = area.blocks();
    let (Some(block), Some(other)) = (blocks.next(), blocks.next()) else {
        return Err(NotPassed::Skipped("too little memory"));
    };
    let test = Test { hypervisor, seed: stress.seed(), block, bitmap: other.frame(0), met: AtomicU64::new(0) };
    test.fill();
    stress.on_all(|worker| {
        let mut number = 0;
        while worker.cpu.is_boot() && worker.goes_on() {
            test.step(worker, number)?;
            number += 1;
        }
        Ok(())
    })?;
    let met = test.met.load(Relaxed);
    println!("# {met} operations failed and passed the next time");
    check!(met > 0, "no operation has met a failure");
    Ok(())
}

struct Test {
    hypervisor: Microhv,
    seed: u64,
    block: Block,
    bitmap: Frame,
    /// How often an operation has failed as planned.
    met: AtomicU64,
}

/// A refusal that says no more than that there was nothing to do, or that another was faster.
fn did(result: Result<(), Refused>) -> Result<(), Refused> {
    match result {
        Err(Refused::Invalid | Refused::Raced) => Ok(()),
        result => result,
    }
}

impl Test {
    /// One operation, in turn: each in both forms of the block, whichever it has at first.
    fn step(&self, worker: &mut Worker<'_>, number: u64) -> Outcome {
        match number % 11 {
            1 | 5 => self.meet(worker, "split", || did(self.hypervisor.split(self.block))),
            3 | 6 => self.meet(worker, "replace", || did(self.hypervisor.replace(self.block.frame(number % 512)))),
            8 | 9 => self.meet(worker, "log", || self.hypervisor.log_dirty(self.block.into(), self.bitmap).map(drop)),
            10 => self.release_and_touch(worker),
            _ => self.meet(worker, "collapse", || did(self.hypervisor.collapse(self.block))),
        }
    }

    /// Has the first allocation fail, then the second, until `operation` passes.
    fn meet(&self, worker: &mut Worker<'_>, name: &str, operation: impl Fn() -> Result<(), Refused>) -> Outcome {
        for n in 1..=MOST_ALLOCATIONS {
            check_ok!(self.hypervisor.fail_allocations(n.into()));
            let result = operation();
            check_ok!(self.hypervisor.fail_allocations(AllocationFailures::None));
            self.verify(name, n)?;
            worker.did(1);
            if result != Err(Refused::NoMemory) {
                check_eq!(result, Ok(()), "{name} with allocation {n} failing");
                return Ok(());
            }
            self.met.fetch_add(1, Relaxed);
        }
        check!(false, "{name} still fails with allocation {MOST_ALLOCATIONS}");
        Ok(())
    }

    /// Gives some pages back, of a large page if it can be had, then the whole of it; then each is touched again, while the first
    /// allocation fails that this needs, then the second, and so on: each page's, or as far as the tables' and the first pages'.
    fn release_and_touch(&self, worker: &mut Worker<'_>) -> Outcome {
        let block = Area::from(self.block);
        for (area, most) in [(block.part(0, TOUCHED), TOUCHED + 3), (block, 4)] {
            self.release(worker, area)?;
            for n in 1..=most {
                check_ok!(self.hypervisor.fail_allocations(n.into()));
                self.fill();
                check_ok!(self.hypervisor.fail_allocations(AllocationFailures::None));
                self.verify("touch", n)?;
                check_ok!(self.hypervisor.release(area));
                worker.did(2 * area.frames());
            }
            self.fill();
            check_ok!(did(self.hypervisor.collapse(self.block)));
        }
        Ok(())
    }

    /// Has the first allocation of a release fail, then the second.
    fn release(&self, worker: &mut Worker<'_>, area: Area) -> Outcome {
        for n in 1..=MOST_ALLOCATIONS {
            check_ok!(self.hypervisor.fail_allocations(n.into()));
            let result = self.hypervisor.release(area);
            check_ok!(self.hypervisor.fail_allocations(AllocationFailures::None));
            match result {
                Err(Refused::NoMemory) => {
                    self.verify("release", n)?;
                    self.met.fetch_add(1, Relaxed);
                }
                result => {
                    check_eq!(result, Ok(area.frames()));
                    check_eq!((0..area.frames()).map(|index| area.frame(index).read(511)).max(), Some(0));
                    worker.did(area.frames());
                    return Ok(());
                }
            }
        }
        check!(false, "release still fails with allocation {MOST_ALLOCATIONS}");
        Ok(())
    }

    fn fill(&self) {
        for page in 0..512 {
            for word in [0, page as usize, 511] {
                self.block.frame(page).write(word, self.value(page));
            }
        }
    }

    fn verify(&self, name: &str, n: u64) -> Outcome {
        for page in 0..512 {
            for word in [0, page as usize, 511] {
                let seen = self.block.frame(page).read(word);
                check_eq!(
                    seen,
                    self.value(page),
                    "word {word} of page {page} after {name} with allocation {n} failing"
                );
            }
        }
        Ok(())
    }

    fn value(&self, page: u64) -> u64 {
        mix(self.seed ^ page)
    }
}
