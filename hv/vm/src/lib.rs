//! Virtual machines without a vendor: exits in one form, and the handlers that every backend shares.
//!
//! ```text
//!   hardware ──> backend's Vcpu::enter ──> Exit ──> ExitHandler::handle ──> Flow::Resume ──> enter …
//!                                                        │
//!                              cpuid  msr  hypercall  devices  memory      └─> Flow::Stop(why)
//! ```
//!
//! A [`ExitHandler`] is one VM as its handlers see it; [`run`] is the loop around it. What touches the processor is behind
//! [`Vcpu`] (a backend), what touches memory behind [`Memory`] (the nested tables), what touches the host behind [`Host`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod context;
pub mod cpuid;
mod cr8;
mod emulated;
mod exit;
mod exit_handler;
mod hypercall;
mod interrupts;
mod local_apic;
mod mmio;
pub mod msr;
mod open_bus;
mod paging;
mod ports;
mod run;
mod shared;
mod stats;
mod system;
#[cfg(test)]
mod tests;
mod trouble;
mod vcpu;

pub use crate::context::{Activity, Context};
pub use devices::Size;
pub use exit::{Cr8, Event, Exception, Exit, Instruction, Io, Kind, NestedFault, PageFault};
pub use exit_handler::{ExitHandler, Flow, Host, Memory, Resolved, Stop};
pub use run::run;
pub use sched::{Instant, Turn};
pub use shared::Vm;
pub use stats::Stats;
pub use vcpu::{ControlRegisters, Emulated, Events, INTERRUPT_FLAG, SegmentState, Start, StateMsr, Stay, Vcpu};

pub use emul::{Gpr, Known, Registers, Segment};
