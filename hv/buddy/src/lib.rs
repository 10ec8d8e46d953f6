//! A buddy allocator of page frames that allocates nothing itself.
//!
//! The free blocks of each order are bits of a `Set`, in memory that the owner provides once. `FrameAllocator` of the crate
//! `buddy_system_allocator` keeps them in B-trees on the heap instead: there, freeing a frame can allocate, and panics if the heap
//! is full.
//!
//! ```
//! use buddy::Buddy;
//! let mut memory = vec![0; Buddy::words(1024)];
//! let mut frames = Buddy::new(1024, &mut memory).unwrap();
//! frames.add(3..1000);
//! let block = frames.alloc(4).unwrap();
//! assert!(block.is_multiple_of(1 << 4));
//! frames.free(block, 4);
//! assert_eq!(frames.available(), 997);
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod promise;
mod set;

pub use promise::{Frames, Share};

use core::array;
use core::ops::Range;
use set::Set;

/// The number of orders: the largest block has 2¹⁸ frames, 1 GiB.
pub const ORDERS: usize = 19;

/// The free frames, of those with a number below a bound.
pub struct Buddy<'m> {
    /// For each order, the free blocks: their first frame's number shifted right by the order.
    free: [Set<'m>; ORDERS],
    available: usize,
}

impl<'m> Buddy<'m> {
    /// The number of words needed to manage the frames below `frames`: about one for 31 frames.
    #[must_use]
    pub fn words(frames: usize) -> usize {
        (0..ORDERS).map(|order| Set::words(frames >> order)).sum()
    }

    /// An allocator without a free frame. None if `memory` has less than [`words`](Self::words) words.
    #[must_use]
    pub fn new(frames: usize, memory: &'m mut [u64]) -> Option<Self> {
        if memory.len() < Self::words(frames) {
            return None;
        }
        let mut rest = memory;
        let free = array::from_fn(|order| {
            let (words, after) = core::mem::take(&mut rest).split_at_mut(Set::words(frames >> order));
            rest = after;
            Set::new(frames >> order, words)
        });
        Some(Self { free, available: 0 })
    }

    /// The number of free frames.
    #[must_use]
    pub const fn available(&self) -> usize {
        self.available
    }

    /// The number of free frames below `end`.
    #[must_use]
    pub fn available_below(&self, end: usize) -> usize {
        let in_block = |order: usize, block: usize| (end.saturating_sub(block << order)).min(1 << order);
        (0..ORDERS).map(|order| self.free[order].iter().map(|block| in_block(order, block)).sum::<usize>()).sum()
    }

    /// Makes these frames free. They must be below the bound, and not be free before.
    pub fn add(&mut self, frames: Range<usize>) {
        let mut at = frames.start;
        while at < frames.end {
            let fits = (frames.end - at).ilog2();
            let order = at.trailing_zeros().min(fits).min(ORDERS as u32 - 1) as usize;
            self.free(at, order);
            at += 1 << order;
        }
    }

    /// Allocates a block of 2^`order` frames, aligned to its size. Returns its first frame.
    pub fn alloc(&mut self, order: usize) -> Option<usize> {
        self.alloc_below(order, usize::MAX)
    }

    /// As [`alloc`](Self::alloc), with all frames below `end`.
    pub fn alloc_below(&mut self, order: usize, end: usize) -> Option<usize> {
        let fits =
            |block: usize, from: usize| (block << from).checked_add(1 << order).is_some_and(|after| after <= end);
        let (from, mut block) = (order..ORDERS).find_map(|from| {
            let block = self.free[from].first()?;
            fits(block, from).then_some((from, block))
        })?;
        self.free[from].remove(block);
        for half in (order..from).rev() {
            block *= 2;
            self.free[half].insert(block + 1);
        }
        self.available -= 1 << order;
        Some(block << order)
    }

