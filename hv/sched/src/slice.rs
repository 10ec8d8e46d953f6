//! A task's turn.

use crate::instant::Instant;
use crate::scheduler::{Entry, Task};

/// Whether a task may stay on its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It may.
    On,
    /// Another one's turn has come, or its VM has reached its limit.
    Over,
}

/// The watchdog's looks by one CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// When the next one is due.
    pub(crate) at: Instant,
    /// Ticks from one to the next.
    every: u64,
}

impl Look {
    pub(crate) fn new(every: u64, now: Instant) -> Self {
        Self { at: now.after(every), every }
    }

    /// The CPU was interrupted or has slept, and has had its look.
    pub(crate) fn visited(&mut self, now: Instant) {
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
    /// When the task has used its part of this round; never if it is alone.
    end: Instant,
    /// The first limit of all tasks.
    limit: Instant,
    /// When the watchdog wants a look. It is the CPU's, so that a task that leaves its slices early does not push it away.
    look: &'a mut Look,
    /// When the host wants the CPU.
    host: Instant,
    /// When the guest wants to be left.
    guest: Instant,
    /// The first of the two.
    next: Instant,
    /// What the hardware is programmed for; never if that is not known.
    programmed: Instant,
}

impl<'a, T: Task> Slice<'a, T> {
    pub(crate) fn new(others: [&'a [Entry<T>]; 2], end: Instant, limit: Instant, look: &'a mut Look) -> Self {
        let never = Instant::NEVER;
        let mut slice = Self { others, end, limit, look, host: never, guest: never, next: never, programmed: never };
        slice.host = slice.next_host_event();
        slice.next = slice.host;
        slice
    }

    /// The moment from which on [`interrupted`](Self::interrupted) is to be called, whether an interrupt has come or not.
    #[inline]
    #[must_use]
    pub fn next_event(&self) -> Instant {
        self.next
    }

    /// When the guest wants to be left next, as it said last.
    #[must_use]
    pub fn wakes_at(&self) -> Instant {
        self.guest
    }

    /// The guest wants to be left at `guest`. Some if the timer has to be programmed, and for when.
    ///
    /// A timer that comes early does no harm, so it is left alone when the guest changes its mind to a later time: a guest that
    /// arms its timer in a loop programs the hardware once.
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

    /// The CPU was interrupted, or the next event is past. [`wake_at`](Self::wake_at) has to follow before the guest is entered
    /// again: what the timer was programmed for may be used up.
    pub fn interrupted(&mut self, now: Instant) -> Turn {
        self.programmed = Instant::NEVER;
        self.look.visited(now);
        self.host = self.next_host_event();
        self.next = self.host.min(self.guest);
        let wanted = || self.others().any(|other| other.preempts(now));
        if now >= self.end.min(self.limit) || wanted() { Turn::Over } else { Turn::On }
    }

    /// The host wants the CPU at `at` as well, this time.
    pub fn host_wants_at(&mut self, at: Instant) {
        self.host = self.host.min(at);
        self.next = self.next.min(at);
    }

    fn next_host_event(&self) -> Instant {
        let others = self.others().map(Entry::preempts_at);
        others.fold(self.end.min(self.limit).min(self.look.at), Instant::min)
    }

    fn others(&self) -> impl Iterator<Item = &'a Entry<T>> + use<'a, T> {
        let [before, after] = self.others;
        before.iter().chain(after)
    }
}
