//! Instructions on control and debug registers and on the TLB.

use crate::registers::Operand;
use crate::{Address, Bitness, DecodeError, Gpr, Registers, Width};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// Where LMSW reads, and SMSW writes, the machine status word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusWord {
    /// A general register.
    Register(Gpr),
    /// Two bytes of memory.
    Memory(Address),
}

/// What a system instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// MOV to CRn. Outside 64-bit mode the low 32 bits of the register count.
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
    /// LMSW: bits 3:0 go to CR0, but PE can't be cleared so.
    Lmsw(StatusWord),
    /// SMSW: the low bits of CR0, `width` of them, to a register; 16 to memory.
    Smsw {
        /// The destination.
        to: StatusWord,
        /// How many bits are stored.
        width: Width,
    },
    /// INVLPG of the page at the operand's linear address.
    Invlpg(Address),
}

/// A system instruction and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// What it does.
    pub system: System,
    /// Its length in bytes.
    pub length: u64,
}

/// Decodes a [`System`] instruction.
pub fn decode(bytes: &[u8], bitness: Bitness) -> Result<Decoded, DecodeError> {
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

/// Writes `value` to `gpr` as an instruction with an operand of `width` does: 8 and 16 bits leave the rest of the register
/// alone, 32 bits clear it. For IN, SMSW, MOV from CR and DR.
#[inline]
pub fn write_gpr<R: Registers>(registers: &mut R, gpr: Gpr, width: Width, value: u64) {
    Operand::new(gpr).set(registers, width, value);
}
