//! The end of the process.

use crate::sys;
pub(crate) use abi::GuestStatus;

/// Ends the process with this status, with all its threads.
pub(crate) fn end(status: GuestStatus) -> ! {
    sys::exit_group(status.into())
}
