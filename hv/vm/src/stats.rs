//! How often the guest left, why, and how long the hypervisor took: what `perf kvm stat` shows of KVM.

use crate::exit::ExitKind;
use crate::sort::sort_few;
use crate::vcpu::Stay;
use crate::wanted_msrs::WantedMsrs;
use core::fmt;

/// What one kind of exit has cost so far, in TSC ticks from the first instruction after the exit to the last before the
/// next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    count: u64,
    total: u64,
    min: u64,
    /// The largest less the smallest.
    span: u64,
}

impl Cost {
    #[cold]
    fn extend(&mut self, ticks: u64) {
        let max = if self.min == u64::MAX { ticks } else { self.max().max(ticks) };
        self.min = self.min.min(ticks);
        self.span = max - self.min;
    }

    fn max(&self) -> u64 {
        self.min.wrapping_add(self.span)
    }
}

const NOTHING: Cost = Cost { count: 0, total: 0, min: u64::MAX, span: 0 };

/// Exits by kind.
#[derive(Debug)]
pub struct Stats {
    /// One place more than there are kinds: for what comes before the first exit.
    costs: [Cost; ExitKind::COUNT + 1],
    /// The exit under way: what it was, and when.
    current: (ExitKind, u64),
    pub(crate) wanted_msrs: WantedMsrs,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            costs: [NOTHING; ExitKind::COUNT + 1],
            current: (ExitKind::Start, 0),
            wanted_msrs: WantedMsrs::default(),
        }
    }
}

impl Stats {
    /// Books an exit of `kind` after a `stay` in the guest, which also says when the handling of the exit before it ended.
    #[inline]
    pub fn exited(&mut self, kind: ExitKind, stay: Stay) {
        let (previous, since) = self.current;
        let ticks = stay.entry.wrapping_sub(since);
        let cost = &mut self.costs[previous as usize];
        // One comparison: below the smallest the difference wraps.
        if ticks.wrapping_sub(cost.min) > cost.span {
            cost.extend(ticks);
        }
        cost.count += 1;
        cost.total = cost.total.wrapping_add(ticks);
        self.current = (kind, stay.exit);
    }

    /// Books the last exit, after which the guest is not entered again.
    pub fn ended(&mut self) {
        let (kind, _) = core::mem::replace(&mut self.current, (ExitKind::Start, 0));
        self.costs[kind as usize].count += 1;
    }

    /// Adds another vCPU's.
    pub fn add(&mut self, other: &Self) {
        for (cost, other) in self.costs.iter_mut().zip(&other.costs) {
            cost.count += other.count;
            cost.total = cost.total.wrapping_add(other.total);
            if other.min != u64::MAX {
                cost.extend(other.min);
                cost.extend(other.max());
            }
        }
        self.wanted_msrs.add(&other.wanted_msrs);
    }

    /// The model-specific registers that the guest asked for and does not have.
    pub fn wanted_msrs(&self) -> &WantedMsrs {
        &self.wanted_msrs
    }

    /// How many exits of `kind` there were.
    pub fn count(&self, kind: ExitKind) -> u64 {
        self.costs[kind as usize].count
    }
}

/// `part` of `whole` in tenths of a percent.
fn permille(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { (u128::from(part) * 1000 / u128::from(whole)) as u64 }
}

/// The table, one line a kind, most time first.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let costs = &self.costs[..ExitKind::COUNT];
        let exits: u64 = costs.iter().map(|cost| cost.count).sum();
        let ticks: u64 = costs.iter().map(|cost| cost.total).sum();
        writeln!(
            f,
            "{:<14}{:>10}{:>9}{:>9}{:>10}{:>12}{:>10}",
            "exit", "count", "count%", "time%", "min", "max", "mean"
        )?;
        let mut order: [usize; ExitKind::COUNT] = core::array::from_fn(|kind| kind);
        sort_few(&mut order, |&kind| core::cmp::Reverse(costs[kind].total));
        for kind in order {
            let cost = &costs[kind];
            if cost.count == 0 {
                continue;
            }
            let (share, time) = (permille(cost.count, exits), permille(cost.total, ticks));
            let min = if cost.min == u64::MAX { 0 } else { cost.min };
            writeln!(
                f,
                "{:<14}{:>10}{:>7}.{}{:>7}.{}{:>10}{:>12}{:>10}",
                ExitKind::NAMES[kind],
                cost.count,
                share / 10,
                share % 10,
                time / 10,
                time % 10,
                min,
                if cost.min == u64::MAX { 0 } else { cost.max() },
                cost.total / cost.count
            )?;
        }
        write!(f, "{:<14}{exits:>10}  exits, {ticks} ticks of the TSC in the hypervisor", "all")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_costs_from_the_exit_to_the_next_entry() {
        let mut stats = Stats::default();
        stats.exited(ExitKind::Cpuid, Stay { entry: 0, exit: 100 });
        stats.exited(ExitKind::Halt, Stay { entry: 130, exit: 500 });
        stats.ended();
        assert_eq!(stats.costs[ExitKind::Cpuid as usize], Cost { count: 1, total: 30, min: 30, span: 0 });
        assert_eq!(stats.count(ExitKind::Halt), 1);
        let table = std::format!("{stats}");
        assert!(table.lines().nth(1).is_some_and(|line| line.starts_with("cpuid") && line.contains("100.0")));
    }
}
