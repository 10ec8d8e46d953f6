//! The hypervisor's own end: where, the registers, and the way there.

use crate::console::{self, report};
use crate::cpu::TrapFrame;
use crate::verdict::{self, Verdict};
use core::arch::asm;
use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};
use x86::controlregs;

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
}

/// The longest backtrace that is printed.
const MAX_FRAMES: usize = 32;

/// Set by the first to die, so that a panic within a panic says just that.
static DYING: AtomicBool = AtomicBool::new(false);

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
    // SAFETY: this CPU is the only one, and does not go back.
    unsafe { console::seize() };
    if DYING.swap(true, Ordering::Relaxed) {
        verdict::end(Verdict::Panic, format_args!("panicked while panicking: {what}"));
    }
    report!("panic: {what}");
    match frame {
        Some(frame) => console::print(format_args!("{frame}\n")),
        None => report!("rbp {rbp:016x}"),
    }
    report!("{}", ControlRegisters);
    backtrace(frame.map(|frame| frame.rip), rbp);
    verdict::end(Verdict::Panic, format_args!("{what}"))
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

/// Return addresses along the chain of frame pointers, while it keeps to the image.
struct FramePointers {
    rbp: u64,
}

impl Iterator for FramePointers {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if !self.rbp.is_multiple_of(8) || !crate::paging::is_image_data(self.rbp) {
            return None;
        }
        let frame = self.rbp as *const [u64; 2];
        // SAFETY: aligned, and within the image's data (all stacks are there), which is always mapped.
        let [caller, address] = unsafe { frame.read() };
        let text = &raw const text_start as u64..&raw const text_end as u64;
        if caller <= self.rbp || !text.contains(&address) {
            return None;
        }
        self.rbp = caller;
        Some(address)
    }
}
