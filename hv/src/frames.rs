//! The machine's page frames.
//!
//! One buddy allocator holds them all. A VM takes its small frames through a [`Pool`] of its own, so that a fault finds one by
//! a pop from a stack, under no lock that another VM could hold.

use addr::{Hpa, PAGE_SHIFT, PageSize, Pfn};
use alloc::vec::Vec;
use buddy_system_allocator::FrameAllocator;
use spin::Mutex;

/// The largest block is 1 GiB.
const ORDERS: usize = (PageSize::Size1G.shift() - PAGE_SHIFT) as usize + 1;

static FRAMES: Mutex<FrameAllocator<ORDERS>> = Mutex::new(FrameAllocator::new());

/// Gives the frames that lie wholly within `start..end` to the allocator.
pub(crate) fn add(start: Hpa, end: Hpa) {
    let first = start.raw().div_ceil(addr::PAGE_SIZE) as usize;
    let last = (end.raw() >> PAGE_SHIFT) as usize;
    if first < last {
        FRAMES.lock().add_frame(first, last);
    }
}

/// Takes `frames` frames, rounded up to a power of two and aligned to that.
pub(crate) fn alloc_contiguous(frames: usize) -> Option<Pfn> {
    FRAMES.lock().alloc(frames).map(|frame| Pfn::new(frame as u64))
}

/// Takes a page of `size`, aligned to it. What it holds is anybody's guess.
pub(crate) fn alloc(size: PageSize) -> Option<Pfn> {
    alloc_contiguous(size.frames() as usize)
}

/// Gives back what [`alloc`] gave.
pub(crate) fn free(frame: Pfn, size: PageSize) {
    FRAMES.lock().dealloc(frame.raw() as usize, size.frames() as usize);
}

/// One VM's frames, counted.
#[derive(Default)]
pub(crate) struct Pool {
    small: Vec<Pfn>,
    /// Small frames that hold zeroes already: the stock that faults are served from.
    zeroed: Vec<Pfn>,
    outstanding: u64,
    peak: u64,
}

/// A pool takes and gives back small frames by as many at a time.
const BATCH: usize = PageSize::Size2M.frames() as usize;

/// Zeroed frames that a pool keeps at most: 8 MiB.
const STOCK: usize = 4 * BATCH;

impl Pool {
    /// An empty pool.
    pub(crate) fn new() -> Self {
        Self { small: Vec::with_capacity(2 * BATCH), zeroed: Vec::with_capacity(STOCK), ..Self::default() }
    }

    /// Takes a page of `size`.
    #[inline]
    pub(crate) fn alloc(&mut self, size: PageSize) -> Option<Pfn> {
        let frame = match size {
            PageSize::Size4K => self.alloc_small(),
            _ => alloc(size),
        }?;
        self.count(size);
        Some(frame)
    }

    /// Takes a small frame from the stock, if there is one: it holds zeroes.
    #[inline]
    pub(crate) fn alloc_zeroed(&mut self) -> Option<Pfn> {
        let frame = self.zeroed.pop()?;
        self.count(PageSize::Size4K);
        Some(frame)
    }

    /// A frame that the stock has room for: to be filled with zeroes, and given to [`stock`](Self::stock).
    pub(crate) fn alloc_for_stock(&mut self) -> Option<Pfn> {
        if self.zeroed.len() < STOCK { self.alloc_small() } else { None }
    }

    /// Adds a frame that holds zeroes to the stock.
    pub(crate) fn stock(&mut self, frame: Pfn) {
        self.zeroed.push(frame);
    }

    #[inline]
    fn count(&mut self, size: PageSize) {
        self.outstanding += size.frames();
        self.peak = self.peak.max(self.outstanding);
    }

    #[inline]
    fn alloc_small(&mut self) -> Option<Pfn> {
        match self.small.pop() {
            Some(frame) => Some(frame),
            None => self.refill(),
        }
    }

    /// A batch where there is one, else single frames to the last.
    #[cold]
    fn refill(&mut self) -> Option<Pfn> {
        match alloc(PageSize::Size2M) {
            Some(block) => self.small.extend((0..BATCH as u64).rev().map(|index| block.add(index))),
            None => return alloc(PageSize::Size4K),
        }
        self.small.pop()
    }

    /// Gives a page back.
    pub(crate) fn free(&mut self, frame: Pfn, size: PageSize) {
        self.outstanding -= size.frames();
        if size == PageSize::Size4K && self.small.len() < self.small.capacity() {
            self.small.push(frame);
        } else {
            free(frame, size);
        }
    }

    /// Frames in use now: 0 after the VM's end, or there is a leak.
    pub(crate) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// The most frames that were in use at once.
    pub(crate) fn peak(&self) -> u64 {
        self.peak
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let all = self.small.drain(..).chain(self.zeroed.drain(..));
        all.for_each(|frame| free(frame, PageSize::Size4K));
    }
}
