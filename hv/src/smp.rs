//! The machine's CPUs: the boot CPU starts the others, by INIT and start-up interrupts (Intel SDM vol. 3, section 9.4).

use crate::acpi_tables::Topology;
use crate::boot;
use crate::cpu;
use crate::cpus::{self, CPUS, MAX_CPUS};
use crate::frames::{self, FRAMES};
use crate::lapic;
use crate::paging;
use crate::rcu_domain;
use crate::timer;
use crate::watchdog;
use addr::{Hpa, PAGE_SIZE};
use core::arch::asm;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use firmware::{LeftOut, StartUp};
use loader::BootInfo;
use rcu::Cpu;
use spin::Once;

/// Each CPU's stack, in pages; the lowest is a guard that is not mapped.
const STACK_PAGES: usize = 32;

/// The rest of them, in bytes.
const STACK_SIZE: u64 = (STACK_PAGES as u64 - 1) * PAGE_SIZE;

/// Where an AP begins: a page of the first MiB that firmware does not use.
const TRAMPOLINE: Hpa = Hpa::new(0x8000);

/// The number of the AP that has come last.
static ARRIVED: AtomicUsize = AtomicUsize::new(0);

/// What the APs wait for.
static WORK: Once<fn(usize) -> !> = Once::new();

/// Starts the processors that `topology` names, one after the other; those that do not answer are left out.
///
/// # Safety
/// Once, on the boot CPU, with interrupts off, when its own APIC, timer and tables are set up.
pub(crate) unsafe fn start(boot: &BootInfo, topology: Option<&Topology>) {
    let own = lapic::id();
    CPUS.set_apic_id(0, own);
    let Some(topology) = topology else { return };
    if topology.apic_ids.iter().all(|&id| id == own) {
        return;
    }
    if !boot.is_free_page(TRAMPOLINE) {
        log::warn!("no memory at {TRAMPOLINE} to start the other CPUs from");
        return;
    }
    // SAFETY: the page is unused RAM, see `TRAMPOLINE`.
    unsafe { boot::put_trampoline(TRAMPOLINE) };
    cpu::keep_modes();
    firmware::start_others(&mut Machine, own, topology.apic_ids.iter().copied(), topology.processors, MAX_CPUS);
}

/// This machine, to the sequence of a start.
struct Machine;

impl StartUp for Machine {
    fn can_reach(&self, id: u32) -> bool {
        lapic::can_reach(id)
    }

    /// A stack is not reused.
    fn prepare(&mut self, cpu: usize, id: u32) -> Result<(), &'static str> {
        let stack = FRAMES.alloc_contiguous(STACK_PAGES).ok_or("a stack")?;
        // SAFETY: the page is the lowest of a new stack, which no CPU uses yet.
        unsafe { paging::make_guard(stack.start(), frames::alloc) }.map_err(|_| "a guard below the stack")?;
        let bottom = paging::direct(stack.start()) as u64 + PAGE_SIZE;
        let top = bottom + STACK_SIZE;
        CPUS.set_stack(cpu, bottom..top);
        CPUS.set_apic_id(cpu, id);
        // SAFETY: no other AP is on its way, and the stack is this one's.
        unsafe { boot::prepare_ap(cpu, top) };
        Ok(())
    }

    fn init(&mut self, id: u32) {
        lapic::init_ipi(id);
    }

    fn start(&mut self, id: u32) {
        lapic::startup_ipi(id, TRAMPOLINE);
    }

    fn wait(&mut self, delay: Duration) {
        timer::wait(delay);
    }

    fn comes(&mut self, cpu: usize, timeout: Duration) -> bool {
        let has_come = || ARRIVED.load(Ordering::Acquire) == cpu;
        let deadline = timer::after(timeout);
        while !has_come() && timer::now() < deadline {
            core::hint::spin_loop();
        }
        has_come()
    }

    fn join(&mut self, cpu: usize) {
        CPUS.set_online(cpu);
    }

    fn forget(&mut self) {
        ARRIVED.store(0, Ordering::Relaxed);
    }

    fn leave_out(&mut self, why: LeftOut) {
        log::warn!("{why}");
    }
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
    (1..cpus::online()).for_each(lapic::kick);
}

/// Sleeps until the next interrupt, in a quiescent state, unless the CPU is `wanted` already.
///
/// By HLT: MWAIT would wake without an interrupt at a store, but not every processor's comes back from an interrupt while
/// interrupts are off (CPUID.5:ECX bit 1), and emulators make a busy loop of it.
pub(crate) fn idle(cpu: &mut Cpu<'static, rcu_domain::HostMachine>, wanted: impl Fn() -> bool) {
    cpu.idle(|| {
        // A CPU that raises a request from here on sees that this CPU is away, and kicks it.
        if !wanted() {
            // SAFETY: the host's own state is loaded; STI's shadow covers HLT, so no interrupt gets lost between them.
            unsafe { asm!("sti", "hlt", "cli", options(nomem, nostack)) };
        }
    });
    watchdog::heart(cpu.index()).beat();
    watchdog::check();
}
