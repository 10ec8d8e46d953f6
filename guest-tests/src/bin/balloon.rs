//! All processors write to pages, give them back and write to them again, each in memory of its own and all in memory that
//! they share; what a page holds is verified each time.
//!
//! Words: see [`guest::stress`]. A step is a few pages.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use guest::balloon::Balloon;
use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::ktap::Outcome;
use guest::stress::Stress;
use guest::{cases, check_eq, check_ok, ram};

guest::main!(main);

fn main(boot: &Boot) -> GuestStatus {
    Stress::new(boot, 1).run(cases![released_memory_is_zero, pages_keep_what_they_hold])
}

/// Runs before the other processors work.
fn released_memory_is_zero(stress: &Stress<'_>) -> Outcome {
    let hypervisor = stress.hypervisor()?;
    let area = ram::largest_area(stress.boot).part(0, 1024);
    for index in 0..area.frames() {
        area.frame(index).write(index as usize % 512, !index);
    }
    check_eq!(check_ok!(hypervisor.release(area)), area.frames());
    for index in 0..area.frames() {
        check_eq!(area.frame(index).read(index as usize % 512), 0, "page {index}");
    }
    // Nothing is there yet but what the last test touched.
    check_ok!(hypervisor.release(area));
    check_eq!(check_ok!(hypervisor.release(area)), 0);
    Ok(())
}

fn pages_keep_what_they_hold(stress: &Stress<'_>) -> Outcome {
    let hypervisor = stress.hypervisor()?;
    let balloon = check_ok!(Balloon::new(hypervisor, stress.seed(), ram::largest_area(stress.boot)));
    stress.on_all(|worker| {
        while worker.goes_on() {
            balloon.step(worker)?;
        }
        Ok(())
    })?;
    balloon.verify()
}
