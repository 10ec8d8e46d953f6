//! The hypervisor's own end: where, the registers, and the way there.

use crate::console::{self, report};
use crate::cpus::{self, CPUS};
use crate::lapic;
use crate::paging;
use crate::timer;
use crate::verdict::{self, Verdict};
use abi::lines::Backtrace;
use abi::reasons::Stuck;
use arch::FramePointers;
use arch::trap_frame::TrapFrame;
use core::arch::asm;
use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;
use serial::{Taken, Takeover};
use x86::controlregs;

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
}

/// The longest backtrace that is printed.
const MAX_FRAMES: usize = 32;

/// Which CPU writes the panic's report. A second panic on this CPU prints one line, and the other CPUs halt.
static TAKEOVER: Takeover = Takeover::new();

/// NMIs that came while nothing was wrong.
static STRAY_NMIS: AtomicU32 = AtomicU32::new(0);

/// A debug trap came to the hypervisor, since that was last looked at.
static DEBUG_TRAPPED: AtomicBool = AtomicBool::new(false);
static DEBUG_TRAP_TOLD: AtomicBool = AtomicBool::new(false);

/// How long the other CPUs may take to stop, and each to show itself.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    match info.location() {
        Some(location) => die(format_args!("{} at {location}", info.message()), None, rbp),
        None => die(format_args!("{}", info.message()), None, rbp),
    }
}

/// An exception in the hypervisor, with the address where it is a page fault.
pub(crate) fn exception(name: &str, address: Option<usize>, frame: &TrapFrame) -> ! {
    match address {
        Some(address) => die(format_args!("{name} at {address:#x}"), Some(frame), frame.rbp),
        None => die(format_args!("{name}"), Some(frame), frame.rbp),
    }
}

fn die(what: fmt::Arguments<'_>, frame: Option<&TrapFrame>, rbp: u64) -> ! {
    if let Err(()) = take_over() {
        verdict::end(Verdict::HvPanic, format_args!("panicked while panicking: {what}"));
    }
    report!("panic on CPU {}: {what}", lapic::this_cpu());
    show(frame, rbp);
    verdict::end(Verdict::HvPanic, format_args!("{what}"))
}

/// CPU `cpu` is stuck: all show where they are, one after the other, and the machine ends.
pub(crate) fn stuck(cpu: usize) -> ! {
    let stuck = Stuck(cpu);
    if let Ok(()) = take_over() {
        report!("{stuck}; it and the others, in turn:");
        (0..cpus::online()).for_each(call);
    }
    verdict::end(Verdict::HvPanic, format_args!("{stuck}"))
}

/// Stops the other CPUs, for this one to speak alone. An error if it is doing so already. Another one may have been faster:
/// then this one stops.
fn take_over() -> Result<(), ()> {
    // SAFETY: interrupts stay off from here on.
    unsafe { x86::irq::disable() };
    let own = lapic::this_cpu();
    let taken = TAKEOVER.take(own);
    match taken {
        Taken::Now => stop_others(own),
        Taken::Before => {}
        Taken::ByAnother => halt(),
    }
    // SAFETY: the other CPUs have stopped, or take no NMI, and this CPU never returns to code that may hold the port.
    unsafe { console::seize() };
    if taken == Taken::Now { Ok(()) } else { Err(()) }
}

/// Some can't be stopped: under SVM a CPU takes no NMI from an exit to where it waits for interrupts.
fn stop_others(own: usize) {
    let others = (0..cpus::online()).filter(|&cpu| cpu != own);
    others.clone().for_each(lapic::nmi);
    let deadline = timer::after(STOP_TIMEOUT);
    while !others.clone().all(|cpu| TAKEOVER.has_stopped(cpu)) && timer::now() < deadline {
        core::hint::spin_loop();
    }
}

/// Has CPU `cpu` show where it was stopped, and waits for that.
fn call(cpu: usize) {
    if cpu == lapic::this_cpu() {
        return report!("CPU {cpu} noticed");
    }
    if !TAKEOVER.has_stopped(cpu) {
        return report!("CPU {cpu} does not answer");
    }
    TAKEOVER.call(cpu);
    let deadline = timer::after(STOP_TIMEOUT);
    while !TAKEOVER.has_answered() && timer::now() < deadline {
        core::hint::spin_loop();
    }
}

/// An NMI: from the CPU that speaks, or else from the machine.
pub(crate) fn nmi(frame: &TrapFrame) {
    if !TAKEOVER.is_taken() {
        // The interrupted code may hold the console.
        STRAY_NMIS.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let own = lapic::this_cpu();
    TAKEOVER.stop(own);
    while !TAKEOVER.is_called(own) {
        core::hint::spin_loop();
    }
    report!("CPU {own}:");
    show(Some(frame), frame.rbp);
    TAKEOVER.answer();
    halt()
}

/// A debug trap.
pub(crate) fn debug_trap() {
    DEBUG_TRAPPED.store(true, Ordering::Relaxed);
}

/// Tells of NMIs that came meanwhile, and of the first debug trap.
pub(crate) fn report_strays() {
    if DEBUG_TRAPPED.swap(false, Ordering::Relaxed) && !DEBUG_TRAP_TOLD.swap(true, Ordering::Relaxed) {
        log::warn!("a guest's debug trap came to the hypervisor: the guest misses it");
    }
    let count = STRAY_NMIS.swap(0, Ordering::Relaxed);
    if count != 0 {
        log::warn!("{count} unexpected NMIs");
    }
}

fn halt() -> ! {
    loop {
        // SAFETY: this CPU has nothing more to do.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

fn show(frame: Option<&TrapFrame>, rbp: u64) {
    match frame {
        Some(frame) => console::print(format_args!("{frame}\n")),
        None => report!("rbp {rbp:016x}"),
    }
    report!("{}", ControlRegisters);
    backtrace(frame.map(|frame| frame.rip), rbp);
}

/// What the processor is set to: a Rust panic has no more registers worth a line.
struct ControlRegisters;

impl fmt::Display for ControlRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: reading a control register at ring 0 has no effect.
        let cr0 = unsafe { controlregs::cr0() }.bits();
        // SAFETY: as above.
        let cr2 = unsafe { controlregs::cr2() };
        // SAFETY: as above.
        let cr3 = unsafe { controlregs::cr3() };
        // SAFETY: as above.
        let cr4 = unsafe { controlregs::cr4() }.bits();
        write!(f, "cr0 {cr0:08x} cr2 {cr2:016x} cr3 {cr3:016x} cr4 {cr4:08x}")
    }
}

fn backtrace(rip: Option<u64>, rbp: u64) {
    let text = &raw const text_start as u64..&raw const text_end as u64;
    let frames = FramePointers::new(rbp, text, read_stack).take(MAX_FRAMES);
    report!("{}", Backtrace(rip.into_iter().chain(frames)));
}

/// The two words at `address`, which is aligned, if it is on a stack.
fn read_stack(address: u64) -> Option<[u64; 2]> {
    let is_stack = paging::is_image_data(address) || CPUS.is_stack(address, 16);
    // SAFETY: aligned, and within the image's data or a stack, which are always mapped.
    is_stack.then(|| unsafe { (address as *const [u64; 2]).read() })
}
