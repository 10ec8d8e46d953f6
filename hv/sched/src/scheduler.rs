//! The scheduler of one CPU.

use crate::instant::Instant;
use crate::slice::{Slice, WatchdogTimer};
use alloc::vec::Vec;
use core::alloc::Layout;

/// The parameters of a scheduler, in ticks of the TSC.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// A VM's time in each round. Not 0.
    pub slice: u64,
    /// The longest time between two calls of the watchdog.
    pub watchdog_period: u64,
}

/// The part of a slice that a turn has to take for its task to pay for it, if another task preempts it.
const SHORTEST: u64 = 16;

/// A vCPU, or the end of a VM, as its CPU's scheduler sees it.
pub trait Task {
    /// The number of its VM.
    fn vm(&self) -> usize;
    /// Whether it has nothing to do any more: its VM has ended.
    fn has_ended(&self) -> bool;
    /// Whether it has instructions to execute, or a pending request.
    fn is_runnable(&self) -> bool;
    /// Whether it has a pending request: an interrupt, or another message from a CPU or vCPU.
    fn has_request(&self) -> bool;
    /// When its timer makes it runnable. [`Instant::NEVER`]: no timer does.
    fn wakes_at(&self) -> Instant;
    /// When its VM must end. [`Instant::NEVER`]: there is no limit.
    fn limit(&self) -> Instant;
}

/// The CPU that the tasks run on.
pub trait Cpu {
    /// What it has to do.
    type Task: Task;

    /// The time.
    fn now(&self) -> Instant;
    /// Runs `task` until it waits, the `slice` is over, or its VM has ended.
    fn run(&mut self, task: &mut Self::Task, slice: &mut Slice<'_, Self::Task>);
    /// Sleeps until `until` or an interrupt, unless one of the `tasks` has a request already.
    fn sleep(&mut self, until: Instant, tasks: Tasks<'_, Self::Task>);
    /// Ends the VM of `task`, which has reached its limit.
    fn reach_limit(&mut self, task: &mut Self::Task);
    /// Finishes a task that has ended. If something is left to do for its VM, such as to give its memory back, it becomes a task of
    /// that, which has not ended, and gets the VM's share of the time.
    fn finish(&mut self, task: &mut Self::Task);
}

/// The tasks of a CPU that is about to sleep.
#[derive(Debug)]
pub struct Tasks<'t, T>(&'t [Entry<T>]);

impl<'t, T: Task> Tasks<'t, T> {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &'t T> + use<'t, T> {
        self.0.iter().map(|entry| &entry.task)
    }

    /// Whether one of them has a request.
    #[must_use]
    pub fn have_request(&self) -> bool {
        self.iter().any(T::has_request)
    }
}

/// A task and its time account.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    task: T,
    /// The ticks left in this round; negative: the excess of earlier rounds.
    credit: i64,
    /// When it ran last. The task that has waited longest is next.
    ran: Instant,
}

impl<T: Task> Entry<T> {
    pub(crate) fn task(&self) -> &T {
        &self.task
    }

    fn is_runnable(&self, now: Instant) -> bool {
        self.task.is_runnable() || self.task.wakes_at() <= now
    }

    /// Whether it preempts the running task now.
    pub(crate) fn preempts(&self, now: Instant) -> bool {
        self.credit > 0 && (self.task.has_request() || self.task.wakes_at() <= now)
    }

    /// When its timer makes it preempt the running task.
    pub(crate) fn preempts_at(&self) -> Instant {
        if self.credit > 0 { self.task.wakes_at() } else { Instant::NEVER }
    }

    fn add(&mut self, credit: i64, most: i64) {
        self.credit = self.credit.saturating_add(credit).min(most);
    }
}

/// One CPU's tasks.
#[derive(Debug)]
pub struct Scheduler<T> {
    entries: Vec<Entry<T>>,
    config: Config,
    watchdog: WatchdogTimer,
    /// The earliest limit of all tasks.
    limit: Instant,
    /// The time until which all time is charged to tasks.
    accounted: Instant,
}

impl<T: Task> Scheduler<T> {
    /// The memory for one task in the list that [`new`](Self::new) allocates. There are no other allocations.
    pub const TASK: Layout = Layout::new::<Entry<T>>();

    /// A scheduler of `tasks`, from `now` on.
    pub fn new(tasks: impl ExactSizeIterator<Item = T>, config: Config, now: Instant) -> Self {
        let mut entries = Vec::with_capacity(tasks.len());
        entries.extend(tasks.map(|task| Entry { task, credit: 0, ran: now }));
        let mut scheduler = Self {
            entries,
            config,
            watchdog: WatchdogTimer::new(config.watchdog_period, now),
            limit: Instant::NEVER,
            accounted: now,
        };
        scheduler.limit = scheduler.first_limit();
        scheduler
    }

    /// Runs the tasks in turn until each has ended. It is not inlined: its caller allocates, and what runs guests must not.
    #[inline(never)]
    pub fn run(&mut self, cpu: &mut impl Cpu<Task = T>) {
        while !self.entries.is_empty() {
            let now = cpu.now();
            if self.limit <= now {
                self.enforce_limits(now, cpu);
            }
            if self.finish_ended(cpu) {
                continue;
            }
            match self.pick(now) {
                Some(index) => self.run_task(index, now, cpu),
                None => self.sleep(cpu),
            }
        }
    }

