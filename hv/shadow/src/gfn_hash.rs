//! A hash table by guest frame, with a fixed number of entries. Where all are in use, the oldest make way.

use crate::NoMemory;
use addr::Gfn;
use alloc::vec::Vec;
use core::alloc::Layout;

const END: u32 = u32::MAX;

/// Linux's GOLDEN_RATIO_64 (include/linux/hash.h), which is odd: it spreads contiguous frames evenly.
const GOLDEN_RATIO: u64 = 0x61c8_8646_80b5_83eb;

/// Values of type `T`, any number for each guest frame, in chains by the frame's hash. It allocates when it is made, and never
/// again.
pub(crate) struct GfnHash<T> {
    /// The first entry of each chain, or [`END`]; see [`first`](Self::first).
    heads: Vec<u32>,
    entries: Vec<Entry<T>>,
    /// The first entry of the free list, of those that were in use since the table was cleared.
    free: u32,
    /// The number of entries that were.
    used: u32,
    /// The entry that makes way next.
    hand: u32,
    /// An odd number. The hash is from the middle of its product with the frame's number.
    multiplier: u64,
}

pub(crate) struct Entry<T> {
    gfn: Gfn,
    /// None: the entry is on the free list, or was never in use.
    value: Option<T>,
    next: u32,
}

