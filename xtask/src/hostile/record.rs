//! What came of the rounds: lines, a table, and the report's file.

use super::plan::{Mode, Round, VICTIM};
use crate::accounts;
use crate::judge::{End, VmReport};
use crate::machine::Host;
use crate::trial::Report;
use abi::Verdict;
use abi::lines::{self, Kinds, NumberedLine, NumberedLines};
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How many of a console's last lines are shown of a round that failed.
const LAST_LINES: usize = 40;

/// How a round ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "result", content = "text")]
pub(super) enum Ended {
    /// Each VM has its verdict, and the one that must not notice passed.
    Passed,
    /// A guest ended the emulator, which said this.
    ByEmulator(String),
    Failed(String),
}

impl Ended {
    fn of(report: &Report) -> Self {
        if let Some(words) = emulators_last_words(report) {
            return Self::ByEmulator(words);
        }
        let whole = &report.outcome;
        match whole.verdict {
            Verdict::HvPanic
            | Verdict::HvTripleFault
            | Verdict::NoVirtualization
            | Verdict::Usage
            | Verdict::Unknown => {
                return Self::Failed(format!("{}: {}", whole.verdict, whole.text));
            }
            _ => {}
        }
        match report.vms.iter().find_map(|vm| fault(vm, &report.finished.console)) {
            Some(fault) => Self::Failed(fault),
            None => Self::Passed,
        }
    }
}

/// What is wrong with a VM's end. A hostile one may end in any way, but not without a verdict.
fn fault(vm: &VmReport, console: &[String]) -> Option<String> {
    let VmReport { name, outcome, accounts, .. } = vm;
    match (outcome.verdict, accounts) {
        (Verdict::Unknown | Verdict::Leak | Verdict::BadImage, _) => {
            Some(format!("{name}: {}: {}", outcome.verdict, outcome.text))
        }
        (verdict, _) if name == VICTIM && verdict != Verdict::Pass => {
            Some(format!("{name}: {verdict}: {}", outcome.text))
        }
        (_, None) => Some(format!("{name}: the hypervisor gives no account of its tables")),
        (_, Some(Err(why))) => Some(format!("{name}: {why}")),
        (_, Some(Ok(accounts))) => accounts::fault(accounts).map(|fault| format!("{name}: {fault}")),
    }
    .or_else(|| if name == VICTIM { broken_line(console) } else { None })
}

/// What the emulator said when it ended by itself: by a signal, or with a complaint in place of a verdict.
fn emulators_last_words(report: &Report) -> Option<String> {
    let mut words = report.finished.complaints.iter().map(|line| line.trim());
    let words = words.find(|line| line.contains(char::is_alphanumeric)).map(str::to_string);
    match report.finished.end {
        _ if report.outcome.verdict != Verdict::Unknown => None,
        End::Exited(None) => Some(words.unwrap_or_else(|| "killed by a signal".to_string())),
        End::Exited(Some(1)) => words,
        End::Exited(_) | End::TimedOut(_) => None,
    }
}

/// The lines of a VM, without its name.
fn lines_of<'a>(console: &'a [String], vm: &str) -> impl Iterator<Item = &'a str> {
    let tag = format!("{vm}| ");
    console.iter().filter_map(move |line| line.strip_prefix(&tag))
}

/// The victim numbers its lines, which are all the same otherwise, and tells at last how many there were.
fn broken_line(console: &[String]) -> Option<String> {
    let mut count = 0;
    let mut text = None;
    for line in lines_of(console, VICTIM) {
        if let Some(last) = NumberedLines::parse(line) {
            let is_all = last.is_ok_and(|last| last.count == count);
            return (!is_all).then(|| format!("{VICTIM}: {count} lines of '{line}' came"));
        }
        let Some(numbered) = NumberedLine::parse(line) else { continue };
        count += 1;
        if !numbered.is_ok_and(|line| line.number == count && *text.get_or_insert(line.text) == line.text) {
            return Some(format!("{VICTIM}: in place of its line {count} came '{line}'"));
        }
    }
    Some(format!("{VICTIM}: its last line is missing"))
}

