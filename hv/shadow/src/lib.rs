//! Shadow paging: the hypervisor translates a 32-bit guest's own page tables to PAE tables, which the processor walks instead.
//!
//! This is for guests that run without nested paging: with paging off, with two levels (and 4 MiB pages), or with PAE (and NX).
//! In each case the processor runs with PAE, NX and CR0.WP on ([`Registers::host`]) and walks tables of [`mmu::Pae`]'s format.
//!
//! There are two implementations with nearly the same interface:
//! - [`Vtlb`] is a virtual TLB: one tree for each vCPU, which page faults fill, and which is zapped when the guest loads CR3.
//! - [`Shadow`] caches a root for each address space across loads of CR3, for all vCPUs. The guest's tables are read-only for the
//!   guest, and the hypervisor must report writes to them.
//!
//! | exit | what to do |
//! | --- | --- |
//! | #PF | `fault`, with the [`Access`](walk::Access) from the error code and EFLAGS.AC |
//! | MOV to CR3 | [`Registers::write_cr3`], then `load`; on an error the guest gets #GP(0) |
//! | MOV to CR0 or CR4, WRMSR of EFER | [`Registers::write`], then `load` if that returns [`Change::Context`] |
//! | INVLPG | `invlpg` |
//! | software writes guest memory ([`Shadow`] only) | `write`, with a closure that writes |
//! | guest memory loses or changes its frames | `suspend` before, `resume` when [`Memory::backing`] returns the new frames |
//!
//! The result of a fault is a [`FaultOutcome`]. The only error is [`NoMemory`]: no frame is free. Then nothing has changed, and the
//! fault may be tried again.
//!
//! ```
//! use addr::{Gpa, Gva, PageSize, Pfn};
//! use mmu::{Caps, Pae, pool};
//! use shadow::{Backing, BackingPage, Capacity, Change, FaultOutcome, NoMemory, Reason, Registers, Shadow, Writer};
//! use walk::{Access, Controls, Features, AccessKind, PhysMem, Privilege};
//!
//! /// Guest memory of 4 pages, each of them in the frame with the same number.
//! struct Ram(std::cell::RefCell<[u8; 0x4000]>);
//! # impl Ram {
//! #     fn bytes<const N: usize>(&self, at: Gpa) -> Option<[u8; N]> {
//! #         let mut bytes = [0; N];
//! #         self.read(at, &mut bytes).map(|()| bytes)
//! #     }
//! # }
//! # impl PhysMem for Ram {
//! #     fn read_u64(&self, at: Gpa) -> Option<u64> { self.bytes(at).map(u64::from_le_bytes) }
//! #     fn read_u32(&self, at: Gpa) -> Option<u32> { self.bytes(at).map(u32::from_le_bytes) }
//! #     fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
//! #         Some(self.read_u64(at)? == old && self.write(at, &new.to_le_bytes()).is_some())
//! #     }
//! #     fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
//! #         Some(self.read_u32(at)? == old && self.write(at, &new.to_le_bytes()).is_some())
//! #     }
//! #     fn read(&self, at: Gpa, bytes: &mut [u8]) -> Option<()> {
//! #         let at = at.raw() as usize;
//! #         bytes.copy_from_slice(self.0.borrow().get(at..at + bytes.len())?);
//! #         Some(())
//! #     }
//! #     fn write(&self, at: Gpa, bytes: &[u8]) -> Option<()> {
//! #         let at = at.raw() as usize;
//! #         self.0.borrow_mut().get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
//! #         Some(())
//! #     }
//! # }
//! impl shadow::Memory for Ram {
//!     fn backing(&self, at: Gpa, _write: bool) -> Result<Backing, NoMemory> {
//!         let page = BackingPage { pfn: Pfn::new(at.frame().raw()), write: true, size: PageSize::Size4K };
//!         Ok(if at.raw() < 0x4000 { Backing::Page(page) } else { Backing::None })
//!     }
//! }
//!
//! // Once for each VM: a shadow with two roots. `pool` is a stand-in for the host's frames.
//! let frames = pool::Memory::new(16);
//! let domain = pool::domain::<Pae<Gva>, 1>(&frames);
//! let mut cpu = domain.register(0).unwrap();
//! let envs = (0..2).map(|_| pool::Pool::new(&frames, &domain));
//! let shadow = Shadow::new(envs, Caps::new(40, PageSize::Size2M, true), Capacity::of(4, 2), 0x5eed).unwrap();
//! // For each vCPU:
//! let view = shadow.view(&cpu).unwrap();
//! let features = Features { maxphyaddr: 40, pages_1g: false, pse36: false, pml4e_bit8_reserved: false };
//! let mut registers = Registers::new(features);
//!
//! // The guest's directory in page 1 refers to a table in page 2, which maps linear 0 to page 3 and linear 0x1000 to the
//! // directory.
//! let ram = Ram(std::cell::RefCell::new([0; 0x4000]));
//! ram.write(Gpa::new(0x1000), &0x2003u32.to_le_bytes());
//! ram.write(Gpa::new(0x2000), &0x3003u32.to_le_bytes());
//! ram.write(Gpa::new(0x2004), &0x1003u32.to_le_bytes());
//!
//! // An exit for MOV to CR0: the guest enables paging. The processor's CR3 is the address of `shadow.root(&view)` from now on.
//! let controls = Controls { cr0: 1 << 31 | 1, cr3: 0x1000, cr4: 0, efer: 0 };
//! if registers.write(&ram, controls).unwrap() == Change::Context {
//!     shadow.load(&cpu, &view, &registers);
//! }
//! // An exit for #PF: the shadow is empty, and maps the page.
//! let write = Access { kind: AccessKind::Write, privilege: Privilege::Supervisor { ac: false } };
//! let fault = |gva| shadow.fault(&cpu, &view, &ram, &registers, Gva::new(gva), write).unwrap();
//! assert_eq!(fault(0), FaultOutcome::Mapped);
//! // A write to the directory is emulated.
//! assert_eq!(fault(0x1004), FaultOutcome::Emulate { gpa: Gpa::new(0x1004), reason: Reason::Table });
//! let store = || ram.write(Gpa::new(0x1004), &0x2003u32.to_le_bytes()).unwrap();
//! shadow.write(&cpu, Gpa::new(0x1004), 4, Writer::Software, store);
//! // The entry maps the same table at 4 MiB.
//! assert_eq!(fault(0x40_0000), FaultOutcome::Mapped);
//! # shadow.into_trees().into_iter().for_each(|tree| tree.free_pgtables(|_, _, _| {}));
//! # cpu.barrier(|table| frames.free(table));
//! # assert_eq!(frames.in_use(), 0);
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, loom, shuttle))]
extern crate std;

