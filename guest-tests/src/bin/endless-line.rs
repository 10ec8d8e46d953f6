//! A guest that floods the console with a line that never ends.
#![no_std]
#![no_main]

use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::{console, uart};

guest::main!(main);

/// So much of the line is written before the guest ends amid it: many times what is kept of it anywhere.
const BYTES: usize = 16 << 10;

fn main(_: &Boot) -> GuestStatus {
    (0..BYTES).for_each(|_| uart::send(b'x'));
    console::drain();
    GuestStatus::Passed
}
