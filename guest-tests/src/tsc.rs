//! The time-stamp counter.

use core::arch::asm;

/// RDTSC. Not ordered against its neighbours: an exit between two of them orders them by itself, and a fence would be
/// counted as part of it.
pub fn read() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: it has no effect but on these registers.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// RDTSC after all earlier instructions are done: for comparing with what memory or an MSR said before.
pub fn read_ordered() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: as in `read`.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}
