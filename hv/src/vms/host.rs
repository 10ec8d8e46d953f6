//! What a vCPU's loop has of the CPU: its interrupts and its timer.

use super::guest::Guest;
use crate::console;
use crate::timer;
use crate::watchdog;
use core::time::Duration;
use devices::Nanoseconds;
use memory::Nested;
use sched::{Instant, Task};
use vm::{Host, Turn, Vcpu};

/// A VM's time on a CPU that other VMs share, in each round.
pub(super) const SLICE: Duration = Duration::from_millis(5);

/// The CPU that a vCPU runs on, for one slice of time.
pub(super) struct Slice<'a, 's, F: Nested, T> {
    pub(super) guest: &'a Guest<F>,
    pub(super) schedule: &'a mut sched::Slice<'s, T>,
    /// How many reports on its exits the vCPU has added to.
    pub(super) reports: u32,
}

impl<F: Nested, T: Task> Host for Slice<'_, '_, F, T> {
    fn interrupted<V: Vcpu>(&mut self, vcpu: &mut V) -> Turn {
        vcpu.put();
        watchdog::check();
        console::poll();
        let turn = self.schedule.interrupted(timer::now());
        if console::breaks() != self.reports {
            return Turn::Over;
        }
        if turn == Turn::On {
            self.schedule.host_wants_at(console::next_poll());
        }
        turn
    }

    #[inline]
    fn next_event(&self) -> Instant {
        self.schedule.next_event()
    }

    fn wake_at(&mut self, deadline: Option<Nanoseconds>) {
        let at = deadline.map_or(Instant::NEVER, |deadline| self.guest.clock.instant(deadline));
        if let Some(at) = self.schedule.wake_at(at) {
            timer::arm(at);
        }
    }

    fn kick(&mut self, vcpu: usize) {
        self.guest.kick(vcpu);
    }

    fn nanoseconds(&self, ticks: u64) -> u64 {
        timer::nanoseconds(ticks)
    }
}
