//! One VM's frames.

use crate::frames::FrameAllocator;
use addr::{PageSize, Pfn};
use alloc::vec::Vec;
use buddy::Share;
use core::mem;
use loader::need;

/// One VM's frames, counted. It takes and gives back small ones by a push on a stack or a pop from it, and gets more of them from
/// the machine's by many at a time: a fault takes no lock that another VM could hold, as a rule.
///
/// Where frames come from and go to is an argument of each function that may need more than the stacks.
pub(crate) struct Pool {
    small: Vec<Pfn>,
    /// Small frames that hold zeroes already: what faults are served from.
    prezeroed: Vec<Pfn>,
    /// What it has of the machine's frames, but for roots.
    share: Share,
    outstanding: u64,
    peak: u64,
    /// Frames given back so far.
    freed: u64,
    /// Pages taken for the guest to touch.
    touched: u64,
    failures: PlannedFailures,
    /// What was in the stacks when a failure was planned.
    set_aside: [Vec<Pfn>; 2],
}

/// Which allocations a test has asked to fail. While a failure is planned, the frames of both stacks are set aside, so that each
/// allocation takes the slow path, which alone tests for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlannedFailures {
    /// None.
    None,
    /// The n-th from now on, from 1.
    Nth(u64),
    /// All.
    All,
}

/// How many small frames a pool takes from the machine's at once.
const BATCH: usize = need::BATCH as usize;

/// With fewer free frames than this, 32 MiB, pools take them one by one, and pre-zero none.
const FEW: usize = need::FEW as usize;

/// Pre-zeroed frames that a pool keeps at most: 8 MiB.
pub(crate) const PREZEROED: usize = 4 * BATCH;

/// Small frames that a pool keeps at most.
pub(crate) const CACHED: usize = 2 * BATCH;

/// Frames that a step of [`Pool::empty_some`] gives back.
const EMPTIED_AT_ONCE: usize = 64;

impl Pool {
    /// A pool of nothing, which can take nothing back yet.
    pub(crate) const fn new() -> Self {
        Self {
            small: Vec::new(),
            prezeroed: Vec::new(),
            share: Share::none(),
            outstanding: 0,
            peak: 0,
            freed: 0,
            touched: 0,
            failures: PlannedFailures::None,
            set_aside: [const { Vec::new() }; 2],
        }
    }

    /// An empty pool that keeps `prezeroed` pre-zeroed frames at most, with `promise` frames promised to it. None if there are
    /// not as many free.
    pub(crate) fn open(&mut self, frames: &FrameAllocator, prezeroed: usize, promise: usize) -> Option<()> {
        let (small, prezeroed) = (Vec::with_capacity(CACHED), Vec::with_capacity(prezeroed));
        let share = frames.promise(promise)?;
        *self = Self { small, prezeroed, share, ..Self::new() };
        Some(())
    }

    /// Gives back what is in no use, and the promise.
    pub(crate) fn close(&mut self, frames: &FrameAllocator) {
        self.empty(frames);
        frames.end(&mut self.share);
    }

    /// Takes small frames for several allocations, unless there are few: one VM is not to keep what another needs.
    #[inline(never)]
    fn take_batch(&mut self, frames: &FrameAllocator) {
        if frames.available_to(&self.share) >= FEW
            && self.failures == PlannedFailures::None
            && let Some(block) = frames.take(PageSize::Size2M, &mut self.share)
        {
            self.small.extend((0..BATCH as u64).rev().map(|index| block.add(index)));
        }
    }

    /// Counts that a page is taken for the guest to touch.
    #[inline]
    pub(crate) fn touch(&mut self) {
        self.touched += 1;
    }

    /// Takes a page of `size`.
    #[inline]
    pub(crate) fn alloc(&mut self, frames: &FrameAllocator, size: PageSize) -> Option<Pfn> {
        let frame = match size {
            PageSize::Size4K => self.alloc_small(frames),
            _ => self.alloc_large(frames, size),
        }?;
        self.count(size);
        Some(frame)
    }

    /// Takes a pre-zeroed frame, if there is one.
    #[inline]
    pub(crate) fn alloc_prezeroed(&mut self) -> Option<Pfn> {
        let frame = self.prezeroed.pop()?;
        self.count(PageSize::Size4K);
        Some(frame)
    }

