//! Decoding of instructions that access memory, and their execution on a bus.
//!
//! Used for memory-mapped devices (the exit gives the guest-physical address only, the rest comes from the
//! instruction), and for guests' writes to their own page tables where these are write-protected.
//!
//! ```
//! use emul::{Bitness, Gpr, Registers, Segment, Width};
//! use emul::mmio::{self, Bus, Executed, MemoryRef};
//! # #[derive(Default)] struct Vcpu([u64; 16]);
//! # impl Registers for Vcpu {
//! #     fn gpr(&self, gpr: Gpr) -> u64 { self.0[gpr.index()] }
//! #     fn set_gpr(&mut self, gpr: Gpr, value: u64) { self.0[gpr.index()] = value }
//! #     fn rip(&self) -> u64 { 0 }
//! #     fn rflags(&self) -> u64 { 2 }
//! #     fn set_rflags(&mut self, _: u64) {}
//! #     fn segment_base(&self, _: Segment) -> u64 { 0 }
//! # }
//! /// A device with one register, at the address of the exit.
//! struct Device(u64);
//! impl Bus for Device {
//!     type Error = ();
//!     fn read(&mut self, _: MemoryRef, _: Width) -> Result<u64, ()> { Ok(self.0) }
//!     fn write(&mut self, _: MemoryRef, _: Width, value: u64) -> Result<(), ()> { self.0 = value; Ok(()) }
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
//! MOVS, STOS and LODS. MOV, MOVZX and MOVSX, which drivers use nearly exclusively, have a short decoder of their own.

pub(crate) mod alu;
mod execute;
mod fast;
mod general;

use crate::registers::Operand;
use crate::segmentation::Kind;
use crate::string_step::StringStep;
use crate::{Address, Bitness, DecodeError, Gpr, Registers, Segment, Width};
use addr::Gva;
use alu::{Binary, Bit, Unary};
use iced_x86::Instruction;

/// An instruction that accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio {
    op: Op,
    /// The width of the memory operand.
    width: Width,
    /// A LOCK prefix, or XCHG: memory is changed by [`Bus::compare_exchange`].
    locked: bool,
    /// The memory operand; for MOVS the source.
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
}

/// The memory that an access of an instruction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryRef {
    /// The instruction's only memory operand, whose guest-physical address the exit gives. [`Mmio::linear`] gives its
    /// linear address.
    Operand,
    /// An operand of MOVS, at this linear address. Either of the two may be the one that exited.
    Linear(Gva),
}

/// The memory and devices that one vCPU accesses.
pub trait Bus {
    /// The reason of a refused access.
    type Error;

    /// Reads a value of `width` at `at`. Bits above the width are ignored.
    fn read(&mut self, at: MemoryRef, width: Width) -> Result<u64, Self::Error>;

    /// Writes a value of `width` at `at`. Bits of `value` above the width are zero.
    fn write(&mut self, at: MemoryRef, width: Width, value: u64) -> Result<(), Self::Error>;

    /// Writes `new` if the memory still holds `old`, and tells whether it did. Locked instructions use this.
    ///
    /// The default implementation always writes, which is right for a device that no other vCPU can write between the
    /// read and the write. Memory needs its own implementation.
    fn compare_exchange(&mut self, at: MemoryRef, width: Width, old: u64, new: u64) -> Result<bool, Self::Error> {
        let _ = old;
        self.write(at, width, new).map(|()| true)
    }
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

    /// Whether it accesses memory by [`MemoryRef::Linear`], as MOVS does.
    #[inline]
    pub const fn is_linear(&self) -> bool {
        matches!(self.op, Op::Movs(_))
    }

    /// The operands of the next iteration of MOVS: segment, offset, and what is done. Either may be the one that exited, and the
    /// processor may not have come to the other. None of another instruction, or when no iteration is left.
    #[inline]
    pub fn moved<R: Registers>(&self, registers: &R) -> Option<[(Segment, u64, Kind); 2]> {
        let Op::Movs(step) = self.op else { return None };
        (step.remaining(registers) > 0).then(|| {
            [
                (self.address.segment, self.address.offset(registers), Kind::Read),
                (Segment::Es, step.offset(registers, Gpr::RDI), Kind::Write),
            ]
        })
    }

    /// The width of the memory operand.
    #[inline]
    pub const fn width(&self) -> Width {
        self.width
    }

    /// The linear address of the memory operand (for MOVS the source) that the next [`execute`](Self::execute)
    /// accesses.
    pub fn linear<R: Registers>(&self, registers: &R) -> Gva {
        let bytes = match self.op {
            // A bit offset in a register selects a word before or after the operand.
            Op::Bit(_, Source::Register(from)) => {
                let offset = self.width.sign_extend(from.get(registers, self.width));
                (offset.cast_signed() >> 3).cast_unsigned() & !(self.width.bytes() - 1)
            }
            _ => 0,
        };
        self.address.displaced(registers, bytes)
    }
}
