//! A report on a VM's exits while it runs.

use crate::stats::Stats;

/// What a VM's exits have cost when a report is asked for, as each vCPU adds its own. Reports are numbered.
#[derive(Debug, Default)]
pub struct StatsReport {
    number: u32,
    /// How many vCPUs have added to it.
    vcpus: usize,
    stats: Stats,
}

/// What follows an addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// It is the report's first: the other vCPUs have to be asked.
    pub is_first: bool,
    /// It is the report's last: the report can be printed.
    pub is_last: bool,
}

impl StatsReport {
    /// Adds what the exits of one of `vcpus` vCPUs have cost so far to the report of this number. Each vCPU does so once for each report.
    /// One that is late, when a later report has begun, adds nothing.
    pub fn add(&mut self, number: u32, vcpus: usize, stats: &Stats) -> Added {
        if number < self.number {
            return Added { is_first: false, is_last: false };
        }
        let is_first = self.number != number;
        if is_first {
            *self = Self { number, ..Self::default() };
        }
        self.vcpus += 1;
        self.stats.add(stats);
        Added { is_first, is_last: self.vcpus == vcpus }
    }

    /// What was added.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::ExitKind;
    use crate::vcpu::Stay;

    /// Of a vCPU that has halted once.
    fn halted() -> Stats {
        let mut stats = Stats::default();
        stats.exited(ExitKind::Halt, Stay { entry: 0, exit: 1 });
        stats.ended();
        stats
    }

    #[test]
    fn a_report_is_of_each_vcpu() {
        let mut report = StatsReport::default();
        assert_eq!(report.add(1, 2, &halted()), Added { is_first: true, is_last: false });
        assert_eq!(report.add(1, 2, &halted()), Added { is_first: false, is_last: true });
        assert_eq!(report.stats().count(ExitKind::Halt), 2);
        assert_eq!(report.add(2, 1, &halted()), Added { is_first: true, is_last: true }, "the only vCPU");
        assert_eq!(report.stats().count(ExitKind::Halt), 1, "the next report begins anew");
    }

    #[test]
    fn a_vcpu_that_is_late_adds_nothing_to_the_next_report() {
        let mut report = StatsReport::default();
        report.add(1, 3, &halted());
        report.add(2, 3, &halted());
        assert_eq!(report.add(1, 3, &halted()), Added { is_first: false, is_last: false });
        assert_eq!(report.stats().count(ExitKind::Halt), 1);
        report.add(2, 3, &halted());
        assert!(report.add(2, 3, &halted()).is_last);
    }
}
