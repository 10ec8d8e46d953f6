//! How a run ends: one line on the console, one status at the exit port, and then nothing more.

use crate::console::{self, report};
pub(crate) use abi::Verdict;
use abi::lines::VerdictLine;
use abi::ports::{BOCHS_SHUTDOWN, DEBUG_EXIT, SHUTDOWN};
use core::fmt;
use x86::io::{outb, outl};

/// Says how the run ended, and ends the machine where it can be ended; halts it for ever where not.
pub(crate) fn end(verdict: Verdict, text: fmt::Arguments<'_>) -> ! {
    console::take_line();
    report!("{}", VerdictLine { verdict, text });
    console::drain();
    // SAFETY: nothing runs after this; on a machine that has no such ports the writes go nowhere.
    unsafe { outl(DEBUG_EXIT, verdict.status().into()) };
    for byte in *SHUTDOWN {
        // SAFETY: as above.
        unsafe { outb(BOCHS_SHUTDOWN, byte) };
    }
    loop {
        // SAFETY: halting with interrupts off is what is meant here.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
