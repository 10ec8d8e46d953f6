//! The machine's CPUs: the boot CPU starts the others, by INIT and start-up interrupts (Intel SDM vol. 3, section 9.4).

use crate::acpi_tables::Topology;
use crate::boot;
use crate::cpu;
use crate::frames::FRAMES;
use crate::lapic;
use crate::paging;
use crate::rcu_domain;
use crate::timer;
use crate::watchdog;
use addr::{Hpa, PAGE_SIZE};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use loader::{BootInfo, BootModule, Region, RegionKind};
use rcu::Cpu;
use spin::Once;

/// As many CPUs as can take part.
pub(crate) const MAX_CPUS: usize = 64;

/// Each CPU's stack, in pages; the lowest is a guard that is not mapped.
const STACK_PAGES: usize = 32;

/// What is left of them.
const STACK_SIZE: u64 = (STACK_PAGES as u64 - 1) * PAGE_SIZE;

/// Where an AP begins. The first MiB is nobody's but the firmware's, and this page is not what it uses.
const TRAMPOLINE: Hpa = Hpa::new(0x8000);

/// How long an AP may take to get to Rust.
const PATIENCE: Duration = Duration::from_millis(500);

/// CPUs that are online. They come one after the other, and the boot CPU counts them.
static ONLINE: AtomicUsize = AtomicUsize::new(1);

/// The number of the AP that has come last.
static ARRIVED: AtomicUsize = AtomicUsize::new(0);

/// Their APIC IDs, by CPU number.
static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// Where their stacks begin, above the guard; that of the boot CPU is in the image.
static STACKS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// What the APs wait for.
static WORK: Once<fn(usize) -> !> = Once::new();

/// How many CPUs there are to work with.
pub(crate) fn cpus() -> usize {
    ONLINE.load(Ordering::Acquire)
}

/// Starts the processors that `topology` names, one after the other; those that do not answer are left out.
///
/// # Safety
/// Once, on the boot CPU, with interrupts off, when its own APIC, timer and tables are set up.
pub(crate) unsafe fn start(boot: &BootInfo, topology: Option<&Topology>) {
    let own = lapic::id();
    APIC_IDS[0].store(own, Ordering::Relaxed);
    let Some(topology) = topology else { return };
    if topology.processors > MAX_CPUS {
        log::warn!("{} CPUs, of which at most {MAX_CPUS} are used", topology.processors);
    }
    let mut others = topology.apic_ids.iter().copied().filter(|&id| id != own).peekable();
    if others.peek().is_none() {
        return;
    }
    if !is_free(boot, TRAMPOLINE) {
        log::warn!("no memory at {TRAMPOLINE} to start the other CPUs from");
        return;
    }
    // SAFETY: the page is RAM that nobody uses, see `TRAMPOLINE`.
    unsafe { boot::put_trampoline(TRAMPOLINE) };
    cpu::keep_modes();
    for id in others.take(MAX_CPUS - 1) {
        match lapic::can_reach(id) {
            true => start_one(id),
            false => log::warn!("the CPU with APIC ID {id} is out of reach without x2APIC, and is left out"),
        }
    }
}

/// Whether the page at `page` is RAM in which the loader has left nothing.
fn is_free(boot: &BootInfo, page: Hpa) -> bool {
    let is_ram = |region: &Region| region.kind == RegionKind::Usable && region.range.contains(&page);
    let end = page.wrapping_add(PAGE_SIZE);
    let is_taken = |module: &BootModule| module.range.start < end && page < module.range.end;
    boot.regions.iter().any(is_ram) && !boot.modules.iter().any(is_taken)
}

