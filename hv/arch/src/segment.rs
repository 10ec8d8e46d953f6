//! The access byte of segments: type, S, DPL and P, bits 40 to 47 of a descriptor (Intel SDM vol. 3, section 3.4.5). VMCB and
//! VMCS have it as the low byte of a segment's attributes.

/// Code at ring 0: readable, accessed, present.
pub const CODE: u8 = 0x9b;
/// Data at ring 0: writable, accessed, present.
pub const DATA: u8 = 0x93;
/// A busy 32-bit or 64-bit TSS, present.
pub const BUSY_TSS: u8 = 0x8b;
/// An LDT, present.
pub const LDT: u8 = 0x82;
