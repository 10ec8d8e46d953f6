//! The end of a VM whose vCPUs have all left: it is reported on, and its memory is freed, in slices of its own.

use super::clock::TscClock;
use super::console::{Console, VmLog};
use super::end_reason::EndReason;
use super::vm_id::VmId;
use crate::rcu_domain::HostMachine;
use crate::timer;
use crate::verdict::Verdict;
use core::time::Duration;
use memory::{Ending, EndingStatus, Freed, Nested};
use rcu::Cpu;
use sched::{Instant, Slice, Task};
use shadow::Counts;
use vm::{Stats, Stop, Vm};

/// How long the teardown waits for the other CPUs' grace periods, whose guests it interrupts for that.
const WAIT: Duration = Duration::from_millis(1);

/// How long the teardown goes on without a quiescent state of its CPU, which other VMs' grace periods wait for.
const QUIET: Duration = Duration::from_millis(1);

/// How long pages may wait for their grace period. A page that has not come back by then counts as leaked, and the verdict is `leak`.
pub(super) const GRACE_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// When a page that has not come back from its grace period is given up.
    pub(super) give_up_at: Instant,
    /// When it goes on, if it waits.
    pub(super) due: Option<Instant>,
    /// Known when all is done.
    pub(super) result: Option<(Verdict, EndReason)>,
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
        let end = timer::after(QUIET);
        let step = memory.step(cpu, || timer::now() >= end || slice.is_wanted(timer::now()));
        match step {
            EndingStatus::Done => {
                let freed = self.memory.take().map(|memory| memory.finish(cpu));
                self.result = freed.map(|freed| self.judge(&freed));
            }
            EndingStatus::Preempted => _ = slice.interrupted(timer::now()),
            EndingStatus::WaitsForGracePeriod if timer::now() >= self.give_up_at => memory.give_up(),
            EndingStatus::WaitsForGracePeriod => self.due = Some(timer::after(WAIT)),
        }
    }

    fn report(&self, stats: &Stats) {
        self.log.report(stats);
        if !stats.wanted_msrs().is_empty() {
            self.log.report(stats.wanted_msrs());
        }
    }

    /// Reports on the memory of the VM, which is back, and judges the VM.
    fn judge(&self, freed: &Freed) -> (Verdict, EndReason) {
        let Freed { accounts, peak, report } = freed;
        self.log.report(&format_args!("memory: {report}"));
        if let Some(counts) = self.shadow {
            self.log.report(&format_args!("shadow: {counts}"));
        }
        self.log.report(&format_args!("frames: {peak} at most, {} missing at the end", accounts.left));
        self.log.report(accounts);
        let stop = self.vm.stopped().unwrap_or(Stop::Halted);
        match accounts.left {
            0 => (stop.verdict(), EndReason::Stopped(stop)),
            frames => (Verdict::Leak, EndReason::Leaked(frames, stop)),
        }
    }
}
