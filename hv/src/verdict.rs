//! How a run ends: one line on the console, one status at the exit port, and then nothing more.

use crate::console::{self, report};
use core::fmt;
use x86::io::{outb, outl};

/// How a run ended. The numbers are the exit statuses of `cargo xtask run` as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Verdict {
    /// The guest reported success.
    Pass = 0,
    /// The guest reported failure.
    GuestFailed = 1,
    /// The hypervisor's command line makes no sense.
    Usage = 2,
    /// The guest shut down by a triple fault.
    GuestTripleFault = 3,
    /// The guest did what can't be handled, or can never run again.
    GuestKilled = 4,
    /// The hypervisor panicked.
    Panic = 5,
    /// The machine lacks what the hypervisor needs.
    NoVirtualization = 7,
    /// The guest's image was refused.
    BadImage = 8,
    /// Frames were missing after the VM's end.
    Leak = 9,
    /// The machine has too little memory for the VMs, or for one: known before that started.
    NoMemory = 11,
    /// The guest ran past its limit.
    Hang = 124,
}

impl Verdict {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::GuestFailed => "guest-failed",
            Self::Usage => "usage",
            Self::GuestTripleFault => "guest-triple-fault",
            Self::GuestKilled => "guest-killed",
            Self::Panic => "hv-panic",
            Self::NoVirtualization => "no-virtualization",
            Self::BadImage => "bad-image",
            Self::Leak => "leak",
            Self::NoMemory => "no-memory",
            Self::Hang => "hang",
        }
    }
}

/// QEMU's `isa-debug-exit`; the exit status becomes (value << 1) | 1.
const DEBUG_EXIT: u16 = 0xf4;
/// Bochs ends when it has read "Shutdown" here.
const BOCHS_SHUTDOWN: u16 = 0x8900;

/// Says how the run ended, and ends the machine where it can be ended; halts it for ever where not.
pub(crate) fn end(verdict: Verdict, text: fmt::Arguments<'_>) -> ! {
    console::take_line();
    report!("verdict: {} {} {text}", verdict.name(), verdict as u8);
    console::drain();
    // SAFETY: nothing runs after this; on a machine that has no such ports the writes go nowhere.
    unsafe { outl(DEBUG_EXIT, u32::from(verdict as u8)) };
    for byte in *b"Shutdown" {
        // SAFETY: as above.
        unsafe { outb(BOCHS_SHUTDOWN, byte) };
    }
    loop {
        // SAFETY: halting with interrupts off is what is meant here.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
