//! Results and flags of arithmetic.

use crate::Width;
use iced_x86::{ConditionCode, Mnemonic};

pub(crate) use arch::{
    RFLAGS_AF as AF, RFLAGS_CF as CF, RFLAGS_OF as OF, RFLAGS_PF as PF, RFLAGS_SF as SF, RFLAGS_ZF as ZF,
};

pub(crate) const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// Instructions with two operands. CMP and TEST keep only the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
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
pub(crate) enum Unary {
    Inc,
    Dec,
    Not,
    Neg,
    /// SETcc, which does not read its operand.
    Set(ConditionCode),
}

/// Instructions on one bit. BT keeps only CF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bit {
    Test,
    Set,
    Reset,
    Complement,
}

/// Shifts and rotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    Left,
    Right,
    Arithmetic,
    RotateLeft,
    RotateRight,
    /// RCL: CF is one more bit, above the operand's.
    ThroughCarryLeft,
    /// RCR.
    ThroughCarryRight,
}

/// A result of the operands' width, and the new RFLAGS.
pub(crate) type Computed = (u64, u64);

pub(crate) fn flag(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// PF, ZF and SF of a result.
pub(crate) fn of_result(width: Width, result: u64) -> u64 {
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

/// Whether a condition holds, as for Jcc and SETcc.
pub(crate) fn holds(condition: ConditionCode, rflags: u64) -> bool {
    let is = |flag| rflags & flag != 0;
    let less = is(SF) != is(OF);
    match condition {
        ConditionCode::None => false,
        ConditionCode::o => is(OF),
        ConditionCode::no => !is(OF),
        ConditionCode::b => is(CF),
        ConditionCode::ae => !is(CF),
        ConditionCode::e => is(ZF),
        ConditionCode::ne => !is(ZF),
        ConditionCode::be => is(CF) || is(ZF),
        ConditionCode::a => !is(CF) && !is(ZF),
        ConditionCode::s => is(SF),
        ConditionCode::ns => !is(SF),
        ConditionCode::p => is(PF),
        ConditionCode::np => !is(PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || is(ZF),
        ConditionCode::g => !less && !is(ZF),
    }
}

impl Binary {
    pub(crate) const fn of(mnemonic: Mnemonic) -> Option<Self> {
        Some(match mnemonic {
            Mnemonic::Add => Self::Add,
            Mnemonic::Or => Self::Or,
            Mnemonic::Adc => Self::Adc,
            Mnemonic::Sbb => Self::Sbb,
            Mnemonic::And => Self::And,
            Mnemonic::Sub => Self::Sub,
            Mnemonic::Xor => Self::Xor,
            Mnemonic::Cmp => Self::Cmp,
            Mnemonic::Test => Self::Test,
            _ => return None,
        })
    }

    /// Whether the result is stored.
    pub(crate) const fn stores(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test)
    }

    /// `a op b`, both of `width`.
    pub(crate) fn compute(self, width: Width, a: u64, b: u64, rflags: u64) -> Computed {
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
    pub(crate) const fn of(mnemonic: Mnemonic) -> Option<Self> {
        Some(match mnemonic {
            Mnemonic::Inc => Self::Inc,
            Mnemonic::Dec => Self::Dec,
            Mnemonic::Not => Self::Not,
            Mnemonic::Neg => Self::Neg,
            _ => return None,
        })
    }

    /// `op a`, of `width`.
    pub(crate) fn compute(self, width: Width, a: u64, rflags: u64) -> Computed {
        let keep_carry = |(result, new): Computed| (result, (new & !CF) | (rflags & CF));
        match self {
            Self::Inc => keep_carry(add(width, a, 1, 0, rflags)),
            Self::Dec => keep_carry(sub(width, a, 1, 0, rflags)),
            Self::Not => (!a & width.mask(), rflags),
            Self::Neg => sub(width, 0, a, 0, rflags),
            Self::Set(condition) => (u64::from(holds(condition, rflags)), rflags),
        }
    }
}

impl Bit {
    pub(crate) const fn of(mnemonic: Mnemonic) -> Option<Self> {
        Some(match mnemonic {
            Mnemonic::Bt => Self::Test,
            Mnemonic::Bts => Self::Set,
            Mnemonic::Btr => Self::Reset,
            Mnemonic::Btc => Self::Complement,
            _ => return None,
        })
    }

    /// Whether the result is stored.
    pub(crate) const fn stores(self) -> bool {
        !matches!(self, Self::Test)
    }

    /// Operates on bit `offset`, modulo the width, of `a`. CF becomes the old bit; undefined flags stay unchanged.
    pub(crate) fn compute(self, width: Width, a: u64, offset: u64, rflags: u64) -> Computed {
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

impl Shift {
    pub(crate) const fn of(mnemonic: Mnemonic) -> Option<Self> {
        Some(match mnemonic {
            Mnemonic::Shl | Mnemonic::Sal => Self::Left,
            Mnemonic::Shr => Self::Right,
            Mnemonic::Sar => Self::Arithmetic,
            Mnemonic::Rol => Self::RotateLeft,
            Mnemonic::Ror => Self::RotateRight,
            Mnemonic::Rcl => Self::ThroughCarryLeft,
            Mnemonic::Rcr => Self::ThroughCarryRight,
            _ => return None,
        })
    }

    /// Shifts by the low five bits of `count`, or six of an operand of 64 bits. Where the manuals leave flags undefined (OF for counts above 1, CF for
    /// counts above the width, AF), the result is that of processors: OF is as for a count of 1.
    pub(crate) fn compute(self, width: Width, a: u64, count: u64, rflags: u64) -> Computed {
        let count = masked(width, count);
        if count == 0 {
            return (a, rflags);
        }
        let bits = width.bits();
        let top = |value: u64| value >> (bits - 1) & 1 == 1;
        let turned = count % bits;
        let rotated = |left: u32| (a << left | a >> ((bits - left) % bits)) & width.mask();
        let extended = u128::from(a) << count;
        let signed = i128::from(width.sign_extend(a).cast_signed());
        let (result, carry) = match self {
            Self::Left => (extended as u64 & width.mask(), extended >> bits & 1 == 1),
            Self::Right => ((u128::from(a) >> count) as u64, u128::from(a) >> (count - 1) & 1 == 1),
            Self::Arithmetic => ((signed >> count) as u64 & width.mask(), signed >> (count - 1) & 1 == 1),
            Self::RotateLeft => (rotated(turned), rotated(turned) & 1 == 1),
            Self::RotateRight => (rotated((bits - turned) % bits), top(rotated((bits - turned) % bits))),
            Self::ThroughCarryLeft => through_carry(width, a, count % (bits + 1), rflags),
            Self::ThroughCarryRight => through_carry(width, a, (bits + 1 - count % (bits + 1)) % (bits + 1), rflags),
        };
        let overflow = match self {
            Self::Left | Self::RotateLeft | Self::ThroughCarryLeft => top(result) != carry,
            Self::Right => top(a),
            Self::Arithmetic => false,
            Self::RotateRight | Self::ThroughCarryRight => top(result) != top(result << 1 & width.mask()),
        };
        let changed = match self {
            Self::RotateLeft | Self::RotateRight | Self::ThroughCarryLeft | Self::ThroughCarryRight => {
                rflags & !(CF | OF)
            }
            _ => rflags & !ARITHMETIC | of_result(width, result),
        };
        (result, changed | flag(carry, CF) | flag(overflow, OF))
    }
}

/// The part of a shift's count that counts.
const fn masked(width: Width, count: u64) -> u32 {
    count as u32 & if let Width::Qword = width { 63 } else { 31 }
}

/// `a` with CF above it, rotated left by `count`, at most the width: the result, and CF.
fn through_carry(width: Width, a: u64, count: u32, rflags: u64) -> (u64, bool) {
    let bits = width.bits();
    let whole = u128::from(rflags & CF) << bits | u128::from(a);
    let turned = whole << count | whole >> (bits + 1 - count);
    (turned as u64 & width.mask(), turned >> bits & 1 == 1)
}

/// SHLD (`is_left`) and SHRD of `a`, with bits of `fill` shifted in. With counts above the width everything is undefined.
pub(crate) fn double_shift(width: Width, is_left: bool, a: u64, fill: u64, count: u64, rflags: u64) -> Computed {
    let (bits, count) = (width.bits(), masked(width, count));
    if count == 0 || count > bits {
        return (a, rflags);
    }
    let top = |value: u64| value >> (bits - 1) & 1 == 1;
    let (result, carry) = if is_left {
        let both = (u128::from(a) << bits | u128::from(fill)) << count;
        ((both >> bits) as u64 & width.mask(), a >> (bits - count) & 1 == 1)
    } else {
        let both = (u128::from(fill) << bits | u128::from(a)) >> count;
        (both as u64 & width.mask(), a >> (count - 1) & 1 == 1)
    };
    let overflow = top(a) != top(result);
    (result, rflags & !ARITHMETIC | of_result(width, result) | flag(carry, CF) | flag(overflow, OF))
}
