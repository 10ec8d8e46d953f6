//! What the table library needs of the machine: a descriptor beside every frame, and the domain of its grace periods.

use crate::frames;
use crate::paging;
use crate::smp::{self, MAX_CPUS};
use crate::timer;
use crate::watchdog;
use addr::{Hpa, PAGE_SIZE, Pfn};
use core::mem::MaybeUninit;
use mmu::TableDesc;
use rcu::{Cpu, Domain, Head, Platform, Slot, Stall};
use spin::Once;

/// Table pages that may wait on one CPU before it hurries.
const BACKLOG_LIMIT: u64 = 4096;

/// The machine, to `rcu`.
pub(crate) struct Machine {
    descriptors: &'static [TableDesc],
}

impl Platform for Machine {
    fn head(&self, page: Pfn) -> &Head {
        self.descriptors[page.raw() as usize].head()
    }

    fn kick(&self, cpu: usize) {
        smp::kick(cpu);
    }

    fn now(&self) -> u64 {
        timer::tsc()
    }

    /// Who waits for a stuck CPU is not stuck, and may be the only one to notice.
    fn waits(&self, cpu: usize) {
        watchdog::heart(cpu).beat();
        watchdog::look();
    }
}

static DESCRIPTORS: Once<&'static [TableDesc]> = Once::new();
static DOMAIN: Once<Domain<Machine, [Slot; MAX_CPUS]>> = Once::new();

/// Makes a descriptor for every frame below `top`. None if there is no room for them.
///
/// # Safety
/// Once, when the hypervisor's own tables map all of the machine's memory.
pub(crate) unsafe fn init(top: Hpa) -> Option<()> {
    let frames = top.raw().div_ceil(PAGE_SIZE) as usize;
    let bytes = frames * size_of::<TableDesc>();
    let array = paging::direct(frames::alloc_contiguous(bytes.div_ceil(PAGE_SIZE as usize))?.start());
    let array = array.cast::<TableDesc>();
    // SAFETY: the array's frames are nobody else's, hold this many, and are never given back.
    let array = unsafe { core::slice::from_raw_parts_mut(array.cast::<MaybeUninit<TableDesc>>(), frames) };
    array.iter_mut().for_each(|place| {
        place.write(TableDesc::new());
    });
    // SAFETY: each was written just now.
    let descriptors = unsafe { core::slice::from_raw_parts(array.as_ptr().cast::<TableDesc>(), frames) };
    DESCRIPTORS.call_once(|| descriptors);
    Some(())
}

/// Opens the domain, of all CPUs that have come up, and no more from then on.
pub(crate) fn open_domain() {
    let descriptors = *DESCRIPTORS.get().expect("`init` comes before the other CPUs");
    DOMAIN.call_once(|| Domain::new(Machine { descriptors }, BACKLOG_LIMIT).with_cpus(smp::cpus()));
}

fn domain() -> &'static Domain<Machine, [Slot; MAX_CPUS]> {
    DOMAIN.get().expect("`open_domain` comes before the first VM")
}

/// The descriptors, by frame number.
pub(crate) fn descriptors() -> &'static [TableDesc] {
    domain().platform().descriptors
}

/// A space for the tables of a new VM.
pub(crate) fn new_space() -> rcu::Space {
    rcu::Space::new(domain())
}

/// Whether CPU `cpu` has to be kicked to see what was just written for it.
pub(crate) fn is_away(cpu: usize) -> bool {
    domain().is_away(cpu)
}

/// The CPUs that hold up a grace period which has run for more than `limit` ticks of the TSC.
pub(crate) fn stalls(limit: u64) -> impl Iterator<Item = Stall> {
    domain().stalls(limit)
}

/// This CPU's part in the grace periods.
pub(crate) fn register(cpu: usize) -> Cpu<'static, Machine> {
    domain().register(cpu).expect("each CPU registers once")
}
