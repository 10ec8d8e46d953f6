//! A hash table by guest frame, with a fixed number of entries.

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
    /// The first entry of each chain, or [`END`].
    heads: Vec<u32>,
    entries: Vec<Entry<T>>,
    /// The first entry of the free list, of those that were in use since the table was empty.
    free: u32,
    /// The number of entries that were.
    used: u32,
    /// An odd number. The hash is from the middle of its product with the frame's number.
    multiplier: u64,
}

struct Entry<T> {
    gfn: Gfn,
    /// None: the entry is on the free list, or was not in use since the table was empty.
    value: Option<T>,
    next: u32,
}

/// All entries are in use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl<T> GfnHash<T> {
    /// Has room for `capacity` values, rounded up to a power of two. Frames have other hashes with another `seed`.
    pub(crate) fn new(capacity: u32, seed: u64) -> Result<Self, NoMemory> {
        let len = capacity.next_power_of_two() as usize;
        let multiplier = GOLDEN_RATIO ^ seed << 1;
        let mut hash = Self { heads: Vec::new(), entries: Vec::new(), free: END, used: 0, multiplier };
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

    /// Removes all values, at a cost that grows with the most that there were since the last time.
    pub(crate) fn clear(&mut self) {
        for n in 0..self.used as usize {
            let chain = self.chain(self.entries[n].gfn);
            self.heads[chain] = END;
            self.entries[n].value = None;
        }
        (self.free, self.used) = (END, 0);
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

    /// Adds a value for `gfn`.
    pub(crate) fn insert(&mut self, gfn: Gfn, value: T) -> Result<(), Full> {
        let chain = self.chain(gfn);
        let at = self.take()?;
        self.entries[at as usize] = Entry { gfn, value: Some(value), next: self.heads[chain] };
        self.heads[chain] = at;
        Ok(())
    }

    /// The values for `gfn`, the last one that was inserted first.
    pub(crate) fn iter(&self, gfn: Gfn) -> impl Iterator<Item = &T> {
        let first = self.entries.get(self.heads[self.chain(gfn)] as usize);
        let chain = core::iter::successors(first, |entry| self.entries.get(entry.next as usize));
        chain.filter(move |entry| entry.gfn == gfn).filter_map(|entry| entry.value.as_ref())
    }

    /// Whether a value for `gfn` satisfies `is`.
    pub(crate) fn any(&self, gfn: Gfn, is: impl FnMut(&T) -> bool) -> bool {
        self.iter(gfn).any(is)
    }

    /// The first value for `gfn` that satisfies `is`.
    pub(crate) fn find_mut(&mut self, gfn: Gfn, is: impl Fn(&T) -> bool) -> Option<&mut T> {
        let mut at = self.heads[self.chain(gfn)];
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
        self.retain_in(self.chain(gfn), |of, value| of != gfn || keep(value));
    }

    /// Removes the values for all frames for which `keep` returns false, at the cost of [`clear`](Self::clear).
    pub(crate) fn retain_all(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        for n in 0..self.used as usize {
            let entry = &mut self.entries[n];
            if entry.value.as_mut().is_some_and(|value| !keep(value)) {
                let chain = self.chain(self.entries[n].gfn);
                self.retain_in(chain, |_, value| keep(value));
            }
        }
    }

    fn retain_in(&mut self, chain: usize, mut keep: impl FnMut(Gfn, &mut T) -> bool) {
        let mut before = END;
        let mut at = self.heads[chain];
        while let Some(entry) = self.entries.get_mut(at as usize) {
            let next = entry.next;
            if entry.value.as_mut().is_some_and(|value| keep(entry.gfn, value)) {
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

    proptest! {
        /// A list is the model.
        #[test]
        fn values_are_found_until_they_are_removed(steps in proptest::collection::vec((0..4u8, 0..20u64, 0..3u32), 1..60)) {
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
                    _ => {
                        hash.retain_all(|&mut kept| kept != value);
                        list.retain(|entry| entry.1 != value);
                    }
                }
                for gfn in 0..20 {
                    for value in 0..3 {
                        let found = hash.any(Gfn::new(gfn), |&other| other == value);
                        prop_assert_eq!(found, list.contains(&(gfn, value)));
                    }
                }
            }
        }
    }
}
