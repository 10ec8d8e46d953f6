//! What a VM's memory holds.

/// What the hypervisor fills a frame with that a VM has given up, byte by byte: Linux's POISON_FREE (include/linux/poison.h). A guest
/// that reads it follows a translation that should be gone.
pub const POISON: u64 = u64::from_ne_bytes([0x6b; 8]);
