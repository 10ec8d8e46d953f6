//! Memory operands.

use crate::{Bitness, Gpr, Registers, Segment};
use addr::Gva;
use iced_x86::{Instruction, Register};

/// The width of effective addresses, and of the index and count registers of string instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSize {
    /// 16 bits: SI, DI, CX.
    Bits16,
    /// 32 bits: ESI, EDI, ECX.
    Bits32,
    /// 64 bits: RSI, RDI, RCX.
    Bits64,
}

impl AddressSize {
    /// A mask of the bits of an address.
    #[inline]
    pub const fn mask(self) -> u64 {
        match self {
            Self::Bits16 => 0xffff,
            Self::Bits32 => 0xffff_ffff,
            Self::Bits64 => u64::MAX,
        }
    }
}

/// The base of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// No base.
    None,
    /// A general register.
    Gpr(Gpr),
    /// RIP of the instruction; its length is part of the displacement.
    Rip,
}

/// A memory operand as encoded in the instruction: base + index × scale + displacement, in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub(crate) base: Base,
    /// The register and log2 of its scale.
    pub(crate) index: Option<(Gpr, u8)>,
    pub(crate) displacement: u64,
    pub(crate) segment: Segment,
    pub(crate) size: AddressSize,
    pub(crate) bitness: Bitness,
}

/// The linear address of an offset in a segment. [`segmentation`](crate::segmentation) checks what the processor has not.
#[inline]
pub(crate) fn linear<R: Registers + ?Sized>(registers: &R, bitness: Bitness, segment: Segment, offset: u64) -> Gva {
    match (bitness, segment) {
        (Bitness::Bits64, Segment::Fs | Segment::Gs) => Gva::new(registers.segment_base(segment).wrapping_add(offset)),
        (Bitness::Bits64, _) => Gva::new(offset),
        _ => Gva::new(registers.segment_base(segment).wrapping_add(offset) & 0xffff_ffff),
    }
}

impl Address {
    /// The segment.
    pub const fn segment(&self) -> Segment {
        self.segment
    }

    /// The linear address. It may be non-canonical in 64-bit mode.
    #[inline]
    pub fn linear<R: Registers + ?Sized>(&self, registers: &R) -> Gva {
        linear(registers, self.bitness, self.segment, self.offset(registers))
    }

    /// The offset in the segment.
    #[inline]
    pub fn offset<R: Registers + ?Sized>(&self, registers: &R) -> u64 {
        let base = match self.base {
            Base::None => 0,
            Base::Gpr(gpr) => registers.gpr(gpr),
            Base::Rip => registers.rip(),
        };
        let index = self.index.map_or(0, |(gpr, scale)| registers.gpr(gpr) << scale);
        base.wrapping_add(index).wrapping_add(self.displacement) & self.size.mask()
    }

    /// The operand of XLAT, without AL.
    pub(crate) fn of_table(instruction: &Instruction, bitness: Bitness) -> Option<Self> {
        let size = match instruction.memory_base().size() {
            8 => AddressSize::Bits64,
            4 => AddressSize::Bits32,
            _ => AddressSize::Bits16,
        };
        let segment = Segment::of(instruction.memory_segment())?;
        Some(Self { base: Base::Gpr(Gpr::RBX), index: None, displacement: 0, segment, size, bitness })
    }

    /// The explicit memory operand of `instruction`. String instructions have implicit ones.
    pub(crate) fn of(instruction: &Instruction, bitness: Bitness) -> Option<Self> {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let size = match (base, index) {
            (Register::None, Register::None) => match instruction.memory_displ_size() {
                8 => AddressSize::Bits64,
                4 => AddressSize::Bits32,
                _ => AddressSize::Bits16,
            },
            (Register::RIP, _) => AddressSize::Bits64,
            (Register::EIP, _) => AddressSize::Bits32,
            (Register::None, register) | (register, _) => match register.size() {
                8 => AddressSize::Bits64,
                4 => AddressSize::Bits32,
                _ => AddressSize::Bits16,
            },
        };
        Some(Self {
            base: match base {
                Register::None => Base::None,
                Register::RIP | Register::EIP => Base::Rip,
                _ => Base::Gpr(Gpr::of(base)?),
            },
            index: match index {
                Register::None => None,
                _ => Some((Gpr::of(index)?, instruction.memory_index_scale().trailing_zeros() as u8)),
            },
            displacement: instruction.memory_displacement64() & size.mask(),
            segment: Segment::of(instruction.memory_segment())?,
            size,
            bitness,
        })
    }
}
