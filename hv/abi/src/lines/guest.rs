//! Lines of this project's guests. They are comments to a reader of KTAP.

use super::{Broken, Fields, number};
use core::fmt;
use core::str::SplitAsciiWhitespace;

/// `# latency name=NAME unit=tsc samples=N min=N median=N p99=N max=N`: what one kind of exit costs, in ticks of the guest's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency<'a> {
    /// The kind of exit: a word.
    pub name: &'a str,
    /// How often it was measured.
    pub samples: u64,
    /// The shortest.
    pub min: u64,
    /// The median.
    pub median: u64,
    /// 99 of 100 are not longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

const LATENCY: &str = "# latency ";

impl<'a> Latency<'a> {
    /// Reads the line.
    pub fn parse(line: &'a str) -> Option<Result<Self, Broken>> {
        let fields = Fields(line.strip_prefix(LATENCY)?);
        let read = || {
            if fields.text("unit")? != "tsc" {
                return Err(Broken { part: "unit" });
            }
            Ok(Self {
                name: fields.text("name")?,
                samples: fields.number("samples")?,
                min: fields.number("min")?,
                median: fields.number("median")?,
                p99: fields.number("p99")?,
                max: fields.number("max")?,
            })
        };
        Some(read())
    }
}

impl fmt::Display for Latency<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, samples, min, median, p99, max } = self;
        write!(f, "{LATENCY}name={name} unit=tsc samples={samples} min={min} median={median} p99={p99} max={max}")
    }
}

/// `# operations N`: what a stress guest did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operations(pub u64);

const OPERATIONS: &str = "# operations ";

impl Operations {
    /// Reads the line.
    pub fn parse(line: &str) -> Option<Result<Self, Broken>> {
        Some(number(line.strip_prefix(OPERATIONS)?.trim_end(), "number of operations").map(Self))
    }
}

impl fmt::Display for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{OPERATIONS}{}", self.0)
    }
}

/// `# fairness share=49.8 longest_gap_us=N`: what a guest got of its processor's time, in percent, and the longest it did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fairness {
    /// Thousandths of the time.
    pub share_permille: u64,
    /// Microseconds.
    pub longest_gap_us: u64,
}

const FAIRNESS: &str = "# fairness ";

impl Fairness {
    /// Reads the line.
    pub fn parse(line: &str) -> Option<Result<Self, Broken>> {
        let fields = Fields(line.strip_prefix(FAIRNESS)?);
        let read = || {
            let broken = Broken { part: "share" };
            let (percent, tenth) = fields.text("share")?.split_once('.').ok_or(broken)?;
            let (percent, tenth) = (number::<u64>(percent, "share")?, number::<u64>(tenth, "share")?);
            let share_permille = percent.checked_mul(10).and_then(|share| share.checked_add(tenth)).ok_or(broken)?;
            if tenth > 9 {
                Err(broken)
            } else {
                Ok(Self { share_permille, longest_gap_us: fields.number("longest_gap_us")? })
            }
        };
        Some(read())
    }
}

impl fmt::Display for Fairness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { share_permille, longest_gap_us } = self;
        write!(f, "{FAIRNESS}share={}.{} longest_gap_us={longest_gap_us}", share_permille / 10, share_permille % 10)
    }
}

/// `# line N TEXT`: a line of the guest that shows that each of its lines arrives. N counts from 1, and the text is always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberedLine<'a> {
    /// Which line it is.
    pub number: u64,
    /// The rest.
    pub text: &'a str,
}

const LINE: &str = "# line ";

impl<'a> NumberedLine<'a> {
    /// Reads the line.
    pub fn parse(line: &'a str) -> Option<Result<Self, Broken>> {
        let rest = line.strip_prefix(LINE)?;
        let (count, text) = rest.split_once(' ').unwrap_or((rest, ""));
        Some(number(count, "line number").map(|number| Self { number, text }))
    }
}

impl fmt::Display for NumberedLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LINE}{} {}", self.number, self.text)
    }
}

/// `# lines N, longest gap N us`: how many [`NumberedLine`]s there were, and the longest time that the guest did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberedLines {
    /// How many lines.
    pub count: u64,
    /// Microseconds.
    pub longest_gap_us: u64,
}

const LINES: &str = "# lines ";

impl NumberedLines {
    /// Reads the line.
    pub fn parse(line: &str) -> Option<Result<Self, Broken>> {
        let rest = line.strip_prefix(LINES)?;
        let read = || {
            let (count, gap) = rest.split_once(", longest gap ").ok_or(Broken { part: "longest gap" })?;
            let gap = gap.trim_end().strip_suffix(" us").unwrap_or_default();
            Ok(Self { count: number(count, "number of lines")?, longest_gap_us: number(gap, "longest gap")? })
        };
        Some(read())
    }
}

impl fmt::Display for NumberedLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LINES}{}, longest gap {} us", self.count, self.longest_gap_us)
    }
}

/// `# kinds NAME NAME …`: the kinds of a hostile guest's inputs, in the order in which [`Inputs`] counts them.
#[derive(Clone, Copy, Debug)]
pub struct Kinds<I>(pub I);

const KINDS: &str = "# kinds";

impl<'a> Kinds<SplitAsciiWhitespace<'a>> {
    /// Reads the line.
    #[must_use]
    pub fn parse(line: &'a str) -> Option<Self> {
        line.strip_prefix(KINDS).map(|names| Self(names.split_ascii_whitespace()))
    }
}

impl<'a, I: Iterator<Item = &'a str> + Clone> fmt::Display for Kinds<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(KINDS)?;
        self.0.clone().try_for_each(|name| write!(f, " {name}"))
    }
}

/// `# inputs N RESTARTS COUNT COUNT …`: how far a hostile guest is. It is printed again and again; the end of a VM may cut it short.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<I> {
    /// The number of the next input.
    pub next: u64,
    /// How often a processor was lost and started anew.
    pub restarts: u64,
    /// Inputs so far, by [kind](Kinds).
    pub counts: I,
}

const INPUTS: &str = "# inputs ";

impl<'a> Inputs<Counts<'a>> {
    /// Reads the line. Counts behind one that can't be read are left out.
    pub fn parse(line: &'a str) -> Option<Result<Self, Broken>> {
        let mut words = line.strip_prefix(INPUTS)?.split_ascii_whitespace();
        let read = || {
            let next = number(words.next().unwrap_or_default(), "number of the next input")?;
            let restarts = number(words.next().unwrap_or_default(), "number of restarts")?;
            Ok(Self { next, restarts, counts: Counts(words) })
        };
        Some(read())
    }
}

impl<I: Iterator<Item = u64> + Clone> fmt::Display for Inputs<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{INPUTS}{} {}", self.next, self.restarts)?;
        self.counts.clone().try_for_each(|count| write!(f, " {count}"))
    }
}

/// The counts of [`Inputs`] that were read.
#[derive(Clone, Debug)]
pub struct Counts<'a>(SplitAsciiWhitespace<'a>);

impl Iterator for Counts<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0.next()?.parse().ok()
    }
}
