//! A vCPU on the CPU that it is bound to.

use super::clock::TscClock;
use super::console::Console;
use super::guest::Guest;
use super::host::{SLICE, Slice};
use crate::console;
use crate::rcu_domain;
use crate::timer;
use abi::lines::PastLimit;
use abi::reasons::{BEGINS_ANEW, NESTED_PATH};
use alloc::sync::Arc;
use backends::Backend;
use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::num::NonZeroU16;
use loader::Paging;
use memory::{Nested, Restart, RestartStatus, ViewState};
use rcu::{Cpu, Tlb};
use sched::{Instant, Task};
use vm::{Activity, Context, ExitHandler, Start, Stop, Types, Vcpu};
use walk::HandleMem;

/// The memory of a VM of this machine's, as a vCPU sees it.
type View<'v, F> = memory::View<'v, 'static, F, rcu_domain::HostMachine>;

/// A vCPU with nested paging or with shadow tables: each kind has a loop of its own, without a test for the other.
enum AnyVcpu<B: Backend> {
    Nested(B::Vcpu),
    Shadowed(B::ShadowVcpu),
}

/// One vCPU, and its part in its VM.
pub(super) struct VcpuTask<B: Backend<Tables: Nested>> {
    guest: Arc<Guest<B::Tables>>,
    vcpu: AnyVcpu<B>,
    context: Context<<View<'static, B::Tables> as HandleMem>::Handle>,
    tlb: Tlb,
    view: ViewState,
    /// When it wants to run again, if it sleeps.
    due: Instant,
    /// Of a boot vCPU whose VM begins anew.
    restart: Option<Restart>,
    /// How many reports on its exits so far it has added to.
    reports: u32,
}

impl<B: Backend<Tables: Nested>> VcpuTask<B> {
    /// vCPU `index` of `guest`, whose translations are marked with `tag`.
    pub(super) fn new(backend: &B, guest: Arc<Guest<B::Tables>>, index: usize, tag: NonZeroU16) -> Self {
        let start = if index == 0 { guest.start } else { Start::Sipi(0) };
        let nested = guest.paging == Paging::Nested;
        let context = Context::new(index, &guest.vm, crate::cpu::cpuid, guest.model);
        let (root, offered_cr4) = (guest.memory.root(index), context.offered_cr4());
        let vcpu = if nested {
            AnyVcpu::Nested(within_slice(backend.vcpu(root, offered_cr4, tag, start)))
        } else {
            AnyVcpu::Shadowed(within_slice(backend.shadow_vcpu(root, context.features(), offered_cr4, tag, start)))
        };
        Self {
            guest,
            vcpu,
            context,
            tlb: Tlb::new(),
            view: ViewState::new(),
            due: Instant::NEVER,
            restart: None,
            reports: 0,
        }
    }

    /// What one allocates. It is all that it ever does.
    pub(super) fn allocations() -> impl Iterator<Item = Layout> {
        B::VCPU_ALLOCATIONS.iter().copied()
    }

    /// Lets the vCPU run until it has to wait, its `slice` is over, or its VM has ended.
    ///
    /// The loop's own function, in which the compiler has all registers for it, whatever is around the call.
    #[inline(never)]
    pub(super) fn run<T: Task>(
        &mut self,
        cpu: &mut Cpu<'static, rcu_domain::HostMachine>,
        slice: &mut sched::Slice<'_, T>,
    ) {
        let guest = &*self.guest;
        if console::breaks() != self.reports {
            self.reports = console::breaks();
            guest.add_so_far(self.reports, self.context.stats());
        }
        if guest.vm.is_resetting() {
            return self.reset(cpu, slice);
        }
        let view = guest.memory.view_of(self.context.index(), cpu, &mut self.tlb, &self.view);
        let host = Slice { guest, schedule: slice, reports: self.reports };
        match &mut self.vcpu {
            AnyVcpu::Nested(vcpu) => run(vcpu, ExitHandler::new(&guest.vm, &mut self.context, view), host),
            AnyVcpu::Shadowed(vcpu) => run(vcpu, ExitHandler::new(&guest.vm, &mut self.context, view), host),
        }
        self.due = slice.wakes_at();
    }

