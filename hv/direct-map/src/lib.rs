//! The hypervisor's own page tables: a direct map of the machine's memory, and the image in the top 2 GiB.
//!
//! Nothing is both writable and executable: the image's sections have just the rights that their use needs, and its
//! read-only pages are read-only in the direct map too. The lower half stays empty, so that a stray null pointer faults.
//!
//! ```text
//! ffff_8000_0000_0000  direct map: physical address + DIRECT_MAP, no execute
//! ffff_ffff_8000_0000  image: .text r-x, .rodata r--, .data and .bss rw-, a hole below the boot stack
//! ```
//!
//! The crate writes tables by [`Frames`], which the image implements over the boot tables' direct map, and tests over the heap.
//!
//! ```
//! use addr::Hpa;
//! use direct_map::{Builder, Frames, Image, HIGH_HALF, Table};
//! use std::collections::BTreeMap;
//!
//! struct Heap(BTreeMap<u64, Box<Table>>);
//! impl Frames for Heap {
//!     fn alloc(&mut self) -> Option<Hpa> {
//!         let at = (self.0.len() as u64 + 1) << 12;
//!         self.0.insert(at, Box::new([0; 512]));
//!         Some(Hpa::new(at))
//!     }
//!     fn table(&mut self, table: Hpa) -> &mut Table {
//!         self.0.get_mut(&table.raw()).unwrap()
//!     }
//! }
//!
//! // An image at 1 MiB: a page of code before paging, one of code, one of constants, and the stack's guard, stack and data.
//! let at = |page: u64| HIGH_HALF + (1 << 20) + (page << 12);
//! let image = Image { loaded: at(0), start: at(1), text_end: at(2), rodata_end: at(3), guard: at(3), end: at(6) };
//! let mut builder = Builder::new(Heap(BTreeMap::new()), image).unwrap();
//! builder.map_image().unwrap();
//! builder.map_memory(&[Hpa::new(0)..Hpa::new(8 << 20)]).unwrap();
//! let _cr3 = builder.root();
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;

use addr::{Hpa, PAGE_SIZE, PageSize};
use arch::paging::{ADDRESS, CACHE_DISABLE, GLOBAL, LARGE, NO_EXECUTE, PRESENT, WRITABLE};
use core::fmt;
use core::ops::Range;

/// Where the direct map begins.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// What the linker script adds to the image's physical addresses.
pub const HIGH_HALF: u64 = 0xffff_ffff_8000_0000;
/// Below this, what is no memory is mapped as well, uncached: device registers are there.
pub const DEVICES_END: Hpa = Hpa::new(4 << 30);

/// The linear address of `at` in the direct map.
///
/// ```
/// use addr::Hpa;
/// assert_eq!(direct_map::physical(direct_map::linear(Hpa::new(0x1000))), Hpa::new(0x1000));
/// ```
#[inline]
#[must_use]
pub const fn linear(at: Hpa) -> u64 {
    at.raw() + DIRECT_MAP
}

/// The physical address behind `address`, which is in the image or in the direct map.
#[inline]
#[must_use]
pub const fn physical(address: u64) -> Hpa {
    Hpa::new(if address >= HIGH_HALF { address - HIGH_HALF } else { address - DIRECT_MAP })
}

/// Whether the tables that the hypervisor boots with, which map the first 4 GiB, map all of these bytes.
#[must_use]
pub fn is_boot_mapped(at: Hpa, bytes: u64) -> bool {
    at.checked_add(bytes).is_some_and(|end| end <= DEVICES_END)
}

/// A table: 512 entries.
pub type Table = [u64; 512];

/// The frames that hold the tables.
pub trait Frames {
    /// A frame of zeroes that nothing else uses.
    fn alloc(&mut self) -> Option<Hpa>;
    /// The table in a frame that [`alloc`](Self::alloc) has given out, or that entries of the current tables refer to.
    fn table(&mut self, table: Hpa) -> &mut Table;
}

/// There was no frame for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfFrames;

impl fmt::Display for OutOfFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not enough memory for the hypervisor's page tables")
    }
}

impl core::error::Error for OutOfFrames {}

/// The image's sections, by linear addresses in the high half; all edges are aligned to pages.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// The first byte that was loaded: code that ran before paging, up to `start`. It is in the direct map alone.
    pub loaded: u64,
    /// The first byte that is mapped: code, up to `text_end`.
    pub start: u64,
    /// The end of the code, and the beginning of constants.
    pub text_end: u64,
    /// The end of constants, and the beginning of what is written.
    pub rodata_end: u64,
    /// The page below the boot stack, which is left out.
    pub guard: u64,
    /// The end.
    pub end: u64,
}

impl Image {
    /// Whether `address` is in the page below the boot stack.
    #[must_use]
    pub const fn is_in_guard(&self, address: u64) -> bool {
        self.guard <= address && address < self.guard + PAGE_SIZE
    }

    /// Whether `bytes` bytes at `address` are in the writable part.
    #[must_use]
    pub const fn is_data(&self, address: u64, bytes: u64) -> bool {
        self.rodata_end <= address && address <= self.end - bytes && !self.is_in_guard(address)
    }

    /// The physical addresses of what is never written.
    const fn read_only(&self) -> Range<u64> {
        self.loaded - HIGH_HALF..self.rodata_end - HIGH_HALF
    }

    /// The rights of the page at `address`; None is the guard.
    fn rights(&self, address: u64) -> Option<u64> {
        match address {
            _ if self.is_in_guard(address) => None,
            _ if address < self.text_end => Some(0),
            _ if address < self.rodata_end => Some(NO_EXECUTE),
            _ => Some(WRITABLE | NO_EXECUTE),
        }
    }
}

