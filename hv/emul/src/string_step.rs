//! Iterations of string instructions: index and count registers (SDM vol. 2, REP).

use crate::{AddressSize, Gpr, Registers, Width, registers::Operand};
use arch::RFLAGS_DF;

/// The parameters of a string instruction's iterations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StringStep {
    /// The width of an element.
    pub(crate) width: Width,
    /// The width of RSI, RDI and RCX that is used.
    pub(crate) size: AddressSize,
    /// There is a REP prefix, and RCX is the count.
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

    /// The number of iterations left: RCX, or 1 without REP.
    pub(crate) fn remaining<R: Registers>(&self, registers: &R) -> u64 {
        if self.rep { registers.gpr(Gpr::RCX) & self.size.mask() } else { 1 }
    }

    /// The offset that an index register holds.
    pub(crate) fn offset<R: Registers>(&self, registers: &R, index: Gpr) -> u64 {
        registers.gpr(index) & self.size.mask()
    }

    /// Advances an index register by `count` elements, backwards with DF.
    pub(crate) fn step<R: Registers>(&self, registers: &mut R, index: Gpr, count: u64) {
        let bytes = count.wrapping_mul(self.width.bytes());
        let old = registers.gpr(index);
        let new = if registers.rflags() & RFLAGS_DF == 0 { old.wrapping_add(bytes) } else { old.wrapping_sub(bytes) };
        Operand::new(index).set(registers, self.register_width(), new);
    }

    /// Subtracts `count` iterations from RCX. Whether others are left.
    pub(crate) fn count<R: Registers>(&self, registers: &mut R, count: u64) -> bool {
        if !self.rep {
            return false;
        }
        let left = self.remaining(registers).wrapping_sub(count);
        Operand::new(Gpr::RCX).set(registers, self.register_width(), left);
        left & self.size.mask() != 0
    }

    /// The number of the remaining iterations whose elements, from `offset` on, lie wholly in the 4 KiB page of the
    /// first one; at least 1 if any remain. At most 1 if addresses descend.
    pub(crate) fn batch<R: Registers>(&self, registers: &R, offset: u64, page_offset: u64) -> u64 {
        let remaining = self.remaining(registers);
        if registers.rflags() & RFLAGS_DF != 0 {
            return remaining.min(1);
        }
        // The batch ends before the end of the page and before the wrap of the address.
        let room = (addr::PAGE_SIZE - page_offset).min((self.size.mask() - offset).saturating_add(1));
        remaining.min((room / self.width.bytes()).max(1))
    }
}
