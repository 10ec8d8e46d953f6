//! Whether what CPUID promises is there, and what it does not promise is not.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::interrupts::expect_fault;
use guest::promises;

guest::main!(main);

fn main(boot: &Boot) -> GuestStatus {
    promises::run(boot, vector_of)
}

fn vector_of(body: &mut dyn FnMut()) -> Option<u8> {
    expect_fault(body).map(|fault| fault.frame.vector as u8)
}
