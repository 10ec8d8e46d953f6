//! Tests that run on the build machine, by cargo.

use super::results::{Ran, Status};
use crate::output::outln;
use crate::project;
use crate::setup::{self, Tool};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Crates that have models for loom.
const MODELLED: [&str; 7] = ["model", "rcu", "mmu", "apic", "sched", "serial", "shadow"];

/// Crates, and which of their tests shuttle runs in random schedules.
const SHUTTLED: [(&str, &[&str]); 5] = [
    ("model", &["--lib"]),
    ("rcu", &["--test", "stress"]),
    ("mmu", &["--lib"]),
    ("shadow", &["--lib"]),
    ("memory", &["--lib"]),
];

/// The unit tests, the crates' own tests and those in the documentation.
pub(super) fn host(filter: Option<&str>) -> Result<Vec<Ran>> {
    setup::ensure(Tool::Iasl)?;
    let mut all = run("host", cargo(test_runner(), filter))?;
    if !has_nextest() {
        return Ok(all);
    }
    all.extend(run("doc", cargo(&["test", "--doc", "--no-fail-fast"], filter))?);
    Ok(all)
}

/// The models that loom explores wholly, and those that shuttle runs in random schedules.
pub(super) fn models(filter: Option<&str>) -> Result<Vec<Ran>> {
    let mut all = run("loom", model("loom", MODELLED, &["--lib", "--tests"], filter))?;
    for (package, tests) in SHUTTLED {
        all.extend(run("shuttle", model("shuttle", [package], tests, filter))?);
    }
    Ok(all)
}

/// nextest ends a test that hangs (`.config/nextest.toml`), but leaves out those in the documentation.
fn test_runner() -> &'static [&'static str] {
    if has_nextest() {
        return &["nextest", "run", "--no-fail-fast", "--no-tests=pass", "--color=never"];
    }
    &["test", "--no-fail-fast"]
}

/// Crates built for models are others than the usual ones: a build directory of their own keeps both.
fn model<'p>(kind: &str, packages: impl IntoIterator<Item = &'p str>, tests: &[&str], filter: Option<&str>) -> Command {
    let mut command = cargo(test_runner(), None);
    command.arg("--release").args(tests).args(packages.into_iter().flat_map(|name| ["--package", name]));
    command.arg("--target-dir").arg(project::target().join(kind));
    command.env("RUSTFLAGS", format!("--cfg {kind}")).args(filter);
    command
}

fn cargo(arguments: &[&str], filter: Option<&str>) -> Command {
    let mut command = Command::new(project::cargo());
    command.current_dir(project::root()).args(arguments).args(filter);
    command
}

fn has_nextest() -> bool {
    let output = cargo(&["nextest", "--version"], None).output();
    output.is_ok_and(|output| output.status.success())
}

/// Runs a test command, passes its output on, and reads the results from it.
fn run(what: &str, mut command: Command) -> Result<Vec<Ran>> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("can't run cargo")?;
    let (sender, lines) = mpsc::channel();
    let pipes: [Option<Box<dyn Read + Send>>; 2] =
        [child.stdout.take().map(|pipe| Box::new(pipe) as _), child.stderr.take().map(|pipe| Box::new(pipe) as _)];
    for pipe in pipes.into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
    }
    drop(sender);

    let mut parser = Parser::new(what);
    for line in lines {
        outln!("{line}");
        parser.line(&line);
    }
    let status = child.wait()?;
    let mut tests = parser.tests;
    if !status.success() && !tests.iter().any(|ran| matches!(ran.status, Status::Failed(_))) {
        // A crate that does not compile, or a test program that died.
        let why = Status::Failed(format!("cargo ended with {status}"));
        tests.push(ran(what, "build and run", Some(started.elapsed()), why));
    }
    Ok(tests)
}

/// Reads cargo's and nextest's lines.
struct Parser {
    /// The crate, as far as cargo has said.
    suite: String,
    tests: Vec<Ran>,
}

impl Parser {
    fn new(what: &str) -> Self {
        Self { suite: what.to_string(), tests: Vec::new() }
    }

    fn line(&mut self, line: &str) {
        if let Some(suite) = libtest_suite(line) {
            self.suite = suite;
        } else if let Some(test) = nextest_line(line).or_else(|| libtest_line(line, &self.suite)) {
            // nextest repeats failures at the end.
            if !self.tests.iter().any(|seen| seen.suite == test.suite && seen.name == test.name) {
                self.tests.push(test);
            }
        }
    }
}

