//! Segment descriptors, and which of them a new task's registers may have (Intel SDM vol. 3, sections 3.4.5 and 3.5, and the table of
//! exceptions in section 8.3).

use emul::Segment;
use emul::segmentation::DescriptorCache;
use x86::irq::{
    GENERAL_PROTECTION_FAULT_VECTOR, INVALID_TSS_VECTOR, SEGMENT_NOT_PRESENT_VECTOR, STACK_SEGEMENT_FAULT_VECTOR,
};

/// A segment register with its hidden part, as a switch of tasks loads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadedSegment {
    /// The selector, as the guest sees it.
    pub selector: u16,
    /// Linear address of the segment's first byte.
    pub base: u32,
    /// Offset of its last byte.
    pub limit: u32,
    /// Bits 40 to 47 of the descriptor, and above them bits 52 to 55. Without P the register can't be used; SS has its DPL, the CPL,
    /// even so.
    pub attributes: u16,
}

impl LoadedSegment {
    /// P.
    pub const PRESENT: u16 = 1 << 7;
    const LONG: u16 = 1 << 9;
    const DEFAULT_BIG: u16 = 1 << 10;

    /// Whether the register can be used.
    pub const fn is_usable(&self) -> bool {
        self.attributes & Self::PRESENT != 0
    }

    /// D/B: 32-bit code or stack.
    pub const fn is_big(&self) -> bool {
        self.attributes & Self::DEFAULT_BIG != 0
    }

    /// L: 64-bit code.
    pub(super) const fn is_long(&self) -> bool {
        self.attributes & Self::LONG != 0
    }

    /// Whether the segment has the `bytes` at `offset`: above the limit, if it grows downwards.
    pub(super) const fn contains(&self, offset: u32, bytes: u32) -> bool {
        let Self { base, limit, attributes, .. } = *self;
        DescriptorCache { base: base as u64, limit, attributes }.contains(offset, bytes)
    }

    /// As virtual-8086 mode has it.
    pub(super) const fn virtual_8086(selector: u16) -> Self {
        Self { selector, base: (selector as u32) << 4, limit: 0xffff, attributes: 0xf3 }
    }

    /// A register that has `selector`, but no segment yet. CS and SS have what entries demand of them: the former a segment of the
    /// CPL, the latter its number as DPL and RPL.
    pub(super) const fn unloaded(register: Segment, selector: u16, cpl: u8) -> Self {
        let dpl = (cpl as u16) << 5;
        match register {
            Segment::Cs => Self { selector, base: 0, limit: u32::MAX, attributes: 0xc9b | dpl },
            Segment::Ss => Self { selector: selector & !3 | cpl as u16, base: 0, limit: 0, attributes: dpl },
            _ => Self { selector, base: 0, limit: 0, attributes: 0 },
        }
    }
}

/// A descriptor of the GDT or an LDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor(pub(super) u64);

impl Descriptor {
    /// Offset of the byte that has the type, and with it the busy bit and the accessed bit.
    pub(super) const TYPE_BYTE: u64 = 5;
    /// In that byte: a code or data segment was loaded.
    pub(super) const ACCESSED: u8 = 1 << 0;
    /// In that byte: the TSS is that of a task which runs, or to which another returns.
    pub(super) const BUSY: u8 = 1 << 1;

    const fn kind(self) -> u8 {
        (self.0 >> 40) as u8 & 0x1f
    }

    pub(super) const fn dpl(self) -> u8 {
        (self.0 >> 45) as u8 & 3
    }

