//! The guest's registers, by their numbers in encodings.

use crate::Width;
use iced_x86::Register;

/// A general register, by its number in encodings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gpr(u8);

impl Gpr {
    /// RAX.
    pub const RAX: Self = Self(0);
    /// RCX.
    pub const RCX: Self = Self(1);
    /// RDX.
    pub const RDX: Self = Self(2);
    /// RBX.
    pub const RBX: Self = Self(3);
    /// RSP.
    pub const RSP: Self = Self(4);
    /// RBP.
    pub const RBP: Self = Self(5);
    /// RSI.
    pub const RSI: Self = Self(6);
    /// RDI.
    pub const RDI: Self = Self(7);

    /// The register with the number in the low four bits.
    #[inline]
    pub const fn new(number: u8) -> Self {
        Self(number & 15)
    }

    /// The number, 0 to 15: an index for `[u64; 16]`.
    #[inline]
    pub const fn index(self) -> usize {
        (self.0 & 15) as usize
    }

    /// The general register that `register` is, or is part of. None if it is no general register.
    pub(crate) fn of(register: Register) -> Option<Self> {
        register.is_gpr().then(|| Self(register.full_register().number() as u8))
    }
}

/// A segment register, by its number in encodings, which SVM and VMX use too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segment {
    /// ES.
    Es,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// DS.
    Ds,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

impl Segment {
    /// The segment of this number; None above 5.
    pub const fn new(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Es,
            1 => Self::Cs,
            2 => Self::Ss,
            3 => Self::Ds,
            4 => Self::Fs,
            5 => Self::Gs,
            _ => return None,
        })
    }

    pub(crate) fn of(register: Register) -> Option<Self> {
        register.is_segment_register().then(|| Self::new(register.number() as u8))?
    }
}

/// A register that has a selector, and a descriptor behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentRegister {
    /// One that instructions name.
    Segment(Segment),
    /// LDTR.
    Ldtr,
    /// The task register.
    Tr,
}

impl SegmentRegister {
    /// Its number, in the VMCS's order.
    pub const fn index(self) -> usize {
        match self {
            Self::Segment(segment) => segment as usize,
            Self::Ldtr => 6,
            Self::Tr => 7,
        }
    }
}

/// A vCPU's registers.
pub trait Registers {
    /// A general register.
    fn gpr(&self, gpr: Gpr) -> u64;
    /// Sets all 64 bits of a general register.
    fn set_gpr(&mut self, gpr: Gpr, value: u64);
    /// The address of the instruction's first byte, within its segment.
    fn rip(&self) -> u64;
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, value: u64);
    /// The base of a segment. In 64-bit mode it is called for FS and GS only.
    fn segment_base(&self, segment: Segment) -> u64;
}

/// A general register as an operand. The width is a parameter of each access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Operand {
    gpr: Gpr,
    /// The operand is AH, CH, DH or BH: bits 15:8.
    high: bool,
}

impl Operand {
    pub(crate) const fn new(gpr: Gpr) -> Self {
        Self { gpr, high: false }
    }

    /// The byte register that `number` encodes. Without REX, 4 to 7 are AH, CH, DH and BH.
    pub(crate) const fn byte(number: u8, rex: bool) -> Self {
        let high = !rex && number >= 4 && number < 8;
        Self { gpr: Gpr::new(if high { number - 4 } else { number }), high }
    }

    pub(crate) fn of(register: Register) -> Option<Self> {
        let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
        Some(Self { gpr: Gpr::of(register)?, high })
    }

    /// The register that the operand is, or is part of.
    #[inline]
    pub(crate) const fn gpr(self) -> Gpr {
        self.gpr
    }

    #[inline]
    const fn shift(self) -> u32 {
        if self.high { 8 } else { 0 }
    }

    /// The operand's bits, zero-extended.
    #[inline]
    pub(crate) fn get<R: Registers + ?Sized>(self, registers: &R, width: Width) -> u64 {
        (registers.gpr(self.gpr) >> self.shift()) & width.mask()
    }

    /// All of the register behind a write of `value`: writes of 8 and 16 bits keep the other bits, those of 32 bits clear them.
    #[inline]
    pub(crate) fn changed<R: Registers + ?Sized>(self, registers: &R, width: Width, value: u64) -> u64 {
        match width {
            Width::Qword | Width::Dword => value & width.mask(),
            Width::Word | Width::Byte => {
                let old = registers.gpr(self.gpr);
                (old & !(width.mask() << self.shift())) | ((value & width.mask()) << self.shift())
            }
        }
    }

    /// Writes as an instruction does.
    #[inline]
    pub(crate) fn set<R: Registers + ?Sized>(self, registers: &mut R, width: Width, value: u64) {
        let value = self.changed(registers, width, value);
        registers.set_gpr(self.gpr, value);
    }
}
