//! The machine's page frames.
//!
//! One [`Buddy`] holds them all, and takes no memory for that but what [`init`] gives it. A VM takes its small frames through
//! a [`Pool`] of its own, so that a fault finds one by a pop from a stack, under no lock that another VM could hold.
//!
//! A VM can be [promised](buddy::Frames) frames, which the others leave alone.

use crate::paging;
use addr::{Hpa, PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn};
use alloc::vec::Vec;
use buddy::{Buddy, Frames, Share};
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};
use spin::Mutex;

/// None before [`init`].
static FRAMES: Mutex<Option<Frames<'static>>> = Mutex::new(None);

/// Frames below 4 GiB, kept back for the roots of shadow tables: outside of long mode, CR3 has 32 bits.
static ROOTS: Mutex<Vec<Pfn>> = Mutex::new(Vec::new());
/// The number of the first of them, and of the one after the last.
static ROOTS_START: AtomicUsize = AtomicUsize::new(0);
static ROOTS_END: AtomicUsize = AtomicUsize::new(0);
/// The number of the first frame that no root can be in.
const END_OF_ROOTS: usize = (1 << 32) >> PAGE_SHIFT;

/// Begins to manage the frames below `top`, with none of them free yet. What that takes is cut off one of the `usable`
/// ranges. None if there is no room below 4 GiB, which is all that the boot tables map.
///
/// # Safety
/// Once; the usable ranges are in no use.
pub(crate) unsafe fn init(usable: &mut [Range<Hpa>], top: Hpa) -> Option<()> {
    let frames = top.raw().div_ceil(PAGE_SIZE) as usize;
    let words = Buddy::words(frames);
    let bytes = (words as u64 * size_of::<u64>() as u64).next_multiple_of(PAGE_SIZE);
    let has_room = |range: &&mut Range<Hpa>| range.start.wrapping_add(bytes) <= range.end.min(paging::BOOT_MAP);
    let range = usable.iter_mut().find(has_room)?;
    let memory = paging::direct(range.start).cast::<u64>();
    range.start = range.start.wrapping_add(bytes);
    // SAFETY: the boot tables map the range, which is this array's from now on, and any words are valid ones.
    let memory = unsafe { core::slice::from_raw_parts_mut(memory, words) };
    *FRAMES.lock() = Some(Frames::new(Buddy::new(frames, memory)?));
    Some(())
}

/// Gives the frames that lie wholly within `start..end` to the allocator.
pub(crate) fn add(start: Hpa, end: Hpa) {
    let first = start.raw().div_ceil(PAGE_SIZE) as usize;
    let last = (end.raw() >> PAGE_SHIFT) as usize;
    if let Some(frames) = &mut *FRAMES.lock()
        && first < last
    {
        frames.add(first..last);
    }
}

/// How many frames are free, and promised to no VM.
pub(crate) fn available() -> usize {
    FRAMES.lock().as_ref().map_or(0, |frames| frames.available(&Share::none()))
}

/// How many frames are free where roots can be.
pub(crate) fn available_for_roots() -> usize {
    FRAMES.lock().as_ref().map_or(0, |frames| frames.available_below(END_OF_ROOTS))
}

/// Keeps `count` frames back for the roots of shadow tables. None if there are not as many in a row below 4 GiB. To be called
/// once.
pub(crate) fn keep_roots(count: usize) -> Option<()> {
    let order = count.next_power_of_two().ilog2() as usize;
    let mut roots = Vec::new();
    roots.try_reserve_exact(count).ok()?;
    let mut frames = FRAMES.lock();
    let frames = frames.as_mut()?;
    let first = frames.take_below(order, END_OF_ROOTS)?;
    let end = first + count;
    frames.add(end..first + (1 << order));
    roots.extend((first..end).map(|frame| Pfn::new(frame as u64)));
    ROOTS_START.store(first, Ordering::Relaxed);
    ROOTS_END.store(end, Ordering::Relaxed);
    *ROOTS.lock() = roots;
    Some(())
}

/// Whether a frame is one of those that are kept back for roots.
pub(crate) fn is_root(frame: Pfn) -> bool {
    (ROOTS_START.load(Ordering::Relaxed)..ROOTS_END.load(Ordering::Relaxed)).contains(&(frame.raw() as usize))
}

/// Takes `frames` frames, rounded up to a power of two and aligned to that.
pub(crate) fn alloc_contiguous(frames: usize) -> Option<Pfn> {
    let order = frames.next_power_of_two().ilog2() as usize;
    FRAMES.lock().as_mut()?.take(order, &mut Share::none()).map(|frame| Pfn::new(frame as u64))
}

