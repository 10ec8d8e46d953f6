//! Instructions on control and debug registers and on the TLB.

use crate::registers::Operand;
use crate::{Address, AddressSize, Base, Bitness, DecodeError, Gpr, Registers, Segment, Width};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// The source of LMSW, and the destination of SMSW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusWord {
    /// A general register.
    Register(Gpr),
    /// Two bytes of memory.
    Memory(Address),
}

/// A system instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// MOV to CRn. Outside of 64-bit mode it uses the low 32 bits of the register.
    WriteCr {
        /// n.
        cr: u8,
        /// The source.
        from: Gpr,
    },
    /// MOV from CRn.
    ReadCr {
        /// n.
        cr: u8,
        /// The destination.
        to: Gpr,
    },
    /// MOV to DRn.
    WriteDr {
        /// n.
        dr: u8,
        /// The source.
        from: Gpr,
    },
    /// MOV from DRn.
    ReadDr {
        /// n.
        dr: u8,
        /// The destination.
        to: Gpr,
    },
    /// CLTS: clears CR0.TS.
    Clts,
    /// LMSW: loads bits 3:0 of CR0, but can't clear PE.
    Lmsw(StatusWord),
    /// SMSW: the low bits of CR0, `width` of them, to a register; 16 to memory.
    Smsw {
        /// The destination.
        to: StatusWord,
        /// The number of bits stored.
        width: Width,
    },
    /// INVLPG of the page at the operand's linear address.
    Invlpg(Address),
}

/// A system instruction and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The instruction.
    pub system: System,
    /// Its length in bytes.
    pub length: u64,
}

/// Decodes a [`System`] instruction.
pub fn decode(bytes: &[u8], bitness: Bitness) -> Result<Decoded, DecodeError> {
    if let Some(first) = bytes.first_chunk()
        && let Some(decoded) = decode_short(u32::from_le_bytes(*first), bitness)
    {
        return Ok(decoded);
    }
    decode_any(bytes, bitness)
}

/// A short decoder for the three-byte encodings that kernels use to switch page tables: MOV to and from CR0, CR2, CR3
/// and CR4, and INVLPG of a register, in 32-bit and 64-bit code. `first` is the bytes at RIP, little-endian.
#[inline]
pub fn decode_short(first: u32, bitness: Bitness) -> Option<Decoded> {
    const READ_CR: u8 = 0x20;
    const WRITE_CR: u8 = 0x22;
    const GROUP_7: u8 = 0x01;
    const INVLPG: u8 = 7;
    let [0x0f, opcode, modrm, _] = first.to_le_bytes() else { return None };
    let (mode, reg, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
    let gpr = Gpr::new(rm);
    let system = match (opcode, mode, reg) {
        (READ_CR, 3, cr @ (0 | 2 | 3 | 4)) => System::ReadCr { cr, to: gpr },
        (WRITE_CR, 3, cr @ (0 | 2 | 3 | 4)) => System::WriteCr { cr, from: gpr },
        // An rm of 4 means a SIB byte, one of 5 a displacement.
        (GROUP_7, 0, INVLPG) if rm & 6 != 4 => System::Invlpg(register_indirect(gpr, bitness)?),
        _ => return None,
    };
    Some(Decoded { system, length: 3 })
}

/// `[gpr]`, in DS.
fn register_indirect(gpr: Gpr, bitness: Bitness) -> Option<Address> {
    let size = match bitness {
        Bitness::Bits16 => return None,
        Bitness::Bits32 => AddressSize::Bits32,
        Bitness::Bits64 => AddressSize::Bits64,
    };
    Some(Address { base: Base::Gpr(gpr), index: None, displacement: 0, segment: Segment::Ds, size, bitness })
}

fn decode_any(bytes: &[u8], bitness: Bitness) -> Result<Decoded, DecodeError> {
    let instruction = crate::decode(bytes, bitness)?;
    let system = system(&instruction, bitness).ok_or(DecodeError::Unexpected)?;
    Ok(Decoded { system, length: instruction.len() as u64 })
}

pub(crate) fn system(instruction: &Instruction, bitness: Bitness) -> Option<System> {
    match instruction.mnemonic() {
        Mnemonic::Mov => moved(instruction.op0_register(), instruction.op1_register()),
        Mnemonic::Clts => Some(System::Clts),
        Mnemonic::Lmsw => status_word(instruction, bitness).map(System::Lmsw),
        Mnemonic::Smsw => {
            let width = match instruction.op0_kind() {
                OpKind::Register => Width::from_bytes(instruction.op0_register().size())?,
                _ => Width::Word,
            };
            Some(System::Smsw { to: status_word(instruction, bitness)?, width })
        }
        Mnemonic::Invlpg => Address::of(instruction, bitness).map(System::Invlpg),
        _ => None,
    }
}

fn moved(to: Register, from: Register) -> Option<System> {
    let number = |register: Register| register.number() as u8;
    if to.is_cr() {
        Some(System::WriteCr { cr: number(to), from: Gpr::of(from)? })
    } else if from.is_cr() {
        Some(System::ReadCr { cr: number(from), to: Gpr::of(to)? })
    } else if to.is_dr() {
        Some(System::WriteDr { dr: number(to), from: Gpr::of(from)? })
    } else if from.is_dr() {
        Some(System::ReadDr { dr: number(from), to: Gpr::of(to)? })
    } else {
        None
    }
}

fn status_word(instruction: &Instruction, bitness: Bitness) -> Option<StatusWord> {
    match instruction.op0_kind() {
        OpKind::Register => Gpr::of(instruction.op0_register()).map(StatusWord::Register),
        _ => Address::of(instruction, bitness).map(StatusWord::Memory),
    }
}

/// Writes `value` to `gpr` as an instruction with an operand of `width` does: writes of 8 and 16 bits keep the other
/// bits of the register, those of 32 bits clear them. For IN, SMSW, MOV from CR and DR.
#[inline]
pub fn write_gpr<R: Registers + ?Sized>(registers: &mut R, gpr: Gpr, width: Width, value: u64) {
    Operand::new(gpr).set(registers, width, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For every second and third byte, the general decoder agrees with the short one.
    #[test]
    fn both_paths_agree() {
        let mut short_ones = 0;
        for bitness in [Bitness::Bits16, Bitness::Bits32, Bitness::Bits64] {
            for (opcode, modrm) in (0..=0xff).flat_map(|opcode| (0..=0xff).map(move |modrm| (opcode, modrm))) {
                let bytes = [0x0f, opcode, modrm, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90];
                let first = u32::from_le_bytes([0x0f, opcode, modrm, 0x90]);
                if let Some(short) = decode_short(first, bitness) {
                    assert_eq!(decode_any(&bytes, bitness), Ok(short), "{bytes:x?} as {bitness:?}");
                    short_ones += 1;
                }
            }
        }
        assert_eq!(short_ones, 3 * 2 * 4 * 8 + 2 * 6);
    }
}
