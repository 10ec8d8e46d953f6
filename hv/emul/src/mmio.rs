//! Instructions that access memory: decoded, and carried out on a bus.
//!
//! For devices whose registers are in memory (the exit tells the guest-physical address, the instruction the rest), and
//! for guests' writes to their own page tables where those are write-protected.
//!
//! ```
//! use emul::{Bitness, Gpr, Registers, Segment, Width};
//! use emul::mmio::{self, Bus, Emulated, MemoryRef};
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
//! assert_eq!(instruction.execute(&mut vcpu, &mut Device(0x80)), Ok(Emulated::Retired));
//! assert_eq!(vcpu.gpr(Gpr::RAX), 0x80);
//! // … and RIP moves on by instruction.length().
//! ```
//!
//! Emulated are, with memory operands of up to 64 bits: MOV, MOVNTI, MOVZX, MOVSX, MOVSXD, XCHG, XADD, CMPXCHG, CMPXCHG8B,
//! ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC, DEC, NEG, NOT, BT, BTS, BTR, BTC, MOVS, STOS and LODS. Plain MOV,
//! MOVZX and MOVSX, which are nearly all that drivers use, don't go through the general decoder.

pub(crate) mod alu;
mod execute;
mod fast;
mod general;

use crate::registers::Operand;
use crate::string_step::StringStep;
use crate::{Address, Bitness, DecodeError, Gpr, Registers, Width};
use addr::Gva;
use alu::{Binary, Bit, Unary};
use iced_x86::Instruction;

/// An instruction that accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio {
    op: Op,
    /// Of the memory operand.
    width: Width,
    /// LOCK, or XCHG: memory is changed by [`Bus::compare_exchange`].
    locked: bool,
    /// The memory operand; of MOVS, the source.
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
    /// MOV and its extending forms: `to`, of width `to_width`.
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

/// Which memory is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryRef {
    /// The instruction's only memory operand: what the exit told the guest-physical address of. Who needs its linear
    /// address asks [`Mmio::linear`].
    Operand,
    /// One of MOVS's two operands, at this linear address; either may be the one that exited.
    Linear(Gva),
}

/// Memory and devices, as one vCPU sees them.
pub trait Bus {
    /// Why an access is refused.
    type Error;

    /// Reads `width` at `at`. Bits above the width are ignored.
    fn read(&mut self, at: MemoryRef, width: Width) -> Result<u64, Self::Error>;

    /// Writes `width` at `at`. Bits of `value` above the width are zero.
    fn write(&mut self, at: MemoryRef, width: Width, value: u64) -> Result<(), Self::Error>;

    /// For a locked instruction that read `old`: writes `new` if `old` is still there, and tells whether it was.
    ///
    /// As given it writes, which is right for a device that no one else can write between. Memory needs its own.
    fn compare_exchange(&mut self, at: MemoryRef, width: Width, old: u64, new: u64) -> Result<bool, Self::Error> {
        let _ = old;
        self.write(at, width, new).map(|()| true)
    }
}

/// MOV of 32 bits, which nothing else has to be known about to carry it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// To this register, whose upper half becomes zero.
    Load(Gpr),
    /// The lower half of this register.
    Store(Gpr),
    /// This value.
    StoreImmediate(u32),
}

/// How far an instruction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// It is done: RIP moves on.
    Retired,
    /// RIP stays: REP has iterations left (registers tell which), or another CPU came between a locked read and write.
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

/// The last instructions decoded, for the next exits from the same places.
///
/// Decoding is a function of the instruction's bytes and the bitness alone, so equal bytes are the same instruction wherever
/// they are. They are compared in two words, the second only for an instruction that is longer than one.
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
    /// What the instruction has of the second word, and which bits of that word are the instruction's.
    second: (u64, u64),
    bitness: Bitness,
    mmio: Mmio,
}

/// So many are kept, each in a place that its bytes choose: a driver has few.
const MEMOS: usize = 8;

/// The place: the highest bits of a product with 2⁶⁴ divided by the golden ratio (Knuth, The Art of Computer Programming,
/// section 6.4).
#[inline]
const fn memo_index(first: u64) -> usize {
    (first.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - MEMOS.trailing_zeros())) as usize
}

/// The bits of the second word that are an instruction's of `length` bytes.
const fn second_mask(length: u64) -> u64 {
    match length {
        0..=8 => 0,
        _ => u64::MAX >> (8 * (16 - length)),
    }
}

impl Memo {
    /// Nothing decoded yet.
    pub const fn new() -> Self {
        Self([None; MEMOS])
    }

    /// The instruction that begins with `first` (the eight bytes at RIP, the lowest first) and goes on with `second` (the next
    /// eight; None if they can't be had), if it is among the last decoded.
    #[inline]
    pub fn get(&self, first: u64, second: impl FnOnce() -> Option<u64>, bitness: Bitness) -> Option<&Mmio> {
        let known = self.0[memo_index(first)].as_ref()?;
        if known.first != first || known.bitness != bitness {
            return None;
        }
        let (rest, mask) = known.second;
        (mask == 0 || second()? & mask == rest).then_some(&known.mmio)
    }

    /// As the function [`decode`], and kept for [`get`](Self::get).
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

/// Checks that the short path says nothing or what the general decoder says; whether it said something.
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

    /// The instruction, if it is one of those by which nearly all registers of devices are accessed.
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

    /// Whether it names memory by linear addresses of its own ([`MemoryRef::Linear`]), as MOVS does.
    #[inline]
    pub const fn is_linear(&self) -> bool {
        matches!(self.op, Op::Movs(_))
    }

    /// The width of the memory operand.
    #[inline]
    pub const fn width(&self) -> Width {
        self.width
    }

    /// The linear address of the memory operand (of MOVS, the source) that the next [`execute`](Self::execute) accesses.
    pub fn linear<R: Registers>(&self, registers: &R) -> Gva {
        let bytes = match self.op {
            // A bit offset in a register reaches beyond the operand, both ways.
            Op::Bit(_, Source::Register(from)) => {
                let offset = self.width.sign_extend(from.get(registers, self.width));
                (offset.cast_signed() >> 3).cast_unsigned() & !(self.width.bytes() - 1)
            }
            _ => 0,
        };
        self.address.displaced(registers, bytes)
    }
}
