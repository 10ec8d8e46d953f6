//! Which guests run in which round, and with what words: all of it follows from one seed.

use crate::seed::derive;
use abi::hypercall::FlushPoint;
use abi::options::guest as word;

/// The guests that attack the tables, the interrupts and the clocks, in the order of their rotation.
pub(super) const GUESTS: [&str; 7] =
    ["balloon", "collapse-storm", "shootdown", "walker", "ipi-storm", "timer-storm", "oom"];

/// The guest that has to notice that this flush is left out.
const fn guest_to_notice(flush: FlushPoint) -> &'static str {
    match flush {
        FlushPoint::Release | FlushPoint::Replace => "shootdown",
        FlushPoint::LogDirty | FlushPoint::Collapse => "collapse-storm",
    }
}

/// What runs in one round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Round {
    /// From 1.
    pub(super) number: u32,
    pub(super) seed: u32,
    /// How long the guests work, by their own clocks.
    pub(super) seconds: u32,
    pub(super) vms: Vec<Vm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vm {
    pub(super) name: &'static str,
    pub(super) guest: &'static str,
    pub(super) vcpus: u32,
    /// The guest's command line.
    pub(super) words: String,
}

impl Round {
    /// Two VMs with two guests that differ: each guest has its turn as the first, and others beside it each time round.
    pub(super) fn of_two(number: u32, seed: u32, seconds: u32, vcpus: u32) -> Self {
        let count = GUESTS.len();
        let turn = (number as usize - 1) / count;
        let first = (number as usize - 1) % count;
        let second = (first + 1 + turn % (count - 1)) % count;
        let seed = derive(seed, number);
        let vm = |name, guest: usize, vcpus| {
            let words = format!("{} {seed} {} {seconds}", word::SEED, word::SECONDS);
            Vm { name, guest: GUESTS[guest], vcpus, words }
        };
        let vms = vec![vm("a", first, vcpus - vcpus / 2), vm("b", second, vcpus / 2)];
        Self { number, seed, seconds, vms }
    }

    /// One VM whose hypervisor leaves a flush out.
    pub(super) fn without(flush: FlushPoint, number: u32, seed: u32, seconds: u32, vcpus: u32) -> Self {
        let seed = derive(seed, number);
        let words = format!("{} {seed} {} {seconds} {} {flush}", word::SEED, word::SECONDS, word::SKIP_FLUSH);
        Self { number, seed, seconds, vms: vec![Vm { name: "a", guest: guest_to_notice(flush), vcpus, words }] }
    }

    pub(super) fn title(&self) -> String {
        self.vms.iter().map(|vm| vm.guest).collect::<Vec<_>>().join(" + ")
    }

    /// The options of `cargo xtask run` that boot the same guests with the same words.
    pub(super) fn options(&self) -> String {
        let vm = |vm: &Vm| {
            let Vm { name, guest, vcpus, words } = vm;
            format!("--vm \"name={name},guest={guest},vcpus={vcpus},mem={},cmdline={words}\"", super::MEMORY)
        };
        self.vms.iter().map(vm).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests::Wanted;
    use std::collections::BTreeSet;

    #[test]
    fn every_pair_of_guests_meets() {
        let count = GUESTS.len();
        let rounds = (1..=(count * (count - 1)) as u32).map(|number| Round::of_two(number, 1, 10, 4));
        let pairs: BTreeSet<_> = rounds.map(|round| (round.vms[0].guest, round.vms[1].guest)).collect();
        assert_eq!(pairs.len(), count * (count - 1));
        assert!(pairs.iter().all(|(a, b)| a != b));
    }

    #[test]
    fn a_round_follows_from_its_seed_and_number() {
        assert_eq!(Round::of_two(3, 7, 10, 4), Round::of_two(3, 7, 10, 4));
        let seeds: BTreeSet<_> = (0..100).flat_map(|seed| (1..100).map(move |round| derive(seed, round))).collect();
        assert!(seeds.len() > 9_890, "{}", seeds.len());
    }

    #[test]
    fn all_vcpus_are_dealt_out() {
        for vcpus in [2, 3, 4, 8] {
            let round = Round::of_two(1, 1, 10, vcpus);
            assert_eq!(round.vms.iter().map(|vm| vm.vcpus).sum::<u32>(), vcpus);
            assert!(round.vms.iter().all(|vm| vm.vcpus > 0));
        }
    }

    #[test]
    fn the_command_that_repeats_a_round_is_understood() {
        let round = Round::without(FlushPoint::Replace, 1, 1, 10, 4);
        let text = round.options();
        let vm: Wanted = text.strip_prefix("--vm \"").unwrap().strip_suffix('"').unwrap().parse().unwrap();
        let guest = vm.resolve(0, None);
        assert_eq!((guest.name.as_str(), guest.vcpus, guest.memory), ("a", 4, super::super::MEMORY));
        assert_eq!(guest.image.words, format!("--seed {} --seconds 10 --skip-flush replace", round.seed));
    }
}
