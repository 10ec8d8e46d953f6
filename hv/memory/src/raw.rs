//! Raw access to page frames: the one file that reads and writes what the direct map points to.
//!
//! # Soundness
//! A guest's vCPUs write its memory at any moment, also while the hypervisor reads or writes the same bytes. For the language a
//! plain load or store of such bytes is a data race, whose behaviour is undefined, and a reference to them claims that they do not
//! change. So:
//!
//! - **Guest memory is never referenced.** There is no `&[u8]` and no `&mut [u8]` of it. What there is, is a [`DirectPtr`], which
//!   has no way to a reference.
//! - **It is copied by instructions of the processor's own** (`rep movs`, `rep stos`, `mov` in `asm!`), as Linux's
//!   `copy_from_user` does. To the compiler such a block is like another processor's access: it assumes nothing of the bytes. A
//!   copy that races with a guest's store has, of each byte, what was there before or after; which of them is the guest's
//!   affair.
//! - **Single words are accessed as atomics**, by a reference that lives for that operation alone, where the guest's own accesses
//!   are atomic to it: entries of its page tables, and bits that other CPUs set at the same time.
//! - **A frame is of one kind at a time.** Tables of the hypervisor's ([`table`]) are arrays of atomics in frames that no guest can
//!   reach. A frame that leaves a guest or a tree waits for a grace period, in which every CPU forgets its pointers, before it
//!   becomes anything else. A [`DirectPtr`] that is kept from slice to slice is not used once the tree's flush generation has
//!   moved on (see `View::host`).
//!
//! What a caller of an `unsafe` function here promises is always the same: the frame came from the host's
//! [`FrameAllocator`](crate::FrameAllocator), by a VM's pool, and the VM still has it.

use crate::host::HostMemory;
use crate::sync::access_point;
use addr::{Hpa, PAGE_SIZE, Pfn};
use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use core::{fmt, ptr};

/// Where in the direct map a byte of a VM's frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DirectPtr(*mut u8);

impl fmt::Debug for DirectPtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Pointer::fmt(&self.0, f)
    }
}

impl DirectPtr {
    /// A pointer to nothing, to fill a table with. It is never read from: it belongs to no page.
    pub(crate) const NONE: Self = Self(ptr::null_mut());

    /// Where `at` is.
    ///
    /// # Safety
    /// `at` is in a frame that a VM has from its pool, or had: the latter may be read, and what is read means nothing.
    #[inline]
    pub(crate) unsafe fn new<H: HostMemory>(host: &H, at: Hpa) -> Self {
        Self(host.direct(at))
    }

    /// The byte at `offset` bytes from here, in the same page.
    #[inline]
    pub(crate) const fn add(self, offset: u64) -> Self {
        Self(self.0.wrapping_byte_add(offset as usize))
    }

    /// The byte at `offset` bytes before this one, in the same page.
    #[inline]
    pub(crate) const fn sub(self, offset: u64) -> Self {
        Self(self.0.wrapping_byte_sub(offset as usize))
    }

    /// The aligned word here.
    #[inline]
    pub(crate) fn load_u64(self) -> u64 {
        self.atomic::<AtomicU64>().load(Ordering::Acquire)
    }

    /// The aligned half-word here.
    #[inline]
    pub(crate) fn load_u32(self) -> u32 {
        self.atomic::<AtomicU32>().load(Ordering::Acquire)
    }

    /// The four bytes here, which need not be aligned, and lie in one page.
    #[inline]
    pub(crate) fn load_u32_unaligned(self) -> u32 {
        let word: u32;
        // SAFETY: a load from a frame, which the direct map covers; the guest's stores may come in between its bytes.
        unsafe {
            asm!("mov {:e}, [{}]", out(reg) word, in(reg) self.0, options(nostack, readonly, preserves_flags));
        }
        word
    }

