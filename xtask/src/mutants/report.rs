//! What became of a crate's mutants: a table, and a JSON file.

use super::Kind;
use super::copy::{Mutant, Source};
use super::programs::Ended;
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

/// A mutant that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Decided {
    #[serde(flatten)]
    pub(super) mutant: Mutant,
    pub(super) ended: Ended,
    /// `mutants.toml` says why it survives.
    pub(super) explained: bool,
    pub(super) seconds: f64,
}

impl Decided {
    /// Whether nothing noticed it, and nothing explains that.
    pub(super) fn is_survivor(&self) -> bool {
        !self.ended.is_noticed() && !self.explained
    }
}

/// One line: where, and what.
impl fmt::Display for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mutant { file, line, function, change, .. } = &self.mutant;
        let unreached = if self.ended == Ended::Unreached { " (no test runs it)" } else { "" };
        write!(f, "{file}:{line}: {function}: {change}{unreached}")
    }
}

/// A crate's mutants, by number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    name: String,
    source: Source,
    /// How many changes do not compile.
    refused: usize,
    mutants: BTreeMap<usize, Decided>,
}

impl Report {
    pub(super) fn new(name: &str, source: Source, refused: usize) -> Self {
        Self { name: name.to_string(), source, refused, mutants: BTreeMap::new() }
    }

    /// Takes over what an earlier run decided about these mutants of the same source. Another test may notice what survived.
    pub(super) fn take_over(&mut self, file: &Path, mutants: &[Mutant], explained: &BTreeSet<usize>) {
        let before = fs::read_to_string(file).ok().and_then(|text| serde_json::from_str::<Self>(&text).ok());
        let Some(before) = before.filter(|before| before.source.code == self.source.code) else { return };
        let same_tests = before.source.tests == self.source.tests;
        for (number, mut decided) in before.mutants {
            if mutants.contains(&decided.mutant) && (same_tests || decided.ended.is_noticed()) {
                decided.explained = explained.contains(&number);
                self.mutants.insert(number, decided);
            }
        }
    }

    pub(super) fn has(&self, number: usize) -> bool {
        self.mutants.contains_key(&number)
    }

    pub(super) fn add(&mut self, decided: Decided) {
        self.mutants.insert(decided.mutant.number, decided);
    }

    pub(super) fn survivors(&self) -> impl Iterator<Item = &Decided> {
        self.mutants.values().filter(|decided| decided.is_survivor())
    }

    pub(super) fn save(&self, file: &Path) -> Result<()> {
        fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
    }

    fn row(&self, f: &mut fmt::Formatter<'_>, name: &str, is_of: impl Fn(Kind) -> bool) -> fmt::Result {
        let all = || self.mutants.values().filter(|decided| is_of(decided.mutant.kind));
        let killed = all().filter(|decided| matches!(decided.ended, Ended::Killed(_))).count();
        let timed_out = all().filter(|decided| matches!(decided.ended, Ended::TimedOut(_))).count();
        let survived = all().filter(|decided| decided.is_survivor()).count();
        let explained = all().filter(|decided| !decided.ended.is_noticed() && decided.explained).count();
        writeln!(f, "{name:<10}{:>8}{killed:>8}{timed_out:>11}{explained:>11}{survived:>10}", all().count())
    }
}

/// The table by kinds, and the survivors.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<10}{:>8}{:>8}{:>11}{:>11}{:>10}",
            self.name, "changes", "killed", "timed out", "explained", "survived"
        )?;
        for kind in Kind::value_variants() {
            let name = kind.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default();
            self.row(f, &name, |of| of == *kind)?;
        }
        self.row(f, "all", |_| true)?;
        writeln!(f, "{} changes do not compile", self.refused)?;
        self.survivors().try_for_each(|survivor| writeln!(f, "  {survivor}"))?;
        let needless = self.mutants.values().filter(|decided| decided.explained && decided.ended.is_noticed());
        for decided in needless {
            writeln!(f, "  explained, but a test notices it: {decided}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(number: usize, ended: Ended, explained: bool) -> Decided {
        let mutant = Mutant {
            number,
            kind: Kind::Flush,
            file: "hv/a/src/b.rs".to_string(),
            line: number,
            function: "A::f".to_string(),
            text: "self.flush();".to_string(),
            change: "`self.flush()` is left out".to_string(),
        };
        Decided { mutant, ended, explained, seconds: 1.0 }
    }

    fn source(code: &str, tests: &str) -> Source {
        Source { code: code.to_string(), tests: tests.to_string() }
    }

    fn report() -> Report {
        let mut report = Report::new("a", source("1", "1"), 2);
        report.add(decided(1, Ended::Killed("tests::flushed".to_string()), false));
        report.add(decided(2, Ended::TimedOut("tests::flushed".to_string()), false));
        report.add(decided(3, Ended::Survived, true));
        report.add(decided(4, Ended::Survived, false));
        report
    }

    #[test]
    fn the_table_adds_up_and_names_survivors() {
        let text = report().to_string();
        assert!(text.contains("flush            4       1          1          1         1\n"), "{text}");
        assert!(text.contains("  hv/a/src/b.rs:4: A::f: `self.flush()` is left out\n"), "{text}");
        assert_eq!(report().survivors().map(|survivor| survivor.mutant.number).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn an_explanation_that_a_test_refutes_is_told() {
        let mut report = report();
        report.add(decided(5, Ended::Killed("tests::flushed".to_string()), true));
        assert!(report.to_string().contains("explained, but a test notices it: hv/a/src/b.rs:5"), "{report}");
    }

    #[test]
    fn what_was_decided_is_taken_over_for_the_same_source_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mutants/a.json");
        report().save(&file).unwrap();
        let mutants = [1, 4].map(|number| decided(number, Ended::Survived, false).mutant);
        let taken_over = |code: &str, tests: &str| {
            let mut report = Report::new("a", source(code, tests), 2);
            report.take_over(&file, &mutants, &BTreeSet::from([4]));
            report
        };
        let same = taken_over("1", "1");
        assert!(same.has(1) && !same.has(3) && same.has(4), "the third is no longer there");
        assert_eq!(same.survivors().count(), 0, "the fourth is explained by now");
        assert!(!taken_over("2", "1").has(1));
        let more_tests = taken_over("1", "2");
        assert!(more_tests.has(1) && !more_tests.has(4), "another test may notice what survived");
    }
}
