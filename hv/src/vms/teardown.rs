//! The end of a VM whose vCPUs have all left: it is reported on, and its memory is freed, in slices of its own.

use super::clock::TscClock;
use super::console::{Console, VmLog};
use super::vm_id::VmId;
use crate::rcu_domain::HostMachine;
use crate::timer;
use memory::{Ending, EndingStatus, EndingTimes, Freed, Nested};
use rcu::Cpu;
use sched::{Instant, Slice, Task};
use shadow::Counts;
use vm::{EndReason, Stats, Vm};

/// A VM that is taken apart.
pub(super) struct Teardown<F: Nested> {
    pub(super) id: VmId,
    pub(super) log: VmLog,
    pub(super) vm: Vm<Console, TscClock>,
    /// What the exits have cost, until it is reported.
    pub(super) stats: Option<Stats>,
    pub(super) shadow: Option<Counts>,
    /// Until all of it is back.
    pub(super) memory: Option<Ending<'static, F, HostMachine>>,
    /// When it goes on, if it waits.
    pub(super) due: Option<Instant>,
    /// Known when all is done.
    pub(super) result: Option<EndReason>,
}

impl<F: Nested> Teardown<F> {
    /// Goes on with it until the slice is over, or it has to wait.
    // Out of the loop's code: it formats reports, which the exit path must not (`cargo xtask build`).
    #[cold]
    #[inline(never)]
    pub(super) fn run<T: Task>(&mut self, cpu: &mut Cpu<'static, HostMachine>, slice: &mut Slice<'_, T>) {
        self.due = None;
        if let Some(stats) = self.stats.take() {
            self.report(&stats);
        }
        let Some(memory) = &mut self.memory else { return };
        match memory.run(cpu, &EndingTimes::new(timer::ticks_of), timer::now, |now| slice.is_wanted(now)) {
            EndingStatus::Done => {
                let freed = self.memory.take().map(|memory| memory.finish(cpu));
                self.result = freed.map(|freed| self.judge(&freed));
            }
            EndingStatus::Preempted => _ = slice.interrupted(timer::now()),
            EndingStatus::WaitsUntil(at) => self.due = Some(at),
        }
    }

    fn report(&self, stats: &Stats) {
        self.log.report(stats);
        if !stats.wanted_msrs().is_empty() {
            self.log.report(stats.wanted_msrs());
        }
    }

    /// Reports on the memory of the VM, which is back, and judges the VM.
    fn judge(&self, freed: &Freed) -> EndReason {
        let Freed { accounts, peak, report } = freed;
        self.log.report(&format_args!("memory: {report}"));
        if let Some(counts) = self.shadow {
            self.log.report(&format_args!("shadow: {counts}"));
        }
        self.log.report(&format_args!("frames: {peak} at most, {} missing at the end", accounts.left));
        self.log.report(accounts);
        EndReason::after(self.vm.stopped(), accounts.left)
    }
}