/// Inputs by kind, in the guest's order.
type Inputs = Vec<(String, u64)>;

/// What a hostile VM told last: its inputs, and how often its processor was lost and started anew. What it tried after that
/// is not counted.
fn told(console: &[String], vm: &str) -> (Inputs, u64) {
    let (mut kinds, mut counts, mut restarts) = (Vec::new(), Vec::new(), 0);
    for line in lines_of(console, vm) {
        if let Some(Kinds(names)) = Kinds::parse(line) {
            kinds = names.map(str::to_string).collect();
        } else if let Some(Ok(inputs)) = lines::Inputs::parse(line) {
            // A line may be cut short by the VM's end.
            let read: Vec<u64> = inputs.counts.collect();
            if read.len() == kinds.len() {
                (counts, restarts) = (read, inputs.restarts);
            }
        }
    }
    (kinds.into_iter().zip(counts).collect(), restarts)
}

/// A hostile VM of a round.
#[derive(Clone, Debug, Serialize)]
struct VmRecord {
    name: String,
    seed: u32,
    verdict: &'static str,
    text: String,
    inputs: Inputs,
    restarts: u64,
}

fn save(what: &impl Serialize, file: &Path) -> Result<()> {
    fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    let text = serde_json::to_string_pretty(what)? + "\n";
    fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
}

/// A round that was carried out.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Record {
    round: u32,
    seed: u32,
    mode: String,
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
    pub(super) fn new(round: &Round, report: &Report, repeat: String) -> Self {
        let ended = Ended::of(report);
        let console = match ended {
            Ended::Failed(_) => [&report.finished.console[..], &report.finished.complaints].concat(),
            _ => Vec::new(),
        };
        let vm = |(attacker, report_of): (&super::plan::Attacker, &VmReport)| {
            let (inputs, restarts) = told(&report.finished.console, &attacker.name);
            VmRecord {
                name: attacker.name.clone(),
                seed: attacker.seed,
                verdict: report_of.outcome.verdict.name(),
                text: report_of.outcome.text.clone(),
                inputs,
                restarts,
            }
        };
        Self {
            round: round.number,
            seed: round.seed,
            mode: round.mode.to_string(),
            seconds: report.finished.elapsed.as_secs_f64(),
            ended,
            vms: round.attackers.iter().zip(report.vms.iter().skip(1)).map(vm).collect(),
            repeat,
            console: console[console.len().saturating_sub(LAST_LINES)..].to_vec(),
        }
    }

    /// Keeps the round in a file that no later run writes over unless the same round fails again.
    pub(super) fn keep(&self, folder: &Path, host: Host) -> Result<()> {
        save(self, &folder.join(format!("{host}-{}-{}.json", self.mode, self.seed)))
    }

    /// Whether the hypervisor did not do what it has to.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.ended, Ended::Failed(_))
    }

    fn inputs(&self) -> u64 {
        self.vms.iter().flat_map(|vm| &vm.inputs).map(|(_, count)| count).sum()
    }

    /// How often each verdict was, as `name ×N`.
    fn verdicts(&self) -> String {
        let mut counts = BTreeMap::new();
        self.vms.iter().for_each(|vm| *counts.entry(vm.verdict).or_insert(0) += 1);
        counts.iter().map(|(name, count)| format!("{name} ×{count}")).collect::<Vec<_>>().join(", ")
    }
}

