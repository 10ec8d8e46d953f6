//! How `xtask` itself fails, as opposed to what it runs.

use crate::output::errln;
use std::fmt;
use std::process::ExitCode;

/// Exit status when something must be installed or asked for differently.
pub(crate) const USAGE: u8 = 2;
/// Exit status of everything else that goes wrong before a machine runs: a compile error, an unwritable disk. It is
/// cargo's own for that, and none of the statuses of a run.
const BROKEN: u8 = 101;

/// What the user has to put right; the text says how.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A [`Usage`] error with this text.
pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
    Usage(text.into()).into()
}

/// Prints the error and gives the status to end with.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    errln!("error: {error:#}");
    ExitCode::from(if error.is::<Usage>() { USAGE } else { BROKEN })
}
