//! The hypervisor's account of a VM's tables: [`Accounts`], judged, added up and reported.

pub(crate) use abi::lines::Accounts;
use abi::wire;
use serde::Serializer;

/// Reads a console line. `vm` is None for a machine's only VM. None: it is some other line. An error: a field is missing.
pub(crate) fn parse(line: &str, vm: Option<&str>) -> Option<Result<Accounts, String>> {
    let read = Accounts::parse(wire::own(line, vm)?)?;
    Some(read.map_err(|broken| format!("{broken}: {line}")))
}

/// What is not as it has to be at a VM's end.
pub(crate) fn fault(accounts: &Accounts) -> Option<String> {
    let Accounts { allocated, freed, left, .. } = accounts;
    if *left != 0 {
        Some(format!("{left} frames did not come back"))
    } else if allocated != freed {
        Some(format!("{allocated} table pages were taken, {freed} given back"))
    } else {
        None
    }
}

/// The account of two VMs, or of two runs.
pub(crate) fn sum(one: Accounts, other: Accounts) -> Accounts {
    Accounts {
        allocated: one.allocated + other.allocated,
        freed: one.freed + other.freed,
        deferred: one.deferred + other.deferred,
        peak_backlog: one.peak_backlog.max(other.peak_backlog),
        longest_grace_period: one.longest_grace_period.max(other.longest_grace_period),
        kicks: one.kicks + other.kicks,
        operations: one.operations + other.operations,
        left: one.left + other.left,
    }
}

/// As a map of a report's file.
pub(crate) fn serialize<S: Serializer>(accounts: &Accounts, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(accounts.fields().map(|(key, count)| (key.replace('-', "_"), count)))
}

/// The same of accounts that may be missing.
pub(crate) fn serialize_option<S: Serializer>(accounts: &Option<Accounts>, serializer: S) -> Result<S::Ok, S::Error> {
    match accounts {
        Some(accounts) => serialize(accounts, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_for_its_vm() {
        let account = Accounts { allocated: 9, freed: 9, peak_backlog: 3, operations: 50, ..Accounts::default() };
        assert_eq!(parse(&format!("hv: {account}\r"), None), Some(Ok(account)));
        let tagged = format!("hv: a: {account}");
        assert_eq!(parse(&tagged, Some("a")), Some(Ok(account)));
        assert_eq!(parse(&tagged, Some("b")), None);
        assert_eq!(parse(&tagged, None), None);
        assert!(parse("hv: tables: allocated=9", None).unwrap().unwrap_err().contains("freed"));
    }

    #[test]
    fn what_is_not_back_is_a_fault() {
        let good = Accounts { allocated: 5, freed: 5, ..Accounts::default() };
        assert_eq!(fault(&good), None);
        assert!(fault(&Accounts { left: 1, ..good }).unwrap().contains("1 frames"));
        assert!(fault(&Accounts { freed: 4, ..good }).unwrap().contains("5 table pages were taken, 4"));
    }

    #[test]
    fn sums_keep_the_peaks() {
        let one = Accounts { peak_backlog: 3, operations: 2, ..Accounts::default() };
        let two = Accounts { peak_backlog: 2, operations: 5, ..Accounts::default() };
        assert_eq!((sum(one, two).peak_backlog, sum(one, two).operations), (3, 7));
    }
}
