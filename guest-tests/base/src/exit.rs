//! How a guest ends.

pub use abi::GuestStatus;
use abi::ports::{BOCHS_SHUTDOWN, DEBUG_EXIT, SHUTDOWN};
use core::arch::asm;

use crate::{console, port};

/// Ends the guest with this status, on every machine that knows a way to end one.
pub fn end(status: GuestStatus) -> ! {
    console::drain();
    port::write32(DEBUG_EXIT, u8::from(status).into());
    for letter in *SHUTDOWN {
        port::write8(BOCHS_SHUTDOWN, letter);
    }
    halt_for_ever()
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
