//! Architectural constants of x86, each written once: bits of control registers, EFER, RFLAGS and debug registers, MSR numbers,
//! feature bits of CPUID, bits of page-table entries and of page faults' error codes, the local APIC's registers, what registers hold after RESET and INIT, and the
//! state in which a boot protocol enters a guest.
//!
//! Registers are `u64`, as RDMSR and MOV give them in long mode. Bits that the `x86` crate names have its values. That crate also
//! has the vectors of exceptions (`x86::irq`) and the numbers of all other MSRs (`x86::msr`).
//!
//! ```
//! use arch::{CR0_PG, EFER_LMA, EFER_LME};
//!
//! /// Long mode becomes active, or inactive, with paging (Intel SDM vol. 3, section 9.8.5).
//! fn efer_after_write_of_cr0(cr0: u64, efer: u64) -> u64 {
//!     let active = cr0 & CR0_PG != 0 && efer & EFER_LME != 0;
//!     efer & !EFER_LMA | if active { EFER_LMA } else { 0 }
//! }
//! assert_eq!(efer_after_write_of_cr0(CR0_PG, EFER_LME), EFER_LME | EFER_LMA);
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod apic;
mod control;
pub mod entry;
pub mod exceptions;
pub mod features;
mod frame_pointers;
pub mod memory_type;
pub mod msr;
pub mod page_fault;
pub mod paging;
pub mod reset;
pub mod segment;
pub mod trap_frame;

pub use control::*;
pub use entry::Entry;
pub use frame_pointers::FramePointers;

/// The longest instruction. A longer one raises #GP (Intel SDM vol. 2, section 2.3.11).
pub const MAX_INSTRUCTION: usize = 15;
