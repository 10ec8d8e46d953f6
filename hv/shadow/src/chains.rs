//! What is noted about guest frames: a fixed number of notes, found by frame.

use crate::NoMemory;
use addr::Gfn;
use alloc::vec::Vec;
use core::alloc::Layout;

const END: u32 = u32::MAX;

/// Notes of type `T`, any number for a frame, in a hash table of chains that takes no memory once it is made.
pub(crate) struct Chains<T> {
    heads: Vec<u32>,
    notes: Vec<Note<T>>,
    /// The first of a chain of unused notes.
    free: u32,
}

struct Note<T> {
    gfn: Gfn,
    what: Option<T>,
    next: u32,
}

/// There is no place for another note.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl<T> Chains<T> {
    /// Room for `capacity` notes, a power of two.
    pub(crate) fn new(capacity: u32) -> Result<Self, NoMemory> {
        let len = capacity.next_power_of_two() as usize;
        let mut chains = Self { heads: Vec::new(), notes: Vec::new(), free: END };
        chains.heads.try_reserve_exact(len).map_err(|_| NoMemory)?;
        chains.notes.try_reserve_exact(len).map_err(|_| NoMemory)?;
        chains.heads.resize(len, END);
        chains.notes.extend((0..len).map(|_| Note { gfn: Gfn::new(0), what: None, next: END }));
        chains.clear();
        Ok(chains)
    }

    /// What [`new`](Self::new) allocates.
    pub(crate) fn allocations(capacity: u32) -> [Option<Layout>; 2] {
        let len = capacity.next_power_of_two() as usize;
        [Layout::array::<u32>(len).ok(), Layout::array::<Note<T>>(len).ok()]
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.heads.fill(END);
        self.free = END;
        for (n, note) in (0..).zip(&mut self.notes) {
            (note.what, note.next) = (None, self.free);
            self.free = n;
        }
    }

    /// Frames come in runs: the low bits spread them.
    fn chain(&self, gfn: Gfn) -> usize {
        gfn.raw() as usize & (self.heads.len() - 1)
    }

    /// Notes `what` about `gfn`.
    pub(crate) fn insert(&mut self, gfn: Gfn, what: T) -> Result<(), Full> {
        let chain = self.chain(gfn);
        let at = self.free;
        let note = self.notes.get_mut(at as usize).ok_or(Full)?;
        self.free = note.next;
        *note = Note { gfn, what: Some(what), next: self.heads[chain] };
        self.heads[chain] = at;
        Ok(())
    }

    /// What is noted about `gfn`, the last first.
    pub(crate) fn iter(&self, gfn: Gfn) -> impl Iterator<Item = &T> {
        let first = self.notes.get(self.heads[self.chain(gfn)] as usize);
        let chain = core::iter::successors(first, |note| self.notes.get(note.next as usize));
        chain.filter(move |note| note.gfn == gfn).filter_map(|note| note.what.as_ref())
    }

    /// Whether anything is noted about `gfn` that `is` agrees to.
    pub(crate) fn any(&self, gfn: Gfn, is: impl FnMut(&T) -> bool) -> bool {
        self.iter(gfn).any(is)
    }

    /// The first note about `gfn` that `is` agrees to.
    pub(crate) fn find_mut(&mut self, gfn: Gfn, is: impl Fn(&T) -> bool) -> Option<&mut T> {
        let mut at = self.heads[self.chain(gfn)];
        while let Some(note) = self.notes.get(at as usize) {
            if note.gfn == gfn && note.what.as_ref().is_some_and(&is) {
                break;
            }
            at = note.next;
        }
        self.notes.get_mut(at as usize)?.what.as_mut()
    }

    /// Keeps of the notes about `gfn` those that `keep` agrees to.
    pub(crate) fn retain(&mut self, gfn: Gfn, mut keep: impl FnMut(&mut T) -> bool) {
        self.retain_in(self.chain(gfn), |of, what| of != gfn || keep(what));
    }

    /// Keeps of all notes those that `keep` agrees to.
    pub(crate) fn retain_all(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        (0..self.heads.len()).for_each(|chain| self.retain_in(chain, |_, what| keep(what)));
    }

    fn retain_in(&mut self, chain: usize, mut keep: impl FnMut(Gfn, &mut T) -> bool) {
        let mut before = END;
        let mut at = self.heads[chain];
        while let Some(note) = self.notes.get_mut(at as usize) {
            let next = note.next;
            if note.what.as_mut().is_some_and(|what| keep(note.gfn, what)) {
                before = at;
            } else {
                (note.what, note.next) = (None, self.free);
                self.free = at;
                match self.notes.get_mut(before as usize) {
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
        let mut chains = Chains::new(CAPACITY as u32).unwrap();
        for n in 0..CAPACITY as u64 {
            assert_eq!(chains.insert(Gfn::new(n % 3), n), Ok(()));
        }
        assert_eq!(chains.insert(Gfn::new(0), 0), Err(Full));
        chains.clear();
        assert!(!chains.any(Gfn::new(0), |_| true));
        assert_eq!(chains.insert(Gfn::new(0), 0), Ok(()));
    }

    proptest! {
        /// Against a list.
        #[test]
        fn notes_are_found_until_they_are_dropped(steps in proptest::collection::vec((0..4u8, 0..20u64, 0..3u32), 1..60)) {
            let mut chains = Chains::new(CAPACITY as u32).unwrap();
            let mut list = vec![];
            for (what, gfn, value) in steps {
                match what {
                    0 | 1 => {
                        let room = list.len() < CAPACITY;
                        prop_assert_eq!(chains.insert(Gfn::new(gfn), value).is_ok(), room);
                        if room {
                            list.push((gfn, value));
                        }
                    }
                    2 => {
                        chains.retain(Gfn::new(gfn), |&mut kept| kept != value);
                        list.retain(|&note| note != (gfn, value));
                    }
                    _ => {
                        chains.retain_all(|&mut kept| kept != value);
                        list.retain(|note| note.1 != value);
                    }
                }
                for gfn in 0..20 {
                    for value in 0..3 {
                        let noted = chains.any(Gfn::new(gfn), |&note| note == value);
                        prop_assert_eq!(noted, list.contains(&(gfn, value)));
                    }
                }
            }
        }
    }
}
