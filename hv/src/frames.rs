//! The machine's page frames.
//!
//! One buddy allocator holds them all. A VM takes its small frames through a [`Pool`] of its own, so that a fault finds one by
//! a pop from a stack, under no lock that another VM could hold.

use addr::{Hpa, PAGE_SHIFT, PageSize, Pfn};
use alloc::vec::Vec;
use buddy_system_allocator::FrameAllocator;
use core::sync::atomic::{AtomicUsize, Ordering};
use spin::Mutex;

/// The largest block is 1 GiB.
const ORDERS: usize = (PageSize::Size1G.shift() - PAGE_SHIFT) as usize + 1;

static FRAMES: Mutex<FrameAllocator<ORDERS>> = Mutex::new(FrameAllocator::new());

/// Frames below 4 GiB, kept back for the roots of shadow tables: outside of long mode, CR3 has 32 bits.
static ROOTS: Mutex<FrameAllocator<ORDERS>> = Mutex::new(FrameAllocator::new());
/// The number of the first of them.
static FIRST_ROOT: AtomicUsize = AtomicUsize::new(usize::MAX);
/// How many they are: 1 MiB.
const ROOT_FRAMES: usize = 256;
const END_OF_ROOTS: usize = (1 << 32) >> PAGE_SHIFT;

/// Gives the frames that lie wholly within `start..end` to the allocator.
pub(crate) fn add(start: Hpa, end: Hpa) {
    let mut first = start.raw().div_ceil(addr::PAGE_SIZE) as usize;
    let last = (end.raw() >> PAGE_SHIFT) as usize;
    let has_roots = FIRST_ROOT.load(Ordering::Relaxed) != usize::MAX;
    if !has_roots && last > first + 2 * ROOT_FRAMES && first + ROOT_FRAMES <= END_OF_ROOTS {
        FIRST_ROOT.store(first, Ordering::Relaxed);
        ROOTS.lock().add_frame(first, first + ROOT_FRAMES);
        first += ROOT_FRAMES;
    }
    if first < last {
        FRAMES.lock().add_frame(first, last);
    }
}

/// Whether a frame is one of those that are kept back for roots.
pub(crate) fn is_root(frame: Pfn) -> bool {
    (frame.raw() as usize).checked_sub(FIRST_ROOT.load(Ordering::Relaxed)).is_some_and(|index| index < ROOT_FRAMES)
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
pub(crate) struct Pool {
    small: Vec<Pfn>,
    /// Small frames that hold zeroes already: the stock that faults are served from.
    zeroed: Vec<Pfn>,
    outstanding: u64,
    peak: u64,
    /// Frames given back so far.
    freed: u64,
    /// Pages taken for the guest to touch.
    touched: u64,
    failures: Failures,
}

/// Which allocations a test has asked to fail. As long as it is any, both stacks are empty, so that each allocation comes by
/// where this is looked at, and those of every day need not look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failures {
    /// None.
    None,
    /// The n-th from now on, from 1.
    Nth(u64),
    /// All.
    All,
}

/// A pool takes and gives back small frames by as many at a time.
const BATCH: usize = PageSize::Size2M.frames() as usize;

/// Zeroed frames that a pool keeps at most: 8 MiB.
const STOCK: usize = 4 * BATCH;

impl Pool {
    /// A pool of nothing, which can take nothing back yet.
    pub(crate) const fn new() -> Self {
        Self {
            small: Vec::new(),
            zeroed: Vec::new(),
            outstanding: 0,
            peak: 0,
            freed: 0,
            touched: 0,
            failures: Failures::None,
        }
    }

    /// An empty pool.
    pub(crate) fn open(&mut self) {
        let (small, zeroed) = (Vec::with_capacity(2 * BATCH), Vec::with_capacity(STOCK));
        *self = Self { small, zeroed, ..Self::new() };
    }

    /// Notes that a page is taken for the guest to touch.
    #[inline]
    pub(crate) fn touch(&mut self) {
        self.touched += 1;
    }

    /// Takes a page of `size`.
    #[inline]
    pub(crate) fn alloc(&mut self, size: PageSize) -> Option<Pfn> {
        let frame = match size {
            PageSize::Size4K => self.alloc_small(),
            _ => self.alloc_large(size),
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
        let room = self.zeroed.len() < STOCK && self.failures == Failures::None;
        if room { self.alloc_small() } else { None }
    }

    /// Adds a frame that holds zeroes to the stock.
    pub(crate) fn stock(&mut self, frame: Pfn) {
        if self.failures == Failures::None {
            self.zeroed.push(frame);
        } else {
            free(frame, PageSize::Size4K);
        }
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

    #[cold]
    fn alloc_large(&mut self, size: PageSize) -> Option<Pfn> {
        if self.fails() { None } else { alloc(size) }
    }

    /// A batch where there is one, else single frames to the last.
    #[cold]
    fn refill(&mut self) -> Option<Pfn> {
        if self.fails() {
            return None;
        }
        let batch = if self.failures == Failures::None { alloc(PageSize::Size2M) } else { None };
        match batch {
            Some(block) => self.small.extend((0..BATCH as u64).rev().map(|index| block.add(index))),
            None => return alloc(PageSize::Size4K),
        }
        self.small.pop()
    }

    /// Takes a frame for the root of shadow tables.
    pub(crate) fn alloc_root(&mut self) -> Option<Pfn> {
        let frame = if self.fails() { None } else { ROOTS.lock().alloc(1) }?;
        self.count(PageSize::Size4K);
        Some(Pfn::new(frame as u64))
    }

    /// Gives back what [`alloc_root`](Self::alloc_root) gave.
    pub(crate) fn free_root(&mut self, frame: Pfn) {
        self.outstanding -= 1;
        self.freed += 1;
        ROOTS.lock().dealloc(frame.raw() as usize, 1);
    }

    /// Whether this allocation is one that a test has asked to fail.
    fn fails(&mut self) -> bool {
        match self.failures {
            Failures::None => false,
            Failures::Nth(1) => {
                self.failures = Failures::None;
                true
            }
            Failures::Nth(n) => {
                self.failures = Failures::Nth(n - 1);
                false
            }
            Failures::All => true,
        }
    }

    /// Whether a test has asked for some allocation to fail.
    pub(crate) fn is_to_fail(&self) -> bool {
        self.failures != Failures::None
    }

    /// Makes allocations fail from now on, as a test wants it.
    pub(crate) fn fail(&mut self, failures: Failures) {
        self.empty();
        self.failures = failures;
    }

    /// Gives a page back.
    pub(crate) fn free(&mut self, frame: Pfn, size: PageSize) {
        self.outstanding -= size.frames();
        self.freed += size.frames();
        let keep = self.small.len() < self.small.capacity() && self.failures == Failures::None;
        if size == PageSize::Size4K && keep {
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

    /// Frames given back so far.
    pub(crate) fn freed(&self) -> u64 {
        self.freed
    }

    /// Pages taken for the guest to touch so far.
    pub(crate) fn touched(&self) -> u64 {
        self.touched
    }

    /// Gives back what is in no use.
    pub(crate) fn empty(&mut self) {
        let all = self.small.drain(..).chain(self.zeroed.drain(..));
        all.for_each(|frame| free(frame, PageSize::Size4K));
    }
}
