//! INS and OUTS: what their exits don't tell, and their iterations.
//!
//! A REP INS of a thousand bytes is a thousand iterations, each of which may fault on its own; RCX, RSI and RDI tell the
//! guest (and the next exit) how far it came. So: ask [`StringIo::next`] where the next elements are, move them between
//! port and memory, tell [`StringIo::retire`] how many were moved. A fault between leaves the registers as the
//! architecture says; so does an interrupt. RIP moves on only when nothing is left.
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
//!     // … read `elements.count` bytes at `elements.at`, write each to the port …
//!     moved += elements.count;
//!     outs.retire(&mut vcpu, elements.count);
//! }
//! assert_eq!((moved, vcpu.gpr(Gpr::RSI), vcpu.gpr(Gpr::RCX)), (3, 0x2001, 0));
//! ```

use crate::string_step::StringStep;
use crate::{AddressSize, Bitness, DecodeError, Gpr, Registers, Segment, Width, address};
use addr::Gva;
use iced_x86::{Mnemonic, OpKind};

/// Which way a string I/O instruction moves.
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

/// Elements next to each other, upwards, in one page (but the first may reach into the next one).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elements {
    /// Where the first one is.
    pub at: Gva,
    /// How many there are, at least 1.
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
    /// An INS or OUTS as exit information tells it: of `length` bytes; `width` is not [`Width::Qword`].
    pub const fn new(
        direction: Direction,
        width: Width,
        size: AddressSize,
        rep: bool,
        bitness: Bitness,
        length: u64,
    ) -> Self {
        Self { direction, step: StringStep { width, size, rep }, bitness, length }
    }

    /// Which way it moves.
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

    /// Where the next elements are; None when RCX has run out: the instruction is done.
    ///
    /// Without REP there is always a next one: it is done after the first [`retire`](Self::retire).
    pub fn next<R: Registers>(&self, registers: &R) -> Option<Elements> {
        let segment = match self.direction {
            Direction::In => Segment::Es,
            Direction::Out(segment) => segment,
        };
        let offset = self.step.offset(registers, self.index());
        let at = address::linear(registers, self.bitness, segment, offset);
        let count = self.step.batch(registers, offset, at.page_offset());
        (count > 0).then_some(Elements { at, count })
    }

    /// Moves the registers past `count` elements, at most as many as [`next`](Self::next) gave; whether more are left.
    pub fn retire<R: Registers>(&self, registers: &mut R, count: u64) -> bool {
        self.step.step(registers, self.index(), count);
        self.step.count(registers, count)
    }
}
