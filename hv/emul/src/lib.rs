//! Decoding and emulation of instructions that exited.
//!
//! Next-RIP save and decode assists make much of this unnecessary, but QEMU's SVM has neither, and no processor
//! describes the operation of an instruction that accesses a memory-mapped device. The guest controls the instruction's
//! bytes, so all of this is safe code that accepts any bytes; results depend on the bytes and the registers only.
//!
//! * [`Known`]: the length of an instruction with few encodings, by comparing four fetched bytes.
//! * [`length`]: the length of any instruction.
//! * [`string_io`]: INS and OUTS, decoded and stepped by iterations.
//! * [`system`]: moves to and from control and debug registers, LMSW, SMSW, CLTS, INVLPG.
//! * [`mmio`]: the instructions that drivers access devices by, decoded once and executed on [`Memory`].
//! * [`segmentation`]: the checks of an operand before its linear address is used.
//! * [`interpreter`]: nearly all others on memory, and real mode for processors that can't run guests in it.
//!
//! The general decoder is iced-x86. It allocates its tables on the heap at its first use: call [`warm_up`] at boot.
//!
//! ```
//! use emul::{Bitness, Known, length};
//! // CPUID exited, and the hypervisor fetched the bytes at RIP.
//! assert_eq!(Known::Cpuid.length(u32::from_le_bytes([0x0f, 0xa2, 0x90, 0x90])), Some(2));
//! // The comparison does not cover redundant prefixes; the decoder does.
//! let bytes = [0x66, 0x0f, 0xa2, 0x90];
//! assert_eq!(Known::Cpuid.length(u32::from_le_bytes(bytes)), None);
//! assert_eq!(Known::Cpuid.decode(&bytes, Bitness::Bits64), Ok(3));
//! assert_eq!(length(&[0x48, 0x8b, 0x45, 0xf8], Bitness::Bits64), Ok(4));
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, fuzzing))]
extern crate std;

mod address;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod interpreter;
mod known;
mod memory;
pub mod mmio;
pub mod registers;
pub mod segmentation;
pub mod string_io;
mod string_step;
pub mod system;

pub use address::{Address, AddressSize, Base};
pub use known::Known;
pub use memory::Memory;
pub use registers::{Gpr, Registers, Segment, SegmentRegister};

use arch::MAX_INSTRUCTION;
use core::fmt;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic};

/// The code size, from CS.L and CS.D and the processor's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bitness {
    /// Real mode, virtual-8086 mode, and segments with D = 0.
    Bits16,
    /// Segments with D = 1, in protected mode and in compatibility mode.
    Bits32,
    /// 64-bit mode: long mode with L = 1.
    Bits64,
}

impl Bitness {
    const fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }

    /// RIP after an instruction of `length` bytes. EIP wraps at 32 bits.
    #[inline]
    pub const fn advance(self, rip: u64, length: u64) -> u64 {
        let next = rip.wrapping_add(length);
        match self {
            Self::Bits64 => next,
            Self::Bits16 | Self::Bits32 => next & 0xffff_ffff,
        }
    }
}

/// The width of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

impl Width {
    /// The width in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self as u32
    }

    /// The width in bits.
    #[inline]
    pub const fn bits(self) -> u32 {
        8 << self as u32
    }

    /// A mask of the bits of the width.
    #[inline]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The width for `bytes` bytes: 1, 2, 4 or 8.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// `value`, of this width, sign-extended to 64 bits.
    #[inline]
    pub const fn sign_extend(self, value: u64) -> u64 {
        let unused = 64 - self.bits();
        ((value << unused).cast_signed() >> unused).cast_unsigned()
    }
}

/// Why bytes can't be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The instruction is longer than the bytes given: the guest gets the fault that ended the fetch.
    Truncated,
    /// The bytes are no valid instruction: the guest gets #UD.
    Invalid,
    /// The bytes are another instruction than expected. Either another vCPU changed the code between the exit and the
    /// fetch, or (for [`mmio`]) the instruction is not emulated.
    Unexpected,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the instruction is longer than its bytes",
            Self::Invalid => "no valid instruction",
            Self::Unexpected => "another instruction than expected",
        })
    }
}

impl core::error::Error for DecodeError {}

/// The name of an instruction: its mnemonic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionName(Mnemonic);

impl InstructionName {
    /// That of the instruction that `bytes` begin with.
    pub fn new(bytes: &[u8], bitness: Bitness) -> Self {
        Self(decode(bytes, bitness).map_or(Mnemonic::INVALID, |instruction| instruction.mnemonic()))
    }
}

impl fmt::Display for InstructionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The length in bytes of the instruction that `bytes` begin with.
pub fn length(bytes: &[u8], bitness: Bitness) -> Result<u64, DecodeError> {
    decode(bytes, bitness).map(|instruction| instruction.len() as u64)
}

/// The vector of an INT n, INT3 or INTO, whose gate is for the privilege of the code; none of an INT1, whose gate is for all.
///
/// # Errors
/// [`DecodeError::Unexpected`] for another instruction.
pub fn software_interrupt(bytes: &[u8], bitness: Bitness) -> Result<Option<u8>, DecodeError> {
    let instruction = decode(bytes, bitness)?;
    match instruction.mnemonic() {
        Mnemonic::Int => Ok(Some(instruction.immediate8())),
        Mnemonic::Int3 => Ok(Some(3)),
        Mnemonic::Into => Ok(Some(4)),
        Mnemonic::Int1 => Ok(None),
        _ => Err(DecodeError::Unexpected),
    }
}

/// Decodes an instruction, so that the decoder allocates its tables now and not during an exit.
pub fn warm_up() {
    let nop = length(&[0x90], Bitness::Bits64);
    debug_assert_eq!(nop, Ok(1));
}

/// Decodes as if the instruction were at address 0.
fn decode(bytes: &[u8], bitness: Bitness) -> Result<Instruction, DecodeError> {
    let bytes = &bytes[..bytes.len().min(MAX_INSTRUCTION)];
    let mut decoder = Decoder::with_ip(bitness.bits(), bytes, 0, DecoderOptions::NONE);
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => Ok(instruction),
        DecoderError::NoMoreBytes if bytes.len() < MAX_INSTRUCTION => Err(DecodeError::Truncated),
        _ => Err(DecodeError::Invalid),
    }
}

#[cfg(test)]
mod tests;
