//! What runs in which round: all of it follows from one seed.

use crate::seed::derive;
use abi::options::guest::mode;
use clap::ValueEnum;
use std::fmt;

/// The name of the VM that must not notice.
pub(super) const VICTIM: &str = "victim";

/// What a hostile guest's inputs run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Mode {
    /// Real mode
    #[value(name = mode::REAL)]
    Real,
    /// Protected mode, with two levels of page tables
    #[value(name = mode::P32)]
    P32,
    /// Protected mode, with PAE
    #[value(name = mode::PAE)]
    Pae,
    /// 64-bit mode
    #[value(name = mode::LONG)]
    Long,
    /// User mode, with each kind of page tables
    #[value(name = mode::RING3)]
    Ring3,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// A machine's guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Round {
    /// From 1.
    pub(super) number: u32,
    /// The same round is the first one of the run with this seed.
    pub(super) seed: u32,
    pub(super) mode: Mode,
    pub(super) attackers: Vec<Attacker>,
}

/// A hostile VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attacker {
    pub(super) name: String,
    pub(super) seed: u32,
}

impl Round {
    pub(super) fn new(number: u32, seed: u32, mode: Mode, attackers: u32) -> Self {
        let seed = if number == 1 { seed } else { derive(seed, number) };
        let attacker = |index| Attacker { name: format!("h{index}"), seed: derive(!seed, index) };
        Self { number, seed, mode, attackers: (1..=attackers).map(attacker).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_round_is_the_first_one_of_its_own_seed() {
        let third = Round::new(3, 7, Mode::Pae, 4);
        let again = Round::new(1, third.seed, Mode::Pae, 4);
        assert_eq!(Round { number: 3, ..again }, third);
    }

    #[test]
    fn all_attackers_differ() {
        let rounds = (1..200).map(|number| Round::new(number, 1, Mode::Long, 6));
        let seeds: BTreeSet<_> =
            rounds.flat_map(|round| round.attackers.into_iter().map(|attacker| attacker.seed)).collect();
        assert!(seeds.len() > 199 * 6 - 10, "{}", seeds.len());
    }
}
