//! What a CPU has to do in its slices: a vCPU, or the end of a VM.

use super::teardown::Teardown;
use super::vcpu_task::VcpuTask;
use crate::rcu_domain::HostMachine;
use backends::Backend;
use core::alloc::Layout;
use core::mem;
use memory::Nested;
use rcu::Cpu;
use sched::{Instant, Scheduler, Slice, Task};

/// What a CPU has to do.
pub(super) enum CpuTask<B: Backend<Tables: Nested>> {
    /// A vCPU runs.
    Vcpu(VcpuTask<B>),
    /// A VM without vCPUs is taken apart, by the CPU of the last of these.
    Teardown(Teardown<B::Tables>),
    /// Nothing more.
    Done,
}

impl<B: Backend<Tables: Nested>> CpuTask<B> {
    /// Does it until it has to wait, the `slice` is over, or it is done.
    pub(super) fn run(&mut self, cpu: &mut Cpu<'static, HostMachine>, slice: &mut Slice<'_, Self>) {
        match self {
            Self::Vcpu(vcpu) => vcpu.run(cpu, slice),
            Self::Teardown(teardown) => teardown.run(cpu, slice),
            Self::Done => {}
        }
    }

    /// Ends the vCPU's VM, which has reached its limit.
    pub(super) fn reach_limit(&mut self, cpu: &mut Cpu<'static, HostMachine>) {
        if let Self::Vcpu(vcpu) = self {
            vcpu.reach_limit::<Self>(cpu);
        }
    }

    /// Does what can wait until a vCPU sleeps, until the CPU is `wanted`.
    pub(super) fn idles(&self, wanted: impl Fn() -> bool) {
        if let Self::Vcpu(vcpu) = self {
            vcpu.idles(wanted);
        }
    }

    /// A report on the exits was asked for while all tasks of the CPU slept.
    pub(super) fn ask_for_report(&self) {
        if let Self::Vcpu(vcpu) = self {
            vcpu.ask_for_report();
        }
    }

    /// What a vCPU allocates, in a list of tasks.
    pub(super) fn allocations() -> impl Iterator<Item = Layout> {
        VcpuTask::<B>::allocations().chain([Scheduler::<Self>::TASK])
    }

    /// Finishes it. After the last vCPU of a VM, its teardown is to be done; after that, the VM, which it returns, has ended.
    pub(super) fn finish(&mut self) -> Option<Teardown<B::Tables>> {
        match mem::replace(self, Self::Done) {
            Self::Vcpu(vcpu) => {
                if let Some(guest) = vcpu.leave() {
                    *self = Self::Teardown(guest.end());
                }
                None
            }
            Self::Teardown(teardown) => Some(teardown),
            Self::Done => None,
        }
    }
}

impl<B: Backend<Tables: Nested>> Task for CpuTask<B> {
    fn vm(&self) -> usize {
        match self {
            Self::Vcpu(vcpu) => vcpu.vm(),
            Self::Teardown(teardown) => teardown.id.number,
            // It shares no time with a VM's tasks.
            Self::Done => usize::MAX,
        }
    }

    fn has_ended(&self) -> bool {
        match self {
            Self::Vcpu(vcpu) => vcpu.has_ended(),
            Self::Teardown(teardown) => teardown.result.is_some(),
            Self::Done => true,
        }
    }

    fn is_runnable(&self) -> bool {
        match self {
            Self::Vcpu(vcpu) => vcpu.is_runnable(),
            Self::Teardown(teardown) => teardown.due.is_none(),
            Self::Done => false,
        }
    }

    fn has_request(&self) -> bool {
        match self {
            Self::Vcpu(vcpu) => vcpu.has_request(),
            Self::Teardown(_) | Self::Done => false,
        }
    }

    fn wakes_at(&self) -> Instant {
        match self {
            Self::Vcpu(vcpu) => vcpu.wakes_at(),
            Self::Teardown(teardown) => teardown.due.unwrap_or(Instant::NEVER),
            Self::Done => Instant::NEVER,
        }
    }

    fn limit(&self) -> Instant {
        match self {
            Self::Vcpu(vcpu) => vcpu.limit(),
            Self::Teardown(_) | Self::Done => Instant::NEVER,
        }
    }
}
