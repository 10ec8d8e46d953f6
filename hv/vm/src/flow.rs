//! What an exit leads to.

#[cfg(doc)]
use crate::context::Activity;
use addr::Gpa;

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

/// Why a VM has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest wrote this value to the exit port; 0 is success.
    Exited(u32),
    /// A triple fault.
    TripleFault,
    /// The guest asked for a reset, which ends a VM here.
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
}
