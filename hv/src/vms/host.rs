//! What a vCPU's loop and a VM's devices have of the CPU: its interrupts, its timer, and its clock.

use super::guest::Guest;
use super::seat::Seat;
use crate::console;
use crate::smp;
use crate::timer;
use crate::watchdog;
use backends::Backend;
use devices::{Clock, Nanoseconds};
use memory::Nested;
use sched::Instant;
use vm::{Host, Turn, Vcpu};

/// The CPU that a vCPU runs on, for one slice of time.
pub(super) struct Slice<'a, 's, B: Backend<Tables: Nested>> {
    pub(super) guest: &'a Guest<B::Tables>,
    pub(super) schedule: &'a mut sched::Slice<'s, Seat<B>>,
}

impl<B: Backend<Tables: Nested>> Host for Slice<'_, '_, B> {
    fn interrupted<V: Vcpu>(&mut self, vcpu: &mut V) -> Turn {
        vcpu.leave();
        watchdog::look();
        console::poll();
        let turn = self.schedule.interrupted(timer::now());
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
        smp::kick_if_away(self.guest.cpu_of(vcpu));
    }

    fn nanoseconds(&self, ticks: u64) -> u64 {
        timer::nanoseconds(ticks)
    }
}

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
    fn instant(self, time: Nanoseconds) -> Instant {
        self.start.after(timer::ticks(time.0))
    }
}

impl Clock for TscClock {
    fn now(&self) -> Nanoseconds {
        Nanoseconds(timer::nanoseconds(timer::now().since(self.start)))
    }
}
