//! Tells which lines of the hypervisor are reached: by guests on emulated machines, and by the crates' tests on this one.
//!
//! The measure is the image: a line counts if the image has an instruction for it, wherever that was inlined. So tests, and
//! what the compiler has removed, do not count.

mod image;
mod tests_here;

use crate::build::Images;
use crate::failure::usage;
use crate::machine::trace::Trace;
use crate::output::outln;
use crate::test;
use anyhow::Result;
use image::{Code, Place};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::process::ExitCode;

/// The crates that are looked at.
const CRATES: [&str; 3] = ["backends", "vm", "shadow"];
/// Rows that do most of what guests can do, nested and shadowed, in a minute or two.
const ROWS: [&str; 10] = [
    "smoke",
    "smoke-4k",
    "apic",
    "shootdown",
    "timer-storm",
    "two-vms",
    "smoke32-shadow",
    "smoke32-vtlb",
    "access32-shadow",
    "fork-storm-shadow",
];

/// Show which lines of the hypervisor guests and tests reach
///
/// Boots rows of the test matrix with the emulator's trace of instructions, and maps it to the lines of hv/backends, hv/vm and
/// hv/shadow. QEMU notes each block of instructions once, when it is translated, which takes little time; an exception within
/// a block leaves its rest noted as reached. Bochs notes every instruction, and takes about a hundred times as long.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask coverage                                    ten rows of the matrix on QEMU
  cargo xtask coverage --host-tests --missing             ... and the crates' tests; and what neither reaches
  cargo xtask coverage hang self-map-shadow               these rows
  cargo xtask coverage --host bochs-vmx smoke-4k          VMX

Exit status: 0; 1 if a row did not end as it has to, 2 if there is no such row or something has to be installed, 101 if
something could not be built or a test failed.")]
pub(crate) struct Args {
    /// Rows of the test matrix, by their names
    #[arg(value_name = "ROW")]
    rows: Vec<String>,
    /// The column of the test matrix: qemu-svm, bochs-vmx or bochs-svm; may be repeated [default: qemu-svm]
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// Run the crates' tests, too
    #[arg(long)]
    host_tests: bool,
    /// List the functions and the lines that are never reached
    #[arg(long)]
    missing: bool,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    let default = |given: &[String], usual: &[&str]| match given {
        [] => usual.iter().map(|word| (*word).to_string()).collect(),
        given => given.to_vec(),
    };
    let (rows, hosts) = (default(&args.rows, &ROWS), default(&args.host, &["qemu-svm"]));
    if let Some(row) = rows.iter().find(|row| !hosts.iter().any(|host| test::can_trace(row, host))) {
        return Err(usage(format!("{row} on {}: the test matrix has no such row", hosts.join(" or "))));
    }
    let images = Images::build()?;
    let trace = Trace::of(&images.hv())?;
    let code = Code::load(&images.hv(), &trace.text, &CRATES)?;
    let all_passed = test::traced(&rows, &hosts, &trace)?;
    let by_rows = code.reached(&trace.addresses());
    let by_tests = if args.host_tests { Some(tests_here::reached(&CRATES)?) } else { None };
    let report = Report { code: &code, by_rows, by_tests };
    outln!("\n{report}");
    if args.missing {
        report.missing().iter().for_each(|line| outln!("{line}"));
    }
    Ok(ExitCode::from(u8::from(!all_passed)))
}

/// What was reached of the code.
struct Report<'a> {
    code: &'a Code,
    by_rows: BTreeSet<Place>,
    /// None: the tests were not run.
    by_tests: Option<BTreeSet<Place>>,
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
    fn count(&self, place: &Place) -> Count {
        let by_rows = self.by_rows.contains(place);
        let by_tests = self.by_tests.as_ref().is_some_and(|lines| lines.contains(place));
        let number = usize::from;
        Count { lines: 1, by_rows: number(by_rows), by_tests: number(by_tests), by_either: number(by_rows || by_tests) }
    }

    fn is_reached(&self, place: &Place) -> bool {
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
