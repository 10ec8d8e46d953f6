//! The types that the handlers of one vCPU's exits work with.

use crate::host::Host;
use crate::memory::Memory;
use crate::vcpu::Vcpu;
use devices::{Clock, Sink};
use walk::HandleMem;

/// What the hypervisor builds a VM from, as one parameter in place of five.
///
/// An implementation is a type without values. Every use is resolved at compile time: no call on the exit path goes through a
/// pointer.
pub trait Types {
    /// The backend's virtual CPU.
    type Vcpu: Vcpu;
    /// The VM's memory, as one vCPU sees it.
    type Memory: Memory;
    /// The CPU that the vCPU runs on.
    type Host: Host;
    /// Where the serial port's bytes go.
    type Sink: Sink;
    /// The VM's clock.
    type Clock: Clock + Clone;
}

/// A place in the VM's memory that a vCPU's [`Context`](crate::Context) remembers.
pub(crate) type Handle<T> = <<T as Types>::Memory as HandleMem>::Handle;