    /// A frame to be filled with zeroes and given to [`add_prezeroed`](Self::add_prezeroed), if that has room.
    pub(crate) fn alloc_to_prezero(&mut self, frames: &FrameAllocator) -> Option<Pfn> {
        let has_room = self.has_room_for_prezeroed();
        if has_room && self.small.is_empty() {
            self.take_batch(frames);
        }
        if has_room { self.small.pop() } else { None }
    }

    /// Keeps a frame that holds zeroes by now for a fault.
    pub(crate) fn add_prezeroed(&mut self, frames: &FrameAllocator, frame: Pfn) {
        // Another CPU may have added one meanwhile.
        if self.has_room_for_prezeroed() {
            self.prezeroed.push(frame);
        } else {
            frames.give(frame, PageSize::Size4K, &mut self.share);
        }
    }

    fn has_room_for_prezeroed(&self) -> bool {
        self.prezeroed.len() < self.prezeroed.capacity() && self.failures == PlannedFailures::None
    }

    #[inline]
    fn count(&mut self, size: PageSize) {
        self.outstanding += size.frames();
        self.peak = self.peak.max(self.outstanding);
    }

    #[inline]
    fn alloc_small(&mut self, frames: &FrameAllocator) -> Option<Pfn> {
        match self.small.pop() {
            Some(frame) => Some(frame),
            None => self.refill(frames),
        }
    }

    #[cold]
    fn alloc_large(&mut self, frames: &FrameAllocator, size: PageSize) -> Option<Pfn> {
        if self.fails() { None } else { frames.take(size, &mut self.share) }
    }

    /// A batch where there is one, else single frames to the last.
    #[cold]
    fn refill(&mut self, frames: &FrameAllocator) -> Option<Pfn> {
        if self.fails() {
            return None;
        }
        self.take_batch(frames);
        self.small.pop().or_else(|| frames.take(PageSize::Size4K, &mut self.share))
    }

    /// Takes a frame for the root of shadow tables.
    pub(crate) fn alloc_root(&mut self, frames: &FrameAllocator) -> Option<Pfn> {
        let frame = if self.fails() { None } else { frames.take_root() }?;
        self.count(PageSize::Size4K);
        Some(frame)
    }

    /// Gives back what [`alloc_root`](Self::alloc_root) gave.
    pub(crate) fn free_root(&mut self, frames: &FrameAllocator, frame: Pfn) {
        self.outstanding -= 1;
        self.freed += 1;
        frames.give_root(frame);
    }

    /// Whether this allocation is one that a test has asked to fail.
    fn fails(&mut self) -> bool {
        match self.failures {
            PlannedFailures::None => false,
            PlannedFailures::Nth(1) => {
                self.fail(PlannedFailures::None);
                true
            }
            PlannedFailures::Nth(n) => {
                self.failures = PlannedFailures::Nth(n - 1);
                false
            }
            PlannedFailures::All => true,
        }
    }

    /// Whether a test has asked for some allocation to fail.
    pub(crate) fn is_to_fail(&self) -> bool {
        self.failures != PlannedFailures::None
    }

    /// Makes allocations fail from now on, as a test wants it.
    pub(crate) fn fail(&mut self, failures: PlannedFailures) {
        if self.is_to_fail() != (failures != PlannedFailures::None) {
            let [small, prezeroed] = &mut self.set_aside;
            mem::swap(small, &mut self.small);
            mem::swap(prezeroed, &mut self.prezeroed);
        }
        self.failures = failures;
    }

    /// Gives a page back.
    pub(crate) fn free(&mut self, frames: &FrameAllocator, frame: Pfn, size: PageSize) {
        self.outstanding -= size.frames();
        self.freed += size.frames();
        let keep = self.small.len() < self.small.capacity() && self.failures == PlannedFailures::None;
        if size == PageSize::Size4K && keep {
            self.small.push(frame);
        } else {
            frames.give(frame, size, &mut self.share);
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
    pub(crate) fn empty(&mut self, frames: &FrameAllocator) {
        while self.empty_some(frames) {}
    }

    /// The same in steps; whether there is more to give back. All of it takes milliseconds on slow machines, for which other VMs would
    /// wait.
    pub(crate) fn empty_some(&mut self, frames: &FrameAllocator) -> bool {
        self.fail(PlannedFailures::None);
        for _ in 0..EMPTIED_AT_ONCE {
            let Some(frame) = self.small.pop().or_else(|| self.prezeroed.pop()) else { return false };
            frames.give(frame, PageSize::Size4K, &mut self.share);
        }
        true
    }
}