    /// Frees the block of 2^`order` frames at `frame`, which was allocated as one block, as part of a larger one, or in parts.
    pub fn free(&mut self, frame: usize, order: usize) {
        self.available += 1 << order;
        let (mut block, mut order) = (frame >> order, order);
        while order + 1 < ORDERS && self.free[order].remove(block ^ 1) {
            block /= 2;
            order += 1;
        }
        self.free[order].insert(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const FRAMES: usize = 700;

    #[test]
    fn all_comes_back_as_the_blocks_that_there_were() {
        let mut memory = vec![0; Buddy::words(FRAMES)];
        let mut frames = Buddy::new(FRAMES, &mut memory).unwrap();
        frames.add(1..FRAMES);
        let taken: Vec<_> = core::iter::from_fn(|| frames.alloc(0)).collect();
        assert_eq!((taken.len(), frames.available()), (FRAMES - 1, 0));
        taken.into_iter().for_each(|frame| frames.free(frame, 0));
        assert_eq!(frames.available(), FRAMES - 1);
        assert_eq!(frames.alloc(8), Some(256), "the only block of 256 that has all its frames");
        assert_eq!(frames.alloc(8), None);
    }

    #[test]
    fn too_little_memory_is_refused() {
        let words = Buddy::words(FRAMES);
        assert!(Buddy::new(FRAMES, &mut vec![0; words - 1]).is_none());
    }

    #[test]
    fn low_frames_are_found_below_high_blocks() {
        let mut memory = vec![0; Buddy::words(FRAMES)];
        let mut frames = Buddy::new(FRAMES, &mut memory).unwrap();
        frames.add(64..128);
        frames.add(512..513);
        assert_eq!((frames.available_below(100), frames.available_below(600)), (36, 65));
        assert_eq!(frames.alloc_below(0, 512), Some(64), "the smallest block is too high");
        assert_eq!(frames.alloc_below(5, 96), None);
        assert_eq!(frames.alloc_below(5, 128), Some(96));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Alloc(usize, usize),
        Free(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..6usize, prop_oneof![Just(usize::MAX), 0..FRAMES]).prop_map(|(order, end)| Step::Alloc(order, end)),
            any::<prop::sample::Index>().prop_map(|index| Step::Free(index.index(1000))),
        ]
    }

    proptest! {
        /// Against an array of booleans: blocks are free when they are taken, aligned, within the bound; there is one as long
        /// as some aligned block is free.
        #[test]
        fn blocks_are_disjoint_and_found(hole in 1..FRAMES, steps in proptest::collection::vec(step(), 1..200)) {
            let mut memory = vec![0; Buddy::words(FRAMES)];
            let mut frames = Buddy::new(FRAMES, &mut memory).unwrap();
            let mut model = [true; FRAMES];
            model[0] = false;
            model[hole] = false;
            frames.add(1..hole);
            frames.add(hole + 1..FRAMES);
            let mut taken = Vec::new();
            for step in steps {
                match step {
                    Step::Alloc(order, end) => {
                        let size = 1 << order;
                        let fits = |at: usize| at + size <= end.min(FRAMES) && model[at..at + size].iter().all(|&free| free);
                        let exists = (0..FRAMES).step_by(size).any(fits);
                        let block = frames.alloc_below(order, end);
                        if end == usize::MAX {
                            prop_assert_eq!(block.is_some(), exists);
                        }
                        if let Some(at) = block {
                            prop_assert!(at.is_multiple_of(size) && fits(at));
                            model[at..at + size].fill(false);
                            taken.push((at, order));
                        }
                    }
                    Step::Free(index) if !taken.is_empty() => {
                        let (at, order) = taken.swap_remove(index % taken.len());
                        frames.free(at, order);
                        model[at..at + (1 << order)].fill(true);
                    }
                    Step::Free(_) => {}
                }
                let free = |end: usize| model[..end].iter().filter(|&&free| free).count();
                prop_assert_eq!(frames.available(), free(FRAMES));
                prop_assert_eq!(frames.available_below(hole), free(hole));
            }
        }
    }
}
