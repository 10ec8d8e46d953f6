//! The machine-readable lines of the exit-latency guest.

use abi::lines::{self, StartToGuest};
use abi::wire;
use serde::{Deserialize, Serialize};

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
    /// The figures that are compared; the minimum and the maximum are single samples and say little.
    pub(crate) const fn compared(&self) -> [(&'static str, u64); 2] {
        [("median", self.median), ("p99", self.p99)]
    }
}

/// What a latency line of the guest tells, by the kind of exit.
///
/// None: it is some other line. An error: it is a latency line, and broken.
pub(crate) fn parse(line: &str) -> Option<Result<(String, Latency), String>> {
    let read = lines::Latency::parse(line.trim())?;
    let figures = |lines::Latency { name, samples, min, median, p99, max }: lines::Latency<'_>| {
        (name.to_string(), Latency { min, median, p99, max, samples })
    };
    Some(read.map(figures).map_err(|broken| format!("{broken}: {line}")))
}

/// How long the start took, if the line tells that.
pub(crate) fn start_to_guest(line: &str) -> Option<u64> {
    Some(StartToGuest::parse(wire::own(line, None)?)?.ok()?.0)
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
    fn the_start_is_read() {
        assert_eq!(start_to_guest("hv: start-to-guest: 1234567 ticks\r"), Some(1_234_567));
        assert_eq!(start_to_guest("hv: start-to-guest: soon"), None);
    }
}
