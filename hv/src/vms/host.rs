//! What a VM's loop and devices have of the host: its clock, its sleep, and its console.

use crate::console;
use crate::timer::Deadline;
use core::arch::asm;
use core::num::NonZeroU32;
use core::time::Duration;
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

/// A guest's console: whole lines on the hypervisor's own.
pub(super) struct Console {
    line: [u8; 256],
    length: usize,
}

impl Console {
    pub(super) const fn new() -> Self {
        Self { line: [0; 256], length: 0 }
    }

    /// Sends what there is of a line.
    pub(super) fn flush(&mut self) {
        console::with_uart(|uart| uart.write_bytes(&self.line[..self.length]));
        self.length = 0;
    }
}

impl devices::Sink for Console {
    fn put(&mut self, byte: u8) {
        self.line[self.length] = byte;
        self.length += 1;
        if byte == b'\n' || self.length == self.line.len() {
            self.flush();
        }
    }
}
