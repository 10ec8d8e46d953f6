//! A short decoder for the encodings that drivers use: MOV, MOVZX and MOVSX between a general register (or, for MOV, an
//! immediate) and memory, in 32-bit and 64-bit code, with no prefixes but 66 and REX.

use super::{Mmio, Op, Source};
use crate::registers::Operand;
use crate::{Address, AddressSize, Base, Bitness, Gpr, Segment, Width};

const REX_W: u8 = 8;
const REX_R: u8 = 4;
const REX_X: u8 = 2;
const REX_B: u8 = 1;

/// The bytes not decoded yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    #[inline(always)]
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    #[inline(always)]
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (&bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(bytes)
    }

    #[inline(always)]
    fn signed_byte(&mut self) -> Option<u64> {
        Some(Width::Byte.sign_extend(u64::from(self.byte()?)))
    }

    #[inline(always)]
    fn signed_dword(&mut self) -> Option<u64> {
        Some(Width::Dword.sign_extend(u64::from(u32::from_le_bytes(self.bytes()?))))
    }
}

/// None for other instructions and for too few bytes; the general decoder distinguishes the two.
#[inline(always)]
pub(super) fn decode(bytes: &[u8], bitness: Bitness) -> Option<Mmio> {
    let size = match bitness {
        Bitness::Bits16 => return None,
        Bitness::Bits32 => AddressSize::Bits32,
        Bitness::Bits64 => AddressSize::Bits64,
    };
    let mut rest = Rest(bytes);
    let mut opcode = rest.byte()?;
    let word = opcode == 0x66;
    if word {
        opcode = rest.byte()?;
    }
    let mut rex = 0;
    if bitness == Bitness::Bits64 && opcode & 0xf0 == 0x40 {
        rex = opcode;
        opcode = rest.byte()?;
    }
    let operand_width = match (rex & REX_W != 0, word) {
        (true, _) => Width::Qword,
        (false, true) => Width::Word,
        (false, false) => Width::Dword,
    };
    // If bit 0 of an opcode is clear, the operand is a byte, else of the width that the prefixes give.
    let narrow_or = |wide| if opcode & 1 == 0 { Width::Byte } else { wide };

    let (op, width, mut address) = match opcode {
        0x88..=0x8b => {
            let width = narrow_or(operand_width);
            let (address, number) = modrm(&mut rest, rex, size, bitness)?;
            let register = if width == Width::Byte { Operand::byte(number, rex != 0) } else { general(number) };
            (transfer(opcode & 2 != 0, register, width), width, address)
        }
        0xa0..=0xa3 => {
            let displacement = match size {
                AddressSize::Bits64 => u64::from_le_bytes(rest.bytes()?),
                _ => u64::from(u32::from_le_bytes(rest.bytes()?)),
            };
            let segment = Segment::Ds;
            let address = Address { base: Base::None, index: None, displacement, segment, size, bitness };
            let width = narrow_or(operand_width);
            (transfer(opcode & 2 == 0, general(0), width), width, address)
        }
        0xc6 | 0xc7 => {
            let width = narrow_or(operand_width);
            let (address, extension) = modrm(&mut rest, rex & !REX_R, size, bitness)?;
            if extension != 0 {
                return None;
            }
            let value = match width {
                Width::Byte => rest.signed_byte()?,
                Width::Word => Width::Word.sign_extend(u64::from(u16::from_le_bytes(rest.bytes()?))),
                _ => rest.signed_dword()?,
            };
            (Op::Store(Source::Immediate(value & width.mask())), width, address)
        }
        0x0f => {
            let opcode = rest.byte()?;
            let (width, signed) = match opcode {
                0xb6 => (Width::Byte, false),
                0xb7 => (Width::Word, false),
                0xbe => (Width::Byte, true),
                0xbf => (Width::Word, true),
                _ => return None,
            };
            let (address, number) = modrm(&mut rest, rex, size, bitness)?;
            (Op::Load { to: general(number), to_width: operand_width, signed }, width, address)
        }
        _ => return None,
    };
    let length = (bytes.len() - rest.0.len()) as u64;
    if address.base == Base::Rip {
        address.displacement = address.displacement.wrapping_add(length);
    }
    Some(Mmio { op, width, locked: false, address, length })
}

#[inline(always)]
fn general(number: u8) -> Operand {
    Operand::new(Gpr::new(number))
}

#[inline(always)]
fn transfer(load: bool, register: Operand, width: Width) -> Op {
    if load { Op::Load { to: register, to_width: width, signed: false } } else { Op::Store(Source::Register(register)) }
}

/// The memory operand, and the number in the register field. None if there is no memory operand.
#[inline(always)]
fn modrm(rest: &mut Rest<'_>, rex: u8, size: AddressSize, bitness: Bitness) -> Option<(Address, u8)> {
    let modrm = rest.byte()?;
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let number = ((modrm >> 3) & 7) | if rex & REX_R != 0 { 8 } else { 0 };
    let base_high = if rex & REX_B != 0 { 8 } else { 0 };
    if mode == 3 {
        return None;
    }
    let (mut index, mut base) = (None, Base::Gpr(Gpr::new(rm | base_high)));
    if rm == 4 {
        let sib = rest.byte()?;
        let number = ((sib >> 3) & 7) | if rex & REX_X != 0 { 8 } else { 0 };
        if number != 4 {
            index = Some((Gpr::new(number), sib >> 6));
        }
        base = if sib & 7 == 5 && mode == 0 { Base::None } else { Base::Gpr(Gpr::new((sib & 7) | base_high)) };
    } else if rm == 5 && mode == 0 {
        base = if bitness == Bitness::Bits64 { Base::Rip } else { Base::None };
    }
    let displacement = match (mode, base) {
        (0, Base::Gpr(_)) => 0,
        (1, _) => rest.signed_byte()?,
        _ => rest.signed_dword()?,
    };
    let segment = match base {
        Base::Gpr(Gpr::RSP | Gpr::RBP) => Segment::Ss,
        _ => Segment::Ds,
    };
    Some((Address { base, index, displacement: displacement & size.mask(), segment, size, bitness }, number))
}