mod cached;
mod counters;
mod gfn_hash;
mod metadata;
mod registers;
mod resolve;
mod rules;
#[cfg(test)]
mod tests;
mod vtlb;

pub use cached::{Shadow, View, Writer};
pub use counters::{Counter, Counts};
pub use metadata::Capacity;
pub use mmu::NoMemory;
pub use registers::{Change, LoadError, Registers};
pub use vtlb::Vtlb;

use addr::{Gpa, Gva, PageSize, Pfn};
use walk::{ErrorCode, PhysMem};

/// The guest's physical memory, and the host's frames behind it.
pub trait Memory: PhysMem {
    /// What is behind the page at `at`; allocates a frame if the page has none. `write`: the guest is about to write, so a dirty
    /// log marks the page.
    ///
    /// # Errors
    /// [`NoMemory`]: no frame is free.
    fn backing(&self, at: Gpa, write: bool) -> Result<Backing, NoMemory>;
}

/// What is behind a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory.
    Page(BackingPage),
    /// Memory whose page is being prepared, which takes long: the access faults again until it is there.
    Pending,
    /// No memory, but a device or nothing.
    None,
}

/// A guest page's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackingPage {
    /// The frame of the 4 KiB page.
    pub pfn: Pfn,
    /// Whether the guest may write it now: it is not read-only memory, and no dirty log waits for its first write.
    pub write: bool,
    /// The largest page around it that is contiguous and aligned in both guest and host memory, so that one entry can map it.
    pub size: PageSize,
}

/// The result of a page fault (as `RET_PF_*` in Linux, arch/x86/kvm/mmu/mmu_internal.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum FaultOutcome {
    /// The page is mapped: the guest executes the instruction again.
    Mapped,
    /// Guest tables, mappings or frames changed meanwhile: the guest executes the instruction again, and may fault again.
    Retry,
    /// The fault is the guest's own: inject #PF.
    Inject {
        /// The error code to push.
        error_code: ErrorCode,
        /// The linear address, for CR2.
        address: Gva,
    },
    /// The guest's tables allow the access, but a shadow entry can't: emulate the instruction.
    Emulate {
        /// The guest-physical address of the access.
        gpa: Gpa,
        /// Why no entry can allow it.
        reason: Reason,
    },
    /// One of the guest's tables is at this address, where there is no memory.
    Unbacked(Gpa),
}

/// Why an access has to be emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no memory at the address.
    Mmio,
    /// It writes read-only memory.
    ReadOnly,
    /// The supervisor writes a read-only user page, with CR0.WP clear and SMAP on.
    WriteProtect,
    /// It writes a table of the guest, which the emulator does by [`Shadow::write`]. Only [`Shadow`] returns this.
    Table,
}
