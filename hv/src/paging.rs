//! The hypervisor's own page tables: a direct map of the machine's memory, and the image in the top 2 GiB.
//!
//! Nothing is both writable and executable: the image's sections have just the rights that their use needs, and its
//! read-only pages are read-only in the direct map too. The lower half stays empty, so a stray null pointer faults.
//!
//! ```text
//! ffff_8000_0000_0000  direct map: physical address + DIRECT_MAP, no execute
//! ffff_ffff_8000_0000  image: .text r-x, .rodata r--, .data and .bss rw-, a hole below the boot stack
//! ```

use addr::{Hpa, PAGE_SIZE, PageSize, Pfn};
use core::fmt;
use core::ops::Range;
use loader::{Region, RegionKind};
use x86::controlregs::{Cr4, cr3, cr3_write, cr4, cr4_write};
use x86::tlb::flush;

/// Where the direct map begins. `boot/entry.s` maps the first 4 GiB there from the start.
const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// What the linker script adds to the image's physical addresses.
const HIGH_HALF: u64 = 0xffff_ffff_8000_0000;
/// What the boot tables map.
pub(crate) const BOOT_MAP: Hpa = Hpa::new(4 << 30);

// Entry bits (Intel SDM vol. 3, table 4-15 onwards; AMD APM vol. 2, section 5.3).
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const CACHE_DISABLE: u64 = 1 << 4;
const LEAF: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

unsafe extern "C" {
    static image_start: u8;
    static text_start: u8;
    static text_end: u8;
    static rodata_end: u8;
    static image_end: u8;
    static boot_stack_guard: u8;
}

/// The address of a linker symbol; only its address means something.
macro_rules! symbol {
    ($name:ident) => {
        &raw const $name as u64
    };
}

/// The physical range of the image as it was loaded, with the code that ran before paging.
pub(crate) fn image() -> Range<Hpa> {
    Hpa::new(symbol!(image_start))..Hpa::new(symbol!(image_end) - HIGH_HALF)
}

/// Whether `address` lies in the image's writable part, with 16 bytes to spare.
pub(crate) fn is_image_data(address: u64) -> bool {
    (symbol!(rodata_end)..symbol!(image_end) - 16).contains(&address) && !in_guard(address)
}

fn in_guard(address: u64) -> bool {
    (symbol!(boot_stack_guard)..symbol!(boot_stack_guard) + PAGE_SIZE).contains(&address)
}

/// The direct map's pointer to `address`.
pub(crate) fn direct(address: Hpa) -> *mut u8 {
    (address.raw() + DIRECT_MAP) as *mut u8
}

/// The physical address behind a pointer into the image or the direct map (the heap is in one of them).
pub(crate) fn physical<T>(pointer: *const T) -> Hpa {
    let address = pointer as u64;
    Hpa::new(if address >= HIGH_HALF { address - HIGH_HALF } else { address - DIRECT_MAP })
}

/// There was no frame for a table.
#[derive(Debug)]
pub(crate) struct OutOfFrames;

impl fmt::Display for OutOfFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not enough memory for the hypervisor's page tables")
    }
}

type Table = [u64; 512];

/// Takes a page of this size that nothing else uses, and that the boot tables map.
pub(crate) type AllocFrame = fn(PageSize) -> Option<Pfn>;

fn new_table(alloc: AllocFrame) -> Result<Hpa, OutOfFrames> {
    let table = alloc(PageSize::Size4K).ok_or(OutOfFrames)?.start();
    // SAFETY: the frame is in no other use, and within the boot tables' direct map.
    unsafe { direct(table).write_bytes(0, PAGE_SIZE as usize) };
    Ok(table)
}

/// The tables under construction; used by no processor until `install`.
struct Builder {
    root: Hpa,
    alloc: AllocFrame,
}

impl Builder {
    fn table(&mut self, table: Hpa) -> &mut Table {
        // SAFETY: `table` came from `new_table`, no software but this uses it, and the borrow of `self` makes this the only
        // reference. A processor that walks it reads whole entries.
        unsafe { &mut *direct(table).cast::<Table>() }
    }

    /// Maps the page at `address`; a page mapped before is mapped anew.
    #[cold]
    fn map(&mut self, address: u64, to: Hpa, size: PageSize, flags: u64) -> Result<(), OutOfFrames> {
        let mut table = self.root;
        for shift in [39, 30, 21, 12] {
            let index = (address >> shift) as usize & 511;
            if shift == size.shift() {
                let leaf = if size == PageSize::Size4K { 0 } else { LEAF };
                self.table(table)[index] = to.raw() | flags | leaf | PRESENT;
                return Ok(());
            }
            let entry = self.table(table)[index];
            table = if entry & PRESENT != 0 {
                Hpa::new(entry & ADDRESS)
            } else {
                let below = new_table(self.alloc)?;
                self.table(table)[index] = below.raw() | PRESENT | WRITABLE;
                below
            };
        }
        Ok(())
    }

    /// The rights of the image's page at `address` (high half), as its section says; None is the hole below the stack.
    fn image_rights(address: u64) -> Option<u64> {
        match address {
            _ if in_guard(address) => None,
            _ if address < symbol!(text_end) => Some(0),
            _ if address < symbol!(rodata_end) => Some(NO_EXECUTE),
            _ => Some(WRITABLE | NO_EXECUTE),
        }
    }

