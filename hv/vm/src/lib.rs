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
//!
//! A vCPU's turn on its CPU, for whatever backend and whatever kind of tables; `view` is the VM's memory as this vCPU sees it:
//!
//! ```
//! use vm::{Context, ExitHandler, Types, Vm, run};
//! use walk::HandleMem;
//!
//! fn turn<T: Types>(
//!     vm: &Vm<T::Sink, T::Clock>,
//!     vcpu: &mut T::Vcpu,
//!     context: &mut Context<<T::Memory as HandleMem>::Handle>,
//!     view: T::Memory,
//!     host: &mut T::Host,
//! ) {
//!     let mut handler = ExitHandler::<T>::new(vm, context, view);
//!     if let Some(stop) = run(vcpu, &mut handler, host) {
//!         println!("{stop}: {:?}", stop.verdict());
//!     }
//! }
//! ```
//!
//! What needs no processor runs anywhere. The guest's CPUID is made once, from what the processor has and what the hypervisor
//! keeps: of a processor with AVX and XSAVE (leaf 1, ECX bits 28 and 26), the guest sees neither, as their state is not switched,
//! and it sees that a hypervisor is there (bit 31).
//!
//! ```
//! use vm::cpuid::{Leaf, Table, Topology};
//!
//! fn processor(leaf: u32, _subleaf: u32) -> Leaf {
//!     match leaf {
//!         0 => Leaf { eax: 0xd, ..Leaf::default() },
//!         0x8000_0000 => Leaf { eax: 0x8000_0008, ..Leaf::default() },
//!         1 => Leaf { ecx: 1 << 28 | 1 << 26 | 1 << 0, ..Leaf::default() },
//!         _ => Leaf::default(),
//!     }
//! }
//! let table = Table::new(processor, Topology { index: 0, vcpus: 2 });
//! let features = table.get(1, 0).ecx;
//! assert_eq!(features & (1 << 28 | 1 << 26), 0);
//! assert_eq!(features & (1 << 31 | 1 << 0), 1 << 31 | 1 << 0);
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod context;
pub mod cpuid;
mod cr8;
mod debug_registers;
mod device_bus;
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
mod mtrr;
mod paging;
mod ports;
mod run;
mod shared;
mod sort;
mod stats;
mod system;
#[cfg(test)]
mod tests;
mod trouble;
mod types;
mod vcpu;
mod wanted_msrs;

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
pub use wanted_msrs::WantedMsrs;

pub use emul::{Gpr, Known, Registers, Segment};
