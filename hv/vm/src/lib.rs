//! Virtual machines without a vendor: exits in one form, and the handlers that both backends share.
//!
//! ```text
//!   hardware ──> backend's Vcpu::enter ──> Exit ──> ExitHandler::handle ──> Flow::Resume ──> enter …
//!                                                        │
//!                              cpuid  msr  hypercall  devices  memory      └─> Flow::Stop(why)
//! ```
//!
//! An [`ExitHandler`] handles the exits of one vCPU; [`run()`] is the loop around it. The handlers reach the processor through
//! [`Vcpu`] (a backend implements it), the guest's memory through [`Memory`] (nested or shadow tables), and the physical CPU
//! through [`Host`]. [`Types`] names the implementations in use.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod context;
pub mod cpuid;
mod cr8;
mod debug_registers;
mod emulated;
mod exit;
mod exit_handler;
mod flow;
mod host;
mod hypercall;
mod interrupts;
mod local_apic;
mod memory;
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
mod types;
mod vcpu;

pub use crate::context::{Activity, Context};
pub use devices::Size;
pub use exit::{Cr8, Event, Exception, Exit, Instruction, Io, Kind, NestedFault, PageFault};
pub use exit_handler::ExitHandler;
pub use flow::{Flow, Stop};
pub use host::Host;
pub use memory::{Memory, Resolved};
pub use run::run;
pub use sched::{Instant, Turn};
pub use shared::Vm;
pub use stats::Stats;
pub use types::Types;
pub use vcpu::{ControlRegisters, Emulated, Events, SegmentState, Start, StateMsr, Stay, Vcpu};

pub use emul::{Gpr, Known, Registers, Segment};
