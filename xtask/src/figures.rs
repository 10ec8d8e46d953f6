//! The figures of the exit-latency guest, and what counts as a regression.

use crate::latency::{self, Latency};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs;
use std::path::Path;

/// How much more than before is a regression, in percent.
const TOLERANCE: u64 = 5;
/// The most that may pass from the hypervisor's first instruction to the guest's, whatever it was before.
const START_LIMIT: u64 = 20_000_000;
/// What the guest measures without an exit: the cost of measuring, which is no regression of the hypervisor.
const CALIBRATION: &str = "empty";

/// What a tick is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    Instructions,
    Tsc,
}

/// All figures of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) host: String,
    pub(crate) unit: Unit,
    /// From the hypervisor's first instruction to the guest's.
    pub(crate) start_to_guest: u64,
    pub(crate) exits: BTreeMap<String, Latency>,
}

/// A figure that grew too much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Regression {
    what: String,
    before: u64,
    now: u64,
}

impl fmt::Display for Regression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} was {}, {}", self.what, self.now, self.before, change(self.before, self.now))
    }
}

impl Figures {
    /// Reads a console.
    pub(crate) fn read<'a>(host: &str, unit: Unit, console: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut exits = BTreeMap::new();
        let mut start = None;
        for line in console {
            start = start.or_else(|| latency::start_to_guest(line));
            if let Some(parsed) = latency::parse(line) {
                let (name, latency) = parsed.map_err(anyhow::Error::msg)?;
                ensure!(exits.insert(name.clone(), latency).is_none(), "the guest tells the latency of {name} twice");
            }
        }
        ensure!(!exits.is_empty(), "the guest told no latency");
        let start_to_guest = start.context("the hypervisor did not tell how long it took to start the guest")?;
        Ok(Self { host: host.to_string(), unit, start_to_guest, exits })
    }

    pub(crate) fn load(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is broken", file.display()))
    }

    pub(crate) fn save(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
        fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
    }

    /// What is more than [`TOLERANCE`] above `before`, and a start that took too long; a kind of exit that is no longer measured counts as well.
    pub(crate) fn regressions(&self, before: &Self) -> Result<Vec<Regression>> {
        ensure!(self.unit == before.unit && self.host == before.host, "the kept figures are of another host or unit");
        let mut all = Vec::new();
        if self.start_to_guest > START_LIMIT {
            all.push(Regression { what: "start to guest".into(), before: START_LIMIT, now: self.start_to_guest });
        }
        for (name, old) in before.exits.iter().filter(|(name, _)| *name != CALIBRATION) {
            let new = self.exits.get(name).with_context(|| format!("{name} is no longer measured"))?;
            let pairs = old.compared().into_iter().zip(new.compared());
            all.extend(pairs.filter_map(|((what, old), (_, new))| compare(&format!("{name} {what}"), old, new)));
        }
        Ok(all)
    }

    /// A table of these figures, beside those from before.
    pub(crate) fn table(&self, before: Option<&Self>) -> String {
        let mut text = format!(
            "{:<16}{:>10}{:>10}{:>10}{:>10}{:>12}{:>9}\n",
            "exit", "min", "median", "p99", "max", "kept median", "change"
        );
        for (name, now) in &self.exits {
            let old = before.and_then(|before| before.exits.get(name));
            let (kept, change) = beside(old.map(|old| old.median), now.median);
            let Latency { min, median, p99, max, .. } = now;
            // Writing to a string can't fail.
            let _ = writeln!(text, "{name:<16}{min:>10}{median:>10}{p99:>10}{max:>10}{kept:>12}{change:>9}");
        }
        let (kept, change) = beside(before.map(|before| before.start_to_guest), self.start_to_guest);
        let _ = writeln!(text, "{:<16}{:>40}{kept:>12}{change:>9}", "start to guest", self.start_to_guest);
        text
    }
}

fn compare(what: &str, before: u64, now: u64) -> Option<Regression> {
    let grown = u128::from(now) * 100 > u128::from(before) * u128::from(100 + TOLERANCE);
    grown.then(|| Regression { what: what.to_string(), before, now })
}

