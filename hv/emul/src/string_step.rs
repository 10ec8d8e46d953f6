//! Iterations of string instructions: index and count registers (SDM vol. 2, REP).

use crate::{AddressSize, Gpr, Registers, Width, registers::Operand};

/// RFLAGS.DF: downwards.
const DF: u64 = 1 << 10;

/// How a string instruction steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StringStep {
    /// Bytes of an element.
    pub(crate) width: Width,
    /// Which parts of RSI, RDI and RCX are used.
    pub(crate) size: AddressSize,
    /// A REP prefix: RCX counts.
    pub(crate) rep: bool,
}

impl StringStep {
    const fn register_width(&self) -> Width {
        match self.size {
            AddressSize::Bits16 => Width::Word,
            AddressSize::Bits32 => Width::Dword,
            AddressSize::Bits64 => Width::Qword,
        }
    }

    /// How many iterations are left: RCX, or 1 without REP.
    pub(crate) fn remaining<R: Registers>(&self, registers: &R) -> u64 {
        if self.rep { registers.gpr(Gpr::RCX) & self.size.mask() } else { 1 }
    }

    /// The offset that an index register holds.
    pub(crate) fn offset<R: Registers>(&self, registers: &R, index: Gpr) -> u64 {
        registers.gpr(index) & self.size.mask()
    }

    /// Moves an index register `count` elements on, or back with DF.
    pub(crate) fn step<R: Registers>(&self, registers: &mut R, index: Gpr, count: u64) {
        let bytes = count.wrapping_mul(self.width.bytes());
        let old = registers.gpr(index);
        let new = if registers.rflags() & DF == 0 { old.wrapping_add(bytes) } else { old.wrapping_sub(bytes) };
        Operand::new(index).set(registers, self.register_width(), new);
    }

    /// Counts `count` iterations done; whether others are left.
    pub(crate) fn count<R: Registers>(&self, registers: &mut R, count: u64) -> bool {
        if !self.rep {
            return false;
        }
        let left = self.remaining(registers).wrapping_sub(count);
        Operand::new(Gpr::RCX).set(registers, self.register_width(), left);
        left & self.size.mask() != 0
    }

    /// How many of the remaining iterations have their element at `offset` and on wholly within the 4 KiB page that the
    /// first one's begins in, upwards; at least 1 if any remain. Downwards, 1.
    pub(crate) fn batch<R: Registers>(&self, registers: &R, offset: u64, page_offset: u64) -> u64 {
        let remaining = self.remaining(registers);
        if registers.rflags() & DF != 0 {
            return remaining.min(1);
        }
        // Neither the page's end nor the wrap of the address is passed.
        let room = (addr::PAGE_SIZE - page_offset).min((self.size.mask() - offset).saturating_add(1));
        remaining.min((room / self.width.bytes()).max(1))
    }
}
