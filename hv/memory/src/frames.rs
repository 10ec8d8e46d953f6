//! The machine's page frames.
//!
//! A VM can be [promised](buddy::Frames) frames, which the others leave alone.

use crate::sync::Mutex;
use addr::{Hpa, PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn};
use alloc::vec::Vec;
use buddy::{Buddy, Share};
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

/// All free frames of the machine: a [`Buddy`] under a lock, and some kept back for the roots of shadow tables. It allocates
/// nothing but the list of those.
///
/// VMs take small frames by many at a time, each through a pool of its own, so that a fault takes no lock of another VM's.
pub struct FrameAllocator {
    /// None before [`init`](Self::init).
    free: Mutex<Option<buddy::Frames<'static>>>,
    /// Frames below 4 GiB that are kept back: outside of long mode, CR3 has 32 bits.
    roots: Mutex<Vec<Pfn>>,
    /// The number of the first of them, and of the one after the last.
    roots_start: AtomicUsize,
    roots_end: AtomicUsize,
}

/// The number of the first frame that no root can be in.
const END_OF_ROOTS: usize = (1 << 32) >> PAGE_SHIFT;

/// Cuts `bytes` bytes, in whole pages, off the start of the first of these ranges of whole pages that has as much below `limit`.
/// Returns where they begin; None if no range has room.
pub fn carve(ranges: &mut [Range<Hpa>], bytes: u64, limit: Hpa) -> Option<Hpa> {
    let bytes = bytes.checked_next_multiple_of(PAGE_SIZE)?;
    let end_of = |range: &Range<Hpa>| range.start.checked_add(bytes).filter(|&end| end <= range.end.min(limit));
    let (range, end) = ranges.iter_mut().find_map(|range| end_of(range).map(|end| (range, end)))?;
    Some(core::mem::replace(&mut range.start, end))
}

const fn order(size: PageSize) -> usize {
    (size.shift() - PAGE_SHIFT) as usize
}

impl FrameAllocator {
    /// No frame, and no room to manage any.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is for a static: only a constant function will do")]
    pub const fn new() -> Self {
        Self {
            free: Mutex::new(None),
            roots: Mutex::new(Vec::new()),
            roots_start: AtomicUsize::new(0),
            roots_end: AtomicUsize::new(0),
        }
    }

    /// Manages the frames that `buddy` has room for, from now on.
    pub fn init(&self, buddy: Buddy<'static>) {
        *self.free.lock() = Some(buddy::Frames::new(buddy));
    }

    /// Makes the frames free that lie wholly within `range`.
    pub fn add(&self, range: Range<Hpa>) {
        let first = range.start.raw().div_ceil(PAGE_SIZE) as usize;
        let last = (range.end.raw() >> PAGE_SHIFT) as usize;
        if let Some(frames) = &mut *self.free.lock()
            && first < last
        {
            frames.add(first..last);
        }
    }

    /// Makes the frames of these ranges free that lie below `limit`.
    pub fn add_below(&self, ranges: &[Range<Hpa>], limit: Hpa) {
        ranges.iter().for_each(|range| self.add(range.start.min(limit)..range.end.min(limit)));
    }

    /// Makes the frames of these ranges free that do not lie below `limit`.
    pub fn add_above(&self, ranges: &[Range<Hpa>], limit: Hpa) {
        ranges.iter().for_each(|range| self.add(range.start.max(limit)..range.end.max(limit)));
    }

    /// How many frames are free, and promised to no VM.
    pub fn available(&self) -> usize {
        self.available_to(&Share::none())
    }

    /// How many frames are free where roots can be.
    pub fn available_for_roots(&self) -> usize {
        self.free.lock().as_ref().map_or(0, |frames| frames.available_below(END_OF_ROOTS))
    }

    /// Keeps `count` frames back for the roots of shadow tables. None if there are not as many in a row below 4 GiB. To be
    /// called once.
    pub fn keep_roots(&self, count: usize) -> Option<()> {
        let order = count.next_power_of_two().ilog2() as usize;
        let mut roots = Vec::new();
        roots.try_reserve_exact(count).ok()?;
        let mut frames = self.free.lock();
        let frames = frames.as_mut()?;
        let first = frames.take_below(order, END_OF_ROOTS)?;
        let end = first + count;
        frames.add(end..first + (1 << order));
        roots.extend((first..end).map(|frame| Pfn::new(frame as u64)));
        self.roots_start.store(first, Ordering::Relaxed);
        self.roots_end.store(end, Ordering::Relaxed);
        *self.roots.lock() = roots;
        Some(())
    }