/// `PASS [   0.010s] (1/9) crate module::test`, and FAIL, SIGABRT, TIMEOUT … in place of PASS.
fn nextest_line(line: &str) -> Option<Ran> {
    let (word, rest) = line.trim_start().split_once(" [")?;
    let (time, rest) = rest.split_once(']')?;
    let time = time.trim().strip_suffix('s')?.parse().ok().map(Duration::from_secs_f64)?;
    let rest = rest.trim_start();
    let rest = if rest.starts_with('(') { rest.split_once(')')?.1.trim_start() } else { rest };
    let (suite, name) = rest.split_once(' ')?;
    let status = match word {
        "PASS" | "LEAK" | "SLOW" => Status::Passed,
        "FAIL" | "TIMEOUT" | "ABORT" | "LEAK-FAIL" => Status::Failed(word.to_string()),
        signal if signal.starts_with("SIG") => Status::Failed(signal.to_string()),
        _ => return None,
    };
    // SLOW is said of one that still runs.
    (word != "SLOW").then(|| ran(suite, name, Some(time), status))
}

/// `test module::test ... ok`.
fn libtest_line(line: &str, suite: &str) -> Option<Ran> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let status = match result.split(',').next().unwrap_or_default().trim() {
        "ok" => Status::Passed,
        "FAILED" => Status::Failed("FAILED".to_string()),
        "ignored" => Status::Skipped("ignored".to_string()),
        _ => return None,
    };
    Some(ran(suite, name, None, status))
}

/// The crate in `Running unittests src/lib.rs (target/debug/deps/addr-0123456789abcdef)` and in `Doc-tests addr`.
fn libtest_suite(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(name.trim().to_string());
    }
    let program = line.strip_prefix("Running ")?.rsplit_once('(')?.1.strip_suffix(')')?;
    let name = program.rsplit_once('/').map_or(program, |(_, name)| name);
    Some(name.rsplit_once('-').map_or(name, |(name, _)| name).to_string())
}

fn ran(suite: &str, name: &str, time: Option<Duration>, status: Status) -> Ran {
    Ran { suite: suite.to_string(), name: name.to_string(), time, status, output: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<(String, String, Status)> {
        let mut parser = Parser::new("host");
        text.lines().for_each(|line| parser.line(line));
        parser.tests.into_iter().map(|ran| (ran.suite, ran.name, ran.status)).collect()
    }

    fn expected(suite: &str, name: &str, status: Status) -> (String, String, Status) {
        (suite.to_string(), name.to_string(), status)
    }

    #[test]
    fn nextests_lines_are_read() {
        let text = "    Starting 3 tests across 2 binaries\n        PASS [   0.006s] (1/3) addr tests::gpa\n\
                    \x20       SLOW [> 60.000s] (─────────) mmu tests::walk\n\
                    \x20       FAIL [   1.250s] (2/3) xtask::bin/xtask size::tests::read\n     SIGABRT [   0.1s] ( 3/3) rcu tests::x\n\
                    ────────────\n     Summary [   1.3s] 3 tests run: 1 passed, 2 failed, 0 skipped\n\
                    \x20       FAIL [   1.250s] (2/3) xtask::bin/xtask size::tests::read\n";
        assert_eq!(
            parse(text),
            [
                expected("addr", "tests::gpa", Status::Passed),
                expected("xtask::bin/xtask", "size::tests::read", Status::Failed("FAIL".to_string())),
                expected("rcu", "tests::x", Status::Failed("SIGABRT".to_string())),
            ]
        );
        let times: Vec<_> = text.lines().filter_map(nextest_line).filter_map(|ran| ran.time).collect();
        assert_eq!(times[1], Duration::from_millis(1250));
    }

    #[test]
    fn libtests_lines_are_read() {
        let text = "     Running unittests src/lib.rs (target/debug/deps/addr-0123456789abcdef)\nrunning 3 tests\n\
                    test tests::gpa ... ok\ntest tests::slow ... ignored, takes long\n\
                    test tests::bad - should panic ... FAILED\ntest result: FAILED. 1 passed; 1 failed\n\
                    \x20  Doc-tests rcu\ntest hv/rcu/src/lib.rs - guard (line 3) ... ok\n";
        assert_eq!(
            parse(text),
            [
                expected("addr", "tests::gpa", Status::Passed),
                expected("addr", "tests::slow", Status::Skipped("ignored".to_string())),
                expected("addr", "tests::bad - should panic", Status::Failed("FAILED".to_string())),
                expected("rcu", "hv/rcu/src/lib.rs - guard (line 3)", Status::Passed),
            ]
        );
    }
}
