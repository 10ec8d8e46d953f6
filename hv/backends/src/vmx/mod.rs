//! Intel's VMX (Intel SDM vol. 3, chapters 24 to 31), with EPT or with shadows of the guest's tables.

mod backend;
mod capabilities;
mod control_registers;
mod cr_exits;
mod dump;
mod events;
mod exits;
mod failure;
mod guest_registers;
mod guest_state;
mod host;
mod pat;
mod permissions;
mod reason;
mod setup;
mod switch;
mod task_priority;
mod tasks;
mod unpaged;
mod vcpu;
mod vmcs;

pub use backend::Vmx;
pub use capabilities::Features;
pub use vcpu::VmxVcpu;
