//! The clock of a VM's devices.

use crate::timer;
use devices::{Clock, Nanoseconds};
use sched::Instant;

/// A guest's clock: nanoseconds since it was made, by the TSC.
#[derive(Clone, Copy)]
pub(super) struct TscClock {
    start: Instant,
}

impl TscClock {
    pub(super) fn new() -> Self {
        Self { start: timer::now() }
    }

    /// When it shows `time`.
    pub(super) fn instant(self, time: Nanoseconds) -> Instant {
        self.start.after(timer::ticks(time.0))
    }
}

impl Clock for TscClock {
    fn now(&self) -> Nanoseconds {
        Nanoseconds(timer::nanoseconds_since(self.start))
    }
}
