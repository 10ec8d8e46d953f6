//! The machine, as guest memory and its tables need it: a descriptor beside every frame, and the RCU domain of all CPUs.

use crate::cpus::{self, MAX_CPUS};
use crate::frames::FRAMES;
use crate::lapic;
use crate::paging;
use crate::timer;
use crate::watchdog;
use addr::{Hpa, PAGE_SIZE, Pfn};
use core::mem::MaybeUninit;
use core::time::Duration;
use memory::{FrameAllocator, HostMemory, VmAccounts};
use mmu::TableDesc;
use rcu::{Cpu, CpuData, Domain, Head, Platform, Stall};
use sched::Heart;
use spin::Once;

/// Table pages that may wait on one CPU before it hurries.
const BACKLOG_LIMIT: u64 = 4096;

/// How long a grace period may take before a warning names the CPU that holds it up.
const STALL: Duration = Duration::from_secs(5);

/// The machine, to `rcu` and `memory`.
pub(crate) struct HostMachine {
    descriptors: &'static [TableDesc],
}

impl Platform for HostMachine {
    fn head(&self, page: Pfn) -> &Head {
        self.descriptors[page.raw() as usize].head()
    }

    fn kick(&self, cpu: usize) {
        lapic::kick(cpu);
    }

    fn now(&self) -> u64 {
        timer::tsc()
    }

    /// A CPU that waits for a stuck one is not stuck, and may be the only one to notice.
    fn waits(&self, cpu: usize) {
        watchdog::heart(cpu).beat();
        watchdog::check();
    }
}

static ACCOUNTS: VmAccounts = VmAccounts::new();

// SAFETY: the direct map covers all of the machine's memory, so every frame that has a descriptor, and is linear; the frame
// allocator was given memory alone that is in no other use (`main::take_frames`); `head` is the descriptor's.
unsafe impl HostMemory for HostMachine {
    #[inline]
    fn direct(&self, at: Hpa) -> *mut u8 {
        paging::direct(at)
    }

    #[inline]
    fn descriptors(&self) -> &[TableDesc] {
        self.descriptors
    }

    #[inline]
    fn frames(&self) -> &FrameAllocator {
        &FRAMES
    }

    #[inline]
    fn accounts(&self) -> &VmAccounts {
        &ACCOUNTS
    }

    fn heart(&self, cpu: usize) -> &Heart {
        watchdog::heart(cpu)
    }
}

static DESCRIPTORS: Once<&'static [TableDesc]> = Once::new();
static DOMAIN: Once<Domain<HostMachine, [CpuData; MAX_CPUS]>> = Once::new();

/// Makes a descriptor for every frame below `top`. None if there is no room for them.
///
/// # Safety
/// Once, when the hypervisor's own tables map all of the machine's memory.
pub(crate) unsafe fn init(top: Hpa) -> Option<()> {
    let frames = top.raw().div_ceil(PAGE_SIZE) as usize;
    let bytes = frames * size_of::<TableDesc>();
    let array = paging::direct(FRAMES.alloc_contiguous(bytes.div_ceil(PAGE_SIZE as usize))?.start());
    let array = array.cast::<TableDesc>();
    // SAFETY: the array's frames are in no other use, hold this many, and are never given back.
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
    DOMAIN.call_once(|| Domain::new(HostMachine { descriptors }, BACKLOG_LIMIT).with_cpus(cpus::online()));
}

fn domain() -> &'static Domain<HostMachine, [CpuData; MAX_CPUS]> {
    DOMAIN.get().expect("`open_domain` comes before the first VM")
}

/// Whether CPU `cpu` has to be kicked to see what was just written for it.
pub(crate) fn is_away(cpu: usize) -> bool {
    domain().is_away(cpu)
}

/// Interrupts CPU `cpu` if it is in guest mode or asleep: it looks for what was written before this call.
pub(crate) fn kick_if_away(cpu: usize) {
    if is_away(cpu) {
        lapic::kick(cpu);
    }
}

/// Warns of each CPU that holds up a grace period for longer than [`STALL`].
pub(crate) fn warn_of_stalls() {
    for Stall { cpu, ticks, mode, .. } in domain().stalls(timer::ticks_of(STALL)) {
        let held_up = timer::nanoseconds(ticks) / 1_000_000;
        log::warn!("CPU {cpu} holds up a grace period for {held_up} ms: {mode:?}");
    }
}

/// This CPU's part in the grace periods.
pub(crate) fn register(cpu: usize) -> Cpu<'static, HostMachine> {
    domain().register(cpu).expect("each CPU registers once")
}
