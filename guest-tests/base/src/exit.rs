//! How a guest ends.

use abi::ports::{BOCHS_SHUTDOWN, DEBUG_EXIT, SHUTDOWN, SUCCESS};
use core::arch::asm;

use crate::{console, port};

/// What a guest reports: 0 is success, anything else a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Verdict(u32);

impl Verdict {
    /// All is well.
    pub const PASSED: Self = Self(SUCCESS);
    /// A test failed.
    pub const FAILED: Self = Self(1);
    /// The guest itself broke down: a panic, an unexpected exception, no multiboot information.
    pub const PANICKED: Self = Self(3);

    /// Ends the guest, on every machine that knows a way to end one.
    pub fn end(self) -> ! {
        console::drain();
        port::write32(DEBUG_EXIT, self.0);
        for letter in *SHUTDOWN {
            port::write8(BOCHS_SHUTDOWN, letter);
        }
        halt_for_ever()
    }
}

/// Spins, deaf to interrupts, in a single instruction.
pub fn hang() -> ! {
    // SAFETY: spinning does nothing to memory.
    unsafe { asm!("cli", "2: jmp 2b", options(nomem, nostack, noreturn)) }
}

/// Halts, deaf to interrupts.
pub fn halt_for_ever() -> ! {
    loop {
        // SAFETY: halting does nothing to memory.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