fn beside(before: Option<u64>, now: u64) -> (String, String) {
    before.map_or_else(|| ("-".into(), "-".into()), |before| (before.to_string(), change(before, now)))
}

/// In percent; the figures are small enough for exact arithmetic in a float.
fn change(before: u64, now: u64) -> String {
    if before == 0 {
        return if now == 0 { "0.0 %".into() } else { "new".into() };
    }
    format!("{:+.1} %", (now as f64 / before as f64 - 1.0) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(value: u64) -> Latency {
        Latency { min: value, median: value, p99: value, max: 10 * value, samples: 1000 }
    }

    fn figures(cpuid: u64, empty: u64, start: u64) -> Figures {
        let exits = [("cpuid".to_string(), latency(cpuid)), ("empty".to_string(), latency(empty))].into();
        Figures { host: "qemu".to_string(), unit: Unit::Instructions, start_to_guest: start, exits }
    }

    #[test]
    fn a_console_is_read() {
        let console = "hv: start-to-guest: 99 ticks\nKTAP version 1\n\
                       # latency name=cpuid unit=tsc samples=1000 min=200 median=200 p99=200 max=2000\n\
                       # latency name=empty unit=tsc samples=1000 min=1 median=1 p99=1 max=10\n";
        assert_eq!(Figures::read("qemu", Unit::Instructions, console.lines()).unwrap(), figures(200, 1, 99));
        for bad in ["", "hv: start-to-guest: 99 ticks", &console[30..], &[console, console].concat()] {
            assert!(Figures::read("qemu", Unit::Instructions, bad.lines()).is_err(), "{bad}");
        }
    }

    #[test]
    fn more_than_the_tolerance_is_a_regression() {
        let before = figures(200, 1, 1_000_000);
        for (now, count) in [
            (figures(210, 1, 1_000_000), 0),
            (figures(211, 1, 1_000_000), 2),
            (figures(200, 1, START_LIMIT), 0),
            (figures(200, 1, START_LIMIT + 1), 1),
            (figures(100, 1, 1_000), 0),
            (figures(200, 7, 1_000_000), 0),
        ] {
            assert_eq!(now.regressions(&before).unwrap().len(), count, "{now:?}");
        }
        let told = figures(220, 1, 1_000_000).regressions(&before).unwrap()[0].to_string();
        assert_eq!(told, "cpuid median: 220 was 200, +10.0 %");
    }

    #[test]
    fn a_single_lucky_sample_is_no_measure() {
        let mut before = figures(200, 1, 1);
        before.exits.get_mut("cpuid").unwrap().min = 150;
        assert_eq!(figures(200, 1, 1).regressions(&before).unwrap(), []);
    }

    #[test]
    fn what_can_not_be_compared_is_an_error() {
        let before = figures(200, 1, 1);
        let mut now = before.clone();
        now.exits.remove("cpuid");
        assert!(now.regressions(&before).is_err());
        assert!(Figures { unit: Unit::Tsc, ..before.clone() }.regressions(&before).is_err());
        assert!(Figures { host: "bochs".to_string(), ..before.clone() }.regressions(&before).is_err());
    }

    #[test]
    fn figures_are_kept_in_the_promised_shape() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a/b.json");
        let kept = figures(200, 1, 5);
        kept.save(&file).unwrap();
        assert_eq!(Figures::load(&file).unwrap(), kept);
        let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(json["unit"], "instructions");
        assert_eq!(json["exits"]["cpuid"]["p99"], 200);
        assert_eq!(json["exits"]["cpuid"]["samples"], 1000);
    }

    #[test]
    fn the_table_shows_the_change() {
        let table = figures(220, 1, 90).table(Some(&figures(200, 1, 100)));
        assert!(table.contains("+10.0 %") && table.contains("-10.0 %"), "{table}");
        assert!(figures(220, 1, 90).table(None).contains("220"));
    }
}