    /// The VM is being reset: the vCPU leaves its guest, unless it has. The boot vCPU's CPU then has the VM begin anew, when all have.
    #[cold]
    #[inline(never)]
    fn reset<T: Task>(&mut self, cpu: &mut Cpu<'static, rcu_domain::HostMachine>, slice: &mut sched::Slice<'_, T>) {
        let guest = &*self.guest;
        let index = self.context.index();
        let is_boot = index == 0;
        // Later turns of a restart go on with what an earlier one has begun there.
        if self.restart.is_none() {
            guest.memory.forget(&self.view);
            self.view = ViewState::new();
        }
        self.due = Instant::NEVER;
        let view = guest.memory.view_of(index, cpu, &mut self.tlb, &self.view);
        let (context, host) = (&mut self.context, Slice { guest, schedule: slice, reports: self.reports });
        let start = if is_boot { guest.start } else { Start::Sipi(0) };
        match &mut self.vcpu {
            AnyVcpu::Nested(vcpu) => leave_for_reset(vcpu, ExitHandler::new(&guest.vm, context, view), start, host),
            AnyVcpu::Shadowed(vcpu) => leave_for_reset(vcpu, ExitHandler::new(&guest.vm, context, view), start, host),
        }
        if is_boot && guest.vm.all_have_left() {
            self.context.start();
            let mut view = guest.memory.view_of(index, cpu, &mut self.tlb, &self.view);
            self.restart = begin_anew(guest, &mut view, self.restart.unwrap_or_default(), slice);
        }
    }

    /// Ends the VM, which has reached its limit, unless it has just ended by itself.
    // Out of the loop's code: it formats reports, which the exit path must not (`cargo xtask build`).
    #[cold]
    #[inline(never)]
    pub(super) fn reach_limit<T: Task>(&mut self, cpu: &mut Cpu<'static, rcu_domain::HostMachine>) {
        let guest = &*self.guest;
        if !guest.end_now(Stop::Limit) {
            return;
        }
        guest.report(&PastLimit { us: timer::nanoseconds(timer::now().since(guest.limit)) / 1000 });
        let view = guest.memory.view_of(self.context.index(), cpu, &mut self.tlb, &self.view);
        let (context, stop) = (&mut self.context, Stop::Limit);
        match &mut self.vcpu {
            AnyVcpu::Nested(vcpu) => dump::<_, _, T>(guest, vcpu, &ExitHandler::new(&guest.vm, context, view), stop),
            AnyVcpu::Shadowed(vcpu) => dump::<_, _, T>(guest, vcpu, &ExitHandler::new(&guest.vm, context, view), stop),
        }
    }

    /// Ends the vCPU, and gives its VM to the caller if this was the last of its vCPUs.
    pub(super) fn leave(self) -> Option<Guest<B::Tables>> {
        let Self { guest, vcpu, context, view, .. } = self;
        drop(vcpu);
        guest.memory.forget(&view);
        guest.add_stats(context.stats());
        Arc::into_inner(guest)
    }

    /// A report on the exits was asked for while the vCPU slept.
    pub(super) fn ask_for_report(&self) {
        self.guest.vm.raise_request(self.context.index());
    }

    /// Does what can wait until the vCPU sleeps, until the CPU is `wanted`.
    pub(super) fn idles(&self, wanted: impl Fn() -> bool) {
        self.guest.memory.prezero(wanted);
    }
}

impl<B: Backend<Tables: Nested>> Task for VcpuTask<B> {
    fn vm(&self) -> usize {
        self.guest.id.number
    }

    fn has_ended(&self) -> bool {
        self.guest.vm.stopped().is_some()
    }

    fn is_runnable(&self) -> bool {
        self.context.activity() == Activity::Running || self.has_request()
    }

    fn has_request(&self) -> bool {
        self.guest.vm.request_pending(self.context.index())
    }

    fn wakes_at(&self) -> Instant {
        if self.context.activity() == Activity::Running { Instant::NEVER } else { self.due }
    }

    fn limit(&self) -> Instant {
        self.guest.limit
    }
}