    pub(super) const fn is_present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }

    /// The byte at [`TYPE_BYTE`](Self::TYPE_BYTE).
    pub(super) const fn type_byte(self) -> u8 {
        (self.0 >> 40) as u8
    }

    const fn base(self) -> u32 {
        (self.0 >> 16 & 0xff_ffff | self.0 >> 56 << 24) as u32
    }

    pub(super) const fn limit(self) -> u32 {
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 >> 55 & 1 == 0 { limit } else { limit << 12 | 0xfff }
    }

    const fn attributes(self) -> u16 {
        self.type_byte() as u16 | (self.0 >> 44) as u16 & 0xf00
    }

    /// What a register has that is loaded with it; the byte of its type is now `type_byte`.
    pub(super) const fn loaded(self, selector: u16, type_byte: u8) -> LoadedSegment {
        let attributes = self.attributes() & 0xf00 | type_byte as u16;
        LoadedSegment { selector, base: self.base(), limit: self.limit(), attributes }
    }

    /// Whether it is a TSS, and a 32-bit one, and busy.
    pub(super) const fn as_tss(self) -> Option<(bool, bool)> {
        match self.kind() {
            0x01 => Some((false, false)),
            0x03 => Some((false, true)),
            0x09 => Some((true, false)),
            0x0b => Some((true, true)),
            _ => None,
        }
    }

    /// The selector of the TSS that it names, if it is a task gate.
    pub(super) const fn task(self) -> Option<u16> {
        if self.kind() == 0x05 { Some((self.0 >> 16) as u16) } else { None }
    }

    /// Whether it is an LDT that is present.
    pub(super) const fn is_ldt(self) -> bool {
        self.names_ldt() && self.is_present()
    }

    pub(super) const fn names_ldt(self) -> bool {
        self.kind() == 0x02
    }

    /// Whether a far JMP or CALL that names it goes elsewhere than to its segment: a call gate, and outside of long mode, where the others
    /// can't be had, a TSS or a task gate.
    pub(super) const fn leads_elsewhere(self, is_long: bool) -> bool {
        match self.kind() {
            0x0c => true,
            0x01 | 0x04 | 0x05 | 0x09 => !is_long,
            _ => false,
        }
    }

    /// Whether a far JMP or CALL may go there, by a selector with this RPL, at this CPL (Intel SDM vol. 2, JMP and CALL).
    ///
    /// # Errors
    /// The vector of the exception.
    pub(super) const fn check_transfer(self, rpl: u8, cpl: u8, is_long: bool) -> Result<(), u8> {
        let dpl = self.dpl();
        let is_wrong = if self.is_conforming() { dpl > cpl } else { rpl > cpl || dpl != cpl };
        match () {
            () if !self.is_code() || is_wrong => Err(GENERAL_PROTECTION_FAULT_VECTOR),
            () if is_long && self.0 >> 53 & 3 == 3 => Err(GENERAL_PROTECTION_FAULT_VECTOR),
            () if !self.is_present() => Err(SEGMENT_NOT_PRESENT_VECTOR),
            () => Ok(()),
        }
    }

    const fn is_code(self) -> bool {
        self.kind() & 0x18 == 0x18
    }

    const fn is_conforming(self) -> bool {
        self.kind() & 0x1c == 0x1c
    }

    const fn is_writable_data(self) -> bool {
        self.kind() & 0x1a == 0x12
    }

    const fn is_readable(self) -> bool {
        self.kind() & 0x18 == 0x10 || self.kind() & 0x1a == 0x1a
    }

    /// Whether a new task's `register` may have it, by a selector with this RPL, at this CPL. The checks are in the order of the manual's
    /// table: of SS and of data, whether the segment is present comes before its privilege.
    ///
    /// # Errors
    /// The vector of the exception.
    pub(super) const fn check(self, register: Segment, rpl: u8, cpl: u8) -> Result<(), u8> {
        let (dpl, is_present) = (self.dpl(), self.is_present());
        match register {
            // The CPL is the RPL.
            Segment::Cs if !self.is_code() => Err(INVALID_TSS_VECTOR),
            Segment::Cs if if self.is_conforming() { dpl > rpl } else { dpl != rpl } => Err(INVALID_TSS_VECTOR),
            Segment::Cs if !is_present => Err(SEGMENT_NOT_PRESENT_VECTOR),
            Segment::Cs => Ok(()),
            Segment::Ss if !self.is_writable_data() => Err(INVALID_TSS_VECTOR),
            Segment::Ss if !is_present => Err(STACK_SEGEMENT_FAULT_VECTOR),
            Segment::Ss if dpl != cpl || rpl != cpl => Err(INVALID_TSS_VECTOR),
            Segment::Ss => Ok(()),
            _ if !self.is_readable() => Err(INVALID_TSS_VECTOR),
            _ if !is_present => Err(SEGMENT_NOT_PRESENT_VECTOR),
            _ if !self.is_conforming() && (dpl < cpl || dpl < rpl) => Err(INVALID_TSS_VECTOR),
            _ => Ok(()),
        }
    }
}
