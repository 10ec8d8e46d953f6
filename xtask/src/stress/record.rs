//! What came of the rounds: lines, a table, and the report's file.

use super::plan::{GUESTS, Round};
use crate::accounts::{self, Accounts};
use crate::judge::{End, VmReport};
use crate::trial::Report;
use abi::Verdict;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// One emulator in this many may fall silent; one always may.
const ROUNDS_PER_SILENCE: usize = 20;

/// How a round ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "result", content = "text")]
pub(super) enum Ended {
    Passed,
    /// The emulator stopped answering, as this says, and the same round passed on another.
    NoAnswer(String),
    Failed(String),
}

impl Ended {
    /// Judges a round: every guest has to pass, and every VM's tables to be accounted for.
    pub(super) fn of(report: &Report) -> Self {
        if report.outcome.verdict != Verdict::Pass {
            let outcome = &report.outcome;
            return Self::Failed(format!("{}: {}", outcome.verdict, outcome.text));
        }
        match report.vms.iter().find(|vm| vm.accounts.is_none()) {
            Some(vm) => Self::Failed(format!("{}: the hypervisor gives no account of its tables", vm.name)),
            None => Self::Passed,
        }
    }
}

/// Carries a round out, and once more if the emulator fell silent and this one may; the report that counts, and its end.
pub(super) fn settle(may_fall_silent: bool, mut attempt: impl FnMut() -> Result<Report>) -> Result<(Report, Ended)> {
    let first = attempt()?;
    if !(may_fall_silent && is_silent(&first)) {
        let ended = Ended::of(&first);
        return Ok((first, ended));
    }
    let second = attempt()?;
    let ended = match Ended::of(&second) {
        Ended::Passed => Ended::NoAnswer(first.outcome.text),
        other => other,
    };
    Ok((second, ended))
}

/// Whether the machine fell silent so that not even the hypervisor's own limit was kept.
fn is_silent(report: &Report) -> bool {
    matches!(report.finished.end, End::TimedOut(_)) && report.outcome.verdict == Verdict::Hang
}

/// A VM of a round.
#[derive(Clone, Debug, Serialize)]
struct VmRecord {
    name: String,
    guest: &'static str,
    words: String,
    vcpus: u32,
    verdict: &'static str,
    /// The guest's own count.
    operations: Option<u64>,
    #[serde(serialize_with = "accounts::serialize_option")]
    tables: Option<Accounts>,
}

impl VmRecord {
    fn new(vm: &super::Vm, report: &VmReport) -> Self {
        Self {
            name: report.name.clone(),
            guest: vm.guest,
            words: vm.words.clone(),
            vcpus: vm.vcpus,
            verdict: report.outcome.verdict.name(),
            operations: report.operations,
            tables: report.accounts.clone().and_then(Result::ok),
        }
    }
}

/// A round that was carried out.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Record {
    round: u32,
    seed: u32,
    title: String,
    seconds: f64,
    #[serde(flatten)]
    ended: Ended,
    vms: Vec<VmRecord>,
    /// The command that repeats it.
    repeat: String,
    /// The console's last lines, of a round that failed.
    console: Vec<String>,
}

impl Record {
    pub(super) fn new(round: &Round, report: &Report, ended: Ended, repeat: String) -> Self {
        let console = match ended {
            Ended::Failed(_) => [&report.finished.console[..], &report.finished.complaints].concat(),
            _ => Vec::new(),
        };
        Self {
            round: round.number,
            seed: round.seed,
            title: round.title(),
            seconds: report.finished.elapsed.as_secs_f64(),
            ended,
            vms: round.vms.iter().zip(&report.vms).map(|(vm, report)| VmRecord::new(vm, report)).collect(),
            repeat,
            console: console[console.len().saturating_sub(super::LAST_LINES)..].to_vec(),
        }
    }

    fn tables(&self) -> Accounts {
        self.vms.iter().filter_map(|vm| vm.tables).fold(Accounts::default(), accounts::sum)
    }
}

/// One line; of a failed round also its console's end and how to repeat it.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { round, seed, title, seconds, .. } = self;
        let Accounts { operations, peak_backlog, .. } = self.tables();
        let word = match &self.ended {
            Ended::Passed => "passed",
            Ended::NoAnswer(_) => "passed at the second try",
            Ended::Failed(_) => "FAILED",
        };
        write!(f, "round {round:>3}  {title:<30} seed {seed:<10}  {seconds:5.1} s  ")?;
        write!(f, "{operations:>9} operations  backlog {peak_backlog:>5}  {word}")?;
        match &self.ended {
            Ended::Passed => Ok(()),
            Ended::NoAnswer(first) => write!(f, "\n    the first: {first}"),
            Ended::Failed(why) => {
                write!(f, ": {why}")?;
                self.console.iter().try_for_each(|line| write!(f, "\n    {line}"))?;
                write!(f, "\n    to repeat it: {}", self.repeat)
            }
        }
    }
}

