//! What a VM's run has come to, for people and for the exit status.

use crate::verdict::Verdict;
use core::fmt;
use vm::Stop;

/// Why a verdict is what it is.
#[derive(Clone, Debug)]
pub(super) enum Why {
    Stopped(Stop),
    Refused(loader::LoadError),
    /// There were no frames for this part of the VM, before it started.
    NoFrames(&'static str),
    Lacking(backends::Missing),
    /// Frames that are missing, and why the VM stopped.
    Leaked(u64, Stop),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(stop) => describe(*stop, f),
            Self::Refused(error) => write!(f, "{error}"),
            Self::NoFrames(what) => write!(f, "no frames left for the VM's {what}"),
            Self::Lacking(missing) => write!(f, "this machine lacks {missing}"),
            Self::Leaked(frames, stop) => {
                write!(f, "{frames} frames of the VM did not come back; it stopped because: ")?;
                describe(*stop, f)
            }
        }
    }
}

fn describe(stop: Stop, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match stop {
        Stop::Exited(0) => f.write_str("the guest reported success"),
        Stop::Exited(value) => write!(f, "the guest reported failure: it wrote {value} to the exit port"),
        Stop::TripleFault => f.write_str("triple fault in the guest"),
        Stop::Reset => f.write_str("the guest asked for a reset"),
        Stop::Halted => f.write_str("the guest halted with interrupts off: nothing can wake it"),
        Stop::OutOfMemory => f.write_str("no frame left for the guest's memory"),
        Stop::Limit => f.write_str("the guest ran past its limit"),
        Stop::Misconfigured(at) => write!(f, "the nested tables have an entry that makes no sense, on the way to {at}"),
        Stop::Unhandled(what) => f.write_str(what),
    }
}

/// The verdict on a VM that has ended so.
pub(super) const fn judge(stop: Stop) -> Verdict {
    match stop {
        Stop::Exited(0) => Verdict::Pass,
        Stop::Exited(_) => Verdict::GuestFailed,
        Stop::TripleFault => Verdict::GuestTripleFault,
        Stop::Limit => Verdict::Hang,
        Stop::Reset | Stop::Halted | Stop::OutOfMemory | Stop::Misconfigured(_) | Stop::Unhandled(_) => {
            Verdict::GuestKilled
        }
    }
}
