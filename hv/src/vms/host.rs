//! What a VM's loop and devices have of the host: its clock, its sleep, and its console.

use crate::console;
use crate::timer::{self, Deadline};
use core::arch::asm;
use core::num::NonZeroU32;
use core::time::Duration;
use devices::{Clock, LineBuffer, Nanoseconds};
use vm::{Host, Vcpu};

/// The host of one vCPU, with the moment at which its patience ends.
pub(super) struct TickingHost {
    deadline: Option<Deadline>,
}

impl TickingHost {
    /// A host that gives the guest `limit` seconds.
    pub(super) fn new(limit: Option<NonZeroU32>) -> Self {
        Self { deadline: limit.map(|seconds| Deadline::after(Duration::from_secs(seconds.get().into()))) }
    }

    fn has_time(&self) -> bool {
        self.deadline.is_none_or(|deadline| !deadline.is_past())
    }
}

impl<V: Vcpu> Host<V> for TickingHost {
    fn interrupted(&mut self, vcpu: &mut V) -> bool {
        vcpu.leave();
        self.has_time()
    }

    fn idle(&mut self, vcpu: &mut V) -> bool {
        vcpu.leave();
        // SAFETY: the host's own state is loaded; STI's shadow covers HLT, so no interrupt gets lost between them.
        unsafe { asm!("sti", "hlt", "cli", options(nomem, nostack)) };
        self.has_time()
    }
}

/// A guest's clock: nanoseconds since it was made, by the TSC.
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

/// A guest's console: whole lines on the hypervisor's own.
pub(super) type Console = LineBuffer<256, fn(&[u8])>;

pub(super) fn console() -> Console {
    LineBuffer::new(|line| console::with_uart(|uart| uart.write_bytes(line)))
}
