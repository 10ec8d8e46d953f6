//! A guest that spins for ever with interrupts off, without a verdict.
#![no_std]
#![no_main]

use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::{console, println, processor};

guest::main!(main);

fn main(_: &Boot) -> GuestStatus {
    println!("# spinning for ever");
    console::drain();
    processor::hang()
}