    /// Replaces the aligned word here if it is `old`; whether it was.
    pub(crate) fn compare_exchange_u64(self, old: u64, new: u64) -> bool {
        self.atomic::<AtomicU64>().compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Replaces the aligned half-word here if it is `old`; whether it was.
    pub(crate) fn compare_exchange_u32(self, old: u32, new: u32) -> bool {
        self.atomic::<AtomicU32>().compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Sets the bits of `mask` in the byte here.
    pub(crate) fn set_bits(self, mask: u8) {
        self.atomic::<AtomicU8>().fetch_or(mask, Ordering::Relaxed);
    }

    /// Callers pass bytes of one page. The next page of the direct map may be another VM's.
    #[inline]
    fn check_page(self, bytes: usize) {
        debug_assert!(self.0.addr() % PAGE_SIZE as usize + bytes <= PAGE_SIZE as usize, "bytes of one page");
    }

    /// An atomic of the processor's own, for one operation.
    #[inline]
    fn atomic<A: Atomic>(&self) -> &A {
        access_point();
        debug_assert!(self.0.cast::<A>().is_aligned());
        // SAFETY: the direct map covers the frame, whichever VM has it; the address is aligned; everything that accesses the word
        // at the same time does so atomically: other CPUs by this function, guests by their processors' own accesses.
        unsafe { &*self.0.cast::<A>() }
    }

    /// Copies the bytes from here on, all in one page, to `to`.
    #[inline]
    pub(crate) fn read(self, to: &mut [u8]) {
        self.check_page(to.len());
        // SAFETY: the bytes from here on are in a frame, which the direct map covers; `to` can be written.
        unsafe { copy(self.0, to.as_mut_ptr(), to.len()) };
    }

    /// Copies `from` to the bytes from here on, all in one page.
    #[inline]
    pub(crate) fn write(self, from: &[u8]) {
        self.check_page(from.len());
        // SAFETY: as in `read`, the other way.
        unsafe { copy(from.as_ptr(), self.0, from.len()) };
    }

    /// Makes `bytes` bytes from here on zero, all in one page.
    pub(crate) fn write_zeroes(self, bytes: usize) {
        self.check_page(bytes);
        access_point();
        // SAFETY: the bytes from here on are in a frame, which the direct map covers; the direction flag is clear in Rust code.
        // `mov` changes no flag.
        unsafe {
            asm!("rep stosq", "mov ecx, {rest:e}", "rep stosb", rest = in(reg) bytes % 8, inout("rcx") bytes / 8 => _,
                inout("rdi") self.0 => _, in("rax") 0_u64, options(nostack, preserves_flags));
        }
    }
}

/// Types that [`DirectPtr::atomic`] makes references to.
trait Atomic {}

impl Atomic for AtomicU8 {}
impl Atomic for AtomicU32 {}
impl Atomic for AtomicU64 {}

/// Copies by words, and then the bytes that are left.
///
/// # Safety
/// `bytes` bytes can be read at `from` and written at `to`, apart from each other.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    access_point();
    // SAFETY: the caller's promise; the direction flag is clear in Rust code. `mov` changes no flag.
    unsafe {
        asm!("rep movsq", "mov ecx, {rest:e}", "rep movsb", rest = in(reg) bytes % 8, inout("rcx") bytes / 8 => _,
            inout("rsi") from => _, inout("rdi") to => _, options(nostack, preserves_flags));
    }
}

/// Fills the bytes `range` of a page that begins with `frame` with `word`, eight bytes at a time.
///
/// # Safety
/// The page is a VM's, by its pool, and no CPU can reach it: no entry leads to it yet, or its grace period is over. The range's
/// ends are multiples of 8.
#[inline]
pub(crate) unsafe fn fill<H: HostMemory>(host: &H, frame: Pfn, range: Range<u64>, word: u64) {
    let start = host.direct(frame.start().wrapping_add(range.start));
    // SAFETY: the caller's promise, and the host's, that its direct map covers the page; the direction flag is clear in Rust code.
    unsafe {
        asm!("rep stosq", inout("rdi") start => _, inout("rcx") (range.end - range.start) / 8 => _, in("rax") word,
            options(nostack, preserves_flags));
    }
}

/// Copies 4 KiB.
///
/// # Safety
/// Both frames are a VM's, by its pool. Nothing writes `from`, as its entry is frozen, and no entry leads to `to` yet.
pub(crate) unsafe fn copy_page<H: HostMemory>(host: &H, from: Pfn, to: Pfn) {
    // SAFETY: the caller's promise, and the host's, that its direct map covers both.
    unsafe { copy(host.direct(from.start()), host.direct(to.start()), PAGE_SIZE as usize) };
}

/// The table in frame `table`, if a table can be there.
#[cfg(not(shuttle))]
#[inline]
pub(crate) fn table<'m, H: HostMemory>(
    host: &'m H,
    descriptors: &[mmu::TableDesc],
    table: Pfn,
) -> Option<&'m [AtomicU64; 512]> {
    if table.raw() >= descriptors.len() as u64 {
        return None;
    }
    // SAFETY: the direct map covers a frame that has a descriptor, as long as the host lives. That it is a table is for the tree
    // to know, whose entries lead to nothing else, and everything that takes it for one accesses it by atomics.
    Some(unsafe { &*host.direct(table.start()).cast() })
}

/// The table in frame `table`, if a table can be there.
#[cfg(shuttle)]
pub(crate) fn table<'m, H: HostMemory>(
    host: &'m H,
    _: &[mmu::TableDesc],
    table: Pfn,
) -> Option<&'m [mmu::AtomicU64; 512]> {
    host.table(table)
}
