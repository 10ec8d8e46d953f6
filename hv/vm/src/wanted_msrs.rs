//! Which model-specific registers a guest asked for that it does not have.

use crate::sort::sort_few;
use core::cmp::Reverse;
use core::fmt;

/// How many registers are counted one by one.
const PLACES: usize = 32;
/// How many are listed.
const LISTED: usize = 10;

/// A register, and how often it was read or written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    register: u32,
    count: u64,
}

/// Accesses that were answered with #GP because there is no such register. The first 32 registers are counted one by one,
/// and all others together, so that a guest that tries every number takes no more memory.
#[derive(Clone, Debug)]
pub struct WantedMsrs {
    /// Those that are in use come first.
    places: [Wanted; PLACES],
    others: u64,
}

impl Default for WantedMsrs {
    fn default() -> Self {
        Self { places: [Wanted::default(); PLACES], others: 0 }
    }
}

impl WantedMsrs {
    /// Counts an access.
    #[cold]
    pub(crate) fn count(&mut self, register: u32) {
        self.count_times(register, 1);
    }

    fn count_times(&mut self, register: u32, times: u64) {
        match self.places.iter_mut().find(|wanted| wanted.register == register || wanted.count == 0) {
            Some(wanted) => *wanted = Wanted { register, count: wanted.count.saturating_add(times) },
            None => self.others = self.others.saturating_add(times),
        }
    }

    /// Adds another vCPU's.
    pub(crate) fn add(&mut self, other: &Self) {
        let used = other.places.iter().filter(|wanted| wanted.count != 0);
        used.for_each(|wanted| self.count_times(wanted.register, wanted.count));
        self.others = self.others.saturating_add(other.others);
    }

    /// Whether the guest had every register that it asked for.
    pub fn is_empty(&self) -> bool {
        self.places[0].count == 0
    }
}

/// `MSRs that the guest does not have: 0xc0010141 12 times, …`: the ten that it wanted most, and how often it wanted all others.
impl fmt::Display for WantedMsrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut order = self.places;
        sort_few(&mut order, |wanted| (Reverse(wanted.count), wanted.register));
        f.write_str("MSRs that the guest does not have:")?;
        for (index, wanted) in order[..LISTED].iter().enumerate().filter(|(_, wanted)| wanted.count != 0) {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {:#x} {} times", wanted.register, wanted.count)?;
        }
        let others = order[LISTED..].iter().fold(self.others, |sum, wanted| sum.saturating_add(wanted.count));
        if others == 0 { Ok(()) } else { write!(f, ", others {others} times") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn the_most_wanted_come_first_and_ten_are_listed() {
        let mut wanted = WantedMsrs::default();
        assert!(wanted.is_empty());
        for register in 0..12 {
            (0..=register).for_each(|_| wanted.count(0xc001_0000 + register));
        }
        assert!(!wanted.is_empty());
        let text = wanted.to_string();
        assert!(
            text.starts_with("MSRs that the guest does not have: 0xc001000b 12 times, 0xc001000a 11 times,"),
            "{text}"
        );
        assert!(text.ends_with(", 0xc0010002 3 times, others 3 times"), "{text}");
    }

    #[test]
    fn a_guest_that_tries_every_number_is_counted_too() {
        let mut wanted = WantedMsrs::default();
        (0..1000).for_each(|register| wanted.count(register));
        (0..5).for_each(|_| wanted.count(3));
        let text = wanted.to_string();
        assert!(text.contains(": 0x3 6 times, 0x0 1 times"), "{text}");
        assert!(text.ends_with(&std::format!("others {} times", 1000 - 10)), "{text}");
    }

    #[test]
    fn vcpus_are_added_up() {
        let mut sum = WantedMsrs::default();
        for register in [7, 8] {
            let mut one = WantedMsrs::default();
            one.count(register);
            one.count(7);
            sum.add(&one);
        }
        assert_eq!(sum.to_string(), "MSRs that the guest does not have: 0x7 3 times, 0x8 1 times");
    }
}
