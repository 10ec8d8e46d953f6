//! Bits of a page fault's error code (Intel SDM vol. 3, section 4.7; AMD APM vol. 2, section 8.4.2). A nested page fault of SVM has
//! the same in the low half of EXITINFO1.

/// P: a page was there, and the access was not allowed.
pub const PRESENT: u32 = 1 << 0;
/// W/R: the access was a write.
pub const WRITE: u32 = 1 << 1;
/// U/S: the access was made at CPL 3.
pub const USER: u32 = 1 << 2;
/// RSVD: an entry has a reserved bit set.
pub const RESERVED: u32 = 1 << 3;
/// I/D: the access was a fetch. Set only with EFER.NXE or CR4.SMEP.
pub const FETCH: u32 = 1 << 4;