/// All rounds so far.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Tally {
    machine: String,
    seed: u32,
    vcpus: u32,
    seconds: f64,
    passed: usize,
    no_answer: usize,
    failed: usize,
    /// Of all VMs: sums, and the peaks' maxima.
    #[serde(serialize_with = "accounts::serialize")]
    tables: Accounts,
    rounds: Vec<Record>,
}

impl Tally {
    pub(super) fn new(machine: String, seed: u32, vcpus: u32) -> Self {
        let tables = Accounts::default();
        Self { machine, seed, vcpus, seconds: 0.0, passed: 0, no_answer: 0, failed: 0, tables, rounds: Vec::new() }
    }

    /// Adds a round; `elapsed` is the time since the first began.
    pub(super) fn add(&mut self, record: Record, elapsed: Duration) {
        match record.ended {
            Ended::Passed => self.passed += 1,
            Ended::NoAnswer(_) => self.no_answer += 1,
            Ended::Failed(_) => self.failed += 1,
        }
        self.seconds = elapsed.as_secs_f64();
        self.tables = accounts::sum(self.tables, record.tables());
        self.rounds.push(record);
    }

    /// For the live line.
    pub(super) fn so_far(&self) -> String {
        let Accounts { operations, peak_backlog, .. } = self.tables;
        let rate = operations as f64 / self.seconds.max(1.0);
        format!("{operations} operations, {rate:.0}/s, peak backlog {peak_backlog}")
    }

    fn silences_allowed(&self) -> usize {
        self.rounds.len().div_ceil(ROUNDS_PER_SILENCE)
    }

    pub(super) fn is_good(&self) -> bool {
        self.failed == 0 && self.passed > 0 && self.no_answer <= self.silences_allowed()
    }

    /// The last line.
    pub(super) fn verdict(&self) -> String {
        let Self { passed, no_answer, failed, .. } = self;
        let word = if self.is_good() { "passed" } else { "FAILED" };
        let mut text =
            format!("{word}: {passed} rounds passed, {failed} failed, {} frames left over", self.tables.left);
        if *no_answer > 0 {
            let allowed = self.silences_allowed();
            text += &format!(
                ", {no_answer} passed at the second try after an emulator that did not answer ({allowed} allowed)"
            );
        }
        text
    }

    pub(super) fn save(&self, file: &Path) -> Result<()> {
        fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
    }
}

/// The table: a line for each guest, and one for all.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<16}{:>7}{:>8}{:>14}{:>14}{:>12}{:>12}{:>9}{:>16}{:>10}{:>6}",
            "guest",
            "runs",
            "failed",
            "operations",
            "on tables",
            "allocated",
            "deferred",
            "backlog",
            "grace (ticks)",
            "kicks",
            "left"
        )?;
        for guest in GUESTS {
            self.row(f, guest, |vm| vm.guest == guest)?;
        }
        self.row(f, "all", |_| true)
    }
}

