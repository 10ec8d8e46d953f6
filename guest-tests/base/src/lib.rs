//! What guests of 64 and of 32 bits have in common: they boot by multiboot1, report in KTAP on COM1 and end by the debug-exit
//! port.
#![no_std]

pub mod boot;
pub mod clock;
pub mod console;
pub mod exit;
pub mod fw_cfg;
pub mod ktap;
pub mod latency;
pub mod pic;
pub mod port;
pub mod random;
pub mod recovery;
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
    exit::Verdict::PANICKED.end()
}
