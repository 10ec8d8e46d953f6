//! The machine-readable lines of the exit-latency guest.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::str::FromStr;

/// What one kind of exit costs, as the guest measured it, in ticks of its TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) min: u64,
    pub(crate) median: u64,
    pub(crate) p99: u64,
    pub(crate) max: u64,
    pub(crate) samples: u64,
}

impl Latency {
    /// The figures that are compared; the maximum is a single sample and says little.
    pub(crate) const fn compared(&self) -> [(&'static str, u64); 3] {
        [("min", self.min), ("median", self.median), ("p99", self.p99)]
    }
}

/// Reads a line such as `# latency name=cpuid unit=tsc samples=1000 min=1 median=2 p99=3 max=4`.
///
/// None: it is some other line. An error: it is a latency line, and broken.
pub(crate) fn parse(line: &str) -> Option<Result<(String, Latency), String>> {
    let fields: BTreeMap<&str, &str> =
        line.trim().strip_prefix("# latency ")?.split_whitespace().filter_map(|word| word.split_once('=')).collect();
    let number = |name: &str| field(&fields, name);
    Some((|| {
        let name = fields.get("name").ok_or("a latency line has no name")?;
        let latency = Latency {
            min: number("min")?,
            median: number("median")?,
            p99: number("p99")?,
            max: number("max")?,
            samples: number("samples")?,
        };
        match fields.get("unit") {
            Some(&"tsc") => Ok(((*name).to_string(), latency)),
            unit => Err(format!("latency of {name}: the unit is {unit:?}, not tsc")),
        }
    })())
}

fn field<T: FromStr>(fields: &BTreeMap<&str, &str>, name: &str) -> Result<T, String> {
    let text = fields.get(name).ok_or_else(|| format!("a latency line has no {name}"))?;
    text.parse().map_err(|_| format!("a latency line has {name}={text}"))
}

/// The N of the hypervisor's line `hv: start-to-guest: N ticks`.
pub(crate) fn start_to_guest(line: &str) -> Option<u64> {
    line.trim_end().strip_prefix("hv: start-to-guest: ")?.strip_suffix(" ticks")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_lines_are_read() {
        let (name, latency) =
            parse("# latency name=pio_in unit=tsc samples=1000 min=1 median=2 p99=3 max=40\r").unwrap().unwrap();
        assert_eq!(name, "pio_in");
        assert_eq!(latency, Latency { min: 1, median: 2, p99: 3, max: 40, samples: 1000 });
    }

    #[test]
    fn other_lines_are_passed_over_and_broken_ones_refused() {
        assert_eq!(parse("# latency: see below"), None);
        assert_eq!(parse("latency name=cpuid"), None);
        for line in [
            "# latency unit=tsc samples=1 min=1 median=1 p99=1 max=1",
            "# latency name=cpuid unit=tsc samples=1 min=1 median=1 p99=1",
            "# latency name=cpuid unit=tsc samples=1 min=1 median=x p99=1 max=1",
            "# latency name=cpuid unit=ns samples=1 min=1 median=1 p99=1 max=1",
        ] {
            assert!(matches!(parse(line), Some(Err(_))), "{line}");
        }
    }

    #[test]
    fn the_start_is_read() {
        assert_eq!(start_to_guest("hv: start-to-guest: 1234567 ticks\r"), Some(1_234_567));
        assert_eq!(start_to_guest("hv: start-to-guest: soon"), None);
    }
}
