//! The machine's page frames: one [`FrameAllocator`] for all, which takes no memory for that but what [`init`] gives it.

use crate::paging;
use addr::{Hpa, PAGE_SIZE, PageSize, Pfn};
use buddy::Buddy;
use core::ops::Range;
use memory::FrameAllocator;

/// No frames before [`init`].
pub(crate) static FRAMES: FrameAllocator = FrameAllocator::new();

/// Begins to manage the frames below `top`, with none of them free yet. What that takes is cut off one of the `usable`
/// ranges. None if there is no room below 4 GiB, which is all that the boot tables map.
///
/// # Safety
/// Once; the usable ranges are in no use.
pub(crate) unsafe fn init(usable: &mut [Range<Hpa>], top: Hpa) -> Option<()> {
    let frames = top.raw().div_ceil(PAGE_SIZE) as usize;
    let words = Buddy::words(frames);
    let array = memory::carve(usable, (words * size_of::<u64>()) as u64, paging::BOOT_MAP)?;
    let memory = paging::direct(array).cast::<u64>();
    // SAFETY: the boot tables map the range, which is this array's from now on, and any words are valid ones.
    let memory = unsafe { core::slice::from_raw_parts_mut(memory, words) };
    FRAMES.init(Buddy::new(frames, memory)?);
    Some(())
}

/// Takes a page of `size`, aligned to it. What it holds is undefined.
pub(crate) fn alloc(size: PageSize) -> Option<Pfn> {
    FRAMES.alloc_contiguous(size.frames() as usize)
}
