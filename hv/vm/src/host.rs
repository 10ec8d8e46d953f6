//! The CPU that a vCPU runs on.

use crate::vcpu::Vcpu;
use devices::Nanoseconds;
use sched::{Instant, Turn};

/// The services of the physical CPU that the vCPU loop calls. The hypervisor's scheduler implements it.
pub trait Host {
    /// Serves the CPU's own pending interrupts, after taking the guest's state out of the processor ([`Vcpu::put`]). The
    /// answer tells whether the vCPU's turn goes on.
    fn interrupted<V: Vcpu>(&mut self, vcpu: &mut V) -> Turn;
    /// The host's next timer event, in ticks of its TSC. The loop calls [`interrupted`](Self::interrupted) behind the first exit
    /// that comes at this time or later. Without that, a guest whose exits follow each other so closely that the processor
    /// never takes the pending timer interrupt would keep the CPU for ever.
    fn next_event(&self) -> Instant;
    /// Sets the guest's next deadline, by the VM's clock: an interrupt makes the guest exit at that time. None: the guest waits
    /// for no time.
    fn wake_at(&mut self, deadline: Option<Nanoseconds>);
    /// Sends an interrupt to the CPU of vCPU `vcpu` of the same VM if that CPU is in guest mode or asleep, so that it looks for
    /// requests.
    fn kick(&mut self, vcpu: usize);
    /// Converts `ticks` of the TSC to nanoseconds.
    fn nanoseconds(&self, ticks: u64) -> u64;
}
