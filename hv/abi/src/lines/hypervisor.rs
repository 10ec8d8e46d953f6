//! The hypervisor's lines.

use super::{Broken, Fields, number};
use crate::Verdict;
use core::fmt;
use core::str::SplitAsciiWhitespace;

/// `verdict: NAME STATUS TEXT`: how a VM ended or, in the last line of all, the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictLine<T> {
    /// How it ended.
    pub verdict: Verdict,
    /// Why.
    pub text: T,
}

const VERDICT: &str = "verdict:";

impl<T: fmt::Display> fmt::Display for VerdictLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verdict, text } = self;
        write!(f, "{VERDICT} {verdict} {} {text}", verdict.status())
    }
}

impl<'a> VerdictLine<&'a str> {
    /// Reads the line.
    pub fn parse(line: &'a str) -> Option<Result<Self, Broken>> {
        let mut words = line.trim_end().strip_prefix(VERDICT)?.trim_start().splitn(3, ' ');
        let (name, status) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let verdict = name.parse().ok().filter(|verdict: &Verdict| Ok(verdict.status()) == status.parse());
        let text = words.next().unwrap_or_default();
        Some(verdict.map(|verdict| Self { verdict, text }).ok_or(Broken { part: "verdict with its status" }))
    }
}

/// Defines a struct of counts that is printed as `word: key=1 other-key=2`.
macro_rules! counts {
    ($(#[$meta:meta])* pub struct $name:ident: $word:literal { $($(#[$field_meta:meta])* $field:ident = $key:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: u64,)*
        }

        impl $name {
            /// The keys and their counts, in the line's order.
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$(($key, self.$field),)*].into_iter()
            }

            /// Reads the line.
            pub fn parse(line: &str) -> Option<Result<Self, Broken>> {
                let fields = Fields(line.strip_prefix(concat!($word, ": "))?);
                let read = || Ok(Self { $($field: fields.number($key)?,)* });
                Some(read())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!($word, ":"))?;
                self.fields().try_for_each(|(key, count)| write!(f, " {key}={count}"))
            }
        }
    };
}

counts! {
    /// `tables: allocated=1 freed=1 …`: what became of a VM's frames, and what was done with its tables.
    pub struct Accounts: "tables" {
        /// Frames taken for tables and for the guest.
        allocated = "allocated";
        /// Frames of those that came back.
        freed = "freed";
        /// Pages that waited for a grace period.
        deferred = "deferred";
        /// The most pages that waited at once.
        peak_backlog = "peak-backlog";
        /// The longest grace period of all CPUs and VMs, in ticks of the TSC.
        longest_grace_period = "longest-grace-period";
        /// CPUs interrupted to hurry a grace period or a flush.
        kicks = "kicks";
        /// Faults served, pages zapped, splits, collapses, protections, replacements, log rounds.
        operations = "operations";
        /// Frames that did not come back.
        left = "left";
    }
}

/// `heap: U of T KiB used, N allocations while guests ran`: the hypervisor's heap at the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapUsage {
    /// KiB in use.
    pub used_kib: u64,
    /// KiB that the heap has.
    pub total_kib: u64,
    /// Allocations since the first guest started.
    pub allocations: u64,
}

impl HeapUsage {
    /// Reads the line.
    pub fn parse(line: &str) -> Option<Result<Self, Broken>> {
        let rest = line.strip_prefix("heap: ")?;
        let read = || {
            let (usage, allocations) = rest.split_once(" KiB used, ").ok_or(Broken { part: "usage" })?;
            let (used, total) = usage.split_once(" of ").ok_or(Broken { part: "usage" })?;
            let allocations = allocations.strip_suffix(" allocations while guests ran").unwrap_or_default();
            Ok(Self {
                used_kib: number(used, "usage")?,
                total_kib: number(total, "usage")?,
                allocations: number(allocations, "count of allocations")?,
            })
        };
        Some(read())
    }
}

impl fmt::Display for HeapUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { used_kib, total_kib, allocations } = self;
        write!(f, "heap: {used_kib} of {total_kib} KiB used, {allocations} allocations while guests ran")
    }
}

/// `ended N us past its limit`: how late a VM was ended that reached its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastLimit {
    /// Microseconds.
    pub us: u64,
}

impl PastLimit {
    /// Reads the line.
    pub fn parse(line: &str) -> Option<Result<Self, Broken>> {
        let us = line.strip_prefix("ended ")?.strip_suffix(" us past its limit")?;
        Some(number(us, "time past the limit").map(|us| Self { us }))
    }
}

impl fmt::Display for PastLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ended {} us past its limit", self.us)
    }
}

/// `start-to-guest: N ticks`: how long it took from the hypervisor's first instruction to the first guest's, in ticks of the TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartToGuest(pub u64);

impl StartToGuest {
    /// Reads the line.
    pub fn parse(line: &str) -> Option<Result<Self, Broken>> {
        let ticks = line.strip_prefix("start-to-guest: ")?.strip_suffix(" ticks").unwrap_or_default();
        Some(number(ticks, "number of ticks").map(Self))
    }
}

impl fmt::Display for StartToGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start-to-guest: {} ticks", self.0)
    }
}

/// `backtrace: 0x1 0x2`: return addresses, the innermost first, after the address of the fault if there was one. `xtask` turns
/// them into names.
#[derive(Clone, Copy, Debug)]
pub struct Backtrace<I>(pub I);

const BACKTRACE: &str = "backtrace:";

impl<I: Iterator<Item = u64> + Clone> fmt::Display for Backtrace<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(BACKTRACE)?;
        self.0.clone().try_for_each(|address| write!(f, " {address:#x}"))
    }
}

impl<'a> Backtrace<Addresses<'a>> {
    /// Reads the line.
    pub fn parse(line: &'a str) -> Option<Result<Self, Broken>> {
        let words = line.strip_prefix(BACKTRACE)?.split_ascii_whitespace();
        let all_are_addresses = words.clone().all(|word| address(word).is_some());
        Some(if all_are_addresses { Ok(Self(Addresses(words))) } else { Err(Broken { part: "addresses" }) })
    }
}

/// The addresses of a [`Backtrace`] that was read.
#[derive(Clone, Debug)]
pub struct Addresses<'a>(SplitAsciiWhitespace<'a>);

impl Iterator for Addresses<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        address(self.0.next()?)
    }
}

fn address(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}