/// Takes a page of `size`, aligned to it. What it holds is anybody's guess.
pub(crate) fn alloc(size: PageSize) -> Option<Pfn> {
    alloc_contiguous(size.frames() as usize)
}

const fn order(size: PageSize) -> usize {
    (size.shift() - PAGE_SHIFT) as usize
}

/// One VM's frames, counted.
pub(crate) struct Pool {
    small: Vec<Pfn>,
    /// Small frames that hold zeroes already: the stock that faults are served from.
    zeroed: Vec<Pfn>,
    /// What it has of the machine's frames, but for roots.
    share: Share,
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

/// With fewer free frames than this, 32 MiB, pools take them one by one, and none for their stocks.
const FEW: usize = 16 * BATCH;

/// Zeroed frames that a pool keeps at most: 8 MiB.
pub(crate) const STOCK: usize = 4 * BATCH;

/// Small frames that a pool keeps at most.
pub(crate) const CACHED: usize = 2 * BATCH;

impl Pool {
    /// A pool of nothing, which can take nothing back yet.
    pub(crate) const fn new() -> Self {
        Self {
            small: Vec::new(),
            zeroed: Vec::new(),
            share: Share::none(),
            outstanding: 0,
            peak: 0,
            freed: 0,
            touched: 0,
            failures: Failures::None,
        }
    }

    /// An empty pool, whose stock is of `stock` frames at most, with `promise` frames promised to it. None if there are not as
    /// many free.
    pub(crate) fn open(&mut self, stock: usize, promise: usize) -> Option<()> {
        let (small, zeroed) = (Vec::with_capacity(CACHED), Vec::with_capacity(stock));
        let share = FRAMES.lock().as_mut()?.promise(promise)?;
        *self = Self { small, zeroed, share, ..Self::new() };
        Some(())
    }

    /// Gives back what is in no use, and the promise.
    pub(crate) fn close(&mut self) {
        self.empty();
        if let Some(frames) = &mut *FRAMES.lock() {
            frames.end(&mut self.share);
        }
    }

    /// Takes a page from the machine's frames.
    fn take(&mut self, size: PageSize) -> Option<Pfn> {
        let frame = FRAMES.lock().as_mut()?.take(order(size), &mut self.share)?;
        Some(Pfn::new(frame as u64))
    }

    /// Gives a page back to the machine's frames, which may be promised to this VM again.
    fn give(&mut self, frame: Pfn, size: PageSize) {
        if let Some(frames) = &mut *FRAMES.lock() {
            frames.give(frame.raw() as usize, order(size), &mut self.share);
        }
    }

    /// Takes small frames for several allocations, unless there are few: one VM is not to keep what another needs.
    fn take_batch(&mut self) {
        let available = FRAMES.lock().as_ref().map_or(0, |frames| frames.available(&self.share));
        if available >= FEW
            && self.failures == Failures::None
            && let Some(block) = self.take(PageSize::Size2M)
        {
            self.small.extend((0..BATCH as u64).rev().map(|index| block.add(index)));
        }
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
        let has_room = self.zeroed.len() < self.zeroed.capacity() && self.failures == Failures::None;
        if has_room && self.small.is_empty() {
            self.take_batch();
        }
        if has_room { self.small.pop() } else { None }
    }

    /// Adds a frame that holds zeroes to the stock.
    pub(crate) fn stock(&mut self, frame: Pfn) {
        // Another CPU may have filled it meanwhile.
        if self.zeroed.len() < self.zeroed.capacity() && self.failures == Failures::None {
            self.zeroed.push(frame);
        } else {
            self.give(frame, PageSize::Size4K);
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
        if self.fails() { None } else { self.take(size) }
    }

    /// A batch where there is one, else single frames to the last.
    #[cold]
    fn refill(&mut self) -> Option<Pfn> {
        if self.fails() {
            return None;
        }
        self.take_batch();
        self.small.pop().or_else(|| self.take(PageSize::Size4K))
    }

    /// Takes a frame for the root of shadow tables.
    pub(crate) fn alloc_root(&mut self) -> Option<Pfn> {
        let frame = if self.fails() { None } else { ROOTS.lock().pop() }?;
        self.count(PageSize::Size4K);
        Some(frame)
    }

    /// Gives back what [`alloc_root`](Self::alloc_root) gave.
    pub(crate) fn free_root(&mut self, frame: Pfn) {
        self.outstanding -= 1;
        self.freed += 1;
        ROOTS.lock().push(frame);
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
            self.give(frame, size);
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
        while let Some(frame) = self.small.pop().or_else(|| self.zeroed.pop()) {
            self.give(frame, PageSize::Size4K);
        }
    }
}
