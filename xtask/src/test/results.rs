//! Results of tests of all kinds, their JUnit file, and the last line.

use anyhow::{Context, Result};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How a test went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Passed,
    /// Passed over; why.
    Skipped(String),
    /// Why.
    Failed(String),
}

/// A test that ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// What it is part of: a crate, or a kind of machine.
    pub(crate) suite: String,
    pub(crate) name: String,
    /// None where it is known only together with others'.
    pub(crate) time: Option<Duration>,
    pub(crate) status: Status,
    /// What it printed, where that is worth keeping.
    pub(crate) output: String,
}

/// All that ran.
#[derive(Debug, Default)]
pub(crate) struct Results(Vec<Ran>);

impl Results {
    pub(crate) fn add(&mut self, tests: impl IntoIterator<Item = Ran>) {
        self.0.extend(tests);
    }

    fn count(&self, which: impl Fn(&Status) -> bool) -> usize {
        self.0.iter().filter(|ran| which(&ran.status)).count()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn failed(&self) -> usize {
        self.count(|status| matches!(status, Status::Failed(_)))
    }

    pub(crate) fn passed(&self) -> usize {
        self.count(|status| *status == Status::Passed)
    }

    /// A line for each that failed.
    pub(crate) fn failures(&self) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(|ran| match &ran.status {
            Status::Failed(why) => Some(format!("FAILED {} {}: {why}", ran.suite, ran.name)),
            _ => None,
        })
    }

    /// Writes them as JUnit, a suite for each crate and each kind of machine.
    pub(crate) fn write_junit(&self, file: &Path) -> Result<()> {
        let mut report = Report::new("cargo xtask test");
        let mut suites: Vec<TestSuite> = Vec::new();
        for ran in &self.0 {
            let at = suites.iter().position(|suite| suite.name.as_str() == ran.suite).unwrap_or_else(|| {
                suites.push(TestSuite::new(ran.suite.clone()));
                suites.len() - 1
            });
            suites[at].add_test_case(ran.junit());
        }
        report.add_test_suites(suites);
        fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
        let out = fs::File::create(file).with_context(|| format!("can't write {}", file.display()))?;
        report.serialize(out).with_context(|| format!("can't write {}", file.display()))
    }
}

impl Ran {
    fn junit(&self) -> TestCase {
        let status = match &self.status {
            Status::Passed => TestCaseStatus::success(),
            Status::Skipped(why) => {
                let mut status = TestCaseStatus::skipped();
                status.set_message(why.clone());
                status
            }
            Status::Failed(why) => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(why.clone());
                status
            }
        };
        let mut case = TestCase::new(self.name.clone(), status);
        case.set_classname(self.suite.clone());
        if let Some(time) = self.time {
            case.set_time(time);
        }
        if !self.output.is_empty() {
            case.set_system_out(self.output.clone());
        }
        case
    }
}

/// The last line: `N passed, N failed`.
impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed(), self.failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(suite: &str, name: &str, status: Status) -> Ran {
        let (suite, name) = (suite.to_string(), name.to_string());
        Ran { suite, name, time: Some(Duration::from_millis(1500)), status, output: "a\u{1}<b>".to_string() }
    }

    #[test]
    fn results_are_counted_and_written() {
        let mut results = Results::default();
        results.add([
            ran("mmu", "walks", Status::Passed),
            ran("qemu-svm", "smoke", Status::Failed("hang & more".to_string())),
            ran("mmu", "splits", Status::Skipped("no time".to_string())),
            ran("mmu", "zaps", Status::Passed),
        ]);
        assert_eq!(results.to_string(), "2 passed, 1 failed");
        assert_eq!(results.failures().collect::<Vec<_>>(), ["FAILED qemu-svm smoke: hang & more"]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/junit.xml");
        results.write_junit(&file).unwrap();
        let text = fs::read_to_string(file).unwrap();
        for part in [
            r#"<testsuite name="mmu" tests="3" "#,
            r#"<testcase name="walks" classname="mmu" time="1.500">"#,
            r#"<failure message="hang &amp; more""#,
            r#"<skipped message="no time""#,
            "a&lt;b&gt;",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