/// All entries are in use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl<T: Copy> GfnHash<T> {
    /// Has room for `capacity` values, rounded up to a power of two. Frames have other hashes with another `seed`.
    pub(crate) fn new(capacity: u32, seed: u64) -> Result<Self, NoMemory> {
        let len = capacity.next_power_of_two() as usize;
        let multiplier = GOLDEN_RATIO ^ seed << 1;
        let mut hash = Self { heads: Vec::new(), entries: Vec::new(), free: END, used: 0, hand: 0, multiplier };
        hash.heads.try_reserve_exact(len).map_err(|_| NoMemory)?;
        hash.entries.try_reserve_exact(len).map_err(|_| NoMemory)?;
        hash.heads.resize(len, END);
        hash.entries.extend((0..len).map(|_| Entry { gfn: Gfn::new(0), value: None, next: END }));
        Ok(hash)
    }

    /// The allocations of [`new`](Self::new).
    pub(crate) fn allocations(capacity: u32) -> [Option<Layout>; 2] {
        let len = capacity.next_power_of_two() as usize;
        [Layout::array::<u32>(len).ok(), Layout::array::<Entry<T>>(len).ok()]
    }

    /// Removes all values, at once: the entries and the heads stay as they are, and count no more.
    pub(crate) fn clear(&mut self) {
        (self.free, self.used, self.hand) = (END, 0, 0);
    }

    /// Whether a value has to make way for the next one.
    pub(crate) fn is_full(&self) -> bool {
        self.free == END && self.len() == self.entries.len()
    }

    /// The most values that there were at once since the table was cleared.
    pub(crate) fn len(&self) -> usize {
        self.used as usize
    }

    /// How many values there can be.
    pub(crate) fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Removes a value of a full table, and gives it with its frame. They make way in the order of their places: the oldest
    /// first, but for those that took the place of a removed one.
    pub(crate) fn evict(&mut self) -> Option<(Gfn, T)> {
        let (at, Entry { gfn, value, .. }) = (self.hand, self.entries.get(self.hand as usize)?);
        let (gfn, value) = (*gfn, (*value)?);
        self.hand = if at + 1 == self.used { 0 } else { at + 1 };
        self.retain_in(self.chain(gfn), |other, _, _| other != at);
        Some((gfn, value))
    }

    /// Takes an entry that is not in use.
    fn take(&mut self) -> Result<u32, Full> {
        let at = if self.free == END { self.used } else { self.free };
        let entry = self.entries.get(at as usize).ok_or(Full)?;
        if self.free == END {
            self.used += 1;
        } else {
            self.free = entry.next;
        }
        Ok(at)
    }

    /// The chain of a frame.
    fn chain(&self, gfn: Gfn) -> usize {
        let product = gfn.raw().wrapping_mul(self.multiplier);
        (product >> 32) as usize & (self.heads.len() - 1)
    }

    /// The first entry of a chain, or [`END`]. A head from before the table was cleared counts as none: it names an entry that was
    /// not in use since, or one that is of another chain now (Briggs and Torczon's sparse sets).
    fn first(&self, chain: usize) -> u32 {
        let at = self.heads[chain];
        let is_of_chain = |entry: &Entry<T>| self.chain(entry.gfn) == chain;
        let counts = at < self.used && self.entries.get(at as usize).is_some_and(is_of_chain);
        if counts { at } else { END }
    }

    /// Where a search for `gfn` begins. A head from before the table was cleared may lead to another chain or to the free list, but
    /// neither has a value for this frame: to look at values takes one comparison less than [`first`](Self::first).
    fn start(&self, gfn: Gfn) -> u32 {
        let at = self.heads[self.chain(gfn)];
        if at < self.used { at } else { END }
    }

    /// Adds a value for `gfn`.
    pub(crate) fn insert(&mut self, gfn: Gfn, value: T) -> Result<(), Full> {
        let chain = self.chain(gfn);
        let next = self.first(chain);
        let at = self.take()?;
        self.entries[at as usize] = Entry { gfn, value: Some(value), next };
        self.heads[chain] = at;
        Ok(())
    }

    /// The values for `gfn`, the last one that was inserted first.
    pub(crate) fn iter(&self, gfn: Gfn) -> impl Iterator<Item = &T> {
        let first = self.entries.get(self.start(gfn) as usize);
        let chain = core::iter::successors(first, |entry| self.entries.get(entry.next as usize));
        chain.filter(move |entry| entry.gfn == gfn).filter_map(|entry| entry.value.as_ref())
    }

    /// Whether a value for `gfn` satisfies `is`.
    pub(crate) fn any(&self, gfn: Gfn, is: impl FnMut(&T) -> bool) -> bool {
        self.iter(gfn).any(is)
    }

    /// The first value for `gfn` that satisfies `is`.
    pub(crate) fn find_mut(&mut self, gfn: Gfn, is: impl Fn(&T) -> bool) -> Option<&mut T> {
        let mut at = self.start(gfn);
        while let Some(entry) = self.entries.get(at as usize) {
            if entry.gfn == gfn && entry.value.as_ref().is_some_and(&is) {
                break;
            }
            at = entry.next;
        }
        self.entries.get_mut(at as usize)?.value.as_mut()
    }

    /// Removes the values for `gfn` for which `keep` returns false.
    pub(crate) fn retain(&mut self, gfn: Gfn, mut keep: impl FnMut(&mut T) -> bool) {
        self.retain_in(self.chain(gfn), |_, of, value| of != gfn || keep(value));
    }

    /// Removes the values for all frames for which `keep` returns false, at a cost that grows with [`len`](Self::len).
    pub(crate) fn retain_all(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        for n in 0..self.used as usize {
            let entry = &mut self.entries[n];
            if entry.value.as_mut().is_some_and(|value| !keep(value)) {
                let chain = self.chain(self.entries[n].gfn);
                self.retain_in(chain, |_, _, value| keep(value));
            }
        }
    }

    /// `keep` gets the number of an entry, its frame and its value.
    fn retain_in(&mut self, chain: usize, mut keep: impl FnMut(u32, Gfn, &mut T) -> bool) {
        let mut before = END;
        let mut at = self.first(chain);
        while let Some(entry) = self.entries.get_mut(at as usize) {
            let next = entry.next;
            if entry.value.as_mut().is_some_and(|value| keep(at, entry.gfn, value)) {
                before = at;
            } else {
                (entry.value, entry.next) = (None, self.free);
                self.free = at;
                match self.entries.get_mut(before as usize) {
                    Some(before) => before.next = next,
                    None => self.heads[chain] = next,
                }
            }
            at = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    const CAPACITY: usize = 8;

    #[test]
    fn a_full_table_says_so_and_has_room_again_when_it_is_cleared() {
        let mut hash = GfnHash::new(CAPACITY as u32, 1).unwrap();
        for n in 0..CAPACITY as u64 {
            assert_eq!(hash.insert(Gfn::new(n % 3), n), Ok(()));
        }
        assert_eq!(hash.insert(Gfn::new(0), 0), Err(Full));
        hash.clear();
        assert!(!hash.any(Gfn::new(0), |_| true));
        assert_eq!(hash.insert(Gfn::new(0), 0), Ok(()));
    }

    #[test]
    fn a_full_table_gives_up_the_oldest_value_first() {
        let mut hash = GfnHash::new(CAPACITY as u32, 1).unwrap();
        let oldest = |hash: &mut GfnHash<u64>| hash.evict().map(|(gfn, value)| (gfn.raw(), value));
        for n in 0..CAPACITY as u64 {
            assert!(!hash.is_full());
            hash.insert(Gfn::new(n % 3), n).unwrap();
        }
        for n in 0..3 * CAPACITY as u64 {
            assert!(hash.is_full());
            assert_eq!(oldest(&mut hash), Some((n % CAPACITY as u64 % 3, n)));
            assert!(!hash.any(Gfn::new(n % CAPACITY as u64 % 3), |&value| value == n));
            let next = n + CAPACITY as u64;
            hash.insert(Gfn::new(next % CAPACITY as u64 % 3), next).unwrap();
        }
    }

    proptest! {
        /// A list is the model.
        #[test]
        fn values_are_found_until_they_are_removed(steps in proptest::collection::vec((0..5u8, 0..20u64, 0..3u32), 1..60)) {
            let mut hash = GfnHash::new(CAPACITY as u32, 1).unwrap();
            let mut list = vec![];
            for (operation, gfn, value) in steps {
                match operation {
                    0 | 1 => {
                        let has_room = list.len() < CAPACITY;
                        prop_assert_eq!(hash.insert(Gfn::new(gfn), value).is_ok(), has_room);
                        if has_room {
                            list.push((gfn, value));
                        }
                    }
                    2 => {
                        hash.retain(Gfn::new(gfn), |&mut kept| kept != value);
                        list.retain(|&entry| entry != (gfn, value));
                    }
                    3 if value == 0 => {
                        hash.clear();
                        list.clear();
                    }
                    4 => {
                        prop_assert_eq!(hash.is_full(), list.len() == CAPACITY);
                        if let Some((gfn, value)) = hash.is_full().then(|| hash.evict()).flatten() {
                            let at = list.iter().position(|&entry| entry == (gfn.raw(), value));
                            list.remove(at.unwrap());
                        }
                    }
                    _ => {
                        hash.retain_all(|&mut kept| kept != value);
                        list.retain(|entry| entry.1 != value);
                    }
                }
                for gfn in 0..20 {
                    for value in 0..3 {
                        let found = hash.any(Gfn::new(gfn), |&other| other == value);
                        prop_assert_eq!(found, list.contains(&(gfn, value)));
                        prop_assert_eq!(hash.find_mut(Gfn::new(gfn), |&other| other == value).is_some(), found);
                    }
                }
            }
        }
    }
}
