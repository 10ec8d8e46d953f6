//! The end of the process.

use crate::sys;

/// How the program ends.
#[derive(Clone, Copy)]
pub(crate) struct Verdict(u8);

impl Verdict {
    /// All tests passed.
    pub(crate) const PASSED: Self = Self(0);
    /// A test failed.
    pub(crate) const FAILED: Self = Self(1);
    /// The command line makes no sense.
    pub(crate) const USAGE: Self = Self(2);
    /// The program itself can't go on.
    pub(crate) const PANICKED: Self = Self(101);

    /// Ends the process, with all its threads.
    pub(crate) fn end(self) -> ! {
        sys::exit_group(self.0)
    }
}
