//! Decoding of instructions that access memory, and their execution on a bus.
//!
//! Used for memory-mapped devices (the exit gives the guest-physical address only, the rest comes from the
//! instruction), and for guests' writes to their own page tables where these are write-protected.
//!
//! ```
//! use addr::Gva;
//! use emul::{Bitness, Gpr, Memory, Registers, Segment};
//! use emul::mmio::{self, Executed};
//! # #[derive(Default)] struct Vcpu([u64; 16]);
//! # impl Registers for Vcpu {
//! #     fn gpr(&self, gpr: Gpr) -> u64 { self.0[gpr.index()] }
//! #     fn set_gpr(&mut self, gpr: Gpr, value: u64) { self.0[gpr.index()] = value }
//! #     fn rip(&self) -> u64 { 0 }
//! #     fn rflags(&self) -> u64 { 2 }
//! #     fn set_rflags(&mut self, _: u64) {}
//! #     fn segment_base(&self, _: Segment) -> u64 { 0 }
//! # }
//! /// A device with one register of a byte.
//! struct Device(u8);
//! impl Memory for Device {
//!     type Error = ();
//!     fn read(&mut self, _: Gva, bytes: &mut [u8]) -> Result<(), ()> { bytes.fill(self.0); Ok(()) }
//!     fn write(&mut self, _: Gva, bytes: &[u8]) -> Result<(), ()> { self.0 = bytes[0]; Ok(()) }
//! }
//! # let mut vcpu = Vcpu::default();
//! // movzx eax, byte ptr [rdi]
//! let instruction = mmio::decode(&[0x0f, 0xb6, 0x07], Bitness::Bits64).unwrap();
//! assert_eq!(instruction.execute(&mut vcpu, &mut Device(0x80)), Ok(Executed::Retired));
//! assert_eq!(vcpu.gpr(Gpr::RAX), 0x80);
//! // The caller then advances RIP by instruction.length().
//! ```
//!
//! These instructions are emulated, with memory operands of up to 64 bits: MOV, MOVNTI, MOVZX, MOVSX, MOVSXD, XCHG,
//! XADD, CMPXCHG, CMPXCHG8B, ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC, DEC, NEG, NOT, BT, BTS, BTR, BTC, SETcc,
//! MOVS, STOS, LODS, CMPS and SCAS. MOV, MOVZX and MOVSX, which drivers use nearly exclusively, have a short decoder of their own.
//! Any other instruction is the [interpreter](crate::interpreter)'s.

pub(crate) mod alu;
mod execute;
mod fast;
mod general;

use crate::registers::Operand;
use crate::segmentation::Kind;
use crate::string_step::StringStep;
use crate::{Address, Bitness, DecodeError, Gpr, Registers, Segment, Width, address};
use addr::Gva;
use alu::{Binary, Bit, Unary};
use iced_x86::Instruction;

/// An instruction that accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio {
    op: Op,
    /// The width of the memory operand.
    width: Width,
    /// A LOCK prefix, or XCHG: memory is changed by [`Memory::compare_exchange`](crate::Memory::compare_exchange).
    locked: bool,
    /// The memory operand; for MOVS and CMPS that at RSI.
    address: Address,
    length: u64,
}

/// The operand that is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Register(Operand),
    Immediate(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    /// MOV, MOVZX, MOVSX: a load to `to`, of width `to_width`.
    Load {
        to: Operand,
        to_width: Width,
        signed: bool,
    },
    Store(Source),
    BinaryToMemory(Binary, Source),
    BinaryToRegister(Binary, Operand),
    Unary(Unary),
    Bit(Bit, Source),
    Exchange(Operand),
    ExchangeAdd(Operand),
    CompareExchange(Operand),
    CompareExchange8b,
    Lods(StringStep),
    Stos(StringStep),
    Movs(StringStep),
    Cmps(StringStep),
    Scas(StringStep),
}

/// A MOV of 32 bits, which a caller can execute itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// Loads this register; its upper half becomes zero.
    Load(Gpr),
    /// Stores the lower half of this register.
    Store(Gpr),
    /// Stores this value.
    StoreImmediate(u32),
}

