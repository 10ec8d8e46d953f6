//! The last processor has the hypervisor count what is mapped, without a lock and without a pause, while the others give
//! memory back and use it, and have its pages split and collapsed.
//!
//! A count may be of no single moment, but each page is counted at most once, and pages that stay are counted.
//!
//! Words: see [`guest::stress`]. A step is a few pages, or a report.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use addr::PAGE_SIZE;
use guest::balloon::Balloon;
use guest::boot::{Boot, Region};
use guest::exit::GuestStatus;
use guest::hypercall::{Microhv, Refused};
use guest::ktap::Outcome;
use guest::ram::{self, Area};
use guest::smp;
use guest::stress::{Stress, Worker};
use guest::{cases, check, check_ok, println};

guest::main!(main);

/// Pages that stay.
const PINNED: u64 = 300;

fn main(boot: &Boot) -> GuestStatus {
    Stress::new(boot, 1).run(cases![reports_are_within_bounds])
}

struct Walk {
    hypervisor: Microhv,
    balloon: Balloon,
    /// What is split and collapsed.
    area: Area,
    /// As much as there is memory.
    most: u64,
    reports: AtomicU64,
}

fn reports_are_within_bounds(stress: &Stress<'_>) -> Outcome {
    let hypervisor = stress.hypervisor()?;
    let memory = ram::largest_area(stress.boot);
    let (pinned, area) = (memory.part(0, PINNED), memory.part(PINNED, memory.frames() - PINNED));
    pinned.touch();
    let end = stress.boot.memory_map().filter(Region::is_available).map(|region| region.end().raw()).max();
    let walk = Walk {
        hypervisor,
        balloon: check_ok!(Balloon::new(hypervisor, stress.seed(), area)),
        area,
        most: end.unwrap_or_default().div_ceil(PAGE_SIZE),
        reports: AtomicU64::new(0),
    };
    stress.on_all(|worker| {
        let is_last = worker.cpu.index() + 1 == smp::count();
        while worker.goes_on() {
            if is_last {
                walk.report()?;
            }
            if !is_last || worker.cpu.is_boot() {
                walk.change(worker)?;
            }
        }
        Ok(())
    })?;
    walk.balloon.verify()?;
    println!("# {} reports", walk.reports.load(Relaxed));
    Ok(())
}

impl Walk {
    fn report(&self) -> Outcome {
        let report = check_ok!(self.hypervisor.report());
        check!((PINNED..=self.most).contains(&report.frames()), "{report:?}, of {} pages of memory", self.most);
        self.reports.fetch_add(1, Relaxed);
        Ok(())
    }

    fn change(&self, worker: &mut Worker<'_>) -> Outcome {
        self.balloon.step(worker)?;
        let count = self.area.blocks().count() as u64;
        if count == 0 || !worker.random.one_in(8) {
            return Ok(());
        }
        let Some(block) = self.area.blocks().nth(worker.random.below(count) as usize) else {
            unreachable!("below count")
        };
        let result =
            if worker.random.one_in(2) { self.hypervisor.split(block) } else { self.hypervisor.collapse(block) };
        match result {
            Ok(()) => worker.did(1),
            // Not in that form, not all there, or in the hands of another.
            Err(Refused::Invalid | Refused::Raced | Refused::NoMemory) => {}
            Err(refused) => check!(false, "{block:x?}: {refused}"),
        }
        Ok(())
    }
}
