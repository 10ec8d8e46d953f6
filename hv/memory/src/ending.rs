//! The end of a VM's memory, in steps, so that other VMs on the CPU have their time meanwhile.

use crate::account::{POLL_IDLE, give_back_some};
use crate::host::HostMemory;
use crate::shadow_trees::{EndedTrees, Env};
use crate::tree_env::{Nested, TreeEnv};
use abi::lines::Accounts;
use core::time::Duration;
use mmu::{Leaf, Report, Teardown, Tree};
use rcu::Cpu;
use sched::Instant;

/// The memory of a VM that has ended, on its way back to the machine. Its frames are lost if it is dropped before
/// [`finish`](Self::finish).
pub struct Ending<'m, F: Nested, H: HostMemory> {
    nested: Teardown<TreeEnv<'m, F, H>>,
    shadows: EndedTrees<'m, H>,
    /// The shadow tree that is being freed.
    shadow: Option<Teardown<Env<'m, H>>>,
    kicks: u64,
    /// Pages that do not come back from their grace period are not waited for any more.
    gave_up: bool,
    /// When that is, after its first turn.
    gives_up_at: Option<Instant>,
}

/// How long the parts of an ending may take, in ticks of the TSC.
#[derive(Clone, Copy, Debug)]
pub struct EndingTimes {
    quiet: u64,
    wait: u64,
    grace: u64,
}

impl EndingTimes {
    /// How long it goes on without a quiescent state of its CPU, which other VMs' grace periods wait for.
    const QUIET: Duration = Duration::from_millis(1);
    /// How long it waits for the other CPUs' grace periods, whose guests it interrupts for that.
    const WAIT: Duration = Duration::from_millis(1);
    /// How long pages may wait for their grace period. A page that has not come back by then counts as leaked.
    const GRACE: Duration = Duration::from_secs(10);

    /// By the clock of which a duration has so many ticks.
    pub fn new(ticks: impl Fn(Duration) -> u64) -> Self {
        Self { quiet: ticks(Self::QUIET), wait: ticks(Self::WAIT), grace: ticks(Self::GRACE) }
    }
}

/// What has come of a turn of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndingStatus {
    /// There is no more to do but to [finish](Ending::finish).
    Done,
    /// The turn is over: there is more to do.
    Preempted,
    /// Pages wait for a grace period: it goes on at this time.
    WaitsUntil(Instant),
}

/// What has come of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndingStep {
    /// There is no more to do but to [finish](Ending::finish).
    Done,
    /// The caller was preempted: there is more to do.
    Preempted,
    /// Pages wait for a grace period, perhaps on other CPUs, which were kicked: the next step can be a millisecond later.
    WaitsForGracePeriod,
}

/// What became of a VM's frames, when it has ended.
pub struct Freed {
    /// The account for tools. Frames for tables and for the guest are counted alike; the grace period is the longest of all CPUs' and
    /// VMs', in ticks of the TSC.
    pub accounts: Accounts,
    /// The most frames that were in use at once.
    pub peak: u64,
    /// What the guest's memory consisted of.
    pub report: Report,
}

impl<'m, F: Nested, H: HostMemory> Ending<'m, F, H> {
    pub(crate) fn new(nested: Teardown<TreeEnv<'m, F, H>>, shadows: EndedTrees<'m, H>, kicks: u64) -> Self {
        Self { nested, shadows, shadow: None, kicks, gave_up: false, gives_up_at: None }
    }

    /// Gives frames back, until all are or the turn is over: when another task is `wanted` at a time, or when this CPU has been without
    /// a quiescent state for long. `now` is the clock, whose times `times` have.
    pub fn run(
        &mut self,
        cpu: &mut Cpu<'m, H>,
        times: &EndingTimes,
        now: impl Fn() -> Instant,
        wanted: impl Fn(Instant) -> bool,
    ) -> EndingStatus {
        let start = now();
        let gives_up_at = *self.gives_up_at.get_or_insert(start.after(times.grace));
        let end = start.after(times.quiet);
        let preempted = || {
            let now = now();
            now >= end || wanted(now)
        };
        loop {
            match self.step(cpu, preempted) {
                EndingStep::Done => return EndingStatus::Done,
                EndingStep::Preempted => return EndingStatus::Preempted,
                EndingStep::WaitsForGracePeriod if now() < gives_up_at => {
                    return EndingStatus::WaitsUntil(now().after(times.wait));
                }
                EndingStep::WaitsForGracePeriod => self.give_up(),
            }
        }
    }

    /// Gives frames back until all are, or the caller is `preempted`, which is asked after each table. CPUs that have pages which
    /// wait for a grace period are kicked, and must [`poll_idle`](crate::poll_idle) then, or [`poll`](vm::Memory::poll) a view. This
    /// CPU passes a quiescent state only here.
    pub(crate) fn step(&mut self, cpu: &mut Cpu<'m, H>, preempted: impl Fn() -> bool) -> EndingStep {
        let TreeEnv { host, account, .. } = *self.nested.env();
        if account.backlog() != 0 && !self.gave_up {
            cpu.quiescent();
            cpu.expedite();
            give_back_some(cpu, POLL_IDLE);
            if account.backlog() != 0 {
                return EndingStep::WaitsForGracePeriod;
            }
        }
        if !self.free_shadows(&preempted) {
            return EndingStep::Preempted;
        }
        let free = |_, size, leaf: Leaf| account.pool.lock().free(host.frames(), leaf.pfn, size);
        if !self.nested.free_until(&preempted, free) {
            return EndingStep::Preempted;
        }
        while account.pool.lock().empty_some(host.frames()) {
            if preempted() {
                return EndingStep::Preempted;
            }
        }
        EndingStep::Done
    }

    /// Gives up waiting for grace periods: a page that should have come back long ago is lost. Its frame will be missing.
    pub(crate) fn give_up(&mut self) {
        self.gave_up = true;
    }

    fn free_shadows(&mut self, preempted: &impl Fn() -> bool) -> bool {
        while let Some(mut shadow) = self.shadow.take().or_else(|| self.shadows.next().map(Tree::tear_down)) {
            // What they map is freed with the nested tables, which have all of the guest's pages.
            if !shadow.free_until(preempted, |_, _, _| {}) {
                self.shadow = Some(shadow);
                return false;
            }
            if preempted() {
                return false;
            }
        }
        true
    }

    /// Closes the account, after [`EndingStatus::Done`].
    pub fn finish(self, cpu: &Cpu<'m, H>) -> Freed {
        let TreeEnv { host, account, .. } = *self.nested.env();
        let operations = account.operations();
        let pool = account.pool.lock();
        let (freed, left, peak) = (pool.freed(), pool.outstanding(), pool.peak());
        drop(pool);
        let accounts = Accounts {
            allocated: freed + left,
            freed,
            left,
            deferred: account.deferred(),
            peak_backlog: account.peak_backlog(),
            longest_grace_period: cpu.domain().stats().longest_grace_period,
            kicks: self.kicks,
            operations,
        };
        account.close(host);
        Freed { accounts, peak, report: *self.nested.report() }
    }
}
