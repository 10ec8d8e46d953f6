//! The rules of the exit path, on a scripted vCPU.
//!
//! [`vcpu`], [`memory`] and [`guest`] stand in for a backend, the nested tables and the host; all else is what runs in the
//! hypervisor. The vCPU holds the handlers to the contract of [`Vcpu`](crate::Vcpu) on its own: it panics at a second event
//! before an entry, at an interrupt that the guest does not take, and at an entry after the last exit of the script.

mod any;
mod apic;
mod cr0;
mod cr4;
mod cr8;
mod debug_registers;
mod debug_traps;
mod devices;
mod guest;
mod hypercalls;
mod interrupts;
mod lengths;
mod memory;
mod mmio;
mod msrs;
mod ports;
mod promises;
mod real_mode;
mod resets;
mod segments;
mod stops;
mod strings;
mod task_switch;
mod vcpu;
