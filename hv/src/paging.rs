//! The hypervisor's own page tables, which [`direct_map`] writes, on this machine.

use addr::{Hpa, PAGE_SIZE, PageSize, Pfn};
use core::ops::Range;
pub(crate) use direct_map::OutOfFrames;
use direct_map::{Builder, DEVICES_END, Frames, HIGH_HALF, Image, Table};
use x86::controlregs::{Cr4, cr3, cr3_write, cr4, cr4_write};
use x86::tlb::flush;

/// What the boot tables map: `boot/entry.s` maps the first 4 GiB in the direct map from the start.
pub(crate) const BOOT_MAP: Hpa = DEVICES_END;

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

fn sections() -> Image {
    Image {
        loaded: symbol!(image_start) + HIGH_HALF,
        start: symbol!(text_start),
        text_end: symbol!(text_end),
        rodata_end: symbol!(rodata_end),
        guard: symbol!(boot_stack_guard),
        end: symbol!(image_end),
    }
}

/// Whether 16 bytes at `address` are in the image's writable part.
pub(crate) fn is_image_data(address: u64) -> bool {
    sections().is_data(address, 16)
}

/// The direct map's pointer to `address`.
pub(crate) fn direct(address: Hpa) -> *mut u8 {
    direct_map::linear(address) as *mut u8
}

/// The physical address behind a pointer into the image or the direct map (the heap is in one of them).
pub(crate) fn physical<T>(pointer: *const T) -> Hpa {
    direct_map::physical(pointer as u64)
}

/// Takes a page of this size that nothing else uses, and that the boot tables map.
pub(crate) type AllocFrame = fn(PageSize) -> Option<Pfn>;

/// Frames that the current direct map covers.
struct Direct(AllocFrame);

impl Frames for Direct {
    fn alloc(&mut self) -> Option<Hpa> {
        let table = self.0(PageSize::Size4K)?.start();
        // SAFETY: the frame is in no other use, and within the boot tables' direct map.
        unsafe { direct(table).write_bytes(0, PAGE_SIZE as usize) };
        Some(table)
    }

    fn table(&mut self, table: Hpa) -> &mut Table {
        // SAFETY: `table` came from `alloc`, now or when the current tables were built, no software but the one builder uses it, and
        // the borrow of `self` makes this the only reference. A processor that walks it reads whole entries.
        unsafe { &mut *direct(table).cast::<Table>() }
    }
}

/// Takes the page at `page` out of the direct map: an access to it faults.
///
/// # Safety
/// The page is never used again. To be called before another CPU can have a translation of it.
pub(crate) unsafe fn make_guard(page: Hpa, alloc: AllocFrame) -> Result<(), OutOfFrames> {
    // SAFETY: reading CR3 has no effect.
    let root = Hpa::new(unsafe { cr3() });
    let address = Builder::at(root, Direct(alloc), sections()).unmap_guard(page)?;
    // SAFETY: drops the old translation.
    unsafe { flush(address as usize) };
    Ok(())
}

/// Builds the tables for these ranges of memory and goes over to them.
///
/// # Safety
/// Once, on the boot CPU, while the boot tables are in use and nothing refers to the lower half any more.
pub(crate) unsafe fn install(memory: &[Range<Hpa>], alloc: AllocFrame) -> Result<(), OutOfFrames> {
    let mut builder = Builder::new(Direct(alloc), sections())?;
    builder.map_image()?;
    builder.map_memory(memory)?;
    // SAFETY: the new tables map the image and the direct map at the same addresses as the boot tables.
    unsafe { cr3_write(builder.root().raw()) };
    // SAFETY: reading CR4 has no effect.
    let features = unsafe { cr4() };
    // SAFETY: global pages are on only now, so none of the boot tables' translations is one.
    unsafe { cr4_write(features | Cr4::CR4_ENABLE_GLOBAL_PAGES) };
    Ok(())
}
