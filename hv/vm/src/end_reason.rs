//! Why a VM has ended, for people and for the exit status.

use crate::flow::Stop;
use abi::Verdict;
use abi::reasons::Feature;
use core::fmt;
use loader::{LoadError, MemoryError};

/// Why a VM has ended, or has not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// It stopped, and all of its frames came back.
    Stopped(Stop),
    /// So many of its frames did not come back after it stopped.
    Leaked(u64, Stop),
    /// Its image was refused, or its modules.
    Refused(LoadError),
    /// There were no frames for this part of it, before it started.
    NoFrames(&'static str),
    /// The machine lacks this, which it needs.
    Lacking(&'static str),
    /// It was to have this feature, which it can't have on this machine.
    NoFeature(&'static str),
}

impl EndReason {
    /// That of a VM which stopped, and of whose frames `missing` did not come back. Without a stop each vCPU was halted for ever.
    #[must_use]
    pub fn after(stop: Option<Stop>, missing: u64) -> Self {
        let stop = stop.unwrap_or(Stop::Halted);
        if missing == 0 { Self::Stopped(stop) } else { Self::Leaked(missing, stop) }
    }

    /// The verdict on the VM.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::Stopped(stop) => stop.verdict(),
            Self::Leaked(..) => Verdict::Leak,
            Self::Refused(_) => Verdict::BadImage,
            Self::NoFrames(_) => Verdict::NoMemory,
            Self::Lacking(_) | Self::NoFeature(_) => Verdict::NoVirtualization,
        }
    }
}

/// Frames that ran out are no fault of the image's.
impl From<LoadError> for EndReason {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Memory(MemoryError::NoFrames) => Self::NoFrames("image and modules"),
            error => Self::Refused(error),
        }
    }
}

/// The text of the verdict's line.
impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(stop) => stop.fmt(f),
            Self::Leaked(frames, stop) => {
                write!(f, "{frames} frames of the VM did not come back; it stopped because: {stop}")
            }
            Self::Refused(error) => error.fmt(f),
            Self::NoFrames(what) => write!(f, "no frames left for the VM's {what}"),
            Self::Lacking(missing) => write!(f, "this machine lacks {missing}"),
            Self::NoFeature(name) => write!(f, "the VM can't have {} of cpuid= on this machine", Feature(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn frames_that_are_missing_outweigh_a_success() {
        let passed = Stop::Exited(0);
        assert_eq!(EndReason::after(Some(passed), 0), EndReason::Stopped(passed));
        assert_eq!(EndReason::after(Some(passed), 0).verdict(), Verdict::Pass);
        let leaked = EndReason::after(Some(passed), 2);
        assert_eq!((leaked.clone(), leaked.verdict()), (EndReason::Leaked(2, passed), Verdict::Leak));
        assert!(leaked.to_string().starts_with("2 frames") && leaked.to_string().ends_with(&passed.to_string()));
        assert_eq!(EndReason::after(None, 0), EndReason::Stopped(Stop::Halted));
    }

    #[test]
    fn a_load_that_finds_no_frame_is_no_bad_image() {
        let no_frames = EndReason::from(LoadError::Memory(MemoryError::NoFrames));
        assert_eq!(no_frames.verdict(), Verdict::NoMemory);
        let refused = EndReason::from(LoadError::Memory(MemoryError::Outside(addr::Gpa::new(0))));
        assert_eq!(refused.verdict(), Verdict::BadImage);
    }

    #[test]
    fn what_the_machine_lacks_is_no_failure_of_the_guest() {
        for reason in [EndReason::Lacking("SVM"), EndReason::NoFeature("clwb")] {
            assert_eq!(reason.verdict(), Verdict::NoVirtualization, "{reason}");
        }
    }
}
