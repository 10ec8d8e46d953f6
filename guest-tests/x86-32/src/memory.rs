//! Memory above the image, which tests map, read and write at will.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Where it begins: at a large page of either kind, behind image and modules.
pub const START: u32 = 8 << 20;
/// Where it ends: a guest has 64 MiB, unless told otherwise.
pub const END: u32 = 48 << 20;

/// A page of it, to be read and written by physical address: without paging, or in the map that is one to one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page(u32);

impl Page {
    /// The page at `address`.
    pub fn new(address: u32) -> Self {
        assert!(address.is_multiple_of(4096) && (START..END).contains(&address), "{address:#x} is no free page");
        Self(address)
    }

    /// Its physical address.
    pub const fn address(self) -> u32 {
        self.0
    }

    /// A doubleword of it.
    pub fn dword(self, index: usize) -> &'static AtomicU32 {
        assert!(index < 1024);
        // SAFETY: above the image and below the end of RAM there is no Rust object but such atomics.
        unsafe { &*ptr::with_exposed_provenance(self.0 as usize + 4 * index) }
    }

    /// A quadword of it.
    pub fn qword(self, index: usize) -> &'static AtomicU64 {
        assert!(index < 512);
        // SAFETY: as above.
        unsafe { &*ptr::with_exposed_provenance(self.0 as usize + 8 * index) }
    }

    /// Fills it with zeroes.
    pub fn clear(self) {
        (0..1024).for_each(|index| self.dword(index).store(0, Relaxed));
    }

    /// Copies `bytes` to `offset`.
    pub fn write(self, offset: usize, bytes: &[u8]) {
        for (index, &byte) in bytes.iter().enumerate() {
            let (dword, shift) = (self.dword((offset + index) / 4), (offset + index) % 4 * 8);
            dword.store(dword.load(Relaxed) & !(0xff << shift) | u32::from(byte) << shift, Relaxed);
        }
    }
}

/// Pages of it that are free.
pub struct Pages {
    /// The first page that was never given out.
    next: u32,
    /// The first of those that came back; each names the next one in its first doubleword.
    free: Option<Page>,
    taken: usize,
}

impl Pages {
    /// From `start` on.
    pub const fn from(start: u32) -> Self {
        Self { next: start, free: None, taken: 0 }
    }

    /// A page, cleared.
    pub fn take(&mut self) -> Page {
        let page = self.free.unwrap_or(Page(self.next));
        if self.free.is_some() {
            let next = page.dword(0).load(Relaxed);
            self.free = (next != 0).then_some(Page(next));
        } else {
            self.next += 4096;
        }
        self.taken += 1;
        let page = Page::new(page.0);
        page.clear();
        page
    }

    /// Gives back what [`take`](Self::take) gave.
    pub fn give(&mut self, page: Page) {
        page.dword(0).store(self.free.map_or(0, Page::address), Relaxed);
        self.free = Some(page);
        self.taken -= 1;
    }

    /// How many are taken.
    pub const fn taken(&self) -> usize {
        self.taken
    }
}

/// Reads four bytes at a linear address, by one instruction.
pub fn load(linear: u32) {
    // SAFETY: it only reads.
    unsafe { asm!("mov {0:e}, [{0:e}]", inout(reg) linear => _, options(nostack, preserves_flags, readonly)) };
}

/// Writes four bytes at a linear address that leads to free memory, or nowhere.
pub fn store(linear: u32, value: u32) {
    // SAFETY: there is no Rust object that this could write.
    unsafe { asm!("mov [{0:e}], {1:e}", in(reg) linear, in(reg) value, options(nostack, preserves_flags)) };
}

/// Calls what is at a linear address, which may change EAX and returns; what EAX is then.
pub fn call(linear: u32) -> u32 {
    let value;
    // SAFETY: it comes back at once, having changed nothing but EAX, or faults.
    unsafe { asm!("call eax", inout("eax") linear => value) };
    value
}

/// Four bytes at a linear address, by one instruction.
pub fn peek(linear: u32) -> u32 {
    let value;
    // SAFETY: it only reads.
    unsafe { asm!("mov {1:e}, [{0:e}]", in(reg) linear, out(reg) value, options(nostack, preserves_flags, readonly)) };
    value
}
