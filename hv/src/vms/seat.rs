//! A vCPU on the CPU that it is bound to.

use super::guest::Guest;
use super::host::Slice;
use super::memory::{Nested, View};
use alloc::sync::Arc;
use backends::Backend;
use core::fmt;
use core::num::NonZeroU16;
use rcu::{Cpu, Tlb};
use vm::cpuid::Leaf;
use vm::{Activity, Context, Machine, Start, Stop, Vcpu};
use walk::SlotMem;

/// One vCPU, and its part in its VM.
pub(super) struct Seat<B: Backend> {
    guest: Arc<Guest<B::Tables>>,
    vcpu: B::Vcpu,
    context: Context<<View<'static, B::Tables> as SlotMem>::Slot>,
    tlb: Tlb,
}

impl<B: Backend<Tables: Nested>> Seat<B> {
    /// vCPU `index` of `guest`. `tag` is no other's on this CPU.
    pub(super) fn new(backend: &B, guest: Arc<Guest<B::Tables>>, index: usize, tag: NonZeroU16) -> Self {
        let start = if index == 0 { guest.start } else { Start::Sipi(0) };
        let vcpu = backend.vcpu(guest.memory.root(), tag, start);
        let context = Context::new(index, guest.vm.vcpus(), host_cpuid);
        Self { guest, vcpu, context, tlb: Tlb::new() }
    }

    /// Lets the vCPU run until it has to wait or its VM has ended.
    pub(super) fn run(&mut self, cpu: &mut Cpu<'static, crate::tables::Machine>) {
        let guest = &*self.guest;
        self.vcpu.load();
        let mut slice = Slice { limit: guest.limit };
        let view = guest.memory.view(cpu, &mut self.tlb);
        let mut machine = Machine::new(&guest.vm, &mut self.context, view);
        let stop = vm::run(&mut self.vcpu, &mut machine, &mut slice);
        self.vcpu.leave();
        if let Some(stop) = stop
            && !matches!(stop, Stop::Exited(_))
        {
            guest.vm.devices().sink().flush();
            guest.report(&Dump(&self.vcpu));
            match machine.code(&self.vcpu) {
                Some(code) => guest.report(&format_args!("code {:02x?}", code.bytes())),
                None => guest.report(&"code can't be fetched"),
            }
        }
    }

    /// Whether its VM has ended.
    pub(super) fn is_over(&self) -> bool {
        self.guest.vm.stopped().is_some()
    }

    /// Whether it has nothing to do until an interrupt comes.
    pub(super) fn sleeps(&self) -> bool {
        self.context.activity() != Activity::Running
    }

    /// Ends the vCPU, and gives its VM to whoever calls this for the last of its vCPUs.
    pub(super) fn leave(self) -> Option<Guest<B::Tables>> {
        let Self { guest, vcpu, context, .. } = self;
        drop(vcpu);
        guest.add_stats(context.stats());
        Arc::into_inner(guest)
    }

    /// Ends a VM that has run for too long in its sleep; prepares for the next.
    pub(super) fn idles(&self) {
        if self.guest.limit.is_some_and(crate::timer::Deadline::is_past) {
            self.guest.vm.end(Stop::Limit, |_| {});
        }
        self.guest.memory.fill_stock();
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
