//! How a guest ends.

use core::arch::asm;

use crate::{console, port};

/// QEMU's isa-debug-exit where kvm-unit-tests has it, and the hypervisor's.
const DEBUG_EXIT: u16 = 0xf4;
/// Bochs ends when it has read "Shutdown" here.
const BOCHS_SHUTDOWN: u16 = 0x8900;

/// What a guest reports: 0 is success, anything else a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Verdict(u32);

impl Verdict {
    /// All is well.
    pub const PASSED: Self = Self(0);
    /// A test failed.
    pub const FAILED: Self = Self(1);
    /// The guest itself broke down: a panic, an unexpected exception, no multiboot information.
    pub const PANICKED: Self = Self(3);

    /// Ends the guest, on every machine that knows a way to end one.
    pub fn end(self) -> ! {
        console::drain();
        port::write32(DEBUG_EXIT, self.0);
        for letter in *b"Shutdown" {
            port::write8(BOCHS_SHUTDOWN, letter);
        }
        halt_for_ever()
    }
}

/// Halts, deaf to interrupts.
pub fn halt_for_ever() -> ! {
    loop {
        // SAFETY: halting does nothing to memory.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
