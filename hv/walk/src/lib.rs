//! Software walks of a guest's own page tables: the translation of a linear address of the guest, and its rights.
//!
//! The hypervisor needs this to fetch the bytes of an instruction that it has to decode, to reach the memory of string
//! I/O and of emulated instructions, and, without nested paging, to fill the shadow tables. The guest controls every
//! table and may change it at any time: a walk reads at most five entries, never panics, and reads each entry by one
//! load, so that all decisions are taken from the same value.
//!
//! * [`translate`] does one walk, for every paging mode (Intel SDM vol. 3 chapter 4, AMD APM vol. 2 chapter 5), and
//!   gives the guest-physical address or the exact page fault.
//! * [`trace`] also gives the entries that the walk read, for a shadow of the guest's tables.
//! * [`fetch`], [`read`] and [`write()`] copy bytes at linear addresses, also across a page boundary.
//! * [`FetchCache`] makes repeated fetches from a page cheap, with exact results (see [`cache`]).
//!
//! The environment gives guest memory through [`PhysMem`] and, for the cache, [`HandleMem`].
//!
//! Protection keys (CR4.PKE, CR4.PKS) and shadow stacks (CR4.CET) are not modelled; a hypervisor that uses this crate
//! hides them from its guests.
//!
//! ```
//! # use addr::{Gpa, Gva};
//! # use walk::*;
//! # struct Ram;
//! # impl PhysMem for Ram {
//! #     fn read_u64(&self, at: Gpa) -> Option<u64> { Some(if at == Gpa::new(0x1000) { 0x83 } else { 0x1003 }) }
//! #     fn read_u32(&self, _: Gpa) -> Option<u32> { None }
//! #     fn cmpxchg_u64(&self, _: Gpa, _: u64, _: u64) -> Option<bool> { None }
//! #     fn cmpxchg_u32(&self, _: Gpa, _: u32, _: u32) -> Option<bool> { None }
//! #     fn read(&self, _: Gpa, _: &mut [u8]) -> Option<()> { None }
//! #     fn write(&self, _: Gpa, _: &[u8]) -> Option<()> { None }
//! # }
//! # let ram = Ram;
//! let paging = Paging {
//!     controls: Controls { cr0: 0x8000_0001, cr3: 0x2000, cr4: 0x20, efer: 0x500 },
//!     pdptes: None,
//!     features: Features { maxphyaddr: 40, pages_1g: true, pse36: true, pml4e_bit8_reserved: true },
//! };
//! let access = Access { kind: AccessKind::Fetch, privilege: Privilege::Supervisor { ac: false } };
//! let found = translate(&ram, &paging, Gva::new(0x12_3456), access, SetAccessedDirty::No);
//! assert_eq!(found.unwrap().gpa, Gpa::new(0x12_3456));
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, fuzzing))]
extern crate std;

pub mod cache;
mod copy;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod mode;
pub mod operand;
#[cfg(any(test, fuzzing))]
mod ram;
#[cfg(test)]
mod tests;

pub use cache::{FetchCache, HandleMem, PagingRef};
pub use copy::{Fetched, fetch, read, write};
pub use mode::{Controls, Features, Mode, Paging, PdpteError, load_pdptes};
pub use operand::Operands;

use addr::{Gpa, Gva, PageSize};
use arch::page_fault;
use arch::paging::{ACCESSED, ADDRESS, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE};
use core::fmt;

