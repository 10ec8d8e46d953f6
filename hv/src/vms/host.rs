//! What a vCPU's loop and a VM's devices have of the CPU: its interrupts, its timer, and its clock.

use super::guest::Guest;
use super::memory::Nested;
use super::seat::Seat;
use crate::smp;
use crate::timer::{self, Deadline};
use crate::watchdog;
use backends::Backend;
use core::time::Duration;
use devices::{Clock, Nanoseconds};
use vm::{Host, Turn, Vcpu};

/// How long a vCPU runs before the next of its CPU has its turn.
const SLICE: Duration = Duration::from_millis(5);

/// Has the CPU's timer interrupt at the first of `deadlines`, or soon enough for the watchdog.
pub(super) fn arm(deadlines: impl IntoIterator<Item = Option<Deadline>>) {
    timer::arm(deadlines.into_iter().flatten().fold(watchdog::next_look(), Deadline::min));
}

/// The CPU that a vCPU runs on, for one slice of time.
pub(super) struct Slice<'a, B: Backend<Tables: Nested>> {
    guest: &'a Guest<B::Tables>,
    /// The vCPUs that share the CPU.
    others: [&'a [Seat<B>]; 2],
    /// When the slice ends, if there are others.
    end: Option<Deadline>,
    /// When the vCPU itself wants to be left.
    pub(super) due: Option<Deadline>,
}

impl<'a, B: Backend<Tables: Nested>> Slice<'a, B> {
    pub(super) fn new(guest: &'a Guest<B::Tables>, others: [&'a [Seat<B>]; 2]) -> Self {
        let alone = others.iter().all(|others| others.is_empty());
        Self { guest, others, end: (!alone).then(|| Deadline::after(SLICE)), due: None }
    }

    fn is_over(&self) -> bool {
        self.end.is_some_and(Deadline::is_past) || self.others.iter().any(|others| others.iter().any(Seat::is_called))
    }
}

impl<B: Backend<Tables: Nested>, V: Vcpu> Host<V> for Slice<'_, B> {
    fn interrupted(&mut self, vcpu: &mut V) -> Turn {
        vcpu.leave();
        watchdog::look();
        match self.guest.limit {
            Some(limit) if limit.is_past() => Turn::Limit,
            _ if self.is_over() => Turn::Over,
            _ => Turn::On,
        }
    }

    fn wake_at(&mut self, deadline: Option<Nanoseconds>) {
        self.due = deadline.map(|deadline| self.guest.clock.deadline(deadline));
        arm([self.due, self.end, self.guest.limit]);
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
    start: u64,
}

impl TscClock {
    pub(super) fn new() -> Self {
        Self { start: timer::tsc() }
    }

    /// When it shows `time`.
    fn deadline(self, time: Nanoseconds) -> Deadline {
        Deadline::at(self.start.saturating_add(timer::ticks(time.0)))
    }
}

impl Clock for TscClock {
    fn now(&self) -> Nanoseconds {
        Nanoseconds(timer::nanoseconds(timer::tsc() - self.start))
    }
}