    fn enforce_limits(&mut self, now: Instant, cpu: &mut impl Cpu<Task = T>) {
        let over = |task: &&mut T| task.limit() <= now && !task.has_ended();
        self.entries.iter_mut().map(|entry| &mut entry.task).filter(over).for_each(|task| cpu.reach_limit(task));
        self.accounted = cpu.now();
    }

    /// Finishes a task that has ended. Whether there was one.
    fn finish_ended(&mut self, cpu: &mut impl Cpu<Task = T>) -> bool {
        let Some(index) = self.entries.iter().position(|entry| entry.task.has_ended()) else { return false };
        cpu.finish(&mut self.entries[index].task);
        self.remove_if_ended(index);
        // The time that this took is charged to no task: the next one would pay for another's end.
        self.accounted = cpu.now();
        self.limit = self.first_limit();
        true
    }

    // Out of the loop's code: dropping a task frees its memory, which the exit path must not (`cargo xtask build`).
    #[cold]
    #[inline(never)]
    fn remove_if_ended(&mut self, index: usize) {
        if self.entries[index].task.has_ended() {
            self.entries.swap_remove(index);
        }
    }

    /// The runnable task that has waited longest, of those with time left in this round. If there is none, a new round begins.
    fn pick(&mut self, now: Instant) -> Option<usize> {
        if let [only] = &self.entries[..] {
            return only.is_runnable(now).then_some(0);
        }
        let next = self.longest_waiting(now);
        if next.is_some() || !self.entries.iter().any(|entry| entry.is_runnable(now)) {
            return next;
        }
        self.begin_round(now);
        self.longest_waiting(now)
    }

    fn longest_waiting(&self, now: Instant) -> Option<usize> {
        let entries = self.entries.iter().enumerate().filter(|(_, entry)| entry.credit > 0 && entry.is_runnable(now));
        entries.min_by_key(|(_, entry)| entry.ran).map(|(index, _)| index)
    }

    /// Adds each task's share of a round to its credit. If the credit of all runnable tasks would still be negative, adds as many
    /// rounds as one of them needs.
    fn begin_round(&mut self, now: Instant) {
        let runnable = self.entries.iter().filter(|entry| entry.is_runnable(now));
        let rounds = runnable.map(|entry| 1 - entry.credit.min(0) / self.share(entry)).min().unwrap_or(1);
        for index in 0..self.entries.len() {
            let share = self.share(&self.entries[index]);
            self.entries[index].add(share.saturating_mul(rounds), share);
        }
    }

    /// A task's time in each round: its VM's time, which the VM's tasks divide if there are other VMs on this CPU.
    fn share(&self, entry: &Entry<T>) -> i64 {
        let vm = entry.task.vm();
        let siblings = self.entries.iter().filter(|other| other.task.vm() == vm).count();
        let divisor = if siblings == self.entries.len() { 1 } else { siblings as u64 };
        i64::try_from(self.config.slice / divisor).unwrap_or(i64::MAX).max(1)
    }

    // Its only caller is `run`. In one function, whatever else the compiler makes of it, the check of the exit path (`cargo xtask
    // build`) goes through the same functions.
    #[inline(always)]
    fn run_task(&mut self, index: usize, now: Instant, cpu: &mut impl Cpu<Task = T>) {
        let limit = self.limit;
        let (before, rest) = self.entries.split_at_mut(index);
        let Some((entry, after)) = rest.split_first_mut() else { return };
        let is_alone = before.is_empty() && after.is_empty();
        let end = if is_alone { Instant::NEVER } else { now.after(entry.credit.unsigned_abs()) };
        cpu.run(&mut entry.task, &mut Slice::new([before, after], end, limit, &mut self.watchdog));
        if !is_alone {
            let now = cpu.now();
            entry.ran = now;
            let used = now.since(self.accounted);
            self.accounted = now;
            let payer = if now < end { self.preemptor(index, now, used) } else { None };
            let payer = &mut self.entries[payer.unwrap_or(index)];
            payer.credit = payer.credit.saturating_sub(i64::try_from(used).unwrap_or(i64::MAX));
        }
    }

    /// The task that has preempted the turn of `index` before it had a [`SHORTEST`]th of a slice: it pays for the turn. To enter a
    /// guest and to leave it takes a large part of so short a turn. Otherwise a task that wakes up again and again, in less time
    /// than this takes, would have the others use up their time before their guests execute an instruction.
    fn preemptor(&self, index: usize, now: Instant, used: u64) -> Option<usize> {
        let is_preempted = used < self.config.slice / SHORTEST && self.entries[index].task.is_runnable();
        let mut others = (0..self.entries.len()).filter(|&other| other != index);
        others.find(|&other| is_preempted && self.entries[other].preempts(now))
    }

    fn sleep(&mut self, cpu: &mut impl Cpu<Task = T>) {
        let wakes = self.entries.iter().map(|entry| entry.task.wakes_at());
        let until = wakes.fold(self.limit.min(self.watchdog.at), Instant::min);
        cpu.sleep(until, Tasks(&self.entries));
        let now = cpu.now();
        self.watchdog.called(now);
        self.accounted = now;
    }

    fn first_limit(&self) -> Instant {
        self.entries.iter().map(|entry| entry.task.limit()).fold(Instant::NEVER, Instant::min)
    }
}
