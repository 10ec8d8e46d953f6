//! Tells which lines of the hypervisor are reached: by guests on emulated machines, and by the crates' tests on this one.
//!
//! The measure is the image: a line counts if the image has an instruction for it, wherever that was inlined. So tests, and
//! what the compiler has removed, do not count.

mod image;
mod tests_here;

use crate::build::Images;
use crate::failure::usage;
use crate::hostile;
use crate::machine::trace::Trace;
use crate::output::outln;
use crate::test;
use anyhow::Result;
use image::{Code, SourceLine};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::process::ExitCode;

/// The crates that are looked at.
const CRATES: [&str; 3] = ["backends", "vm", "shadow"];
/// Rows that do most of what guests can do, nested and shadowed, and end in most of the ways in which VMs end.
const ROWS: [&str; 28] = [
    "smoke",
    "smoke-4k",
    "apic",
    "shootdown",
    "collapse-storm",
    "balloon",
    "timer-storm",
    "two-vms",
    "two-vms-one-dead",
    "victim",
    "halt",
    "hang",
    "oom-die",
    "many-shadows",
    "string-io",
    "nmi-storm",
    "single-step",
    "long-mode-enable",
    "data-breakpoints",
    "delivery",
    "delivery-shadow",
    "smoke-shadow",
    "smoke32-shadow",
    "smoke32-vtlb",
    "access32-shadow",
    "self-map-shadow",
    "pae-toggle-vtlb",
    "fork-storm-shadow",
];
/// Those for Bochs, which takes about five minutes for each: what VMX has of its own, and the processors that lack parts of it.
const BOCHS_ROWS: [&str; 7] = [
    "smoke-4k",
    "smoke32-shadow",
    "two-vms-one-dead",
    "halt",
    "model-lynnfield",
    "model-lynnfield-smp",
    "long-mode-enable",
];

/// Show which lines of the hypervisor guests and tests reach
///
/// Boots rows of the test matrix with the emulator's trace of instructions, and maps it to the lines of hv/backends, hv/vm and
/// hv/shadow. QEMU notes each block of instructions once, when it is translated, which takes little time; an exception within
/// a block leaves its rest noted as reached. Bochs notes every instruction, and takes about a hundred times as long.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask coverage                                    rows of the matrix on QEMU
  cargo xtask coverage --hostile --host-tests --missing   ... hostile guests and the crates' tests; and what nothing reaches
  cargo xtask coverage hang self-map-shadow               these rows
  cargo xtask coverage --host qemu-svm --host bochs-vmx   ... VMX, too: half an hour and more

What stays unreached, and why:
  The Display of Missing, and vmx/failure.rs: words for what processors lack or refuse, for which the hypervisor has to have a fault.
  next_rip and cr8_operand of SVM: processors with next-RIP save and decode assists; --host bochs-svm reaches them.
  The Drop of a backend: backends live as long as the machine does.

Exit status: 0; 1 if a row did not end as it has to, 2 if there is no such row or something has to be installed, 101 if
something could not be built or a test failed.")]
pub(crate) struct Args {
    /// Rows of the test matrix, by their names
    #[arg(value_name = "ROW")]
    rows: Vec<String>,
    /// The column of the test matrix: qemu-svm, bochs-vmx or bochs-svm; may be repeated [default: qemu-svm]
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// Run a round of hostile guests in each mode, too, nested and shadowed, on QEMU
    #[arg(long)]
    hostile: bool,
    /// Run the crates' tests, too
    #[arg(long)]
    host_tests: bool,
    /// List the functions and the lines that are never reached
    #[arg(long)]
    missing: bool,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    let hosts = if args.host.is_empty() { vec!["qemu-svm".to_string()] } else { args.host.clone() };
    check(&args.rows, &hosts)?;
    let images = Images::build()?;
    let trace = Trace::of(&images.hv())?;
    let code = Code::load(&images.hv(), &trace.text, &CRATES)?;
    let mut all_passed = true;
    for host in hosts {
        all_passed &= test::traced(&rows(&args.rows, &host), &[host], &trace)?;
    }
    if args.hostile {
        all_passed &= hostile::traced(&images, &trace)?;
    }
    let by_rows = code.reached(&trace.addresses());
    let by_tests = if args.host_tests { Some(tests_here::reached(&CRATES)?) } else { None };
    let report = Report { code: &code, by_rows, by_tests };
    outln!("\n{report}");
    if args.missing {
        report.missing().iter().for_each(|line| outln!("{line}"));
    }
    Ok(ExitCode::from(u8::from(!all_passed)))
}