/// A memory operand of an instruction, as its segment register checks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOperand {
    /// The segment.
    pub segment: Segment,
    /// The offset in it.
    pub offset: u64,
    /// What is done.
    pub kind: Kind,
}

/// The operands of one instruction, in the order of their accesses.
pub type Operands = [Option<MemoryOperand>; 2];

/// The result of an emulation step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executed {
    /// The instruction is complete: the caller advances RIP.
    Retired,
    /// One iteration is complete, and RIP stays: others are left (RCX holds their number).
    Iterated,
    /// Nothing was done, and RIP stays: another CPU wrote memory between the read and the write of a locked instruction.
    Again,
}

/// Decodes an instruction that accesses memory. [`DecodeError::Unexpected`] for one that isn't emulated.
pub fn decode(bytes: &[u8], bitness: Bitness) -> Result<Mmio, DecodeError> {
    match fast::decode(bytes, bitness) {
        Some(mmio) => Ok(mmio),
        None => general::decode(bytes, bitness),
    }
}

/// As [`decode`]; None for one that isn't emulated.
pub(crate) fn of_instruction(instruction: &Instruction, bitness: Bitness) -> Option<Mmio> {
    general::of(instruction, bitness)
}

/// A cache of decoded instructions, for later exits of the same instructions.
///
/// Decoding depends on the instruction's bytes and the bitness alone, so equal bytes are the same instruction at any
/// address. The bytes are compared in two words; the second word only if the instruction is longer than one.
///
/// ```
/// use emul::{Bitness::Bits64, mmio::{Memo, decode}};
/// // mov dword ptr [0xfee00300], 0x40050
/// let code = [0xc7, 0x04, 0x25, 0x00, 0x03, 0xe0, 0xfe, 0x50, 0x00, 0x04, 0x00, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc];
/// let (words, _) = code.as_chunks();
/// let [first, second] = [0, 1].map(|n: usize| u64::from_le_bytes(words[n]));
/// let mut memo = Memo::new();
/// assert_eq!(memo.get(first, || Some(second), Bits64), None);
/// let decoded = memo.decode(&code, Bits64).unwrap();
/// assert_eq!(memo.get(first, || Some(second), Bits64), Some(&decoded));
/// assert_eq!(memo.get(first, || Some(second ^ 1), Bits64), None);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Memo([Option<MemoEntry>; MEMOS]);

#[derive(Clone, Copy, Debug)]
struct MemoEntry {
    first: u64,
    /// The instruction's part of the second word, and the mask of that part.
    second: (u64, u64),
    bitness: Bitness,
    mmio: Mmio,
}

/// The number of instructions kept. Drivers use few.
const MEMOS: usize = 8;

/// The index for an instruction by its first bytes: multiplicative hashing with 2⁶⁴ divided by the golden ratio (Knuth,
/// The Art of Computer Programming, section 6.4).
#[inline]
const fn memo_index(first: u64) -> usize {
    (first.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - MEMOS.trailing_zeros())) as usize
}

/// The bits of the second word that belong to an instruction of `length` bytes.
const fn second_mask(length: u64) -> u64 {
    match length {
        0..=8 => 0,
        _ => u64::MAX >> (8 * (16 - length)),
    }
}

impl Memo {
    /// An empty cache.
    pub const fn new() -> Self {
        Self([None; MEMOS])
    }

    /// The decoded instruction of the bytes `first` (eight bytes at RIP, little-endian) and `second` (the next eight;
    /// None if they can't be fetched), if it is in the cache.
    #[inline]
    pub fn get(&self, first: u64, second: impl FnOnce() -> Option<u64>, bitness: Bitness) -> Option<&Mmio> {
        let known = self.0[memo_index(first)].as_ref()?;
        if known.first != first || known.bitness != bitness {
            return None;
        }
        let (rest, mask) = known.second;
        (mask == 0 || second()? & mask == rest).then_some(&known.mmio)
    }

