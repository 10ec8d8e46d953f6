//! Results and flags.

use crate::Width;

pub(super) const CF: u64 = 1 << 0;
pub(super) const PF: u64 = 1 << 2;
pub(super) const AF: u64 = 1 << 4;
pub(super) const ZF: u64 = 1 << 6;
pub(super) const SF: u64 = 1 << 7;
pub(super) const OF: u64 = 1 << 11;
const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// Instructions with two operands. CMP and TEST keep only the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
    Test,
}

/// Instructions with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Inc,
    Dec,
    Not,
    Neg,
}

/// Instructions on one bit. BT keeps only CF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bit {
    Test,
    Set,
    Reset,
    Complement,
}

/// A result, of the operands' width, and RFLAGS after it.
pub(super) type Computed = (u64, u64);

fn flag(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// PF, ZF and SF of a result.
fn of_result(width: Width, result: u64) -> u64 {
    flag((result as u8).count_ones().is_multiple_of(2), PF)
        | flag(result == 0, ZF)
        | flag(result >> (width.bits() - 1) & 1 == 1, SF)
}

fn add(width: Width, a: u64, b: u64, carry: u64, rflags: u64) -> Computed {
    let sum = u128::from(a) + u128::from(b) + u128::from(carry);
    let result = sum as u64 & width.mask();
    let flags = of_result(width, result)
        | flag(sum >> width.bits() != 0, CF)
        | flag((a ^ b ^ result) & 0x10 != 0, AF)
        | flag(((a ^ result) & (b ^ result)) >> (width.bits() - 1) & 1 == 1, OF);
    (result, (rflags & !ARITHMETIC) | flags)
}

fn sub(width: Width, a: u64, b: u64, borrow: u64, rflags: u64) -> Computed {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & width.mask();
    let flags = of_result(width, result)
        | flag(u128::from(a) < u128::from(b) + u128::from(borrow), CF)
        | flag((a ^ b ^ result) & 0x10 != 0, AF)
        | flag(((a ^ b) & (a ^ result)) >> (width.bits() - 1) & 1 == 1, OF);
    (result, (rflags & !ARITHMETIC) | flags)
}

/// CF and OF are cleared; so is AF, which the manuals leave undefined.
fn logic(width: Width, result: u64, rflags: u64) -> Computed {
    (result, (rflags & !ARITHMETIC) | of_result(width, result))
}

impl Binary {
    /// Whether the result is stored.
    pub(super) const fn stores(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test)
    }

    /// `a op b`, both of `width`.
    pub(super) fn compute(self, width: Width, a: u64, b: u64, rflags: u64) -> Computed {
        let carry = rflags & CF;
        match self {
            Self::Add => add(width, a, b, 0, rflags),
            Self::Adc => add(width, a, b, carry, rflags),
            Self::Sub | Self::Cmp => sub(width, a, b, 0, rflags),
            Self::Sbb => sub(width, a, b, carry, rflags),
            Self::And | Self::Test => logic(width, a & b, rflags),
            Self::Or => logic(width, a | b, rflags),
            Self::Xor => logic(width, a ^ b, rflags),
        }
    }
}

impl Unary {
    /// `op a`, of `width`.
    pub(super) fn compute(self, width: Width, a: u64, rflags: u64) -> Computed {
        let keep_carry = |(result, new): Computed| (result, (new & !CF) | (rflags & CF));
        match self {
            Self::Inc => keep_carry(add(width, a, 1, 0, rflags)),
            Self::Dec => keep_carry(sub(width, a, 1, 0, rflags)),
            Self::Not => (!a & width.mask(), rflags),
            Self::Neg => sub(width, 0, a, 0, rflags),
        }
    }
}

impl Bit {
    /// Whether the result is stored.
    pub(super) const fn stores(self) -> bool {
        !matches!(self, Self::Test)
    }

    /// On bit `offset`, modulo the width, of `a`. CF becomes the old bit; flags that are undefined stay.
    pub(super) fn compute(self, width: Width, a: u64, offset: u64, rflags: u64) -> Computed {
        let bit = 1 << (offset & u64::from(width.bits() - 1));
        let result = match self {
            Self::Test => a,
            Self::Set => a | bit,
            Self::Reset => a & !bit,
            Self::Complement => a ^ bit,
        };
        (result, (rflags & !CF) | flag(a & bit != 0, CF))
    }
}
