//! Reservations: frames that are promised to one user, and not available to others.

use crate::Buddy;
use core::ops::Range;

/// Free frames, some of which are promised.
///
/// ```text
/// free frames ─┬─ promised to share a, and not taken yet
///              ├─ promised to share b
///              └─ available to all
/// ```
///
/// Promises are counted, and not bound to particular frames: a share with a promise of n frames can always take n single frames.
pub struct Frames<'m> {
    buddy: Buddy<'m>,
    /// The number of frames that are promised and not taken yet: at most as many as are free.
    promised: usize,
}

/// The account of one user of the frames: the frames that it holds, and its promise.
#[derive(Debug, Default)]
pub struct Share {
    promise: usize,
    held: usize,
}

impl Share {
    /// A share without frames and without a promise.
    #[must_use]
    pub const fn none() -> Self {
        Self { promise: 0, held: 0 }
    }

    /// The number of frames that are promised and not taken yet.
    const fn to_come(&self) -> usize {
        self.promise.saturating_sub(self.held)
    }
}

impl<'m> Frames<'m> {
    /// The free frames of `buddy`, without a promise.
    #[must_use]
    pub const fn new(buddy: Buddy<'m>) -> Self {
        Self { buddy, promised: 0 }
    }

    /// The number of frames that `share` can take.
    #[must_use]
    pub const fn available(&self, share: &Share) -> usize {
        self.buddy.available() - (self.promised - share.to_come())
    }

    /// The number of free frames below `end`, promised or not.
    #[must_use]
    pub fn available_below(&self, end: usize) -> usize {
        self.buddy.available_below(end)
    }

    /// Makes these frames free, as [`Buddy::add`] does.
    pub fn add(&mut self, frames: Range<usize>) {
        self.buddy.add(frames);
    }

    /// Takes a block below `end` for ever, as [`Buddy::alloc_below`] does, if that leaves enough frames for all promises.
    pub fn take_below(&mut self, order: usize, end: usize) -> Option<usize> {
        let fits = 1 << order <= self.available(&Share::none());
        if fits { self.buddy.alloc_below(order, end) } else { None }
    }

    /// A share with a promise of `frames` frames. None if not as many are available.
    pub fn promise(&mut self, frames: usize) -> Option<Share> {
        if frames > self.available(&Share::none()) {
            return None;
        }
        self.promised += frames;
        Some(Share { promise: frames, held: 0 })
    }

    /// Ends the promise of `share`. Frames that the share still holds stay taken.
    pub fn end(&mut self, share: &mut Share) {
        self.promised -= share.to_come();
        share.promise = 0;
    }

    /// Takes a block of 2^`order` frames, aligned to its size. Returns its first frame.
    pub fn take(&mut self, order: usize, share: &mut Share) -> Option<usize> {
        let fits = 1 << order <= self.available(share);
        let block = if fits { self.buddy.alloc(order) } else { None }?;
        let before = share.to_come();
        share.held += 1 << order;
        self.promised -= before - share.to_come();
        Some(block)
    }

    /// Gives back the block of 2^`order` frames at `frame`, which the share has taken as [`Buddy::free`] demands.
    pub fn give(&mut self, frame: usize, order: usize, share: &mut Share) {
        self.buddy.free(frame, order);
        let before = share.to_come();
        share.held -= 1 << order;
        self.promised += share.to_come() - before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const FRAMES: usize = 300;

    proptest! {
        /// Each share can take single frames up to its promise, whatever other shares have taken.
        #[test]
        fn promises_are_kept(
            promises in proptest::collection::vec(0..120usize, 1..5),
            steps in proptest::collection::vec((any::<prop::sample::Index>(), 0..5usize, any::<bool>()), 0..150),
        ) {
            let mut memory = vec![0; Buddy::words(FRAMES)];
            let mut frames = Frames::new(Buddy::new(FRAMES, &mut memory).unwrap());
            frames.add(0..FRAMES);
            let mut left = FRAMES;
            let mut shares = Vec::new();
            for promise in promises {
                let share = frames.promise(promise);
                prop_assert_eq!(share.is_some(), promise <= left);
                left -= share.as_ref().map_or(0, |_| promise);
                shares.extend(share.map(|share| (share, Vec::new())));
            }
            shares.push((Share::none(), Vec::new()));
            for (index, order, take) in steps {
                let index = index.index(shares.len());
                let (share, blocks) = &mut shares[index];
                if take {
                    let may = 1 << order <= frames.available(share);
                    let block = frames.take(order, share);
                    prop_assert!(may || block.is_none());
                    blocks.extend(block.map(|block| (block, order)));
                } else if let Some((block, order)) = blocks.pop() {
                    frames.give(block, order, share);
                }
            }
            // All promises can be used up together.
            for (share, _) in &mut shares {
                while share.to_come() > 0 {
                    prop_assert!(frames.take(0, share).is_some());
                }
            }
            prop_assert_eq!(frames.promised, 0);
            for (share, _) in &mut shares {
                frames.end(share);
            }
            prop_assert_eq!(frames.available(&Share::none()), frames.buddy.available());
        }
    }
}