/// A guest's physical memory, provided by the environment. All methods give None where there is no memory.
///
/// Entries are read by one load, as the processor reads them. A 32-bit guest may write an entry in two halves; a read
/// then sees these writes in the guest's order.
pub trait PhysMem {
    /// Reads the eight bytes at `at`, a multiple of 8, in one piece.
    fn read_u64(&self, at: Gpa) -> Option<u64>;
    /// Reads the four bytes at `at`, a multiple of 4, in one piece.
    fn read_u32(&self, at: Gpa) -> Option<u32>;
    /// Stores `new` at `at` if it holds `old`, atomically, and tells whether it stored. None also for read-only memory.
    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool>;
    /// As [`cmpxchg_u64`](Self::cmpxchg_u64), for four bytes.
    fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool>;
    /// As [`cmpxchg_u64`](Self::cmpxchg_u64), for accessed and dirty bits that a walk sets. An environment that shadows
    /// the guest's tables can treat these differently from writes of the guest's software.
    fn mark_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        self.cmpxchg_u64(at, old, new)
    }
    /// As [`mark_u64`](Self::mark_u64), for four bytes.
    fn mark_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        self.cmpxchg_u32(at, old, new)
    }
    /// Reads bytes that lie in one 4 KiB page.
    fn read(&self, at: Gpa, bytes: &mut [u8]) -> Option<()>;
    /// Writes bytes that lie in one 4 KiB page.
    fn write(&self, at: Gpa, bytes: &[u8]) -> Option<()>;
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// A data read.
    Read,
    /// A data write.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// The privilege of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// CPL 3, and not an implicit access to a system structure.
    User,
    /// CPL below 3, or an implicit access to a system structure (GDT, IDT, TSS).
    Supervisor {
        /// EFLAGS.AC: with CR4.SMAP, user pages may be read and written. False for an implicit access.
        ac: bool,
    },
}

/// An access to a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What it does.
    pub kind: AccessKind,
    /// Its privilege.
    pub privilege: Privilege,
}

/// Whether a walk sets accessed and dirty bits in the guest's tables, as a processor's own walk does.
///
/// A walk that repeats what the processor has just walked itself (an instruction fetch) need not set them. A walk in
/// place of the processor's (shadow paging, an emulated access) must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetAccessedDirty {
    /// Set them, once the access is known to be allowed.
    Yes,
    /// Write nothing.
    No,
}

/// The rights that the entries of all levels give together, before CR0.WP, SMEP and SMAP apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// R/W is set at every level.
    pub writable: bool,
    /// U/S is set at every level.
    pub user: bool,
    /// NX is set at no level, or EFER.NXE is clear.
    pub executable: bool,
}

impl Rights {
    const ALL: Self = Self { writable: true, user: true, executable: true };
}

/// The translation of a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address of the byte, not of its page.
    pub gpa: Gpa,
    /// The size of the guest's page. 4 KiB without paging.
    pub size: PageSize,
    /// What may be done with the page.
    pub rights: Rights,
}

bitflags::bitflags! {
    /// A page fault's error code (SDM vol. 3, 4.7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ErrorCode: u32 {
        /// P: a page was there, the access was not allowed.
        const PRESENT = page_fault::PRESENT;
        /// W/R: it was a write.
        const WRITE = page_fault::WRITE;
        /// U/S: it was made at CPL 3.
        const USER = page_fault::USER;
        /// RSVD: an entry has a reserved bit set.
        const RESERVED = page_fault::RESERVED;
        /// I/D: it was a fetch (set only if NX or SMEP is on).
        const FETCH = page_fault::FETCH;
    }
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The guest gets #PF with this error code; CR2 becomes `address`.
    Page {
        /// What to push.
        error_code: ErrorCode,
        /// The linear address of the access.
        address: Gva,
    },
    /// The address is not canonical: the guest gets #GP(0), or #SS(0) if the access was through SS.
    NonCanonical,
    /// There is no memory at this address for a table or for the bytes asked for, or it is read-only and an accessed or
    /// dirty bit or [`write()`] needs to write it.
    Unbacked(Gpa),
    /// Other CPUs kept changing the entries whose accessed bit the walk had to set. The caller enters the guest, which
    /// executes the instruction again.
    Contended,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page { error_code, address } => write!(f, "page fault {:#x} at {address}", error_code.bits()),
            Self::NonCanonical => f.write_str("the address is not canonical"),
            Self::Unbacked(at) => write!(f, "there is no memory at {at}"),
            Self::Contended => f.write_str("other CPUs keep changing the page-table entries"),
        }
    }
}

impl core::error::Error for Fault {}

/// The number of attempts of a walk whose entries other CPUs change before it can set their accessed bits.
const ATTEMPTS: usize = 8;

