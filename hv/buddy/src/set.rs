//! A set of small numbers, as a tree of bitmaps.

/// Bits in a word.
const BITS: usize = u64::BITS as usize;
/// The most levels of bitmaps: enough for 2³⁶ members.
const LEVELS: usize = 6;

/// A set of numbers below a bound. A bit of each level says whether the word below it is not zero, so that finding the least member
/// takes one step for each level.
pub(crate) struct Set<'m> {
    words: &'m mut [u64],
    /// The index of each level's first word. Level 0 has a bit for each member.
    starts: [usize; LEVELS],
    levels: usize,
    bound: usize,
}

impl<'m> Set<'m> {
    /// The number of words of a set of numbers below `bound`.
    pub(crate) fn words(bound: usize) -> usize {
        Self::levels(bound).sum()
    }

    /// The number of words of each level. The highest level has one.
    fn levels(bound: usize) -> impl Iterator<Item = usize> {
        let above = |&words: &usize| (words > 1).then(|| words.div_ceil(BITS));
        core::iter::successors(Some(bound.div_ceil(BITS)).filter(|&words| words > 0), above)
    }

    /// An empty set. `words` must have exactly [`words`](Self::words) elements.
    pub(crate) fn new(bound: usize, words: &'m mut [u64]) -> Self {
        words.fill(0);
        let (mut starts, mut levels, mut start) = ([0; LEVELS], 0, 0);
        for words in Self::levels(bound) {
            starts[levels] = start;
            levels += 1;
            start += words;
        }
        Self { words, starts, levels, bound }
    }

    /// Adds `member`, which must be below the bound.
    pub(crate) fn insert(&mut self, member: usize) {
        let mut at = member;
        for start in &self.starts[..self.levels] {
            let word = &mut self.words[start + at / BITS];
            let was_empty = *word == 0;
            *word |= 1 << (at % BITS);
            if !was_empty {
                return;
            }
            at /= BITS;
        }
    }

    /// Removes `member`. Whether it was in the set.
    pub(crate) fn remove(&mut self, member: usize) -> bool {
        if !self.contains(member) {
            return false;
        }
        let mut at = member;
        for start in &self.starts[..self.levels] {
            let word = &mut self.words[start + at / BITS];
            *word &= !(1 << (at % BITS));
            if *word != 0 {
                break;
            }
            at /= BITS;
        }
        true
    }

    fn contains(&self, member: usize) -> bool {
        member < self.bound && self.words[member / BITS] & 1 << (member % BITS) != 0
    }

    /// The least member.
    pub(crate) fn first(&self) -> Option<usize> {
        let mut at = 0;
        for start in self.starts[..self.levels].iter().rev() {
            let word = self.words[start + at];
            if word == 0 {
                return None;
            }
            at = at * BITS + word.trailing_zeros() as usize;
        }
        (self.levels > 0).then_some(at)
    }

    /// All members, in order. Takes time proportional to the bound.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> {
        let words = self.words[..self.bound.div_ceil(BITS)].iter().enumerate();
        words
            .filter(|(_, word)| **word != 0)
            .flat_map(|(at, &word)| (0..BITS).filter(move |bit| word & 1 << bit != 0).map(move |bit| at * BITS + bit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec;
    use std::vec::Vec;

    proptest! {
        /// The standard library's set is the model. The bounds give one to three levels.
        #[test]
        fn it_is_a_set(bound in prop_oneof![0..200usize, 4000..5000usize], steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..100)) {
            let mut words = vec![u64::MAX; Set::words(bound)];
            let (mut set, mut model) = (Set::new(bound, &mut words), BTreeSet::new());
            for (insert, index) in steps {
                // Members near each other, and far apart.
                let member = index.index(bound.max(1)) / 70 * 70 % bound.max(1);
                if insert && bound > 0 {
                    set.insert(member);
                    model.insert(member);
                } else {
                    prop_assert_eq!(set.remove(member), model.remove(&member));
                }
                prop_assert_eq!(set.first(), model.first().copied());
            }
            prop_assert!(!set.remove(bound));
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
        }
    }
}
