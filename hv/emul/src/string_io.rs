//! Decoding of INS and OUTS, and their iterations.
//!
//! A REP INS of a thousand bytes is a thousand iterations, each of which may fault. RCX, RSI and RDI hold the progress
//! for the guest and for the next exit. The caller gets the address of the next elements from [`StringIo::next`], moves
//! them between port and memory, and counts them by [`StringIo::retire`]. If it stops between two iterations for a
//! fault or an interrupt, the registers are as the architecture demands. It advances RIP when no iterations are left.
//!
//! ```
//! use emul::{AddressSize, Bitness, Gpr, Registers, Segment, Width, string_io};
//! # #[derive(Default)] struct Vcpu([u64; 16]);
//! # impl Registers for Vcpu {
//! #     fn gpr(&self, gpr: Gpr) -> u64 { self.0[gpr.index()] }
//! #     fn set_gpr(&mut self, gpr: Gpr, value: u64) { self.0[gpr.index()] = value }
//! #     fn rip(&self) -> u64 { 0 }
//! #     fn rflags(&self) -> u64 { 2 }
//! #     fn set_rflags(&mut self, _: u64) {}
//! #     fn segment_base(&self, _: Segment) -> u64 { 0 }
//! # }
//! # let mut vcpu = Vcpu::default();
//! let outs = string_io::decode(&[0xf3, 0x6e], Bitness::Bits64).unwrap();
//! vcpu.set_gpr(Gpr::RSI, 0x1ffe);
//! vcpu.set_gpr(Gpr::RCX, 3);
//! let mut moved = 0;
//! while let Some(elements) = outs.next(&vcpu) {
//!     // Here the caller reads `elements.count` bytes at `elements.at` and writes each to the port.
//!     moved += elements.count;
//!     outs.retire(&mut vcpu, elements.count);
//! }
//! assert_eq!((moved, vcpu.gpr(Gpr::RSI), vcpu.gpr(Gpr::RCX)), (3, 0x2001, 0));
//! ```

use crate::string_step::{Repeat, StringStep};
use crate::{AddressSize, Bitness, DecodeError, Gpr, Registers, Segment, Width, address};
use addr::Gva;
use iced_x86::{Mnemonic, OpKind};

/// The direction of a string I/O instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// INS: from the port to ES:RDI.
    In,
    /// OUTS: from memory at RSI, in DS or the segment of a prefix, to the port.
    Out(Segment),
}

/// An INS or OUTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringIo {
    direction: Direction,
    step: StringStep,
    bitness: Bitness,
    length: u64,
}

/// Consecutive elements at ascending addresses. They lie in one page, or are a single element that crosses into the
/// next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elements {
    /// The address of the first one.
    pub at: Gva,
    /// Their number, at least 1.
    pub count: u64,
}

/// Decodes an INS or OUTS.
pub fn decode(bytes: &[u8], bitness: Bitness) -> Result<StringIo, DecodeError> {
    let instruction = crate::decode(bytes, bitness)?;
    let (width, input) = match instruction.mnemonic() {
        Mnemonic::Insb => (Width::Byte, true),
        Mnemonic::Insw => (Width::Word, true),
        Mnemonic::Insd => (Width::Dword, true),
        Mnemonic::Outsb => (Width::Byte, false),
        Mnemonic::Outsw => (Width::Word, false),
        Mnemonic::Outsd => (Width::Dword, false),
        _ => return Err(DecodeError::Unexpected),
    };
    let memory = instruction.op_kind(if input { 0 } else { 1 });
    let size = match memory {
        OpKind::MemoryESDI | OpKind::MemorySegSI => AddressSize::Bits16,
        OpKind::MemoryESEDI | OpKind::MemorySegESI => AddressSize::Bits32,
        _ => AddressSize::Bits64,
    };
    let direction = if input {
        Direction::In
    } else {
        Direction::Out(Segment::of(instruction.memory_segment()).unwrap_or(Segment::Ds))
    };
    // REPNE repeats INS and OUTS as REP does.
    let rep = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    Ok(StringIo::new(direction, width, size, rep, bitness, instruction.len() as u64))
}

impl StringIo {
    /// An INS or OUTS from exit information. `length` is in bytes; `width` is not [`Width::Qword`].
    pub const fn new(
        direction: Direction,
        width: Width,
        size: AddressSize,
        rep: bool,
        bitness: Bitness,
        length: u64,
    ) -> Self {
        let repeat = if rep { Repeat::Always } else { Repeat::Once };
        Self { direction, step: StringStep { width, size, repeat }, bitness, length }
    }

    /// Its direction.
    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// The width of an element.
    pub const fn width(&self) -> Width {
        self.step.width
    }

    /// The instruction's length in bytes.
    pub const fn length(&self) -> u64 {
        self.length
    }

    const fn index(&self) -> Gpr {
        match self.direction {
            Direction::In => Gpr::RDI,
            Direction::Out(_) => Gpr::RSI,
        }
    }

    /// The segment of the elements in memory.
    pub const fn segment(&self) -> Segment {
        match self.direction {
            Direction::In => Segment::Es,
            Direction::Out(segment) => segment,
        }
    }

    /// The offset of the next element in its segment.
    pub fn offset<R: Registers + ?Sized>(&self, registers: &R) -> u64 {
        self.step.offset(registers, self.index())
    }

    /// The next elements. None if RCX is zero: the instruction is complete.
    ///
    /// Without REP there is always a next element; the instruction is complete after the first
    /// [`retire`](Self::retire).
    pub fn next<R: Registers + ?Sized>(&self, registers: &R) -> Option<Elements> {
        let offset = self.offset(registers);
        let at = address::linear(registers, self.bitness, self.segment(), offset);
        let count = self.step.batch(registers, offset, at.page_offset());
        (count > 0).then_some(Elements { at, count })
    }

    /// Advances the registers by `count` elements, at most as many as [`next`](Self::next) gave. Whether more are left.
    pub fn retire<R: Registers + ?Sized>(&self, registers: &mut R, count: u64) -> bool {
        self.step.step(registers, self.index(), count);
        self.step.count(registers, count)
    }
}
