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

/// A segment over the whole 4 GiB: base 0, limit FFFF_FFFFh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlatSegment {
    /// Type, S, DPL, P: bits 40 to 47 of the descriptor.
    pub access: u8,
    /// AVL, L, D/B and G: bits 52 to 55 of the descriptor.
    pub flags: u8,
}

const LONG: u8 = 1 << 1;
const DEFAULT_BIG: u8 = 1 << 2;
const GRANULARITY: u8 = 1 << 3;

/// 32-bit code at ring 0.
pub const CODE_32: FlatSegment = FlatSegment { access: CODE, flags: GRANULARITY | DEFAULT_BIG };
/// 64-bit code at ring 0.
pub const CODE_64: FlatSegment = FlatSegment { access: CODE, flags: GRANULARITY | LONG };
/// Data at ring 0, and a stack of 32 bits outside of 64-bit mode.
pub const DATA_32: FlatSegment = FlatSegment { access: DATA, flags: GRANULARITY | DEFAULT_BIG };

impl FlatSegment {
    /// The segment's descriptor (Intel SDM vol. 3, figure 3-8).
    pub const fn descriptor(self) -> u64 {
        const LIMIT: u64 = 0x000f_0000_0000_ffff;
        LIMIT | (self.access as u64) << 40 | (self.flags as u64) << 52
    }
}
