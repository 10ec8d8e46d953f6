//! Shadow paging: a 32-bit guest's own page tables, turned into PAE tables that the processor walks in their place.
//!
//! For guests without nested paging: not paged, with two levels (and 4 MiB pages), or with PAE (and NX). Whatever the guest has,
//! the processor runs with PAE, NX and CR0.WP on ([`Registers::host`]) and walks tables of [`mmu::Pae`]'s format.
//!
//! [`Vtlb`] is a translation buffer: a tree for each vCPU, filled by page faults and dropped whole when the guest loads CR3.
//! [`Shadow`] keeps trees across loads of CR3, a tree for each address space and shared by all vCPUs; the guest's tables are
//! read-only for it, and it has to be told what is written there.
//!
//! | exit | what to do |
//! | --- | --- |
//! | #PF | `fault`, with the [`Access`](walk::Access) that the error code and EFLAGS.AC tell |
//! | MOV to CR3 | [`Registers::write_cr3`], then `load`; an error is the guest's #GP(0) |
//! | MOV to CR0 or CR4, WRMSR of EFER | [`Registers::write`], then `load` if that gives [`Change::Context`] |
//! | INVLPG | `invlpg` |
//! | software writes guest memory ([`Shadow`] alone) | `write`, which has it done |
//! | guest memory is to lose or to change its frames | `suspend` before, `resume` when the new ones are what [`Memory::backing`] tells |
//!
//! What becomes of a fault is an [`Outcome`]. Only frames can be missing, and then [`NoMemory`] says so, everything is as
//! before, and the fault may be tried again.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, shuttle))]
extern crate std;

mod cached;
mod chains;
mod counters;
mod notes;
mod registers;
mod resolve;
mod rules;
mod sync;
#[cfg(test)]
mod tests;
mod vtlb;

pub use cached::{Shadow, View, Writer};
pub use counters::{Counter, Counts};
pub use mmu::NoMemory;
pub use registers::{Change, LoadError, Registers};
pub use vtlb::Vtlb;

use addr::{Gpa, Gva, PageSize, Pfn};
use walk::{ErrorCode, PhysMem};

/// The guest's physical memory, and the host's frames behind it.
pub trait Memory: PhysMem {
    /// The frame of the page at `at`, which is given one if it has none. `write`: the guest is about to write, which a dirty
    /// log may want to know. None if there is no memory: a device's registers, or nothing.
    ///
    /// # Errors
    /// [`NoMemory`]: the host has no frame.
    fn backing(&self, at: Gpa, write: bool) -> Result<Option<Backing>, NoMemory>;
}

/// A guest page's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The frame of the 4 KiB page asked for.
    pub pfn: Pfn,
    /// Whether it may be written: it is neither read-only memory nor does a dirty log wait for its first write.
    pub write: bool,
    /// How much around it is contiguous and aligned to that size in both, guest and host: an entry may map all of it.
    pub size: PageSize,
}

/// What became of a page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The page is there: the guest's instruction runs again.
    Mapped,
    /// Something changed meanwhile: the guest's instruction runs again, and may well fault again.
    Retry,
    /// The guest gets #PF with this error code, and this in CR2.
    Inject {
        /// What to push.
        error_code: ErrorCode,
        /// The linear address.
        address: Gva,
    },
    /// The guest's tables allow the access and no entry can: carry the instruction out in software.
    Emulate {
        /// The guest-physical address of the access.
        gpa: Gpa,
        /// Why.
        reason: Reason,
    },
    /// A table of the guest's lies where there is no memory.
    Unbacked(Gpa),
}

/// Why an access has to be emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no memory.
    Mmio,
    /// A write to memory that is read-only.
    ReadOnly,
    /// The supervisor's write to a read-only user page, with CR0.WP clear and SMAP on.
    WriteProtect,
    /// A write to one of the guest's tables, which goes by [`Shadow::write`]. [`Shadow`] alone says so.
    Table,
}
