//! The test programs of a copy: built once, and run for each mutant.

use super::copy::{REACHED, VARIABLE};
use crate::leash::Leashed;
use crate::progress::Step;
use crate::project;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// A mutant is given this many times the time that the unchanged crate takes, and this much at least. It is the processor's time, which
/// other programs do not take part in.
const FACTOR: u32 = 5;
const LEAST: Duration = Duration::from_secs(5);
/// One that sleeps for ever is ended when this much has passed, as a multiple of its processor time.
const PATIENCE: u32 = 6;
/// What ends a program that has used its time.
const OUT_OF_TIME: [i32; 2] = [Signal::XCPU.as_raw(), Signal::KILL.as_raw()];
/// A test that takes longer than this is run by itself, when the quick ones of all programs have passed.
const QUICK: Duration = Duration::from_millis(500);
/// A mutant that allocates for ever ends here.
const MEMORY: &str = "--as=8589934592";

/// What tests a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stage {
    Host,
    Loom,
    Shuttle,
}

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ended {
    /// By this test.
    Killed(String),
    /// In this test, which did not end in time.
    TimedOut(String),
    Survived,
    /// No test runs its code.
    Unreached,
}

impl Ended {
    pub(super) fn is_noticed(&self) -> bool {
        matches!(self, Self::Killed(_) | Self::TimedOut(_))
    }
}

/// Tests of one program that are run together.
pub(super) struct Program {
    path: PathBuf,
    folder: PathBuf,
    tests: Tests,
    limit: Duration,
    /// The changes whose code they run; all if that is not known. Up to there a test does what it does without a change.
    reached: Option<BTreeSet<usize>>,
}

/// Which tests of a program are run.
enum Tests {
    /// All but those that break a rule by name: what they show is that the rule is needed.
    All,
    Named(Vec<String>),
}

/// What building has come to.
pub(super) enum Built {
    Programs(Vec<PathBuf>),
    /// The compiler refuses these changes.
    Refused(BTreeSet<usize>),
}

impl Stage {
    pub(super) const ALL: [Self; 3] = [Self::Host, Self::Loom, Self::Shuttle];

    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Loom => "loom",
            Self::Shuttle => "shuttle",
        }
    }

    /// Builds the tests of the copy in `root`.
    pub(super) fn build(self, root: &Path, package: &str) -> Result<Built> {
        let step = Step::begin(format!("building the mutants of {package} for {}", self.name()));
        // A folder for each crate: cargo tells the crates of two copies by their places in the workspace, which are the same, so that
        // one crate's tests would be linked to another one's changes.
        let target = project::reports("mutants").join("build").join(package).join(self.name());
        let mut cargo = Command::new(project::cargo());
        cargo.current_dir(root).args([
            "test",
            "--no-run",
            "--message-format=json",
            "--lib",
            "--tests",
            "--package",
            package,
        ]);
        cargo.arg("--target-dir").arg(target).stderr(Stdio::null()).stdin(Stdio::null());
        // Overflows and assertions are checked in the crates' own tests. Link-time optimization takes longer than it saves.
        cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1").env("CARGO_PROFILE_DEV_DEBUG", "false");
        cargo.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "false");
        if self != Self::Host {
            cargo.arg("--release").env("RUSTFLAGS", format!("--cfg {}", self.name()));
        }
        let output = cargo.output().context("can't run cargo")?;
        step.end(if output.status.success() { "done" } else { "some changes do not compile" });
        let messages: Vec<Value> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        if output.status.success() {
            let program = |message: &Value| Some(PathBuf::from(message.get("executable")?.as_str()?));
            return Ok(Built::Programs(messages.iter().filter_map(program).collect()));
        }
        let refused: BTreeSet<_> = messages.iter().flat_map(|message| refused(root, message)).collect();
        if refused.is_empty() {
            let errors = messages.iter().filter_map(|message| message["message"]["rendered"].as_str());
            bail!("the copy in {} does not compile:\n{}", root.display(), errors.collect::<String>());
        }
        Ok(Built::Refused(refused))
    }
}

/// The numbers of the changes in the lines of which the compiler complains.
fn refused(root: &Path, message: &Value) -> Vec<usize> {
    if message["message"]["level"] != "error" {
        return Vec::new();
    }
    let mut all = Vec::new();
    for span in message["message"]["spans"].as_array().into_iter().flatten().filter(|span| span["is_primary"] == true) {
        let line = |name: &str| span[name].as_u64().and_then(|line| usize::try_from(line).ok()).unwrap_or_default();
        let text = fs::read_to_string(root.join(span["file_name"].as_str().unwrap_or_default())).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let (first, last) = (line("line_start").saturating_sub(1), line("line_end").min(lines.len()));
        let here = lines.get(first..last).map(|lines| numbers(&lines.join("\n"))).unwrap_or_default();
        // What is chosen stands below the line with its number.
        let above =
            || lines[..first.min(lines.len())].iter().rev().map(|line| numbers(line)).find(|found| !found.is_empty());
        all.extend(if here.is_empty() { above().unwrap_or_default() } else { here });
    }
    all
}

/// The numbers of changes in this text: each is written as a `usize`.
fn numbers(text: &str) -> Vec<usize> {
    let ends = text.match_indices("usize").map(|(end, _)| &text[..end]);
    ends.filter_map(|text| text[text.trim_end_matches(|c: char| c.is_ascii_digit()).len()..].parse().ok()).collect()
}

