//! What a guest is made of: an image that boots by multiboot1 on the bare machine, under this hypervisor and under any
//! other, reports in KTAP on COM1 and ends by the debug-exit port.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//!
//! use guest::boot::Boot;
//! use guest::exit::GuestStatus;
//! use guest::ktap::{self, Outcome};
//! use guest::{cases, check_eq};
//!
//! guest::main!(main);
//!
//! fn main(boot: &Boot) -> GuestStatus {
//!     ktap::run(boot, cases![sums])
//! }
//!
//! fn sums(_: &Boot) -> Outcome {
//!     check_eq!(1 + 1, 2);
//!     Ok(())
//! }
//! ```
//!
//! A guest starts with one processor, in long mode, with the first 4 GiB mapped one to one, interrupts off, and a handler
//! for each of the 256 vectors; [`smp`] starts the others. The compiler's code uses no vector register (the target is soft-float), so those are free
//! for tests.
//!
//! **What is unsafe here.** Rust's objects live in the image and in what the loader handed over. A guest touches any
//! other memory only as a [`ram::Frame`] or a [`raw_gva::RawGva`], by volatile accesses or by assembly: deliberate faults
//! and aliases are then no affair of the compiler's, and tests need no `unsafe` of their own.
#![no_std]

pub mod balloon;
pub mod descriptors;
mod entry;
pub mod interrupts;
pub mod msr;
pub mod paging;
pub mod pattern;
pub mod port;
pub mod processor;
pub mod registers;
pub mod smp;
pub mod sse;
pub mod stress;
pub mod timed;
pub mod user;

pub use base::boot::EntryState;
pub use base::{apic, attack, cpuid, hypercall, ram, raw_gva};
pub use base::{boot, clock, console, exit, fw_cfg, handover, ktap, latency, pic, promises, random, stats, tsc, uart};
pub use base::{boot_headers, cases, check, check_eq, check_ok, main, println, skip_unless};
