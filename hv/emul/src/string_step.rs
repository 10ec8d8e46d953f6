//! Iterations of string instructions: index and count registers (SDM vol. 2, REP).

use crate::{AddressSize, Gpr, Registers, Width, registers::Operand};
use arch::{RFLAGS_DF, RFLAGS_ZF};

/// How often a string instruction is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Without a prefix.
    Once,
    /// REP, and REPNE where nothing is compared: RCX is the count.
    Always,
    /// REPE (`zero`) and REPNE: the same, but while ZF is so.
    While {
        /// ZF.
        zero: bool,
    },
}

/// The parameters of a string instruction's iterations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StringStep {
    /// The width of an element.
    pub(crate) width: Width,
    /// The width of RSI, RDI and RCX that is used.
    pub(crate) size: AddressSize,
    /// Its prefix.
    pub(crate) repeat: Repeat,
}

impl StringStep {
    const fn register_width(&self) -> Width {
        match self.size {
            AddressSize::Bits16 => Width::Word,
            AddressSize::Bits32 => Width::Dword,
            AddressSize::Bits64 => Width::Qword,
        }
    }

    /// The number of iterations left: RCX, or 1 without a prefix.
    pub(crate) fn remaining<R: Registers + ?Sized>(&self, registers: &R) -> u64 {
        match self.repeat {
            Repeat::Once => 1,
            Repeat::Always | Repeat::While { .. } => registers.gpr(Gpr::RCX) & self.size.mask(),
        }
    }

    /// The offset that an index register holds.
    pub(crate) fn offset<R: Registers + ?Sized>(&self, registers: &R, index: Gpr) -> u64 {
        registers.gpr(index) & self.size.mask()
    }

    /// Advances an index register by `count` elements, backwards with DF.
    pub(crate) fn step<R: Registers + ?Sized>(&self, registers: &mut R, index: Gpr, count: u64) {
        let bytes = count.wrapping_mul(self.width.bytes());
        let old = registers.gpr(index);
        let new = if registers.rflags() & RFLAGS_DF == 0 { old.wrapping_add(bytes) } else { old.wrapping_sub(bytes) };
        Operand::new(index).set(registers, self.register_width(), new);
    }

    /// Subtracts `count` iterations from RCX. Whether others are left.
    pub(crate) fn count<R: Registers + ?Sized>(&self, registers: &mut R, count: u64) -> bool {
        if self.repeat == Repeat::Once {
            return false;
        }
        let left = self.remaining(registers).wrapping_sub(count);
        Operand::new(Gpr::RCX).set(registers, self.register_width(), left);
        let ends = matches!(self.repeat, Repeat::While { zero } if zero != (registers.rflags() & RFLAGS_ZF != 0));
        left & self.size.mask() != 0 && !ends
    }

    /// The number of the remaining iterations whose elements, from `offset` on, lie wholly in the 4 KiB page of the
    /// first one; at least 1 if any remain. At most 1 if addresses descend.
    pub(crate) fn batch<R: Registers + ?Sized>(&self, registers: &R, offset: u64, page_offset: u64) -> u64 {
        let remaining = self.remaining(registers);
        if registers.rflags() & RFLAGS_DF != 0 {
            return remaining.min(1);
        }
        // The batch ends before the end of the page and before the wrap of the address.
        let room = (addr::PAGE_SIZE - page_offset).min((self.size.mask() - offset).saturating_add(1));
        remaining.min((room / self.width.bytes()).max(1))
    }
}