/// One entry that a walk read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkStep {
    /// Its address.
    pub at: Gpa,
    /// Its value, with the accessed and dirty bits that the walk has set. Four bytes in [`Mode::Bits32`], else eight.
    pub entry: u64,
    /// Its level; 1 is the last.
    pub level: u32,
}

/// The entries that a walk read, from the root down: at most one for each of five levels, without PDPTEs that the
/// processor holds.
#[derive(Clone, Copy, Debug)]
pub struct WalkSteps {
    steps: [WalkStep; 5],
    len: usize,
}

impl WalkSteps {
    const fn new() -> Self {
        Self { steps: [WalkStep { at: Gpa::new(0), entry: 0, level: 0 }; 5], len: 0 }
    }

    /// Whether a write to the page needs no dirty bit to be set first: it is set already, or paging is off.
    pub fn is_dirty(&self) -> bool {
        self.as_slice().last().is_none_or(|leaf| leaf.entry & DIRTY != 0)
    }

    fn push(&mut self, step: WalkStep) {
        self.steps[self.len] = step;
        self.len += 1;
    }

    /// The entries.
    pub fn as_slice(&self) -> &[WalkStep] {
        &self.steps[..self.len]
    }
}

/// Translates `gva` for `access`, in the mode that `paging` selects.
///
/// Outside of long mode the address is taken modulo 4 GiB, as the processor does.
pub fn translate<M: PhysMem>(
    mem: &M,
    paging: &Paging,
    gva: Gva,
    access: Access,
    set: SetAccessedDirty,
) -> Result<Translation, Fault> {
    trace(mem, paging, gva, access, set).map(|(translation, _)| translation)
}

/// As [`translate`], and also gives the entries that the translation comes from: a shadow of the guest's tables has to
/// follow their changes.
#[inline]
pub fn trace<M: PhysMem>(
    mem: &M,
    paging: &Paging,
    gva: Gva,
    access: Access,
    set: SetAccessedDirty,
) -> Result<(Translation, WalkSteps), Fault> {
    for _ in 0..ATTEMPTS {
        let mut steps = WalkSteps::new();
        let translation = walk(mem, paging, gva, access, &mut steps)?;
        if set == SetAccessedDirty::No || mark(mem, paging, &mut steps, access)? {
            return Ok((translation, steps));
        }
    }
    Err(Fault::Contended)
}

/// The page fault of a walk outside of long mode that ends at an entry which is not present: the most frequent of a
/// guest's own page faults, found with less work than by [`translate`]. None if the walk may end otherwise; the caller
/// then uses [`translate`].
#[inline]
pub fn missing<M: PhysMem>(mem: &M, paging: &Paging, gva: Gva, access: Access) -> Option<Fault> {
    let linear = gva.raw() & 0xffff_ffff;
    let read = |mode, table, level| {
        read_entry(mem, mode, Gpa::new((table & ADDRESS) + mode.index(linear, level) * mode.entry_bytes()))
    };
    let is_missing = match (paging.controls.mode(), paging.pdptes) {
        (Mode::Bits32, _) => {
            let pde = read(Mode::Bits32, paging.root(Mode::Bits32), 2)?;
            pde & PRESENT == 0 || pde & LARGE == 0 && read(Mode::Bits32, pde, 1)? & PRESENT == 0
        }
        (Mode::Pae, Some(pdptes)) => {
            let pdpte = pdptes[(linear >> 30) as usize];
            let pde = if pdpte & PRESENT == 0 { 0 } else { read(Mode::Pae, pdpte, 2)? };
            let odd = LARGE | paging.reserved(Mode::Pae, 2, None);
            pde & PRESENT == 0 || pde & odd == 0 && read(Mode::Pae, pde, 1)? & PRESENT == 0
        }
        _ => false,
    };
    is_missing.then(|| Fault::Page { error_code: paging.controls.describe(access), address: Gva::new(linear) })
}