    fn map_image(&mut self) -> Result<(), OutOfFrames> {
        for page in (symbol!(text_start)..symbol!(image_end)).step_by(PAGE_SIZE as usize) {
            if let Some(rights) = Self::image_rights(page) {
                self.map(page, Hpa::new(page - HIGH_HALF), PageSize::Size4K, rights | GLOBAL)?;
            }
        }
        Ok(())
    }

    /// Maps the 2 MiB at `start`; in small pages where part of it is the image's read-only part.
    fn map_direct(&mut self, start: Hpa, flags: u64) -> Result<(), OutOfFrames> {
        let end = start.raw() + PageSize::Size2M.bytes();
        let read_only = symbol!(image_start)..symbol!(rodata_end) - HIGH_HALF;
        if end <= read_only.start || start.raw() >= read_only.end {
            return self.map(DIRECT_MAP + start.raw(), start, PageSize::Size2M, flags | WRITABLE);
        }
        for page in (start.raw()..end).step_by(PAGE_SIZE as usize) {
            let write = if read_only.contains(&page) { 0 } else { WRITABLE };
            self.map(DIRECT_MAP + page, Hpa::new(page), PageSize::Size4K, flags | write)?;
        }
        Ok(())
    }
}

/// The regions that have memory behind them; the firmware also reserves addresses that have none.
fn memory(regions: &[Region]) -> impl Iterator<Item = &Range<Hpa>> {
    regions.iter().filter(|region| region.kind != RegionKind::Reserved).map(|region| &region.range)
}

/// The 2 MiB pages that have a part of `start..end`.
fn pages(start: Hpa, end: Hpa) -> impl Iterator<Item = Hpa> {
    let first = start.align_down(PageSize::Size2M.bytes()).raw();
    (first..end.raw()).step_by(PageSize::Size2M.bytes() as usize).map(Hpa::new)
}

/// Takes the page at `page` out of the direct map: an access to it faults.
///
/// # Safety
/// The page is never used again. To be called before another CPU can have a translation of it.
pub(crate) unsafe fn make_guard(page: Hpa, alloc: AllocFrame) -> Result<(), OutOfFrames> {
    let address = DIRECT_MAP + page.raw();
    // SAFETY: reading CR3 has no effect.
    let mut builder = Builder { root: Hpa::new(unsafe { cr3() }), alloc };
    let mut table = builder.root;
    for shift in [39, 30, 21] {
        let index = (address >> shift) as usize & 511;
        let entry = builder.table(table)[index];
        if entry & LEAF != 0 {
            builder.table(table)[index] = split(&mut builder, entry, PageSize::Size2M)? | PRESENT | WRITABLE;
        }
        table = Hpa::new(builder.table(table)[index] & ADDRESS);
    }
    builder.table(table)[(address >> 12) as usize & 511] = 0;
    // SAFETY: drops the old translation.
    unsafe { flush(address as usize) };
    Ok(())
}

/// A table of small pages for what `leaf` maps: its address.
fn split(builder: &mut Builder, leaf: u64, size: PageSize) -> Result<u64, OutOfFrames> {
    let table = new_table(builder.alloc)?;
    let (start, flags) = (leaf & ADDRESS & !(size.bytes() - 1), leaf & !ADDRESS & !LEAF);
    for (page, entry) in (start..).step_by(PAGE_SIZE as usize).zip(builder.table(table)) {
        *entry = page | flags;
    }
    Ok(table.raw())
}

/// Builds the tables for the machine's `regions` of memory and goes over to them.
///
/// What the firmware does not call memory is mapped uncached, up to 4 GiB: device registers live there.
///
/// # Safety
/// Once, on the boot CPU, while the boot tables are in use and nothing refers to the lower half any more.
pub(crate) unsafe fn install(regions: &[Region], alloc: AllocFrame) -> Result<(), OutOfFrames> {
    let mut builder = Builder { root: new_table(alloc)?, alloc };
    builder.map_image()?;
    for start in pages(Hpa::new(0), BOOT_MAP) {
        let end = start.wrapping_add(PageSize::Size2M.bytes());
        let is_memory = memory(regions).any(|range| range.start < end && start < range.end);
        let cache = if is_memory { 0 } else { CACHE_DISABLE };
        builder.map_direct(start, cache | NO_EXECUTE | GLOBAL)?;
    }
    for range in memory(regions) {
        for start in pages(range.start.max(BOOT_MAP), range.end) {
            builder.map_direct(start, NO_EXECUTE | GLOBAL)?;
        }
    }
    // SAFETY: the new tables map the image and the direct map at the same addresses as the boot tables.
    unsafe { cr3_write(builder.root.raw()) };
    // SAFETY: reading CR4 has no effect.
    let features = unsafe { cr4() };
    // SAFETY: global pages are on only now, so none of the boot tables' translations is one.
    unsafe { cr4_write(features | Cr4::CR4_ENABLE_GLOBAL_PAGES) };
    Ok(())
}