    /// As the function [`decode`]; keeps the result for [`get`](Self::get).
    #[cold]
    pub fn decode(&mut self, bytes: &[u8], bitness: Bitness) -> Result<Mmio, DecodeError> {
        let mmio = decode(bytes, bitness)?;
        if let Some((first, rest)) = bytes.split_first_chunk() {
            let first = u64::from_le_bytes(*first);
            let rest = rest.iter().take(8).rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
            let mask = second_mask(mmio.length);
            self.0[memo_index(first)] = Some(MemoEntry { first, second: (rest & mask, mask), bitness, mmio });
        }
        Ok(mmio)
    }
}

/// Checks that the short decoder, if it knows the instruction, agrees with the general one. Whether it knows it.
#[cfg(any(test, fuzzing))]
pub(crate) fn same_on_both_paths(bytes: &[u8], bitness: Bitness) -> bool {
    let short = fast::decode(bytes, bitness);
    if let Some(short) = short {
        assert_eq!(general::decode(bytes, bitness), Ok(short), "{bytes:x?} as {bitness:?}");
    }
    short.is_some()
}

impl Mmio {
    /// The instruction's length in bytes.
    #[inline]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// The instruction, if it is a MOV of 32 bits. Drivers access nearly all device registers by these.
    #[inline]
    pub const fn plain(&self) -> Option<Plain> {
        match self.op {
            _ if !matches!(self.width, Width::Dword) => None,
            Op::Load { to, to_width: Width::Dword, .. } => Some(Plain::Load(to.gpr())),
            Op::Store(Source::Register(from)) => Some(Plain::Store(from.gpr())),
            Op::Store(Source::Immediate(value)) => Some(Plain::StoreImmediate(value as u32)),
            _ => None,
        }
    }

    /// What the processor checks before the next [`execute`](Self::execute) accesses memory. None of a repeated instruction that has no
    /// iteration left.
    #[inline]
    pub fn operands<R: Registers + ?Sized>(&self, registers: &R) -> Option<Operands> {
        let operand = |kind| MemoryOperand { segment: self.address.segment, offset: self.offset(registers), kind };
        let at_rdi = |step: StringStep, kind| {
            Some(MemoryOperand { segment: Segment::Es, offset: step.offset(registers, Gpr::RDI), kind })
        };
        let one = |kind| Some([Some(operand(kind)), None]);
        match self.op {
            Op::Lods(step) | Op::Stos(step) | Op::Movs(step) | Op::Cmps(step) | Op::Scas(step)
                if step.remaining(registers) == 0 =>
            {
                None
            }
            Op::Movs(step) => Some([Some(operand(Kind::Read)), at_rdi(step, Kind::Write)]),
            Op::Cmps(step) => Some([Some(operand(Kind::Read)), at_rdi(step, Kind::Read)]),
            Op::Load { .. } | Op::BinaryToRegister(..) | Op::Lods(_) | Op::Scas(_) => one(Kind::Read),
            Op::BinaryToMemory(op, _) if !op.stores() => one(Kind::Read),
            Op::Bit(op, _) if !op.stores() => one(Kind::Read),
            _ => one(Kind::Write),
        }
    }

    /// Whether it has two operands in memory. Either may be the one that exited, and the processor may not have come to the other.
    #[inline]
    pub const fn has_two_operands(&self) -> bool {
        matches!(self.op, Op::Movs(_) | Op::Cmps(_))
    }

    /// The width of the memory operand.
    #[inline]
    pub const fn width(&self) -> Width {
        self.width
    }

    /// The linear address of the memory operand (for MOVS and CMPS that at RSI) that the next [`execute`](Self::execute)
    /// accesses.
    pub fn linear<R: Registers + ?Sized>(&self, registers: &R) -> Gva {
        address::linear(registers, self.address.bitness, self.address.segment, self.offset(registers))
    }

    /// The operand's offset in its segment, which wraps at the address size.
    fn offset<R: Registers + ?Sized>(&self, registers: &R) -> u64 {
        let bytes = match self.op {
            // A bit offset in a register selects a word before or after the operand.
            Op::Bit(_, Source::Register(from)) => {
                let offset = self.width.sign_extend(from.get(registers, self.width));
                (offset.cast_signed() >> 3).cast_unsigned() & !(self.width.bytes() - 1)
            }
            _ => 0,
        };
        self.address.offset(registers).wrapping_add(bytes) & self.address.size.mask()
    }
}
