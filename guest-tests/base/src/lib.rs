//! What guests of 64 and of 32 bits have in common: they boot by multiboot1, report in KTAP on COM1 and end by the debug-exit
//! port.
#![no_std]

pub mod apic;
pub mod attack;
pub mod boot;
pub mod clock;
pub mod console;
pub mod control;
pub mod cpuid;
pub mod exit;
pub mod fw_cfg;
pub mod handover;
pub mod hypercall;
pub mod interrupts;
pub mod ktap;
pub mod latency;
pub mod msr;
pub mod pic;
pub mod port;
pub mod promises;
pub mod ram;
pub mod random;
pub mod raw_gva;
pub mod recovery;
pub mod reset;
pub mod smp;
pub mod start;
pub mod startup;
pub mod stats;
pub mod tsc;
pub mod uart;

use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    println!("Bail out! guest {info}");
    exit::end(exit::GuestStatus::Panicked)
}
