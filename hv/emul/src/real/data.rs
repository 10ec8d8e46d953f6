//! Instructions on registers and flags.

use super::{Execution, Memory, Processor};
use crate::mmio::alu::{Binary, Bit, CF, Shift, Unary};
use crate::registers::Operand;
use crate::{Address, Gpr, Width};
use arch::{RFLAGS_DF, RFLAGS_IF};
use iced_x86::{Mnemonic, OpKind};

impl<P: Processor, M: Memory> Execution<'_, P, M> {
    /// Executes an instruction on registers. False if it is another.
    pub(super) fn in_registers(&mut self) -> bool {
        self.flags() || self.conversion().or_else(|| self.arithmetic()).is_some()
    }

    fn flags(&mut self) -> bool {
        let rflags = self.processor.rflags();
        let rflags = match self.instruction.mnemonic() {
            Mnemonic::Nop | Mnemonic::Pause | Mnemonic::Wbinvd | Mnemonic::Invd => rflags,
            Mnemonic::Cli => rflags & !RFLAGS_IF,
            Mnemonic::Cld => rflags & !RFLAGS_DF,
            Mnemonic::Std => rflags | RFLAGS_DF,
            Mnemonic::Clc => rflags & !CF,
            Mnemonic::Stc => rflags | CF,
            Mnemonic::Cmc => rflags ^ CF,
            _ => return false,
        };
        self.processor.set_rflags(rflags);
        true
    }

    fn conversion(&mut self) -> Option<()> {
        let (ax, dx) = (Operand::new(Gpr::RAX), Operand::new(Gpr::RDX));
        let sign = |value: u64, from: Width| from.sign_extend(value);
        match self.instruction.mnemonic() {
            Mnemonic::Cbw => self.set(ax, Width::Word, sign(self.get(ax, Width::Byte), Width::Byte)),
            Mnemonic::Cwde => self.set(ax, Width::Dword, sign(self.get(ax, Width::Word), Width::Word)),
            Mnemonic::Cwd => self.set(dx, Width::Word, sign(self.get(ax, Width::Word), Width::Word) >> 16),
            Mnemonic::Cdq => self.set(dx, Width::Dword, sign(self.get(ax, Width::Dword), Width::Dword) >> 32),
            Mnemonic::Lea => {
                let address = Address::of(&self.instruction, self.bitness)?;
                self.set(self.operand(0)?, self.width(0)?, address.offset(self.processor));
            }
            Mnemonic::Mov => self.set(self.operand(0)?, self.width(0)?, self.source(1, self.width(0)?)?),
            Mnemonic::Movzx => self.set(self.operand(0)?, self.width(0)?, self.source(1, self.width(1)?)?),
            Mnemonic::Movsx => {
                let value = sign(self.source(1, self.width(1)?)?, self.width(1)?);
                self.set(self.operand(0)?, self.width(0)?, value);
            }
            Mnemonic::Xchg => {
                let (a, b, width) = (self.operand(0)?, self.operand(1)?, self.width(0)?);
                let (was_a, was_b) = (self.get(a, width), self.get(b, width));
                self.set(a, width, was_b);
                self.set(b, width, was_a);
            }
            _ => return None,
        }
        Some(())
    }

    fn arithmetic(&mut self) -> Option<()> {
        let (mnemonic, rflags) = (self.instruction.mnemonic(), self.processor.rflags());
        let (to, width) = (self.operand(0)?, self.width(0)?);
        let old = self.get(to, width);
        let source = |width| self.source(1, width);
        let (result, rflags) = if let Some(op) = Binary::of(mnemonic) {
            let (result, rflags) = op.compute(width, old, source(width)?, rflags);
            (op.stores().then_some(result), rflags)
        } else if let Some(op) = Bit::of(mnemonic) {
            let (result, rflags) = op.compute(width, old, source(width)?, rflags);
            (op.stores().then_some(result), rflags)
        } else if let Some(op) = Shift::of(mnemonic) {
            let (result, rflags) = op.compute(width, old, source(Width::Byte)?, rflags);
            (Some(result), rflags)
        } else {
            let (result, rflags) = Unary::of(mnemonic)?.compute(width, old, rflags);
            (Some(result), rflags)
        };
        if let Some(result) = result {
            self.set(to, width, result);
        }
        self.processor.set_rflags(rflags);
        Some(())
    }

    fn operand(&self, n: u32) -> Option<Operand> {
        (self.instruction.op_kind(n) == OpKind::Register).then(|| Operand::of(self.instruction.op_register(n)))?
    }

    fn width(&self, n: u32) -> Option<Width> {
        Width::from_bytes(self.instruction.op_register(n).size())
    }

    /// The value of a source operand: a register or an immediate.
    fn source(&self, n: u32, width: Width) -> Option<u64> {
        match self.instruction.op_kind(n) {
            OpKind::Register => Some(self.get(self.operand(n)?, width)),
            OpKind::Memory => None,
            _ => Some(self.instruction.try_immediate(n).ok()? & width.mask()),
        }
    }

    pub(super) fn get(&self, operand: Operand, width: Width) -> u64 {
        operand.get(self.processor, width)
    }

    pub(super) fn set(&mut self, operand: Operand, width: Width, value: u64) {
        operand.set(self.processor, width, value);
    }
}
