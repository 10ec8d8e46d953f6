//! The time-stamp counter.

use core::arch::asm;

/// The counter after all earlier instructions are done: LFENCE, RDTSC. For comparing with an earlier reading; spans are
/// measured in `timed`, without the fence, for the exit in between orders them by itself.
pub fn read() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: it has no effect but on these registers.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}