/// INIT, start-up, and the latter again if it has not come by then (Intel SDM vol. 3, section 9.4.4.1).
fn start_one(id: u32) {
    let index = cpus();
    let Some(stack) = FRAMES.alloc_contiguous(STACK_PAGES) else {
        log::warn!("no memory for a stack of the CPU with APIC ID {id}");
        return;
    };
    // SAFETY: the page is the lowest of a new stack, which no CPU uses yet.
    if unsafe { paging::make_guard(stack.start()) }.is_err() {
        log::warn!("no memory for a guard below the stack of the CPU with APIC ID {id}");
        return;
    }
    let bottom = paging::direct(stack.start()) as u64 + PAGE_SIZE;
    let top = bottom + STACK_SIZE;
    STACKS[index].store(bottom, Ordering::Relaxed);
    APIC_IDS[index].store(id, Ordering::Relaxed);
    // SAFETY: no other AP is on its way, and the stack is this one's.
    unsafe { boot::prepare_ap(index, top) };
    lapic::init_ipi(id);
    timer::wait(Duration::from_millis(10));
    for wait in [Duration::from_micros(200), PATIENCE] {
        lapic::startup_ipi(id, TRAMPOLINE);
        let deadline = timer::after(wait);
        while ARRIVED.load(Ordering::Acquire) != index && timer::now() < deadline {
            core::hint::spin_loop();
        }
        if ARRIVED.load(Ordering::Acquire) == index {
            ONLINE.store(index + 1, Ordering::Release);
            return;
        }
    }
    // It may be on its way: it must not come to take the place of the next one. What it was given stays its own.
    lapic::init_ipi(id);
    timer::wait(Duration::from_millis(10));
    ARRIVED.store(0, Ordering::Relaxed);
    log::warn!("the CPU with APIC ID {id} does not answer, and is left out");
}

/// Where `boot/ap.s` leads, in long mode on the CPU's own stack.
#[unsafe(no_mangle)]
extern "C" fn hv_ap_main(index: usize) -> ! {
    // SAFETY: this CPU comes here once, with interrupts off.
    unsafe { cpu::init_ap() };
    // SAFETY: as above.
    unsafe { lapic::init() };
    ARRIVED.store(index, Ordering::Release);
    while WORK.get().is_none() {
        // SAFETY: this CPU's tables are loaded; STI's shadow covers HLT, so the kick that releases it is not lost.
        unsafe { asm!("sti", "hlt", "cli", options(nomem, nostack)) };
    }
    match WORK.get() {
        Some(work) => work(index),
        None => unreachable!("it has been waited for"),
    }
}

/// Has every CPU but this one do `work`.
pub(crate) fn release(work: fn(usize) -> !) {
    WORK.call_once(|| work);
    (1..cpus()).for_each(kick);
}

/// Whether 16 bytes at `address` are of an AP's stack.
pub(crate) fn is_stack(address: u64) -> bool {
    let bottoms = STACKS.iter().map(|bottom| bottom.load(Ordering::Relaxed)).filter(|&bottom| bottom != 0);
    bottoms.into_iter().any(|bottom| (bottom..bottom + STACK_SIZE - 16).contains(&address))
}

/// Which CPU this is. By its APIC, for who knows nothing else.
pub(crate) fn this_cpu() -> usize {
    if cpus() == 1 {
        return 0;
    }
    let id = lapic::id();
    APIC_IDS.iter().take(cpus()).position(|other| other.load(Ordering::Relaxed) == id).unwrap_or(0)
}

/// NMI for CPU `cpu`.
pub(crate) fn nmi(cpu: usize) {
    lapic::nmi(APIC_IDS[cpu].load(Ordering::Relaxed));
}

/// Sleeps until the next interrupt, in a quiescent state, unless the CPU is `wanted` already.
///
/// By HLT: MWAIT would wake without an interrupt at a store, but not every processor's comes back from an interrupt while
/// interrupts are off (CPUID.5:ECX bit 1), and emulators make a busy loop of it.
pub(crate) fn idle(cpu: &mut Cpu<'static, rcu_domain::Machine>, wanted: impl Fn() -> bool) {
    cpu.idle(|| {
        // Whoever calls from here on sees that this CPU is away, and kicks it.
        if !wanted() {
            // SAFETY: the host's own state is loaded; STI's shadow covers HLT, so no interrupt gets lost between them.
            unsafe { asm!("sti", "hlt", "cli", options(nomem, nostack)) };
        }
    });
    watchdog::heart(cpu.index()).beat();
    watchdog::look();
}

/// Interrupts CPU `cpu`.
pub(crate) fn kick(cpu: usize) {
    lapic::kick(APIC_IDS[cpu].load(Ordering::Relaxed));
}

/// Interrupts CPU `cpu` if it is in guest mode or asleep: it looks for what was written before this call.
pub(crate) fn kick_if_away(cpu: usize) {
    if rcu_domain::is_away(cpu) {
        kick(cpu);
    }
}
