//! What an exit leads to.

#[cfg(doc)]
use crate::context::Activity;
use abi::{Verdict, reasons};
use addr::Gpa;
use core::fmt;
use emul::InstructionName;

/// What the vCPU loop does after an exit was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It enters the guest again.
    Resume,
    /// It gives the CPU back to the scheduler. The vCPU's [`Activity`] is what the vCPU waits for; `Running` means that its
    /// turn is over.
    Yield,
    /// It ends the VM.
    Stop(Stop),
}

/// Why a VM has ended, or begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest wrote this value to the exit port; 0 is success.
    Exited(u32),
    /// A triple fault.
    TripleFault,
    /// The guest switched its machine off.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// Every vCPU is halted, and no interrupt can wake one.
    Halted,
    /// The host has no frame left for the VM.
    OutOfMemory,
    /// The guest ran past its time limit.
    Limit,
    /// The nested tables hold an invalid entry on the way to this address. This is a bug of the hypervisor.
    Misconfigured(Gpa),
    /// The hypervisor does not support what the guest did; the text names it.
    Unhandled(&'static str),
    /// The guest executed an instruction that only the processor can execute, where it can't.
    NotEmulated(NotEmulated),
}

/// An instruction that can't be carried out for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotEmulated {
    /// Why it has to be.
    pub place: Place,
    /// Its name.
    pub name: InstructionName,
}

/// Why the processor can't execute an instruction for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It accesses an address that has no memory.
    NoMemory,
    /// It writes memory that no entry may make writable.
    Watched,
    /// It is executed in real mode, which the processor has not for guests.
    RealMode,
}

impl fmt::Display for NotEmulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::NoMemory => "on an address that has no memory",
            Place::Watched => "on memory that it may not simply write",
            Place::RealMode => "in real mode",
        };
        write!(f, "an instruction that is not emulated, {place}: {}", self.name)
    }
}

impl Stop {
    /// The verdict on a VM that has ended so.
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Exited(0) | Self::PoweredOff => Verdict::Pass,
            Self::Exited(_) => Verdict::GuestFailed,
            Self::TripleFault => Verdict::GuestTripleFault,
            Self::Limit => Verdict::Hang,
            Self::Reset
            | Self::Halted
            | Self::OutOfMemory
            | Self::Misconfigured(_)
            | Self::Unhandled(_)
            | Self::NotEmulated(_) => Verdict::GuestKilled,
        }
    }
}

/// The text of the verdict's line.
impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(0) => f.write_str("the guest reported success"),
            Self::Exited(value) => write!(f, "the guest reported failure: it wrote {value} to the exit port"),
            Self::TripleFault => f.write_str("triple fault in the guest"),
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::Halted => f.write_str(reasons::HALTED),
            Self::OutOfMemory => f.write_str(reasons::NO_FRAME),
            Self::Limit => f.write_str(reasons::PAST_LIMIT),
            Self::Misconfigured(at) => {
                write!(f, "{}, on the way to {at}", reasons::MISCONFIGURED)
            }
            Self::Unhandled(what) => f.write_str(what),
            Self::NotEmulated(what) => what.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn only_a_guest_that_reports_success_or_powers_off_passes() {
        for stop in [Stop::Exited(0), Stop::PoweredOff] {
            assert_eq!(stop.verdict(), Verdict::Pass, "{stop}");
        }
        let others = [
            Stop::Exited(1),
            Stop::Exited(u32::MAX),
            Stop::TripleFault,
            Stop::Reset,
            Stop::Halted,
            Stop::OutOfMemory,
            Stop::Limit,
            Stop::Misconfigured(Gpa::new(0)),
            Stop::Unhandled("x"),
        ];
        for stop in others {
            assert_ne!(stop.verdict(), Verdict::Pass, "{stop}");
        }
    }

    #[test]
    fn the_text_has_the_guests_value_and_the_address() {
        assert!(Stop::Exited(7).to_string().contains("wrote 7 to the exit port"));
        assert!(Stop::Misconfigured(Gpa::new(0x1000)).to_string().ends_with("0x1000"));
        assert_eq!(Stop::Unhandled("an exit").to_string(), "an exit");
    }
}