impl Tally {
    fn row(&self, f: &mut fmt::Formatter<'_>, name: &str, of: impl Fn(&VmRecord) -> bool) -> fmt::Result {
        let vms: Vec<_> = self.rounds.iter().flat_map(|round| &round.vms).filter(|vm| of(vm)).collect();
        if vms.is_empty() {
            return Ok(());
        }
        let failed = vms.iter().filter(|vm| vm.verdict != Verdict::Pass.name()).count();
        let operations: u64 = vms.iter().filter_map(|vm| vm.operations).sum();
        let tables = vms.iter().filter_map(|vm| vm.tables).fold(Accounts::default(), accounts::sum);
        writeln!(
            f,
            "{name:<16}{:>7}{failed:>8}{operations:>14}{:>14}{:>12}{:>12}{:>9}{:>16}{:>10}{:>6}",
            vms.len(),
            tables.operations,
            tables.allocated,
            tables.deferred,
            tables.peak_backlog,
            tables.longest_grace_period,
            tables.kicks,
            tables.left
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Outcome;
    use crate::ktap;
    use crate::machine::Finished;

    fn report(verdict: Verdict, accounts: Option<Accounts>) -> Report {
        let outcome = Outcome { verdict, text: "as it says".to_string() };
        let vm = |name: &str| VmReport {
            name: name.to_string(),
            outcome: outcome.clone(),
            ktap: ktap::Report::default(),
            accounts: accounts.map(Ok),
            operations: Some(5),
        };
        let finished = Finished {
            end: End::Exited(Some(1)),
            console: vec!["the last line".to_string()],
            complaints: Vec::new(),
            processor_shut_down: false,
            elapsed: Duration::from_secs(3),
        };
        Report { outcome: outcome.clone(), vms: vec![vm("a"), vm("b")], finished }
    }

    fn silent() -> Report {
        let mut report = report(Verdict::Hang, None);
        report.finished.end = End::TimedOut(Duration::from_secs(60));
        report
    }

    #[test]
    fn a_silent_emulator_gets_one_more_try() {
        let good = || report(Verdict::Pass, Some(Accounts::default()));
        let settled = |may_fall_silent, reports: Vec<Report>| {
            let count = reports.len();
            let mut reports = reports.into_iter();
            let (_, ended) = settle(may_fall_silent, || Ok(reports.next().unwrap())).unwrap();
            (ended, count - reports.len())
        };
        assert_eq!(settled(true, vec![good(), good()]), (Ended::Passed, 1));
        assert_eq!(settled(true, vec![silent(), good()]), (Ended::NoAnswer("as it says".to_string()), 2));
        for (may_fall_silent, reports, tries) in [
            (false, vec![silent(), good()], 1),
            (true, vec![silent(), silent(), good()], 2),
            // The hypervisor itself ended a guest that hung: that is no emulator's fault.
            (true, vec![report(Verdict::Hang, None), good()], 1),
            (true, vec![report(Verdict::GuestFailed, None), good()], 1),
        ] {
            let (ended, tried) = settled(may_fall_silent, reports);
            assert!(matches!(ended, Ended::Failed(_)));
            assert_eq!(tried, tries);
        }
    }

    fn record(number: u32, ended: Ended) -> Record {
        let tables = Accounts { operations: 100, peak_backlog: 7, ..Accounts::default() };
        let round = Round::of_two(number, 1, 10, 4);
        Record::new(&round, &report(Verdict::Pass, Some(tables)), ended, "cargo xtask run".to_string())
    }

    fn tally(ended: &[Ended]) -> Tally {
        let mut tally = Tally::new("QEMU, TCG".to_string(), 1, 4);
        for (number, ended) in (1..).zip(ended) {
            tally.add(record(number, ended.clone()), Duration::from_secs(10 * u64::from(number)));
        }
        tally
    }

    #[test]
    fn a_round_passes_with_an_account_of_all_tables() {
        assert_eq!(Ended::of(&report(Verdict::Pass, Some(Accounts::default()))), Ended::Passed);
        let Ended::Failed(why) = Ended::of(&report(Verdict::Pass, None)) else { panic!("it has no account") };
        assert!(why.contains("a: the hypervisor gives no account"), "{why}");
        assert!(matches!(Ended::of(&report(Verdict::Leak, Some(Accounts::default()))), Ended::Failed(_)));
    }

    #[test]
    fn a_failed_round_shows_how_to_repeat_it() {
        let text = record(3, Ended::Failed("stale".to_string())).to_string();
        assert!(text.contains("FAILED: stale\n    the last line\n    to repeat it: cargo xtask run"), "{text}");
        assert_eq!(record(3, Ended::Passed).to_string().lines().count(), 1);
    }

    #[test]
    fn sums_are_of_all_vms() {
        let tally = tally(&[Ended::Passed, Ended::Passed]);
        assert_eq!((tally.tables.operations, tally.tables.peak_backlog), (400, 7));
        assert_eq!(tally.so_far(), "400 operations, 20/s, peak backlog 7");
        let table = tally.to_string();
        assert!(table.lines().last().unwrap().starts_with("all                   4       0            20"), "{table}");
    }

    #[test]
    fn a_silent_emulator_is_excused_once_in_twenty_rounds() {
        let silent = || Ended::NoAnswer("no verdict within 60 s".to_string());
        assert!(tally(&[Ended::Passed, silent()]).is_good());
        assert!(tally(&[Ended::Passed, silent()]).verdict().contains("1 passed at the second try"));
        assert!(!tally(&[Ended::Passed, silent(), silent()]).is_good());
        assert!(!tally(&[Ended::Passed, Ended::Failed("x".to_string())]).is_good());
        assert!(!tally(&[]).is_good(), "nothing was shown");
    }

    #[test]
    fn the_report_is_json() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("stress/report.json");
        tally(&[Ended::Passed, Ended::Failed("stale".to_string())]).save(&file).unwrap();
        let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        assert_eq!(json["rounds"][1]["result"], "failed");
        assert_eq!(json["rounds"][1]["text"], "stale");
        assert_eq!(json["rounds"][0]["vms"][1]["tables"]["operations"], 100);
        assert_eq!(json["tables"]["left"], 0);
    }
}
