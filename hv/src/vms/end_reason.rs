//! What a VM's run has come to, for people and for the exit status.

use abi::reasons::Feature;
use core::fmt;
use vm::Stop;

/// EndReason a verdict is what it is.
#[derive(Clone, Debug)]
pub(super) enum EndReason {
    Stopped(Stop),
    Refused(loader::LoadError),
    /// There were no frames for this part of the VM, before it started.
    NoFrames(&'static str),
    Lacking(backends::Missing),
    /// The VM was to have this feature.
    NoFeature(&'static str),
    /// Frames that are missing, and why the VM stopped.
    Leaked(u64, Stop),
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(stop) => stop.fmt(f),
            Self::Refused(error) => write!(f, "{error}"),
            Self::NoFrames(what) => write!(f, "no frames left for the VM's {what}"),
            Self::NoFeature(name) => write!(f, "the VM can't have {} of cpuid= on this machine", Feature(name)),
            Self::Lacking(missing) => write!(f, "this machine lacks {missing}"),
            Self::Leaked(frames, stop) => {
                write!(f, "{frames} frames of the VM did not come back; it stopped because: {stop}")
            }
        }
    }
}