impl Program {
    /// Runs it without a change, to know how long its tests take: those that are quick stay together, and each of the others is by
    /// itself, so that it can be run last.
    pub(super) fn measured(path: PathBuf, folder: PathBuf) -> Result<Vec<Self>> {
        let all = Self { path, folder, tests: Tests::All, limit: Duration::from_secs(3600), reached: None };
        let mut times = Vec::new();
        let mut before = Instant::now();
        let ended = all.run_and_tell(0, None, |test| {
            times.push((test.to_string(), before.elapsed()));
            before = Instant::now();
        })?;
        ensure!(ended == Ended::Survived, "{} fails without a change: {ended:?}", all.path.display());
        let (quick, slow): (Vec<_>, Vec<_>) = times.into_iter().partition(|&(_, time)| time < QUICK);
        let together =
            [quick].into_iter().chain(slow.into_iter().map(|test| vec![test])).filter(|some| !some.is_empty());
        let program = |tests: Vec<(String, Duration)>| {
            let limit = (tests.iter().map(|(_, time)| *time).sum::<Duration>() * FACTOR).max(LEAST);
            let names = tests.into_iter().map(|(name, _)| name).collect();
            Self {
                path: all.path.clone(),
                folder: all.folder.clone(),
                tests: Tests::Named(names),
                limit,
                reached: None,
            }
        };
        together.map(program).map(Self::with_what_it_reaches).collect()
    }

    fn with_what_it_reaches(self) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("reached");
        let ended = self.run_and_tell(0, Some(&file), |_| ())?;
        ensure!(ended == Ended::Survived, "{} fails without a change: {ended:?}", self.path.display());
        // There is no file where nothing was reached.
        let text = fs::read_to_string(file).unwrap_or_default();
        Ok(Self { reached: Some(text.lines().filter_map(|line| line.parse().ok()).collect()), ..self })
    }

    pub(super) fn reaches(&self, number: usize) -> bool {
        self.reached.as_ref().is_none_or(|reached| reached.contains(&number))
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// The number of its tests.
    pub(super) fn len(&self) -> usize {
        match &self.tests {
            Tests::All => 0,
            Tests::Named(names) => names.len(),
        }
    }

    /// Runs it with one change, up to its first failure.
    pub(super) fn run(&self, number: usize) -> Result<Ended> {
        self.run_and_tell(number, None, |_| ())
    }

    /// The same; `passed` is told of each test that has passed, and `reached` gets the changes whose code is run.
    fn run_and_tell(&self, number: usize, reached: Option<&Path>, mut passed: impl FnMut(&str)) -> Result<Ended> {
        let deadline = Instant::now() + self.limit * PATIENCE;
        let limiter = project::find_program("prlimit").context("prlimit (util-linux) is missing")?;
        let mut process = Leashed::spawn(&limiter, |command| {
            command.arg(MEMORY).arg(format!("--cpu={}", self.limit.as_secs().max(1)));
            command.arg(&self.path).arg("--test-threads=1");
            match &self.tests {
                Tests::All => command.arg("--skip=mutant_"),
                Tests::Named(names) => command.arg("--exact").args(names),
            };
            command
                .current_dir(&self.folder)
                .env(VARIABLE, number.to_string())
                .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
                // The same inputs and schedules each time: what one run decides another decides.
                .env("PROPTEST_RNG_SEED", "0")
                .env("SHUTTLE_RANDOM_SEED", "0");
            if let Some(file) = reached {
                command.env(REACHED, file);
            }
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        })?;
        let output = process.child.stdout.take().context("no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // Up to the dots of a test's line: what it prints itself may follow.
            let _ = BufReader::new(output).split(b'\n').map_while(Result::ok).try_for_each(|line| sender.send(line));
        });
        let mut last = String::new();
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    if let Some((name, result)) = line.strip_prefix("test ").and_then(|test| test.split_once(" ... ")) {
                        last = name.trim_end_matches(" - should panic").to_string();
                        if result.ends_with("FAILED") {
                            return Ok(Ended::Killed(last));
                        }
                        if !result.starts_with("ignored") {
                            passed(&last);
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Ok(Ended::TimedOut(format!("after {last}"))),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = process.wait_until(deadline)?;
        Ok(match status {
            Some(Some(0)) => Ended::Survived,
            Some(None) if process.child.wait()?.signal().is_some_and(|by| OUT_OF_TIME.contains(&by)) => {
                Ended::TimedOut(format!("after {last}"))
            }
            Some(_) => Ended::Killed(format!("after {last}")),
            None => Ended::TimedOut(format!("after {last}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_line_are_found() {
        assert_eq!(
            numbers("if crate::mutant::is(12usize) { crate::mutant::truth(3usize, 4usize, a as usize) }"),
            [12, 3, 4]
        );
    }

    #[test]
    fn a_change_that_does_not_compile_is_found_in_the_line_or_above_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.rs"), "f(is(1usize))\n(if crate::mutant::is(2usize) {\n    a\n}\n").unwrap();
        let at = |line: u32| {
            let span =
                serde_json::json!({"file_name": "a.rs", "line_start": line, "line_end": line, "is_primary": true});
            refused(folder.path(), &serde_json::json!({"message": {"level": "error", "spans": [span]}}))
        };
        assert_eq!(at(1), [1]);
        assert_eq!(at(3), [2]);
    }
}