    /// Takes `frames` frames, rounded up to a power of two and aligned to that. What they hold is undefined.
    pub fn alloc_contiguous(&self, frames: usize) -> Option<Pfn> {
        self.take_order(frames.next_power_of_two().ilog2() as usize, &mut Share::none())
    }

    fn take_order(&self, order: usize, share: &mut Share) -> Option<Pfn> {
        self.free.lock().as_mut()?.take(order, share).map(|frame| Pfn::new(frame as u64))
    }

    /// How many frames are free for the owner of `share`.
    pub(crate) fn available_to(&self, share: &Share) -> usize {
        self.free.lock().as_ref().map_or(0, |frames| frames.available(share))
    }

    /// A share with a promise of `frames` frames. None if there are not as many.
    pub(crate) fn promise(&self, frames: usize) -> Option<Share> {
        self.free.lock().as_mut()?.promise(frames)
    }

    /// Takes back the promise of `share`.
    pub(crate) fn end(&self, share: &mut Share) {
        if let Some(frames) = &mut *self.free.lock() {
            frames.end(share);
        }
    }

    /// Takes a page of `size`, aligned to it.
    pub(crate) fn take(&self, size: PageSize, share: &mut Share) -> Option<Pfn> {
        self.take_order(order(size), share)
    }

    /// Gives a page back that [`take`](Self::take) gave to the same share.
    pub(crate) fn give(&self, frame: Pfn, size: PageSize, share: &mut Share) {
        if let Some(frames) = &mut *self.free.lock() {
            frames.give(frame.raw() as usize, order(size), share);
        }
    }

    /// Whether a frame is one of those that are kept back for roots.
    pub(crate) fn is_root(&self, frame: Pfn) -> bool {
        let roots = self.roots_start.load(Ordering::Relaxed)..self.roots_end.load(Ordering::Relaxed);
        roots.contains(&(frame.raw() as usize))
    }

    /// Takes a frame for a root.
    pub(crate) fn take_root(&self) -> Option<Pfn> {
        self.roots.lock().pop()
    }

    /// Gives back what [`take_root`](Self::take_root) gave.
    pub(crate) fn give_root(&self, frame: Pfn) {
        self.roots.lock().push(frame);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use std::vec;

    fn range(from: u64, to: u64) -> Range<Hpa> {
        Hpa::new(from << PAGE_SHIFT)..Hpa::new(to << PAGE_SHIFT)
    }

    #[test]
    fn room_is_cut_off_the_first_range_that_has_it_below_the_limit() {
        let mut ranges = [range(1, 3), range(10, 20), range(30, 40)];
        let limit = Hpa::new(35 << PAGE_SHIFT);
        assert_eq!(carve(&mut ranges, 2 * PAGE_SIZE + 1, limit), Some(ranges[0].end.wrapping_add(7 * PAGE_SIZE)));
        assert_eq!(ranges, [range(1, 3), range(13, 20), range(30, 40)], "three whole pages");
        assert_eq!(carve(&mut ranges, 2 * PAGE_SIZE, limit), Some(Hpa::new(PAGE_SIZE)));
        assert_eq!(ranges[0], range(3, 3), "all of it");
        assert_eq!(carve(&mut ranges, 8 * PAGE_SIZE, limit), None, "a part is above the limit");
        assert_eq!(carve(&mut ranges, u64::MAX, Hpa::new(u64::MAX)), None);
        assert_eq!(ranges, [range(3, 3), range(13, 20), range(30, 40)], "they stay");
    }

    #[test]
    fn a_range_across_the_limit_is_added_once() {
        let frames = FrameAllocator::new();
        let words = vec![0; Buddy::words(64)].leak();
        frames.init(Buddy::new(64, words).unwrap());
        let ranges = [range(0, 4), range(8, 24), range(40, 44)];
        let limit = Hpa::new(16 << PAGE_SHIFT);
        frames.add_below(&ranges, limit);
        assert_eq!(frames.available(), 4 + 8);
        frames.add_above(&ranges, limit);
        assert_eq!(frames.available(), 4 + 16 + 4);
    }
}
