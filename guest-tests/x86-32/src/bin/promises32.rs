//! Whether what CPUID promises is there, and what it does not promise is not, for 32-bit code.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use guest32::boot::Boot;
use guest32::exit::GuestStatus;
use guest32::interrupts::expect_fault;
use guest32::promises;

guest32::main!(main);

fn main(boot: &Boot) -> GuestStatus {
    promises::run(boot, vector_of)
}

fn vector_of(body: &mut dyn FnMut()) -> Option<u8> {
    expect_fault(body).map(|fault| fault.frame.vector as u8)
}