/// Has the vCPU's stays in its guest be shorter than a slice, whatever the guest does.
fn within_slice<V: Vcpu>(mut vcpu: V) -> V {
    vcpu.limit_stay(timer::ticks_of(SLICE) / 2);
    vcpu
}

/// What the exits of a vCPU `V` are handled with, for one slice of a CPU that has other tasks `T`.
struct SliceTypes<'a, 's, F, V, T>(PhantomData<(&'a &'s T, F, V)>);

impl<'a, 's: 'a, F: Nested, V: Vcpu, T: Task + 's> Types for SliceTypes<'a, 's, F, V, T> {
    type Vcpu = V;
    type Memory = View<'a, F>;
    type Host = Slice<'a, 's, F, T>;
    type Sink = Console;
    type Clock = TscClock;
}

/// Runs the vCPU for a slice, and tells what has ended the VM, if that was no exit of its own.
fn run<'a, 's: 'a, F: Nested, V: Vcpu, T: Task>(
    vcpu: &mut V,
    mut handler: ExitHandler<'a, SliceTypes<'a, 's, F, V, T>>,
    mut slice: Slice<'a, 's, F, T>,
) {
    vcpu.load();
    let stop = vm::run(vcpu, &mut handler, &mut slice);
    vcpu.put();
    if let Some(stop) = stop.filter(|stop| !matches!(stop, Stop::Exited(_) | Stop::PoweredOff)) {
        let has_ended = slice.guest.vm.stopped().is_some();
        if stop.is_reset() && !has_ended {
            tell_of_reset(slice.guest, stop);
        }
        if has_ended || stop == Stop::TripleFault {
            dump(slice.guest, vcpu, &handler, stop);
        }
    }
}

/// Tells that the VM begins anew, and why.
#[cold]
#[inline(never)]
fn tell_of_reset<F: Nested>(guest: &Guest<F>, why: Stop) {
    guest.report(&format_args!("reset {}: {why}; {BEGINS_ANEW}", guest.vm.resets()));
}

/// Goes on with the reset of the VM's memory, whose vCPUs have left their guests, until the slice is over or the VM begins anew. What is
/// left to do.
fn begin_anew<F: Nested, T: Task>(
    guest: &Guest<F>,
    view: &mut View<'_, F>,
    mut restart: Restart,
    slice: &mut sched::Slice<'_, T>,
) -> Option<Restart> {
    let rom = guest.rom.as_ref()?;
    let quiet = timer::ticks_of(Restart::QUIET);
    match restart.run(view, rom, quiet, timer::now, |now| slice.is_wanted(now)) {
        RestartStatus::Done => guest.vm.begin_anew(),
        RestartStatus::OutOfMemory => _ = guest.end_now(Stop::OutOfMemory),
        RestartStatus::Preempted => {
            slice.interrupted(timer::now());
            return Some(restart);
        }
    }
    None
}

/// Has the vCPU leave its guest.
fn leave_for_reset<'a, 's: 'a, F: Nested, V: Vcpu, T: Task>(
    vcpu: &mut V,
    mut handler: ExitHandler<'a, SliceTypes<'a, 's, F, V, T>>,
    start: Start,
    mut host: Slice<'a, 's, F, T>,
) {
    vcpu.load();
    handler.leave_for_reset(vcpu, start, &mut host);
    vcpu.put();
}

/// Tells where the vCPU is that its VM has ended at.
#[cold]
fn dump<F: Nested, V: Vcpu, T: Task>(
    guest: &Guest<F>,
    vcpu: &mut V,
    handler: &ExitHandler<'_, SliceTypes<'_, '_, F, V, T>>,
    stop: Stop,
) {
    vcpu.load();
    guest.report(&Dump(vcpu));
    match handler.code(vcpu) {
        Some(code) => guest.report(&format_args!("code {:02x?}", code.bytes())),
        None => guest.report(&"code can't be fetched"),
    }
    if let Stop::Misconfigured(at) = stop {
        guest.report(&format_args!("{NESTED_PATH} {at}:\n{}", handler.memory().path(at)));
    }
}

/// A vCPU's registers, as [`Vcpu::dump`] writes them.
struct Dump<'a, V>(&'a V);

impl<V: Vcpu> fmt::Display for Dump<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.dump(f)
    }
}