/// One walk, from CR3 (or the PDPTEs that the processor holds) to the page.
fn walk<M: PhysMem>(
    mem: &M,
    paging: &Paging,
    gva: Gva,
    access: Access,
    steps: &mut WalkSteps,
) -> Result<Translation, Fault> {
    let mode = paging.controls.mode();
    let linear = mode.linear(gva).ok_or(Fault::NonCanonical)?;
    // Each call has its mode as a constant, so that the compiler evaluates most conditions on the mode.
    match mode {
        Mode::Off => Ok(Translation { gpa: Gpa::new(linear), size: PageSize::Size4K, rights: Rights::ALL }),
        Mode::Bits32 => descend(mem, paging, Mode::Bits32, linear, access, steps),
        Mode::Pae => descend(mem, paging, Mode::Pae, linear, access, steps),
        Mode::Long4 => descend(mem, paging, Mode::Long4, linear, access, steps),
        Mode::Long5 => descend(mem, paging, Mode::Long5, linear, access, steps),
    }
}

#[inline(always)]
fn descend<M: PhysMem>(
    mem: &M,
    paging: &Paging,
    mode: Mode,
    linear: u64,
    access: Access,
    steps: &mut WalkSteps,
) -> Result<Translation, Fault> {
    let mut rights = Rights::ALL;
    let fault =
        |why| Err(Fault::Page { error_code: why | paging.controls.describe(access), address: Gva::new(linear) });

    let mut table = paging.root(mode);
    let mut level = mode.levels();
    loop {
        let index = mode.index(linear, level);
        let held = paging.held(mode, level, index);
        let entry = match held {
            Some(pdpte) => pdpte,
            None => {
                let at = Gpa::new(table + index * mode.entry_bytes());
                let entry = read_entry(mem, mode, at).ok_or(Fault::Unbacked(at))?;
                steps.push(WalkStep { at, entry, level });
                entry
            }
        };
        if entry & PRESENT == 0 {
            return fault(ErrorCode::empty());
        }
        let leaf = paging.is_leaf(mode, level, entry);
        if held.is_none() && entry & paging.reserved(mode, level, leaf) != 0 {
            return fault(ErrorCode::PRESENT | ErrorCode::RESERVED);
        }
        if mode.has_rights(level) {
            rights.writable &= entry & WRITABLE != 0;
            rights.user &= entry & USER != 0;
            rights.executable &= entry & NO_EXECUTE == 0;
        }
        if let Some(size) = leaf {
            if !paging.controls.permit(rights, access) {
                return fault(ErrorCode::PRESENT);
            }
            let page = mode.page_address(entry, size);
            return Ok(Translation { gpa: Gpa::new(page | (linear & (size.bytes() - 1))), size, rights });
        }
        table = entry & ADDRESS;
        // The last level has only leaves.
        level -= 1;
    }
}

fn read_entry<M: PhysMem>(mem: &M, mode: Mode, at: Gpa) -> Option<u64> {
    if mode == Mode::Bits32 { mem.read_u32(at).map(u64::from) } else { mem.read_u64(at) }
}

/// Sets the accessed bits of the entries of a walk and, for a write, the dirty bit of its page. False if an entry has
/// changed since the walk read it: then the translation may be outdated.
fn mark<M: PhysMem>(mem: &M, paging: &Paging, steps: &mut WalkSteps, access: Access) -> Result<bool, Fault> {
    let mode = paging.controls.mode();
    for step in steps.steps[..steps.len].iter_mut().filter(|step| mode.has_rights(step.level)) {
        let WalkStep { at, entry, level } = *step;
        let leaf = paging.is_leaf(mode, level, entry).is_some();
        let dirty = if leaf && access.kind == AccessKind::Write { DIRTY } else { 0 };
        let marked = entry | ACCESSED | dirty;
        if marked == entry {
            continue;
        }
        let exchanged = if mode == Mode::Bits32 {
            mem.mark_u32(at, entry as u32, marked as u32)
        } else {
            mem.mark_u64(at, entry, marked)
        };
        if !exchanged.ok_or(Fault::Unbacked(at))? {
            return Ok(false);
        }
        step.entry = marked;
    }
    Ok(true)
}
