//! What registers hold after RESET, and after INIT where that changes them (Intel SDM vol. 3, table 10-1; APM table 14-1).

/// RFLAGS.
pub const RFLAGS: u64 = crate::RFLAGS_FIXED;
/// DR6.
pub const DR6: u64 = 0xffff_0ff0;
/// DR7.
pub const DR7: u64 = 0x400;
/// IA32_PAT (Intel SDM vol. 3, section 12.12.4; APM section 7.8.2). INIT keeps it.
pub const PAT: u64 = 0x0007_0406_0007_0406;
/// The limits of GDTR and IDTR, and of every segment in real mode.
pub const LIMIT: u16 = 0xffff;
/// The x87's control word after FNINIT.
pub const FCW: u16 = 0x037f;
/// MXCSR.
pub const MXCSR: u32 = 0x1f80;
