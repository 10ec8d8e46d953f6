//! What became of a crate's mutants: a table, and a JSON file.

use super::Kind;
use super::copy::Mutant;
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
        self.ended == Ended::Survived && !self.explained
    }
}

/// One line: where, and what.
impl fmt::Display for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mutant { file, line, function, change, .. } = &self.mutant;
        write!(f, "{file}:{line}: {function}: {change}")
    }
}

/// A crate's mutants, by number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    name: String,
    /// Of the crate's source.
    hash: String,
    /// How many changes do not compile.
    refused: usize,
    mutants: BTreeMap<usize, Decided>,
}

impl Report {
    pub(super) fn new(name: &str, hash: String, refused: usize) -> Self {
        Self { name: name.to_string(), hash, refused, mutants: BTreeMap::new() }
    }

    /// Takes over what was decided before for the same source.
    pub(super) fn resume(&mut self, file: &Path, wanted: &[Mutant]) {
        let before = fs::read_to_string(file).ok().and_then(|text| serde_json::from_str::<Self>(&text).ok());
        let Some(before) = before.filter(|before| before.hash == self.hash) else { return };
        let is_wanted = |decided: &Decided| wanted.contains(&decided.mutant);
        self.mutants.extend(before.mutants.into_iter().filter(|(_, decided)| is_wanted(decided)));
    }

    pub(super) fn explain(&mut self, explained: &BTreeSet<usize>) {
        for (number, decided) in &mut self.mutants {
            decided.explained = explained.contains(number);
        }
    }

    pub(super) fn has(&self, number: usize) -> bool {
        self.mutants.contains_key(&number)
    }

    pub(super) fn len(&self) -> usize {
        self.mutants.len()
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
        let explained = all().filter(|decided| decided.ended == Ended::Survived && decided.explained).count();
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
        let needless = self.mutants.values().filter(|decided| decided.explained && decided.ended != Ended::Survived);
        for decided in needless {
            writeln!(f, "  explained, but a test notices it: {decided}")?;
        }
        Ok(())
    }
}
