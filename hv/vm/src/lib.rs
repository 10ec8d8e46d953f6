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
//! A VM with one vCPU. In place of a backend's vCPU it has a script of exits, each with the guest's RAX: CPUID, `OUT` of two bytes
//! to COM1, and of 0 to the exit port.
//!
//! ```
//! use devices::{Board, BoardConfig};
//! use arch::features::FeatureSet;
//! use vm::cpuid::CpuModel;
//! use vm::{Context, Exit, ExitHandler, Io, Size, Stop, Types, Vm, run};
//! # use addr::{Gpa, Hpa};
//! # use devices::{Clock, Nanoseconds, Sink};
//! # use std::collections::VecDeque;
//! # use vm::{ControlRegisters, DebugRegisters, DescriptorCache, Event, Events, Gpr, Host, Instant, Known, Memory, NestedFault, Registers, Resolved};
//! # use vm::{LoadedSegment, Segment, SegmentRegister, SegmentState, Shadow, Start, StateMsr, Stay, TaskState, Turn, Vcpu};
//! # use emul::interpreter::{Area, Table, TableRegister, VectorInstruction};
//! # use walk::{HandleMem, PhysMem};
//! # #[derive(Default)]
//! # struct Console(String);
//! # impl Sink for Console {
//! #     fn put(&mut self, byte: u8) { self.0.push(byte.into()) }
//! # }
//! # #[derive(Clone)]
//! # struct StoppedClock;
//! # impl Clock for StoppedClock {
//! #     fn now(&self) -> Nanoseconds { Nanoseconds(0) }
//! # }
//! # struct ScriptedVcpu { script: VecDeque<(Exit, u64)>, exit: Exit, gprs: [u64; 16], rip: u64 }
//! # impl ScriptedVcpu {
//! #     fn new(script: impl IntoIterator<Item = (Exit, u64)>) -> Self {
//! #         Self { script: script.into_iter().collect(), exit: Exit::Unknown, gprs: [0; 16], rip: 0 }
//! #     }
//! # }
//! # impl Registers for ScriptedVcpu {
//! #     fn gpr(&self, gpr: Gpr) -> u64 { self.gprs[gpr.index()] }
//! #     fn set_gpr(&mut self, gpr: Gpr, value: u64) { self.gprs[gpr.index()] = value }
//! #     fn rip(&self) -> u64 { self.rip }
//! #     fn rflags(&self) -> u64 { 2 }
//! #     fn set_rflags(&mut self, _: u64) {}
//! #     fn segment_base(&self, _: Segment) -> u64 { 0 }
//! # }
//! # impl DebugRegisters for ScriptedVcpu {
//! #     fn dr6(&self) -> u64 { 0 }
//! #     fn set_dr6(&mut self, _: u64) {}
//! #     fn dr7(&self) -> u64 { 0 }
//! #     fn set_dr7(&mut self, _: u64) {}
//! #     fn debugctl(&self) -> u64 { 0 }
//! #     fn set_debugctl(&mut self, _: u64) {}
//! #     fn breakpoints(&self) -> [u64; 4] { [0; 4] }
//! # }
//! # impl Events for ScriptedVcpu {
//! #     fn interruptible(&self) -> bool { false }
//! #     fn in_interrupt_shadow(&self) -> bool { false }
//! #     fn set_event(&mut self, event: Event) { panic!("the script expects no {event:?}") }
//! #     fn injecting(&self) -> bool { false }
//! #     fn injected_exception(&self) -> Option<u8> { None }
//! #     fn request_window(&mut self, _: bool) {}
//! #     fn handles_nmi(&self) -> bool { false }
//! #     fn takes_nmi(&self) -> bool { false }
//! #     fn request_nmi_window(&mut self, _: bool) {}
//! # }
//! # impl TaskState for ScriptedVcpu {
//! #     fn gdt(&self) -> (u64, u32) { (0, 0) }
//! #     fn idt(&self) -> (u64, u32) { (0, 0) }
//! #     fn task_register(&self) -> LoadedSegment { LoadedSegment::default() }
//! #     fn local_table(&mut self) -> Option<(u64, u32)> { None }
//! #     fn load_segment(&mut self, _: SegmentRegister, _: LoadedSegment) {}
//! #     fn load_cr3(&mut self, _: u64, _: Option<[u64; 4]>) {}
//! #     fn behind_task_switch(&self) -> Option<u64> { None }
//! #     fn complete_delivery(&mut self) {}
//! #     fn unblock_nmis(&mut self) {}
//! # }
//! # impl Vcpu for ScriptedVcpu {
//! #     const HYPERCALL: Known = Known::Vmmcall;
//! #     fn load(&mut self) {}
//! #     fn reset(&mut self, _: Start) {}
//! #     fn power_on(&mut self, _: Start) {}
//! #     fn enter(&mut self) { (self.exit, self.gprs[0]) = self.script.pop_front().expect("the script goes on") }
//! #     fn exit(&self) -> Exit { self.exit }
//! #     fn flush(&mut self) {}
//! #     fn put(&mut self) {}
//! #     fn stay(&self) -> Stay { Stay::default() }
//! #     fn resume_at(&mut self, rip: u64) { self.rip = rip }
//! #     fn begin_interrupt_shadow(&mut self, _: Shadow) {}
//! #     fn load_table(&mut self, _: Table, _: TableRegister) {}
//! #     fn execute_vector(&mut self, _: VectorInstruction, _: &mut Area) -> u64 { 2 }
//! #     fn next_rip(&self) -> Option<u64> { Some(self.rip + 2) }
//! #     fn control(&self) -> ControlRegisters { ControlRegisters { cr0: 1, cr3: 0, cr4: 0, efer: 0, cpl: 0 } }
//! #     fn segment(&self, _: Segment) -> SegmentState {
//! #         SegmentState { selector: 8, base: 0, limit: u32::MAX, default_big: true, long: false }
//! #     }
//! #     fn descriptor_cache(&mut self, _: Segment) -> DescriptorCache {
//! #         DescriptorCache { base: 0, limit: u32::MAX, attributes: 0xc93 }
//! #     }
//! #     fn cr2(&self) -> u64 { 0 }
//! #     fn set_cr2(&mut self, _: u64) {}
//! #     fn state_msr(&self, _: StateMsr) -> u64 { 0 }
//! #     fn set_state_msr(&mut self, _: StateMsr, _: u64) {}
//! #     fn tsc(&self) -> u64 { 0 }
//! #     fn adjust_tsc(&mut self, _: u64) {}
//! #     fn dump(&self, _: &mut dyn core::fmt::Write) -> core::fmt::Result { Ok(()) }
//! # }
//! # struct NoMemory;
//! # impl PhysMem for NoMemory {
//! #     fn read_u64(&self, _: Gpa) -> Option<u64> { None }
//! #     fn read_u32(&self, _: Gpa) -> Option<u32> { None }
//! #     fn cmpxchg_u64(&self, _: Gpa, _: u64, _: u64) -> Option<bool> { None }
//! #     fn cmpxchg_u32(&self, _: Gpa, _: u32, _: u32) -> Option<bool> { None }
//! #     fn read(&self, _: Gpa, _: &mut [u8]) -> Option<()> { None }
//! #     fn write(&self, _: Gpa, _: &[u8]) -> Option<()> { None }
//! # }
//! # impl HandleMem for NoMemory {
//! #     type Handle = ();
//! #     fn handle(&self, _: Gpa) -> Option<()> { None }
//! #     fn load(&self, _: ()) -> u64 { 0 }
//! #     fn load_u32(&self, _: (), _: u64) -> u32 { 0 }
//! #     fn generation(&self) -> u64 { 0 }
//! # }
//! # impl Memory for NoMemory {
//! #     fn fault(&mut self, _: NestedFault) -> Resolved { Resolved::NotMemory }
//! #     fn guest<R>(&mut self, enter: impl FnOnce(bool) -> R) -> R { enter(false) }
//! # }
//! # struct IdleHost;
//! # impl Host for IdleHost {
//! #     fn interrupted<V: Vcpu>(&mut self, _: &mut V) -> Turn { Turn::On }
//! #     fn next_event(&self) -> Instant { Instant::NEVER }
//! #     fn wake_at(&mut self, _: Option<Nanoseconds>) {}
//! #     fn kick(&mut self, _: usize) {}
//! #     fn nanoseconds(&self, ticks: u64) -> u64 { ticks }
//! # }
//! # fn processor(leaf: u32, _: u32) -> vm::cpuid::Leaf {
//! #     vm::cpuid::Leaf { eax: if leaf == 0 { 1 } else { 0x8000_0000 }, ..Default::default() }
//! # }
//!
//! struct Machine;
//! impl Types for Machine {
//!     type Vcpu = ScriptedVcpu;
//!     type Memory = NoMemory;
//!     type Host = IdleHost;
//!     type Sink = Console;
//!     type Clock = StoppedClock;
//! }
//!
//! // The VM, and what the handlers keep of its only vCPU.
//! let board = Board::new(BoardConfig { ram_bytes: 1 << 20, cpus: 1, boot_time: 0 }, Console::default(), StoppedClock);
//! let vm = Vm::new(board, StoppedClock, 1);
//! let mut context = Context::new(0, &vm, processor, CpuModel { long_mode: false, hidden: FeatureSet::EMPTY });
//!
//! // The guest runs until the host has to do something else, or the VM ends.
//! let out = |port, byte: u8| (Exit::Io(Io::new(port, Size::Byte, false, false)), u64::from(byte));
//! let mut vcpu = ScriptedVcpu::new([(Exit::Cpuid, 1), out(0x3f8, b'h'), out(0x3f8, b'i'), out(0xf4, 0)]);
//! let mut handler = ExitHandler::<Machine>::new(&vm, &mut context, NoMemory);
//! let stop = run(&mut vcpu, &mut handler, &mut IdleHost);
//!
//! assert_eq!(stop, Some(Stop::Exited(0)));
//! assert_eq!(stop.unwrap().verdict(), abi::Verdict::Pass);
//! assert_eq!(vm.devices().sink().0, "hi");
//! assert_eq!(vcpu.gpr(Gpr::RCX) >> 31, 1, "CPUID tells that a hypervisor is there");
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

