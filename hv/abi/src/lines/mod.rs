//! Lines of the console that one program prints and another reads: `Display` writes one, `parse` reads it.
//!
//! Neither knows of the line's end nor of what stands before it: whose line it is, says [`wire`](crate::wire). `parse` gives None
//! for some other line, and [`Broken`] for a line that begins as one of its kind and is none.

mod guest;
mod hypervisor;
pub mod ktap;

pub use guest::{Counts, Fairness, Inputs, Kinds, Latency, NumberedLine, NumberedLines, Operations};
pub use hypervisor::{Accounts, Addresses, Backtrace, HeapUsage, PastLimit, StartToGuest, VerdictLine};

use core::fmt;

/// A line of which something can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// What can't be read, or is missing.
    pub part: &'static str,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the line has no valid {}", self.part)
    }
}

impl core::error::Error for Broken {}

/// Reads a number in decimal digits; `part` is what it is called.
fn number<T: core::str::FromStr>(text: &str, part: &'static str) -> Result<T, Broken> {
    text.parse().map_err(|_| Broken { part })
}

/// Words `key=value` separated by blanks.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a str);

impl<'a> Fields<'a> {
    fn text(self, key: &'static str) -> Result<&'a str, Broken> {
        let mut words = self.0.split_ascii_whitespace().filter_map(|word| word.split_once('='));
        words.find_map(|(name, value)| (name == key).then_some(value)).ok_or(Broken { part: key })
    }

    fn number(self, key: &'static str) -> Result<u64, Broken> {
        number(self.text(key)?, key)
    }
}
