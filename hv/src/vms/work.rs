//! What each CPU has to do: its vCPUs, in turn.

use super::guest::Guest;
use super::host::SLICE;
use super::task::CpuTask;
use super::teardown::Teardown;
use super::vcpu_task::VcpuTask;
use crate::console::{self, report};
use crate::cpus;
use crate::heap;
use crate::paging;
use crate::rcu_domain::{self, HostMachine};
use crate::smp;
use crate::timer;
use crate::verdict::{self, Verdict};
use crate::watchdog;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use backends::Backend;
use core::marker::PhantomData;
use core::mem;
use core::num::NonZeroU16;
use loader::VmName;
use memory::Nested;
use rcu::Cpu;
use sched::{Config, Instant, Scheduler, StartBarrier, Tasks};
use spin::Mutex;
use vm::{Ended, Results};

/// The vCPUs of one CPU, before they exist.
pub(super) struct CpuPlan<F: Nested>(Vec<(Arc<Guest<F>>, usize)>);

/// A job that has forgotten its backend.
type Boxed = Box<dyn FnOnce() + Send>;

/// What the CPUs but the boot CPU are to do, by their numbers.
static WORK: Mutex<Vec<Option<Boxed>>> = Mutex::new(Vec::new());

/// Those of the VMs that have ended.
static RESULTS: Mutex<Results<VmName>> = Mutex::new(Results::new());

/// Prepares for so many VMs.
pub(super) fn expect(vms: usize) {
    RESULTS.lock().expect(vms);
}

/// VM `number` has ended, or was refused: its verdict is printed, and the boot CPU, which waits for it, is told.
pub(super) fn ended(number: usize, ended: Ended<VmName>) {
    if let Some(line) = ended.line() {
        report!("{line}");
    }
    RESULTS.lock().add(number, ended);
    rcu_domain::kick_if_away(0);
}

fn all_have_ended() -> bool {
    RESULTS.lock().are_complete()
}

impl<F: Nested> CpuPlan<F> {
    /// Nothing to do, for each of `cpus` CPUs.
    pub(super) fn for_cpus(cpus: usize) -> Vec<Self> {
        (0..cpus).map(|_| Self(Vec::new())).collect()
    }

    /// To run vCPU `index` of `guest`.
    pub(super) fn add(&mut self, guest: Arc<Guest<F>>, index: usize) {
        self.0.push((guest, index));
    }

    /// Makes the vCPUs.
    fn tasks<B: Backend<Tables = F>>(self, backend: &B) -> impl ExactSizeIterator<Item = CpuTask<B>> {
        let jobs = self.0.into_iter().enumerate();
        jobs.map(|(nth, (guest, index))| {
            CpuTask::Vcpu(VcpuTask::new(backend, guest, index, NonZeroU16::MIN.saturating_add(nth as u16)))
        })
    }

    /// Does it: makes the vCPUs, and lets them run in turn until the VM of each has ended.
    pub(super) fn run<B: Backend<Tables = F>>(self, backend: &B, cpu: &mut Cpu<'static, HostMachine>) {
        let config = Config { slice: timer::ticks_of(SLICE), watchdog_period: watchdog::period() };
        let mut scheduler = Scheduler::new(self.tasks(backend), config, timer::now());
        // From here on each allocation is counted.
        BARRIER.wait(cpu.index(), cpus::online(), heap::guests_start);
        scheduler.run(&mut ScheduledCpu { cpu, has_slept: false, reports: 0, backend: PhantomData::<B> });
    }
}

/// This CPU, to its schedule.
struct ScheduledCpu<'c, B> {
    cpu: &'c mut Cpu<'static, HostMachine>,
    /// It has slept since it last ran a task.
    has_slept: bool,
    /// How many reports on the exits were asked for.
    reports: u32,
    backend: PhantomData<B>,
}