/// Tables under construction, or changed while no other CPU walks them.
#[derive(Debug)]
pub struct Builder<F> {
    root: Hpa,
    frames: F,
    image: Image,
}

impl<F: Frames> Builder<F> {
    /// Empty tables.
    ///
    /// # Errors
    /// [`OutOfFrames`], as from all that follows.
    pub fn new(mut frames: F, image: Image) -> Result<Self, OutOfFrames> {
        let root = frames.alloc().ok_or(OutOfFrames)?;
        Ok(Self { root, frames, image })
    }

    /// The tables whose root is at `root`, to be changed.
    pub const fn at(root: Hpa, frames: F, image: Image) -> Self {
        Self { root, frames, image }
    }

    /// The root, for CR3.
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// Maps the image in the high half.
    ///
    /// # Errors
    /// [`OutOfFrames`].
    pub fn map_image(&mut self) -> Result<(), OutOfFrames> {
        for page in (self.image.start..self.image.end).step_by(PAGE_SIZE as usize) {
            if let Some(rights) = self.image.rights(page) {
                self.map(page, Hpa::new(page - HIGH_HALF), PageSize::Size4K, rights | GLOBAL)?;
            }
        }
        Ok(())
    }

    /// Maps these ranges of memory in the direct map, by pages of 2 MiB that may reach beyond them, and all else below
    /// [`DEVICES_END`] uncached.
    ///
    /// # Errors
    /// [`OutOfFrames`].
    pub fn map_memory(&mut self, memory: &[Range<Hpa>]) -> Result<(), OutOfFrames> {
        for start in pages(Hpa::new(0), DEVICES_END) {
            let end = start.wrapping_add(PageSize::Size2M.bytes());
            let is_memory = memory.iter().any(|range| range.start < end && start < range.end);
            let cache = if is_memory { 0 } else { CACHE_DISABLE };
            self.map_direct(start, cache | NO_EXECUTE | GLOBAL)?;
        }
        for range in memory {
            for start in pages(range.start.max(DEVICES_END), range.end) {
                self.map_direct(start, NO_EXECUTE | GLOBAL)?;
            }
        }
        Ok(())
    }

    /// Takes the page at `page` out of the direct map, where it is mapped: an access to it faults. Returns its linear address, of
    /// which the caller flushes the translation.
    ///
    /// # Errors
    /// [`OutOfFrames`].
    pub fn unmap_guard(&mut self, page: Hpa) -> Result<u64, OutOfFrames> {
        let address = DIRECT_MAP + page.raw();
        let mut table = self.root;
        for shift in [39, 30, 21] {
            let index = index(address, shift);
            let entry = self.frames.table(table)[index];
            if entry & LARGE != 0 {
                let below = self.split(entry, PageSize::Size2M)?;
                self.frames.table(table)[index] = below.raw() | PRESENT | WRITABLE;
            }
            table = Hpa::new(self.frames.table(table)[index] & ADDRESS);
        }
        self.frames.table(table)[index(address, 12)] = 0;
        Ok(address)
    }

    /// Maps the page at `address`; a page mapped before is mapped anew.
    fn map(&mut self, address: u64, to: Hpa, size: PageSize, flags: u64) -> Result<(), OutOfFrames> {
        let mut table = self.root;
        for shift in [39, 30, 21, 12] {
            let index = index(address, shift);
            if shift == size.shift() {
                let leaf = if size == PageSize::Size4K { 0 } else { LARGE };
                self.frames.table(table)[index] = to.raw() | flags | leaf | PRESENT;
                return Ok(());
            }
            let entry = self.frames.table(table)[index];
            table = if entry & PRESENT != 0 {
                Hpa::new(entry & ADDRESS)
            } else {
                let below = self.frames.alloc().ok_or(OutOfFrames)?;
                self.frames.table(table)[index] = below.raw() | PRESENT | WRITABLE;
                below
            };
        }
        Ok(())
    }

    /// Maps the 2 MiB at `start`; in small pages where part of it is the image's read-only part.
    fn map_direct(&mut self, start: Hpa, flags: u64) -> Result<(), OutOfFrames> {
        let end = start.raw() + PageSize::Size2M.bytes();
        let read_only = self.image.read_only();
        if end <= read_only.start || start.raw() >= read_only.end {
            return self.map(DIRECT_MAP + start.raw(), start, PageSize::Size2M, flags | WRITABLE);
        }
        for page in (start.raw()..end).step_by(PAGE_SIZE as usize) {
            let write = if read_only.contains(&page) { 0 } else { WRITABLE };
            self.map(DIRECT_MAP + page, Hpa::new(page), PageSize::Size4K, flags | write)?;
        }
        Ok(())
    }

    /// A table of small pages for what `leaf` maps.
    fn split(&mut self, leaf: u64, size: PageSize) -> Result<Hpa, OutOfFrames> {
        let table = self.frames.alloc().ok_or(OutOfFrames)?;
        let (start, flags) = (leaf & ADDRESS & !(size.bytes() - 1), leaf & !ADDRESS & !LARGE);
        for (page, entry) in (start..).step_by(PAGE_SIZE as usize).zip(self.frames.table(table)) {
            *entry = page | flags;
        }
        Ok(table)
    }
}

const fn index(address: u64, shift: u32) -> usize {
    (address >> shift) as usize & 511
}

/// The 2 MiB pages that have a part of `start..end`.
fn pages(start: Hpa, end: Hpa) -> impl Iterator<Item = Hpa> {
    let first = start.align_down(PageSize::Size2M.bytes()).raw();
    (first..end.raw()).step_by(PageSize::Size2M.bytes() as usize).map(Hpa::new)
}
