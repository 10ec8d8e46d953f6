//! Progress of long steps: a spinner on a terminal, plain lines elsewhere.

use crate::output::{errln, outln};
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// A step under way; says how long it took when it is done.
pub(crate) struct Step {
    what: String,
    started: Instant,
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Begins a step and says so.
    pub(crate) fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]").expect("a valid template");
            let spinner = ProgressBar::new_spinner().with_style(style).with_message(what.clone());
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        if spinner.is_none() {
            errln!("{what} …");
        }
        Self { what, started: Instant::now(), spinner }
    }

    /// Ends the step with a word on how it went.
    pub(crate) fn end(self, how: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        errln!("{}: {how} ({:.1} s)", self.what, self.started.elapsed().as_secs_f64());
    }
}

/// Many steps of one kind, each with its own line.
pub(crate) struct Counter {
    bar: Option<ProgressBar>,
}

impl Counter {
    pub(crate) fn begin(what: &'static str, count: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} [{elapsed}]").expect("a valid template");
            ProgressBar::new(count as u64).with_style(style).with_message(what)
        });
        Self { bar }
    }

    /// One more is done; its line stays.
    pub(crate) fn done(&self, line: &str) {
        match &self.bar {
            Some(bar) => {
                bar.suspend(|| outln!("{line}"));
                bar.inc(1);
            }
            None => outln!("{line}"),
        }
    }

    pub(crate) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line that changes while time is used, below lines that stay.
pub(crate) struct Live(Option<ProgressBar>);

impl Live {
    /// Begins, with this many seconds to use, if there is a limit.
    pub(crate) fn begin(seconds: impl Into<Option<u32>>) -> Self {
        let seconds = seconds.into();
        Self(std::io::stderr().is_terminal().then(|| {
            let limit = seconds.map(|seconds| format!(" of {seconds}s")).unwrap_or_default();
            let template = format!("{{spinner}} {{elapsed}}{limit}  {{msg}}");
            let style = ProgressStyle::with_template(&template).expect("a valid template");
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        }))
    }

    /// Says what is going on now.
    pub(crate) fn say(&self, text: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(text.to_string());
        }
    }

    /// A line that stays.
    pub(crate) fn line(&self, line: &dyn fmt::Display) {
        match &self.0 {
            Some(bar) => bar.suspend(|| outln!("{line}")),
            None => outln!("{line}"),
        }
    }

    pub(crate) fn end(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}
