//! Measures spans of the TSC, and prints them as a table and as lines.

use abi::lines::Latency;
use core::cell::{Cell, RefCell};

use crate::ktap::Outcome;
use crate::stats::{self, MOST_SAMPLES, Summary};
use crate::{check, println};

/// A distribution needs as many at least.
pub const FEWEST_SAMPLES: usize = 1_000;
/// Spans measured and dropped first: translations and caches fill, an emulator compiles the code.
pub const WARM_UP: usize = 64;

/// What was measured, by kind.
pub struct Latencies<const KINDS: usize> {
    names: [&'static str; KINDS],
    samples: usize,
    buffer: RefCell<&'static mut [u64]>,
    summaries: [Cell<Option<Summary>>; KINDS],
}

impl<const KINDS: usize> Latencies<KINDS> {
    /// Nothing measured yet. There can be one of these alone, as it takes the [buffer](stats::take_buffer).
    pub fn new(names: [&'static str; KINDS], samples: usize) -> Self {
        Self {
            names,
            samples: samples.clamp(FEWEST_SAMPLES, MOST_SAMPLES),
            buffer: RefCell::new(stats::take_buffer().expect("it is taken once")),
            summaries: [const { Cell::new(None) }; KINDS],
        }
    }

    /// Takes as many samples of `span` as wanted, or as there are.
    pub fn measure(&self, kind: usize, mut span: impl FnMut() -> Option<u64>) -> Outcome {
        for _ in 0..WARM_UP {
            span();
        }
        let mut buffer = self.buffer.borrow_mut();
        let mut taken = 0;
        for sample in &mut buffer[..self.samples] {
            let Some(ticks) = span() else { break };
            *sample = ticks;
            taken += 1;
        }
        check!(taken >= FEWEST_SAMPLES, "no more than {taken} samples");
        let summary = Summary::of(&mut buffer[..taken]);
        check!(summary.is_some_and(|summary| summary.max > 0), "the TSC stands still: {summary:?}");
        self.summaries[kind].set(summary);
        Ok(())
    }

    fn summaries(&self) -> impl Iterator<Item = (&'static str, Summary)> {
        self.names.into_iter().zip(&self.summaries).filter_map(|(name, summary)| Some((name, summary.get()?)))
    }

    /// A table for people, and a line for each kind for tools.
    pub fn print(&self, title: &str) {
        println!("#");
        println!("# {title}");
        println!("# {:<16}{:>9}{:>10}{:>10}{:>10}{:>12}", "exit", "samples", "min", "median", "p99", "max");
        for (name, Summary { samples, min, median, p99, max }) in self.summaries() {
            println!("# {name:<16}{samples:>9}{min:>10}{median:>10}{p99:>10}{max:>12}");
        }
        println!("#");
        for (name, Summary { samples, min, median, p99, max }) in self.summaries() {
            println!("{}", Latency { name, samples: samples as u64, min, median, p99, max });
        }
    }
}
