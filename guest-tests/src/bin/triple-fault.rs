//! A guest that ends by a triple fault: an exception without an IDT.
#![no_std]
#![no_main]

use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::{console, descriptors, interrupts, println};

guest::main!(main);

fn main(_: &Boot) -> GuestStatus {
    println!("# about to fault three times");
    console::drain();
    descriptors::load_empty_idt();
    interrupts::ud2();
    GuestStatus::Failed
}
