//! Decoding by the general decoder.

use super::alu::{Binary, Bit, Unary};
use super::{Mmio, Op, Source};
use crate::registers::Operand;
use crate::string_step::{Repeat, StringStep};
use crate::{Address, AddressSize, Base, Bitness, DecodeError, Gpr, Segment, Width};
use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind};

#[inline(never)]
pub(super) fn decode(bytes: &[u8], bitness: Bitness) -> Result<Mmio, DecodeError> {
    let instruction = crate::decode(bytes, bitness)?;
    of(&instruction, bitness).ok_or(DecodeError::Unexpected)
}

pub(super) fn of(instruction: &Instruction, bitness: Bitness) -> Option<Mmio> {
    string(instruction, bitness).or_else(|| plain(instruction, bitness))
}

/// MOVS, STOS, LODS, CMPS and SCAS, which have implicit operands.
fn string(instruction: &Instruction, bitness: Bitness) -> Option<Mmio> {
    let (op, memory, compares): (fn(StringStep) -> Op, u32, bool) = match instruction.mnemonic() {
        // The vector instruction of the name MOVSD has other operands, so `op_kind` excludes it below.
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => (Op::Movs, 1, false),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => (Op::Stos, 0, false),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => (Op::Lods, 1, false),
        // So does CMPSD.
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => (Op::Cmps, 0, true),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => (Op::Scas, 1, true),
        _ => return None,
    };
    let (size, index, segment) = match instruction.op_kind(memory) {
        OpKind::MemorySegSI => (AddressSize::Bits16, Gpr::RSI, Segment::of(instruction.memory_segment())?),
        OpKind::MemorySegESI => (AddressSize::Bits32, Gpr::RSI, Segment::of(instruction.memory_segment())?),
        OpKind::MemorySegRSI => (AddressSize::Bits64, Gpr::RSI, Segment::of(instruction.memory_segment())?),
        OpKind::MemoryESDI => (AddressSize::Bits16, Gpr::RDI, Segment::Es),
        OpKind::MemoryESEDI => (AddressSize::Bits32, Gpr::RDI, Segment::Es),
        OpKind::MemoryESRDI => (AddressSize::Bits64, Gpr::RDI, Segment::Es),
        _ => return None,
    };
    let width = Width::from_bytes(instruction.memory_size().size())?;
    let repeat = match (instruction.has_rep_prefix(), instruction.has_repne_prefix()) {
        (false, false) => Repeat::Once,
        (is_rep, _) if compares => Repeat::While { zero: is_rep },
        _ => Repeat::Always,
    };
    let base = Base::Gpr(index);
    Some(Mmio {
        op: op(StringStep { width, size, repeat }),
        width,
        locked: false,
        address: Address { base, index: None, displacement: 0, segment, size, bitness },
        length: instruction.len() as u64,
    })
}

fn plain(instruction: &Instruction, bitness: Bitness) -> Option<Mmio> {
    let memory = (0..instruction.op_count()).find(|&n| instruction.op_kind(n) == OpKind::Memory)?;
    let op = op(instruction, memory)?;
    Some(Mmio {
        op,
        width: Width::from_bytes(instruction.memory_size().size())?,
        locked: instruction.has_lock_prefix() || matches!(op, Op::Exchange(_)),
        address: Address::of(instruction, bitness)?,
        length: instruction.len() as u64,
    })
}

/// The operation of an instruction whose operand number `memory` is in memory.
fn op(instruction: &Instruction, memory: u32) -> Option<Op> {
    let register = |n| Operand::of(instruction.op_register(n));
    let source = |n| match instruction.op_kind(n) {
        OpKind::Register => register(n).map(Source::Register),
        _ => Some(Source::Immediate(instruction.try_immediate(n).ok()?)),
    };
    let load = |signed| {
        let to_width = Width::from_bytes(instruction.op0_register().size())?;
        Some(Op::Load { to: register(0)?, to_width, signed })
    };
    let binary = |op| match memory {
        0 => Some(Op::BinaryToMemory(op, source(1)?)),
        _ => Some(Op::BinaryToRegister(op, register(0)?)),
    };
    let mnemonic = instruction.mnemonic();
    if let Some(op) = Binary::of(mnemonic) {
        return binary(op);
    }
    if let Some(op) = Unary::of(mnemonic) {
        return Some(Op::Unary(op));
    }
    if let Some(op) = Bit::of(mnemonic) {
        return Some(Op::Bit(op, source(1)?));
    }
    // SETcc is the only instruction with a condition whose first operand can be in memory.
    let condition = instruction.condition_code();
    if memory == 0 && condition != ConditionCode::None {
        return Some(Op::Unary(Unary::Set(condition)));
    }
    match mnemonic {
        Mnemonic::Mov | Mnemonic::Movnti if memory == 0 => Some(Op::Store(source(1)?)),
        Mnemonic::Mov | Mnemonic::Movzx => load(false),
        Mnemonic::Movsx | Mnemonic::Movsxd => load(true),
        Mnemonic::Xchg => Some(Op::Exchange(register(1 - memory)?)),
        Mnemonic::Xadd => Some(Op::ExchangeAdd(register(1)?)),
        Mnemonic::Cmpxchg => Some(Op::CompareExchange(register(1)?)),
        Mnemonic::Cmpxchg8b => Some(Op::CompareExchange8b),
        _ => None,
    }
}