/// Refuses a row that none of the hosts has, and a host that has none of the rows.
fn check(given: &[String], hosts: &[String]) -> Result<()> {
    if let Some(row) = given.iter().find(|row| !hosts.iter().any(|host| test::can_trace(row, host))) {
        return Err(usage(format!("{row} on {}: the test matrix has no such row", hosts.join(" or "))));
    }
    match hosts.iter().find(|host| !rows(given, host).iter().any(|row| test::can_trace(row, host))) {
        Some(host) => Err(usage(format!("{host}: the test matrix has no such machine that traces instructions"))),
        None => Ok(()),
    }
}

/// Which rows to boot on a host.
fn rows(given: &[String], host: &str) -> Vec<String> {
    let usual: &[&str] = if host == "qemu-svm" { &ROWS } else { &BOCHS_ROWS };
    if given.is_empty() { usual.iter().map(|row| (*row).to_string()).collect() } else { given.to_vec() }
}

/// What was reached of the code.
struct Report<'a> {
    code: &'a Code,
    by_rows: BTreeSet<SourceLine>,
    /// None: the tests were not run.
    by_tests: Option<BTreeSet<SourceLine>>,
}

/// How many lines there are, and how many were reached.
#[derive(Clone, Copy, Default)]
struct Count {
    lines: usize,
    by_rows: usize,
    by_tests: usize,
    by_either: usize,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.by_rows += other.by_rows;
        self.by_tests += other.by_tests;
        self.by_either += other.by_either;
    }
}

impl Report<'_> {
    fn count(&self, place: &SourceLine) -> Count {
        let by_rows = self.by_rows.contains(place);
        let by_tests = self.by_tests.as_ref().is_some_and(|lines| lines.contains(place));
        let number = usize::from;
        Count { lines: 1, by_rows: number(by_rows), by_tests: number(by_tests), by_either: number(by_rows || by_tests) }
    }

    fn is_reached(&self, place: &SourceLine) -> bool {
        self.count(place).by_either > 0
    }

    /// The functions and the lines that nothing reached.
    fn missing(&self) -> Vec<String> {
        let functions = self.code.functions().filter(|function| !function.places.iter().any(|at| self.is_reached(at)));
        let functions = functions.filter_map(|function| Some((*function.places.first()?, function.name)));
        let mut text = vec!["never reached, functions:".to_string()];
        text.extend(functions.map(|(at, name)| format!("  {}:{} {name}", at.file, at.line)));
        text.push("never reached, lines:".to_string());
        let mut ranges: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let places: Vec<_> = self.code.places().collect();
        for run in places.chunk_by(|a, b| a.file == b.file && self.is_reached(a) == self.is_reached(b)) {
            let (first, last) = (run[0], run[run.len() - 1]);
            if !self.is_reached(first) {
                let range = match first == last {
                    true => first.line.to_string(),
                    false => format!("{}-{}", first.line, last.line),
                };
                ranges.entry(&first.file).or_default().push(range);
            }
        }
        text.extend(ranges.into_iter().map(|(file, ranges)| format!("  {file}: {}", ranges.join(" "))));
        text
    }

    fn row(&self, f: &mut fmt::Formatter<'_>, name: &str, count: Count) -> fmt::Result {
        let percent = |part: usize| part * 100 / count.lines.max(1);
        write!(f, "{name:<40}{:>7}{:>7}{:>6}%", count.lines, count.by_rows, percent(count.by_rows))?;
        if self.by_tests.is_some() {
            write!(f, "{:>7}{:>6}%", count.by_tests, percent(count.by_tests))?;
            write!(f, "{:>7}{:>6}%", count.by_either, percent(count.by_either))?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tests = if self.by_tests.is_some() { "       tests        either" } else { "" };
        writeln!(f, "{:<40}{:>7}{:>14}{tests}", "file", "lines", "rows")?;
        let mut files: BTreeMap<&str, Count> = BTreeMap::new();
        for place in self.code.places() {
            files.entry(&place.file).or_default().add(self.count(place));
        }
        for name in CRATES {
            let prefix = format!("hv/{name}/");
            let mut sum = Count::default();
            for (file, count) in files.iter().filter(|(file, _)| file.starts_with(&prefix)) {
                self.row(f, file, *count)?;
                sum.add(*count);
            }
            self.row(f, &format!("hv/{name}"), sum)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_rows_are_in_the_matrix_and_can_be_traced() {
        let unknown = |rows: &[&'static str], host| rows.iter().copied().find(|row| !test::can_trace(row, host));
        assert_eq!(unknown(&ROWS, "qemu-svm"), None);
        assert_eq!(unknown(&BOCHS_ROWS, "bochs-vmx"), None);
    }

    #[test]
    fn rows_that_are_named_are_meant_on_all_hosts() {
        let named = ["hang".to_string()];
        assert_eq!(rows(&named, "qemu-svm"), named);
        assert_eq!(rows(&named, "bochs-vmx"), named);
        assert_eq!(rows(&[], "bochs-vmx").len(), BOCHS_ROWS.len());
    }
}
