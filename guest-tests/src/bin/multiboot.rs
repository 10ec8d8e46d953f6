//! Multiboot.
#![no_std]
#![no_main]

use guest::boot::Boot;
use guest::exit::Verdict;

guest::main!(main);

fn main(_: &Boot) -> Verdict {
    Verdict::PASSED
}