mod address_space;
mod context;
pub mod cpuid;
mod cr8;
mod debug_registers;
mod debug_traps;
mod emulated;
mod end_reason;
mod exit;
mod exit_handler;
mod flow;
mod host;
mod hypercall;
mod interpreted;
mod interrupts;
mod local_apic;
mod memory;
mod mmio;
pub mod msr;
mod mtrr;
mod open_bus;
mod paging;
mod ports;
mod reset;
mod results;
mod run;
mod segments;
mod shared;
mod sort;
mod stats;
mod stats_report;
mod system;
mod task_switch;
#[cfg(test)]
mod tests;
mod trouble;
mod types;
mod vcpu;
mod wanted_msrs;

pub use crate::context::{Activity, Context};
pub use debug_traps::retire;
pub use devices::Size;
pub use end_reason::EndReason;
pub use exit::{
    Cr8, Event, Exception, Exit, ExitKind, Instruction, Io, NestedFault, PageFault, TaskSwitch, TaskSwitchSource,
};
pub use exit_handler::ExitHandler;
pub use flow::{Flow, NotEmulated, Place, Stop};
pub use host::Host;
pub use memory::{Memory, Resolved};
pub use results::{Ended, Results, VmLine};
pub use run::run;
pub use sched::{Instant, Turn};
pub use shared::Vm;
pub use stats::Stats;
pub use stats_report::{Added, StatsReport};
pub use task_switch::{LoadedSegment, TaskState};
pub use types::Types;
pub use vcpu::{ControlRegisters, DebugRegisters, Events, SegmentState, Shadow, Start, StateMsr, Stay, Vcpu};
pub use wanted_msrs::WantedMsrs;

pub use emul::segmentation::DescriptorCache;
pub use emul::{Gpr, Known, Registers, Segment, SegmentRegister};
