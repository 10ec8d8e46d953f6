//! A task's turn on its CPU.

use crate::instant::Instant;
use crate::scheduler::{Entry, Task};

/// Whether a task may stay on its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It continues.
    On,
    /// It must leave: another task is next, or a VM has reached its limit.
    Over,
}

/// When one CPU must call the watchdog, so that its heart beats and checks are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WatchdogTimer {
    /// When the next call is due.
    pub(crate) at: Instant,
    /// Ticks between calls.
    every: u64,
}

impl WatchdogTimer {
    pub(crate) fn new(every: u64, now: Instant) -> Self {
        Self { at: now.after(every), every }
    }

    /// The CPU was interrupted or has slept, and has called the watchdog.
    pub(crate) fn called(&mut self, now: Instant) {
        if now >= self.at {
            self.at = now.after(self.every);
        }
    }
}

/// One task's turn on its CPU, and the next event of the CPU's timer meanwhile.
///
/// ```text
///   Slice::new ─▶ wake_at ─▶ program the timer ─▶ guest ─▶ exit ─┐
///                   ▲                               ▲            │ before next_event
///                   │                               └────────────┤
///                   └──────────── interrupted (On) ◀─────────────┘ at or past it, or by an interrupt
/// ```
#[derive(Debug)]
pub struct Slice<'a, T> {
    /// The other tasks of the CPU.
    others: [&'a [Entry<T>]; 2],
    /// When the task has used its share of this round; never if it is alone.
    end: Instant,
    /// The earliest limit of all tasks.
    limit: Instant,
    /// When the watchdog must be called. This belongs to the CPU, so that a task that leaves its slices early does not delay it.
    watchdog: &'a mut WatchdogTimer,
    /// The host's next event.
    host: Instant,
    /// The guest's next event.
    guest: Instant,
    /// The earlier one of the two.
    next: Instant,
    /// The time that the hardware's timer is programmed for; never if it is unknown.
    programmed: Instant,
}

impl<'a, T: Task> Slice<'a, T> {
    pub(crate) fn new(
        others: [&'a [Entry<T>]; 2],
        end: Instant,
        limit: Instant,
        watchdog: &'a mut WatchdogTimer,
    ) -> Self {
        let never = Instant::NEVER;
        let mut slice =
            Self { others, end, limit, watchdog, host: never, guest: never, next: never, programmed: never };
        slice.host = slice.next_host_event();
        slice.next = slice.host;
        slice
    }

    /// At this moment and later, [`interrupted`](Self::interrupted) must be called after an exit, even without an interrupt.
    #[inline]
    #[must_use]
    pub fn next_event(&self) -> Instant {
        self.next
    }

    /// The guest's next event, as set by [`wake_at`](Self::wake_at).
    #[must_use]
    pub fn wakes_at(&self) -> Instant {
        self.guest
    }

    /// Sets the guest's next event. Returns the time that the hardware's timer must be programmed for, if it must be.
    ///
    /// A timer that interrupts early does no harm, so it is not programmed again if the guest's event becomes later: a guest that
    /// arms its timer in a loop causes one programming of the hardware.
    #[inline]
    pub fn wake_at(&mut self, guest: Instant) -> Option<Instant> {
        self.guest = guest;
        self.next = self.host.min(guest);
        let is_nearer = self.next < self.programmed;
        if is_nearer {
            self.programmed = self.next;
        }
        is_nearer.then_some(self.next)
    }

    /// The CPU was interrupted, or the next event has passed. [`wake_at`](Self::wake_at) must be called before the guest is entered
    /// again, because the hardware's timer may have expired.
    pub fn interrupted(&mut self, now: Instant) -> Turn {
        self.programmed = Instant::NEVER;
        self.watchdog.called(now);
        self.host = self.next_host_event();
        self.next = self.host.min(self.guest);
        let wanted = || self.other_entries().any(|other| other.preempts(now));
        if now >= self.end.min(self.limit) || wanted() { Turn::Over } else { Turn::On }
    }

    /// Whether [`interrupted`](Self::interrupted) must be called: for a task that runs in the hypervisor with interrupts off.
    #[must_use]
    pub fn is_wanted(&self, now: Instant) -> bool {
        now >= self.next || self.other_entries().any(|other| other.preempts(now))
    }

    /// Adds an event of the host, until the next call of [`interrupted`](Self::interrupted).
    pub fn host_wants_at(&mut self, at: Instant) {
        self.host = self.host.min(at);
        self.next = self.next.min(at);
    }

    /// The other tasks of the CPU.
    pub fn others(&self) -> impl Iterator<Item = &'a T> + use<'a, T> {
        self.other_entries().map(Entry::task)
    }

    fn next_host_event(&self) -> Instant {
        let others = self.other_entries().map(Entry::preempts_at);
        others.fold(self.end.min(self.limit).min(self.watchdog.at), Instant::min)
    }

    fn other_entries(&self) -> impl Iterator<Item = &'a Entry<T>> + use<'a, T> {
        let [before, after] = self.others;
        before.iter().chain(after)
    }
}
