//! Resets its machine by each way that a PC has, from code with paging and while its other processors run, and passes when it has
//! begun anew each time.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use base::reset::{self, Mode};
use guest32::boot::Boot;
use guest32::exit::GuestStatus;
use guest32::ktap::Outcome;
use guest32::smp::{self, Cpu, Task};
use guest32::{check_eq, descriptors, paging, processor};

guest32::main!(main);

static SPIN: Task<'static> = Task(&|_| loop {
    core::hint::spin_loop();
});
static SLEEP: Task<'static> = Task(&|_| guest32::exit::halt_for_ever());

fn main(boot: &Boot) -> GuestStatus {
    reset::run(boot, &Mode { triple_fault: descriptors::triple_fault, spoil, check })
}

fn spoil(_: &Boot) {
    smp::start_all();
    // It fails on none.
    let _ = smp::run_on_all(|_| {
        paging::enter_flat();
        Ok(())
    });
    for cpu in smp::cpus().skip(1) {
        smp::assign(cpu, if cpu == Cpu::new(1) { &SPIN } else { &SLEEP });
    }
}

fn check() -> Outcome {
    check_eq!(processor::cr3(), 0);
    check_eq!(processor::cr4(), 0);
    Ok(())
}
