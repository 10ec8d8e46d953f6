//! What a vCPU's loop and a VM's devices have of the CPU: its interrupts, and its clock.

use crate::timer::{self, Deadline};
use devices::{Clock, Nanoseconds};
use vm::{Host, Turn, Vcpu};

/// The CPU that a vCPU runs on, for one slice of time.
pub(super) struct Slice {
    /// When its VM has run for too long.
    pub(super) limit: Option<Deadline>,
}

impl<V: Vcpu> Host<V> for Slice {
    fn interrupted(&mut self, vcpu: &mut V) -> Turn {
        vcpu.leave();
        if self.limit.is_some_and(Deadline::is_past) { Turn::Limit } else { Turn::On }
    }

    fn wake_at(&mut self, _deadline: Option<Nanoseconds>) {}

    fn kick(&mut self, _vcpu: usize) {}
}

/// A guest's clock: nanoseconds since it was made, by the TSC.
#[derive(Clone, Copy)]
pub(super) struct TscClock {
    start: u64,
}

impl TscClock {
    pub(super) fn new() -> Self {
        Self { start: timer::tsc() }
    }
}

impl Clock for TscClock {
    fn now(&self) -> Nanoseconds {
        Nanoseconds(timer::nanoseconds(timer::tsc() - self.start))
    }
}
