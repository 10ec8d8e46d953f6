//! The words of the command line.

use core::ffi::CStr;

use crate::sys;

/// What is done where no word says otherwise.
const USUAL_OPERATIONS: u32 = 1_000;
/// The most threads: each has a window of memory of its own.
pub(crate) const MOST_THREADS: usize = 8;

/// A fault that is injected, which the test has to find.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Injection {
    /// A word of a page is changed.
    Content,
    /// A page's protection is changed.
    Fault,
}

/// What the run is to be.
#[derive(Clone, Copy)]
pub(crate) struct Words {
    pub(crate) seed: u64,
    pub(crate) operations: u32,
    pub(crate) threads: usize,
    pub(crate) injection: Option<Injection>,
}

impl Words {
    /// What is done without a word.
    pub(crate) fn usual() -> Self {
        let threads = sys::cpus().clamp(2, MOST_THREADS);
        Self { seed: 1, operations: USUAL_OPERATIONS, threads, injection: None }
    }

    /// Takes a word; None if it makes no sense.
    pub(crate) fn take(&mut self, word: &CStr) -> Option<()> {
        let (key, value) = word.to_str().ok()?.split_once('=')?;
        match key {
            "seed" => self.seed = value.parse().ok()?,
            "ops" => self.operations = value.parse().ok()?,
            "threads" => self.threads = value.parse().ok().filter(|count| (1..=MOST_THREADS).contains(count))?,
            "inject" if value == "content" => self.injection = Some(Injection::Content),
            "inject" if value == "fault" => self.injection = Some(Injection::Fault),
            _ => return None,
        }
        Some(())
    }
}
