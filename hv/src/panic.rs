//! The hypervisor's own end: where, the registers, and the way there.

use crate::console::{self, report};
use crate::cpu::TrapFrame;
use crate::smp;
use crate::timer::Deadline;
use crate::verdict::{self, Verdict};
use core::arch::asm;
use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use x86::controlregs;

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
}

/// The longest backtrace that is printed.
const MAX_FRAMES: usize = 32;

/// The number of the CPU that dies first, plus 1: so that a panic within a panic says just that, and the others stop.
static DYING: AtomicUsize = AtomicUsize::new(0);

/// The CPU that is to show itself and stop, plus 1.
static CALLED: AtomicUsize = AtomicUsize::new(0);

/// How long a CPU may take to show itself.
const PATIENCE: Duration = Duration::from_millis(200);

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
    // SAFETY: interrupts stay off from here on.
    unsafe { x86::irq::disable() };
    let own = smp::this_cpu() + 1;
    match DYING.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(first) if first == own => verdict::end(Verdict::Panic, format_args!("panicked while panicking: {what}")),
        Err(_) => stop(),
    }
    call_others(false);
    // SAFETY: the other CPUs have stopped, or are stuck; this one does not go back.
    unsafe { console::seize() };
    report!("panic on CPU {}: {what}", own - 1);
    show(frame, rbp);
    verdict::end(Verdict::Panic, format_args!("{what}"))
}

fn show(frame: Option<&TrapFrame>, rbp: u64) {
    match frame {
        Some(frame) => console::print(format_args!("{frame}\n")),
        None => report!("rbp {rbp:016x}"),
    }
    report!("{}", ControlRegisters);
    backtrace(frame.map(|frame| frame.rip), rbp);
}

/// CPU `cpu` is stuck: all show where they are, as far as they take NMIs, and the machine ends.
pub(crate) fn stuck(cpu: usize) -> ! {
    // SAFETY: interrupts stay off from here on.
    unsafe { x86::irq::disable() };
    if DYING.compare_exchange(0, smp::this_cpu() + 1, Ordering::AcqRel, Ordering::Acquire).is_err() {
        stop();
    }
    // SAFETY: whoever holds the port is stuck, or stopped as soon as it is called.
    unsafe { console::seize() };
    report!("CPU {cpu} is stuck: all CPUs in turn");
    call_others(true);
    verdict::end(Verdict::Panic, format_args!("CPU {cpu} is stuck"))
}

/// Calls the other CPUs, one after the other, by NMI: each stops for good. Some take none: under SVM a CPU is deaf between an
/// exit and the next entry.
fn call_others(report: bool) {
    for cpu in (0..smp::cpus()).filter(|&cpu| cpu + 1 != DYING.load(Ordering::Relaxed)) {
        CALLED.store(if report { cpu + 1 } else { 0 }, Ordering::Release);
        smp::nmi(cpu);
        let deadline = Deadline::after(PATIENCE);
        while report && CALLED.load(Ordering::Acquire) != 0 && !deadline.is_past() {
            core::hint::spin_loop();
        }
        if report && CALLED.swap(0, Ordering::AcqRel) != 0 {
            report!("CPU {cpu} does not answer");
        }
    }
}

/// An NMI: from a CPU that dies, or from the machine.
pub(crate) fn nmi(frame: &TrapFrame) {
    if DYING.load(Ordering::Acquire) == 0 {
        log::warn!("NMI at {:#x}", frame.rip);
        return;
    }
    let own = smp::this_cpu() + 1;
    if CALLED.load(Ordering::Acquire) == own {
        report!("CPU {}:", own - 1);
        show(Some(frame), frame.rbp);
        CALLED.store(0, Ordering::Release);
    }
    stop()
}

fn stop() -> ! {
    loop {
        // SAFETY: this CPU has nothing more to do.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
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

/// Prints return addresses: `cargo xtask` turns them into names.
fn backtrace(rip: Option<u64>, rbp: u64) {
    console::print(format_args!("hv: backtrace:"));
    if let Some(rip) = rip {
        console::print(format_args!(" {rip:#x}"));
    }
    for address in (FramePointers { rbp }).take(MAX_FRAMES) {
        console::print(format_args!(" {address:#x}"));
    }
    console::print(format_args!("\n"));
}

/// Return addresses along the chain of frame pointers, while it keeps to stacks.
struct FramePointers {
    rbp: u64,
}

impl Iterator for FramePointers {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let is_stack = crate::paging::is_image_data(self.rbp) || smp::is_stack(self.rbp);
        if !self.rbp.is_multiple_of(8) || !is_stack {
            return None;
        }
        let frame = self.rbp as *const [u64; 2];
        // SAFETY: aligned, and within the image's data or a stack, which are always mapped.
        let [caller, address] = unsafe { frame.read() };
        let text = &raw const text_start as u64..&raw const text_end as u64;
        if caller <= self.rbp || !text.contains(&address) {
            return None;
        }
        self.rbp = caller;
        Some(address)
    }
}
