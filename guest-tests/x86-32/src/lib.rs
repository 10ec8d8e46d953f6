//! What a 32-bit guest is made of: an image that boots by multiboot1 on the bare machine, under this hypervisor and under any
//! other, reports in KTAP on COM1 and ends by the debug-exit port. `guest`, for 64 bits, has an example.
//!
//! A guest starts with one processor, in protected mode without paging, interrupts off, and a handler for each of the 256
//! vectors. All of its segments are flat, so addresses are linear, and [`paging`] maps the first 64 MiB one to one wherever it
//! is on: memory is what tests reach by [`memory`], above the image, which no Rust object has.
#![no_std]

pub mod control;
pub mod debug;
pub mod descriptors;
mod entry;
pub mod interrupts;
pub mod memory;
pub mod paging;
pub mod port;
pub mod processor;
mod runtime;
pub mod smp;
pub mod tasks;
pub mod timed;
pub mod user;

pub use base::{
    apic, attack, boot, clock, console, cpuid, exit, handover, ktap, latency, msr, pic, promises, random, stats, tsc,
};
pub use base::{boot_headers, cases, check, check_eq, check_ok, main, println, skip_unless};