/// One line; of a failed round also its console's end and how to repeat it.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { round, seed, mode, seconds, .. } = self;
        write!(f, "round {round:>3}  {mode:<5} seed {seed:<10}  {seconds:5.1} s  {:>7} inputs  ", self.inputs())?;
        match &self.ended {
            Ended::Passed => write!(f, "passed ({})", self.verdicts()),
            Ended::ByEmulator(words) => {
                write!(f, "the emulator ended: {words}\n    to repeat it: {}", self.repeat)
            }
            Ended::Failed(why) => {
                write!(f, "FAILED: {why}")?;
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
    seconds: f64,
    passed: usize,
    emulator_ended: usize,
    failed: usize,
    rounds: Vec<Record>,
}

impl Tally {
    pub(super) fn new(machine: String, seed: u32) -> Self {
        Self { machine, seed, seconds: 0.0, passed: 0, emulator_ended: 0, failed: 0, rounds: Vec::new() }
    }

    /// Adds a round; `elapsed` is the time since the first began.
    pub(super) fn add(&mut self, record: Record, elapsed: Duration) {
        match record.ended {
            Ended::Passed => self.passed += 1,
            Ended::ByEmulator(_) => self.emulator_ended += 1,
            Ended::Failed(_) => self.failed += 1,
        }
        self.seconds = elapsed.as_secs_f64();
        self.rounds.push(record);
    }

    fn inputs(&self) -> u64 {
        self.rounds.iter().map(Record::inputs).sum()
    }

    /// For the live line.
    pub(super) fn so_far(&self) -> String {
        format!("{} inputs, {:.0}/s", self.inputs(), self.inputs() as f64 / self.seconds.max(1.0))
    }

    /// The modes in which no input was counted: they show nothing.
    fn untried(&self) -> Vec<&str> {
        let is_tried = |mode: &str| self.rounds.iter().any(|round| round.mode == mode && round.inputs() > 0);
        self.modes().into_iter().filter(|mode| !is_tried(mode)).collect()
    }

    /// An emulator that ends is no fault of the hypervisor's; but each mode has to have shown something.
    pub(super) fn is_good(&self) -> bool {
        self.failed == 0 && self.passed > 0 && self.untried().is_empty()
    }

    /// The last line.
    pub(super) fn verdict(&self) -> String {
        let Self { passed, emulator_ended, failed, .. } = self;
        let word = if self.is_good() { "passed" } else { "FAILED" };
        let mut text = format!(
            "{word}: {} inputs in {:.0} s; {passed} rounds passed, {failed} failed, in {emulator_ended} a guest ended the emulator",
            self.inputs(),
            self.seconds
        );
        if let untried @ [_, ..] = &self.untried()[..] {
            text += &format!("; without an input: {}", untried.join(", "));
        }
        text
    }

    pub(super) fn save(&self, file: &Path) -> Result<()> {
        save(self, file)
    }

    /// The modes that there were.
    fn modes(&self) -> Vec<&str> {
        let all = <Mode as clap::ValueEnum>::value_variants().iter().map(Mode::to_string);
        all.filter_map(|mode| self.rounds.iter().find(|round| round.mode == mode)).map(|round| &*round.mode).collect()
    }

    /// A line of the table: a number for each mode, and their sum.
    fn row(&self, f: &mut fmt::Formatter<'_>, name: &str, of: impl Fn(&Record) -> u64) -> fmt::Result {
        write!(f, "{name:<34}")?;
        let counts = self
            .modes()
            .into_iter()
            .map(|mode| self.rounds.iter().filter(|round| round.mode == mode).map(&of).sum::<u64>());
        let mut sum = 0;
        for count in counts {
            sum += count;
            write!(f, "{count:>10}")?;
        }
        writeln!(f, "{sum:>11}")
    }
}

/// The table: inputs by kind and mode, then what became of the VMs and of the emulators.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<34}", "inputs")?;
        self.modes().into_iter().try_for_each(|mode| write!(f, "{mode:>10}"))?;
        writeln!(f, "{:>11}", "all")?;
        let vms = || self.rounds.iter().flat_map(|round| &round.vms);
        let kinds = vms().map(|vm| &vm.inputs).max_by_key(|inputs| inputs.len());
        for (kind, _) in kinds.into_iter().flatten() {
            let of_kind = |(name, count): &(String, u64)| if name == kind { *count } else { 0 };
            self.row(f, kind, |round| round.vms.iter().flat_map(|vm| &vm.inputs).map(of_kind).sum())?;
        }
        self.row(f, "all", Record::inputs)?;
        self.row(f, "rounds", |_| 1)?;
        self.row(f, "processors lost and started anew", |round| round.vms.iter().map(|vm| vm.restarts).sum())?;
        let verdicts: std::collections::BTreeSet<_> = vms().map(|vm| vm.verdict).collect();
        for verdict in verdicts {
            let name = format!("VMs that ended by {verdict}");
            self.row(f, &name, |round| round.vms.iter().filter(|vm| vm.verdict == verdict).count() as u64)?;
        }
        let words = self.rounds.iter().filter_map(|round| match &round.ended {
            Ended::ByEmulator(words) => Some(words),
            _ => None,
        });
        for words in words.collect::<std::collections::BTreeSet<_>>() {
            let ended = Ended::ByEmulator(words.clone());
            let count = self.rounds.iter().filter(|round| round.ended == ended).count();
            writeln!(f, "emulators that ended: {count}, saying: {words}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::Accounts;
    use crate::judge::Outcome;
    use crate::ktap;
    use crate::machine::Finished;

    const CONSOLE: &str = "victim| # line 1 abc\nh1| # kinds msr port\nh1| # inputs 9 1 4 5\nvictim| # line 2 abc\n\
                           h1| # inputs 12 1 6\nh1| # inputs 20 2 8 junk\nvictim| # lines 2, longest gap 9 us";

    fn report(console: &str, victim: Verdict, attacker: Verdict, whole: Verdict, end: End) -> Report {
        let outcome = |verdict| Outcome { verdict, text: "as it says".to_string() };
        let vm = |name: &str, verdict| VmReport {
            name: name.to_string(),
            outcome: outcome(verdict),
            ktap: ktap::Report::default(),
            accounts: Some(Ok(Accounts::default())),
            operations: None,
        };
        let finished = Finished {
            end,
            console: console.lines().map(str::to_string).collect(),
            complaints: vec!["qemu: fatal: invalid tss".to_string()],
            processor_shut_down: false,
            elapsed: Duration::from_secs(3),
        };
        Report { outcome: outcome(whole), vms: vec![vm(VICTIM, victim), vm("h1", attacker)], finished }
    }

    const EXITED: End = End::Exited(Some(9));

    fn ended(victim: Verdict, attacker: Verdict, whole: Verdict) -> Ended {
        Ended::of(&report(CONSOLE, victim, attacker, whole, EXITED))
    }

    #[test]
    fn a_hostile_vm_may_end_in_any_way_that_has_a_verdict() {
        use Verdict::*;
        for attacker in [Pass, GuestFailed, GuestTripleFault, GuestKilled, Hang] {
            assert_eq!(ended(Pass, attacker, attacker), Ended::Passed, "{attacker}");
        }
        for (victim, attacker, whole) in [
            (GuestFailed, GuestKilled, GuestFailed),
            (Hang, Pass, Hang),
            (Pass, Unknown, GuestKilled),
            (Pass, Leak, Leak),
            (Unknown, Unknown, HvPanic),
            (Unknown, Unknown, HvTripleFault),
        ] {
            assert!(matches!(ended(victim, attacker, whole), Ended::Failed(_)), "{victim} {attacker} {whole}");
        }
    }

    #[test]
    fn an_emulator_that_ends_is_named() {
        let aborted = report("", Verdict::Unknown, Verdict::Unknown, Verdict::Unknown, End::Exited(None));
        assert_eq!(Ended::of(&aborted), Ended::ByEmulator("qemu: fatal: invalid tss".to_string()));
        let mut wordless = report("", Verdict::Unknown, Verdict::Unknown, Verdict::Unknown, End::Exited(Some(1)));
        wordless.finished.complaints.clear();
        assert!(matches!(Ended::of(&wordless), Ended::Failed(_)), "it may be the hypervisor's doing");
        wordless.finished.end = End::Exited(None);
        assert_eq!(Ended::of(&wordless), Ended::ByEmulator("killed by a signal".to_string()));
        let silent = report("", Verdict::Hang, Verdict::Hang, Verdict::Hang, End::TimedOut(Duration::from_secs(9)));
        assert!(matches!(Ended::of(&silent), Ended::Failed(_)));
    }

    #[test]
    fn the_victims_lines_are_whole_and_in_sequence() {
        let broken = |text: &str| broken_line(&text.lines().map(str::to_string).collect::<Vec<_>>());
        assert_eq!(broken(CONSOLE), None);
        for text in [
            "victim| # line 1 abc\nvictim| # line 3 abc\nvictim| # lines 2, longest gap 9 us",
            "victim| # line 1 abc\nvictim| # line 2 ab\nvictim| # lines 2, longest gap 9 us",
            "victim| # line 1 abc\nvictim| # lines 2, longest gap 9 us",
            "victim| # line 1 abc",
        ] {
            assert!(broken(text).is_some(), "{text}");
        }
    }

    #[test]
    fn the_last_whole_count_is_taken() {
        let console: Vec<_> = CONSOLE.lines().map(str::to_string).collect();
        assert_eq!(told(&console, "h1"), (vec![("msr".to_string(), 4), ("port".to_string(), 5)], 1));
        assert_eq!(told(&console, "h2"), (vec![], 0));
    }

    fn tally(verdicts: &[Verdict]) -> Tally {
        let mut tally = Tally::new("QEMU, TCG".to_string(), 1);
        for (number, victim) in (1..).zip(verdicts) {
            let round = Round::new(number, 1, Mode::Pae, 1);
            let report = report(CONSOLE, *victim, Verdict::GuestKilled, Verdict::GuestKilled, EXITED);
            tally.add(Record::new(&round, &report, "cargo xtask hostile".to_string()), Duration::from_secs(10));
        }
        tally
    }

    #[test]
    fn a_mode_without_an_input_shows_nothing() {
        let mut tally = tally(&[Verdict::Pass]);
        assert!(tally.is_good());
        let silent = report("", Verdict::Pass, Verdict::GuestKilled, Verdict::GuestKilled, EXITED);
        let record = |number, mode, report| Record::new(&Round::new(number, 1, mode, 1), report, String::new());
        let quiet = Record { ended: Ended::Passed, ..record(2, Mode::P32, &silent) };
        tally.add(quiet, Duration::from_secs(1));
        assert!(!tally.is_good());
        assert!(tally.verdict().ends_with("without an input: p32"), "{}", tally.verdict());
        let loud = report(CONSOLE, Verdict::Pass, Verdict::GuestKilled, Verdict::GuestKilled, EXITED);
        tally.add(record(3, Mode::P32, &loud), Duration::from_secs(1));
        assert!(tally.is_good());
    }

    #[test]
    fn the_table_adds_up() {
        let tally = tally(&[Verdict::Pass, Verdict::Pass]);
        assert!(tally.is_good());
        let table = tally.to_string();
        assert!(table.contains("port                                      10         10"), "{table}");
        assert!(table.contains("VMs that ended by guest-killed             2          2"), "{table}");
        assert!(
            tally.verdict().starts_with("passed: 18 inputs in 10 s; 2 rounds passed, 0 failed"),
            "{}",
            tally.verdict()
        );
    }

    #[test]
    fn one_failure_fails_the_run_and_tells_how_to_repeat_it() {
        let tally = tally(&[Verdict::Pass, Verdict::GuestFailed]);
        assert!(!tally.is_good());
        let text = tally.rounds[1].to_string();
        assert!(text.contains("FAILED: victim: guest-failed: as it says\n"), "{text}");
        assert!(text.ends_with("to repeat it: cargo xtask hostile"), "{text}");
    }

    #[test]
    fn the_report_is_json() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hostile/report.json");
        tally(&[Verdict::Pass]).save(&file).unwrap();
        let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        assert_eq!(json["rounds"][0]["result"], "passed");
        assert_eq!(json["rounds"][0]["vms"][0]["inputs"][1][1], 5);
    }
}
