//! Resets its machine by each way that a PC has, while its other processors run, and passes when it has begun anew each time.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use base::reset::{self, Mode};
use base::smp::{Task, assign};
use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::ktap::Outcome;
use guest::msr::Msr;
use guest::smp::{self, Cpu};
use guest::{check_eq, descriptors, interrupts};

guest::main!(main);

const SPOILED: u64 = 0x1234_5000;
/// Write-back in each of PAT's fields.
const WRITE_BACK: u64 = 0x0606_0606_0606_0606;

static SPIN: Task<'static> = Task(&|_| loop {
    core::hint::spin_loop();
});
static SLEEP: Task<'static> = Task(&|_| guest::exit::halt_for_ever());

fn main(boot: &Boot) -> GuestStatus {
    reset::run(boot, &Mode { triple_fault, spoil, check })
}

fn triple_fault() {
    descriptors::load_empty_idt();
    interrupts::ud2();
}

fn spoil(boot: &Boot) {
    Msr::KernelGsBase.write(SPOILED);
    Msr::Pat.write(WRITE_BACK);
    smp::start_all(boot);
    for cpu in smp::cpus().skip(1) {
        assign(cpu, if cpu == Cpu::new(1) { &SPIN } else { &SLEEP });
    }
}

fn check() -> Outcome {
    check_eq!(Msr::KernelGsBase.read(), 0);
    check_eq!(Msr::Pat.read(), arch::reset::PAT);
    check_eq!(Msr::ApicBase.read(), u64::from(abi::mmio::LOCAL_APIC) | arch::apic::BASE_ENABLED | arch::apic::BASE_BSP);
    Ok(())
}
