//! Port I/O, and its string form.

use core::arch::asm;

use crate::memory::Page;

pub use base::port::*;

/// REP OUTSB of all of `page`.
pub fn rep_outsb(port: u16, page: Page) {
    // SAFETY: it reads memory that is free. ESI is LLVM's own, so it is exchanged for the time.
    unsafe {
        asm!("xchg esi, {from:e}", "rep outsb", "xchg esi, {from:e}", from = inout(reg) page.address() => _,
            in("dx") port, inout("ecx") 4096 => _, options(nostack, preserves_flags));
    }
}
