//! A vCPU on the CPU that it is bound to.

use super::console::Console;
use super::guest::Guest;
use super::host::{Slice, TscClock};
use super::memory::{Nested, Places, View};
use crate::tables;
use crate::timer::Deadline;
use alloc::sync::Arc;
use backends::Backend;
use core::fmt;
use core::num::NonZeroU16;
use loader::Paging;
use rcu::{Cpu, Tlb};
use vm::cpuid::Leaf;
use vm::{Activity, Context, Machine, Start, Stop, Vcpu};
use walk::SlotMem;

/// A vCPU by who translates its addresses: each has a loop of its own, without a test for the other.
enum Flavour<B: Backend> {
    Nested(B::Vcpu),
    Shadowed(B::ShadowVcpu),
}

/// One vCPU, and its part in its VM.
pub(super) struct Seat<B: Backend<Tables: Nested>> {
    guest: Arc<Guest<B::Tables>>,
    vcpu: Flavour<B>,
    context: Context<<View<'static, B::Tables> as SlotMem>::Slot>,
    tlb: Tlb,
    places: Places,
    /// When it wants to run again, if it sleeps.
    due: Option<Deadline>,
}

impl<B: Backend<Tables: Nested>> Seat<B> {
    /// vCPU `index` of `guest`, whose translations are marked with `tag`.
    pub(super) fn new(backend: &B, guest: Arc<Guest<B::Tables>>, index: usize, tag: NonZeroU16) -> Self {
        let start = if index == 0 { guest.start } else { Start::Sipi(0) };
        let nested = guest.paging == Paging::Nested;
        let context = Context::new(index, &guest.vm, host_cpuid, nested);
        let root = guest.memory.root(index);
        let vcpu = if nested {
            Flavour::Nested(backend.vcpu(root, tag, start))
        } else {
            Flavour::Shadowed(backend.shadow_vcpu(root, context.features(), tag, start))
        };
        Self { guest, vcpu, context, tlb: Tlb::new(), places: Places::new(), due: None }
    }

    /// Lets the vCPU run until it has to wait, the turn of one of the `others` has come, or its VM has ended.
    pub(super) fn run(&mut self, cpu: &mut Cpu<'static, tables::Machine>, others: [&[Self]; 2]) {
        let guest = &*self.guest;
        let mut slice = Slice::new(guest, others);
        let view = guest.memory.view_of(self.context.index(), cpu, &mut self.tlb, &self.places);
        let mut machine = Machine::new(&guest.vm, &mut self.context, view);
        match &mut self.vcpu {
            Flavour::Nested(vcpu) => run(guest, vcpu, &mut machine, &mut slice),
            Flavour::Shadowed(vcpu) => run(guest, vcpu, &mut machine, &mut slice),
        }
        self.due = slice.due;
    }

    /// Whether its VM has ended.
    pub(super) fn is_over(&self) -> bool {
        self.guest.vm.stopped().is_some()
    }

    /// Whether somebody has something for it.
    pub(super) fn is_called(&self) -> bool {
        self.guest.vm.rings(self.context.index())
    }

    /// Whether it has something to do.
    pub(super) fn wants_to_run(&self) -> bool {
        self.context.activity() == Activity::Running
            || self.is_called()
            || self.wakes_at().is_some_and(Deadline::is_past)
    }

    /// When it has something to do, though nobody calls.
    pub(super) fn wakes_at(&self) -> Option<Deadline> {
        self.due.into_iter().chain(self.guest.limit).min()
    }

    /// Ends the vCPU, and gives its VM to whoever calls this for the last of its vCPUs.
    pub(super) fn leave(self) -> Option<Guest<B::Tables>> {
        let Self { guest, vcpu, context, .. } = self;
        drop(vcpu);
        guest.add_stats(context.stats());
        Arc::into_inner(guest)
    }

    /// Does what can wait until the vCPU sleeps.
    pub(super) fn idles(&self) {
        self.guest.memory.fill_stock();
    }
}

/// Runs the vCPU for a slice, and tells what has ended the VM, if that was no exit of its own.
fn run<B: Backend<Tables: Nested>, V: Vcpu>(
    guest: &Guest<B::Tables>,
    vcpu: &mut V,
    machine: &mut Machine<'_, View<'_, B::Tables>, Console, TscClock>,
    slice: &mut Slice<'_, B>,
) {
    vcpu.load();
    let stop = vm::run(vcpu, machine, slice);
    vcpu.leave();
    let Some(stop) = stop.filter(|stop| !matches!(stop, Stop::Exited(_))) else { return };
    guest.vm.devices().sink().flush();
    guest.report(&Dump(vcpu));
    match machine.code(vcpu) {
        Some(code) => guest.report(&format_args!("code {:02x?}", code.bytes())),
        None => guest.report(&"code can't be fetched"),
    }
    if let Stop::Misconfigured(at) = stop {
        guest.report(&format_args!("the nested tables on the way to {at}:\n{}", machine.memory().path(at)));
    }
}

/// A vCPU's registers, as [`Vcpu::dump`] writes them.
struct Dump<'a, V>(&'a V);

impl<V: Vcpu> fmt::Display for Dump<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.dump(f)
    }
}

fn host_cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let result = raw_cpuid::cpuid!(leaf, subleaf);
    Leaf { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
}
