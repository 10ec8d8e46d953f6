//! The guest's own page tables: 4 KiB and 2 MiB pages above the one-to-one map.
//!
//! AMD64 APM volume 2, section 5.3.

use core::ptr;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use addr::PageSize;
use arch::paging::{ADDRESS, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE};

pub use arch::paging::{ACCESSED, DIRTY};

use crate::processor;
use crate::ram::{Block, Frame};
use crate::raw_gva::RawGva;

/// What a page lets one do besides reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights(u64);

impl Rights {
    /// Execute.
    pub const READ_ONLY: Self = Self(0);
    /// Write and execute.
    pub const WRITABLE: Self = Self(WRITABLE);
    /// Write; the EFER.NXE bit has to be set.
    pub const DATA: Self = Self(WRITABLE | NO_EXECUTE);
    /// Execute, in user mode, too.
    pub const USER: Self = Self(USER);
}

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

/// Tables for the pages that tests map; none is given back.
static SPARE: [Table; 24] = [const { Table([const { AtomicU64::new(0) }; 512]) }; 24];

/// Maps the 4 KiB page at `at` to `frame`. A translation that was there may live on until [`processor::invlpg`].
pub fn map(at: RawGva, frame: Frame, rights: Rights) {
    entry(at, PageSize::Size4K).store(frame.gpa().raw() | rights.0 | PRESENT, Relaxed);
}

/// Maps the 2 MiB page at `at` to `block`.
pub fn map_2m(at: RawGva, block: Block, rights: Rights) {
    assert!(at.gva().is_aligned(PageSize::Size2M.bytes()));
    entry(at, PageSize::Size2M).store(block.gpa().raw() | rights.0 | PRESENT | LARGE, Relaxed);
}

/// Unmaps the page of `size` at `at`, its translation included.
pub fn unmap(at: RawGva, size: PageSize) {
    entry(at, size).store(0, Relaxed);
    processor::invlpg(at.gva());
}

/// The entry of the 4 KiB page at `at`, as it stands.
pub fn leaf(at: RawGva) -> u64 {
    entry(at, PageSize::Size4K).load(Relaxed)
}

/// The entry that maps `at` by a page of `size`, with the tables on the way to it.
fn entry(at: RawGva, size: PageSize) -> &'static AtomicU64 {
    assert!(at.gva() >= crate::raw_gva::IDENTITY_END);
    let mut table = table_at(processor::cr3() & ADDRESS);
    for shift in [39, 30, 21, 12] {
        let entry = &table.0[(at.raw() >> shift) as usize & 511];
        if shift == size.shift() {
            return entry;
        }
        if entry.load(Relaxed) & PRESENT == 0 {
            let spare = (&raw const *spare()).expose_provenance() as u64;
            entry.store(spare | USER | WRITABLE | PRESENT, Relaxed);
        }
        assert!(entry.load(Relaxed) & LARGE == 0, "{at:?} is in a larger page");
        table = table_at(entry.load(Relaxed) & ADDRESS);
    }
    unreachable!("no page of {size:?}")
}

fn spare() -> &'static Table {
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    SPARE.get(TAKEN.fetch_add(1, Relaxed)).expect("more spare tables")
}

fn table_at(gpa: u64) -> &'static Table {
    // SAFETY: CR3 and the entries that are no leaves hold addresses of tables in the image, which is mapped one to one;
    // they are only accessed atomically.
    unsafe { &*ptr::with_exposed_provenance(gpa as usize) }
}
