//! The hypervisor's account of a VM's tables: `hv: [VM: ]tables: allocated=1 freed=1 …`.

use serde::Serialize;
use std::collections::BTreeMap;

/// What became of a VM's table pages, and what was done with its tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Accounts {
    /// Table pages taken and given back.
    pub(crate) allocated: u64,
    pub(crate) freed: u64,
    /// Pages that waited for a grace period, and how many did at most at once.
    pub(crate) deferred: u64,
    pub(crate) peak_backlog: u64,
    /// In ticks of the TSC.
    pub(crate) longest_grace_period: u64,
    /// CPUs interrupted to hurry a grace period or a flush.
    pub(crate) kicks: u64,
    /// Faults served, pages zapped, splits, collapses, protections, replacements, log rounds.
    pub(crate) operations: u64,
    /// Frames of tables and data that are not back.
    pub(crate) left: u64,
}

impl Accounts {
    /// Reads a console line. `vm` is None for a machine's only VM. None: it is some other line. An error: a field is missing.
    pub(crate) fn parse(line: &str, vm: Option<&str>) -> Option<Result<Self, String>> {
        let mut rest = line.trim_end().strip_prefix("hv: ")?;
        if let Some(vm) = vm {
            rest = rest.strip_prefix(vm)?.strip_prefix(": ")?;
        }
        let words = rest.strip_prefix("tables: ")?.split_whitespace();
        let fields: BTreeMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
        let field = |name: &str| {
            let value = fields.get(name).and_then(|value| value.parse().ok());
            value.ok_or_else(|| format!("the account of tables has no number {name}: {rest}"))
        };
        Some((|| {
            Ok(Self {
                allocated: field("allocated")?,
                freed: field("freed")?,
                deferred: field("deferred")?,
                peak_backlog: field("peak-backlog")?,
                longest_grace_period: field("longest-grace-period")?,
                kicks: field("kicks")?,
                operations: field("operations")?,
                left: field("left")?,
            })
        })())
    }

    /// What is not as it has to be at a VM's end.
    pub(crate) fn fault(&self) -> Option<String> {
        if self.left != 0 {
            Some(format!("{} frames did not come back", self.left))
        } else if self.allocated != self.freed {
            Some(format!("{} table pages were taken, {} given back", self.allocated, self.freed))
        } else {
            None
        }
    }

    /// The account of two VMs, or of two runs.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            allocated: self.allocated + other.allocated,
            freed: self.freed + other.freed,
            deferred: self.deferred + other.deferred,
            peak_backlog: self.peak_backlog.max(other.peak_backlog),
            longest_grace_period: self.longest_grace_period.max(other.longest_grace_period),
            kicks: self.kicks + other.kicks,
            operations: self.operations + other.operations,
            left: self.left + other.left,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "tables: allocated=9 freed=9 deferred=7 peak-backlog=3 longest-grace-period=1000 kicks=4 operations=50 left=0";

    #[test]
    fn a_line_is_read_for_its_vm() {
        let alone = Accounts::parse(&format!("hv: {LINE}\r"), None).unwrap().unwrap();
        assert_eq!((alone.allocated, alone.deferred, alone.peak_backlog, alone.operations), (9, 7, 3, 50));
        assert_eq!((alone.longest_grace_period, alone.kicks, alone.left, alone.fault()), (1000, 4, 0, None));
        let tagged = format!("hv: a: {LINE}");
        assert_eq!(Accounts::parse(&tagged, Some("a")), Some(Ok(alone)));
        assert_eq!(Accounts::parse(&tagged, Some("b")), None);
        assert_eq!(Accounts::parse(&tagged, None), None);
        assert!(matches!(Accounts::parse("hv: tables: allocated=9", None), Some(Err(_))));
    }

    #[test]
    fn what_is_not_back_is_a_fault() {
        let good = Accounts { allocated: 5, freed: 5, ..Accounts::default() };
        assert!(Accounts { left: 1, ..good }.fault().unwrap().contains("1 frames"));
        assert!(Accounts { freed: 4, ..good }.fault().unwrap().contains("5 table pages were taken, 4"));
    }

    #[test]
    fn sums_keep_the_peaks() {
        let one = Accounts { peak_backlog: 3, operations: 2, ..Accounts::default() };
        let two = Accounts { peak_backlog: 2, operations: 5, ..Accounts::default() };
        assert_eq!((one.and(two).peak_backlog, one.and(two).operations), (3, 7));
    }
}