impl<B: Backend<Tables: Nested>> sched::Cpu for ScheduledCpu<'_, B> {
    type Task = CpuTask<B>;

    fn now(&self) -> Instant {
        timer::now()
    }

    fn run(&mut self, task: &mut CpuTask<B>, slice: &mut sched::Slice<'_, CpuTask<B>>) {
        // A vCPU can end each slice without entering its guest: it waits for room on its console, or its timer is always due and
        // wakes nothing. The CPU then neither sleeps nor takes interrupts. Grace periods would wait for it for ever, and the watchdog
        // and the console would get no attention, so they get it here, unless they got it in its sleep.
        if !mem::take(&mut self.has_slept) {
            self.attend();
            if console::breaks() != self.reports {
                self.ask_for_reports(slice.others());
            }
        }
        slice.host_wants_at(console::next_poll());
        task.run(self.cpu, slice);
    }

    fn sleep(&mut self, until: Instant, tasks: Tasks<'_, CpuTask<B>>) {
        tasks.iter().for_each(|task| task.idles(|| tasks.have_request() || until <= timer::now()));
        sleep(self.cpu, until, || tasks.have_request());
        self.has_slept = true;
        if console::breaks() != self.reports {
            self.ask_for_reports(tasks.iter());
        }
    }

    fn reach_limit(&mut self, task: &mut CpuTask<B>) {
        task.reach_limit(self.cpu);
    }

    // Out of the loop's code: what takes a VM apart formats its reports, which the exit path must not (`cargo xtask build`).
    #[cold]
    #[inline(never)]
    fn finish(&mut self, task: &mut CpuTask<B>) {
        if let Some(Teardown { id, result: Some(reason), .. }) = task.finish() {
            ended(id.number, Ended { name: id.name, reason });
        }
        // Many VMs that end at once, at the same limit, would keep the watchdog waiting.
        watchdog::heart(self.cpu.index()).beat();
        watchdog::check();
    }
}

impl<B: Backend<Tables: Nested>> ScheduledCpu<'_, B> {
    /// Has vCPUs that sleep add to the reports that were asked for; one that runs looks for itself.
    #[cold]
    #[inline(never)]
    fn ask_for_reports<'t>(&mut self, sleeping: impl Iterator<Item = &'t CpuTask<B>>)
    where
        B: 't,
    {
        self.reports = console::breaks();
        sleeping.for_each(CpuTask::ask_for_report);
    }

    /// What the machine needs of a CPU between two slices.
    fn attend(&mut self) {
        watchdog::heart(self.cpu.index()).beat();
        watchdog::check();
        self.cpu.quiescent();
        memory::poll(self.cpu);
        console::poll();
    }
}

/// For CPUs that have made their vCPUs.
static BARRIER: StartBarrier = StartBarrier::new();

/// Gives all CPUs their jobs, and the boot CPU's back.
pub(super) fn hand_out<B: Backend<Tables: Nested> + 'static>(jobs: Vec<CpuPlan<B::Tables>>) -> CpuPlan<B::Tables> {
    let mut jobs = jobs.into_iter();
    let own = jobs.next().unwrap_or(CpuPlan(Vec::new()));
    let boxed =
        (1..).zip(jobs).map(|(index, job)| -> Option<Boxed> { Some(Box::new(move || work_on::<B>(index, job))) });
    WORK.lock().extend(boxed);
    smp::release(work);
    own
}

/// What a CPU does that the boot CPU has released.
fn work(index: usize) -> ! {
    let job = WORK.lock().get_mut(index - 1).and_then(Option::take);
    if let Some(job) = job {
        job();
    }
    unreachable!("a job leads to its CPU's rest")
}

fn work_on<B: Backend<Tables: Nested>>(index: usize, job: CpuPlan<B::Tables>) {
    let mut cpu = rcu_domain::register(index);
    // SAFETY: each CPU comes here once, at ring 0 with interrupts off.
    match unsafe { B::enable(paging::physical) } {
        Ok(backend) => job.run(&backend, &mut cpu),
        Err(missing) => verdict::end(Verdict::NoVirtualization, format_args!("CPU {index} lacks {missing}")),
    }
    loop {
        rest(&mut cpu, || false);
    }
}

/// Waits for the end of all VMs, and ends with their verdict.
pub(super) fn wait_for_all(cpu: &mut Cpu<'static, HostMachine>) -> ! {
    while !all_have_ended() {
        rest(cpu, all_have_ended);
    }
    while console::is_pending() {
        rest(cpu, || false);
    }
    report!("{}", heap::usage());
    let results = RESULTS.lock();
    match results.overall() {
        Some(ended) => verdict::end(ended.verdict(), format_args!("{ended}")),
        None => verdict::end(Verdict::Usage, format_args!("no VM")),
    }
}

/// A CPU without vCPUs sleeps, but gives back what waits on it.
fn rest(cpu: &mut Cpu<'static, HostMachine>, wanted: impl Fn() -> bool) {
    sleep(cpu, watchdog::next_check(), wanted);
}

/// Sleeps until `until`, or until another interrupt comes, unless the CPU is `wanted` already.
fn sleep(cpu: &mut Cpu<'static, HostMachine>, until: Instant, wanted: impl Fn() -> bool) {
    timer::arm(until.min(console::next_poll()));
    memory::poll_idle(cpu);
    smp::idle(cpu, wanted);
    memory::poll_idle(cpu);
    console::poll();
}
