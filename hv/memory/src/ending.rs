//! The end of a VM's memory, in steps, so that other VMs on the CPU have their time meanwhile.

use crate::account::{POLL_IDLE, give_back_some};
use crate::host::HostMemory;
use crate::shadow_trees::{EndedTrees, Env};
use crate::tree_env::{Nested, TreeEnv};
use abi::lines::Accounts;
use mmu::{Leaf, Report, Teardown, Tree};
use rcu::Cpu;

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
}

/// What has come of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndingStatus {
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
        Self { nested, shadows, shadow: None, kicks, gave_up: false }
    }

    /// Gives frames back until all are, or the caller is `preempted`, which is asked after each table. CPUs that have pages which
    /// wait for a grace period are kicked, and must [`poll_idle`](crate::poll_idle) then, or [`poll`](vm::Memory::poll) a view. This
    /// CPU passes a quiescent state only here.
    pub fn step(&mut self, cpu: &mut Cpu<'m, H>, preempted: impl Fn() -> bool) -> EndingStatus {
        let TreeEnv { host, account, .. } = *self.nested.env();
        if account.backlog() != 0 && !self.gave_up {
            cpu.quiescent();
            cpu.expedite();
            give_back_some(cpu, POLL_IDLE);
            if account.backlog() != 0 {
                return EndingStatus::WaitsForGracePeriod;
            }
        }
        if !self.free_shadows(&preempted) {
            return EndingStatus::Preempted;
        }
        let free = |_, size, leaf: Leaf| account.pool.lock().free(host.frames(), leaf.pfn, size);
        if self.nested.free_until(&preempted, free) { EndingStatus::Done } else { EndingStatus::Preempted }
    }

    /// Gives up waiting for grace periods: a page that should have come back long ago is lost. Its frame will be missing.
    pub fn give_up(&mut self) {
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
