//! Survivors that are explained, in `mutants.toml` beside the crate.

use super::copy::Mutant;
use crate::failure::usage;
use crate::project;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;

/// Why changes survive.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Explanations {
    #[serde(default)]
    mutant: Vec<Explanation>,
}

/// One reason.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Explanation {
    function: String,
    /// The source text of the line.
    line: String,
    /// Which of several such lines of the function, from 1. All of them if it is left out.
    nth: Option<usize>,
    /// What the change is, as the table of survivors has it.
    change: String,
    reason: String,
}

impl Explanation {
    fn is_of(&self, mutant: &Mutant) -> bool {
        self.function == mutant.function && self.line == mutant.text && self.change == mutant.change
    }
}

impl Explanations {
    pub(super) fn read(name: &str) -> Result<Self> {
        let file = project::root().join("hv").join(name).join("mutants.toml");
        if !file.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&file)?;
        toml::from_str(&text).with_context(|| format!("can't read {}", file.display()))
    }

    /// The numbers of the changes that are explained.
    ///
    /// # Errors
    /// An explanation without a reason, or one whose code has gone.
    pub(super) fn explained(&self, mutants: &[Mutant]) -> Result<BTreeSet<usize>> {
        let mut all = BTreeSet::new();
        for explanation in &self.mutant {
            let Explanation { function, line, nth, change, reason } = explanation;
            let alike = mutants.iter().filter(|mutant| explanation.is_of(mutant)).map(|mutant| mutant.number);
            let numbers: Vec<_> = match nth {
                Some(nth) => alike.skip(nth.saturating_sub(1)).take(1).collect(),
                None => alike.collect(),
            };
            if numbers.is_empty() {
                return Err(usage(format!("mutants.toml: no change {change:?} in {function}, in a line {line:?}")));
            }
            if reason.trim().is_empty() {
                return Err(usage(format!("mutants.toml: {function}, {change:?} has no reason")));
            }
            all.extend(numbers);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    /// Of two lines with the same text.
    fn explained(text: &str) -> Result<BTreeSet<usize>> {
        let mutants = [7, 8].map(|number| Mutant {
            number,
            kind: Kind::Ordering,
            file: "hv/a/src/b.rs".to_string(),
            line: number,
            function: "A::f".to_string(),
            text: "self.a.load(Ordering::Acquire)".to_string(),
            change: "Acquire is Relaxed".to_string(),
        });
        toml::from_str::<Explanations>(text)?.explained(&mutants)
    }

    const GOOD: &str = "[[mutant]]\nfunction = \"A::f\"\nline = \"self.a.load(Ordering::Acquire)\"\n\
                        change = \"Acquire is Relaxed\"\nreason = \"nothing is read behind it\"\n";

    #[test]
    fn an_explanation_is_found_by_function_line_and_change() {
        assert_eq!(explained(GOOD).unwrap(), BTreeSet::from([7, 8]));
    }

    #[test]
    fn an_explanation_may_be_of_one_of_several_lines() {
        assert_eq!(explained(&format!("{GOOD}nth = 2\n")).unwrap(), BTreeSet::from([8]));
        assert!(explained(&format!("{GOOD}nth = 3\n")).is_err());
    }

    #[test]
    fn an_explanation_whose_code_has_gone_is_an_error() {
        for (from, to) in [("A::f", "A::g"), ("self.a", "self.b"), ("is Relaxed", "is left out")] {
            assert!(explained(&GOOD.replace(from, to)).unwrap_err().to_string().contains("no change"));
        }
    }

    #[test]
    fn an_explanation_has_a_reason() {
        assert!(explained(&GOOD.replace("nothing is read behind it", " ")).is_err());
    }
}
