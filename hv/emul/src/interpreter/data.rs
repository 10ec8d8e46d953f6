//! Moves, conversions and flags.

use super::{DONE, Done, Execution, Extension, StepResult, fault};
use crate::memory;
use crate::mmio::alu::{AF, CF, PF, SF, ZF, holds};
use crate::segmentation::{Kind, SegmentFault};
use crate::{Address, Gpr, Width};
use arch::{RFLAGS_DF, RFLAGS_IF};
use iced_x86::{ConditionCode, Mnemonic, OpKind};

/// LAHF and SAHF: the flags in the lowest byte.
const LOW_FLAGS: u64 = CF | PF | AF | ZF | SF;

impl<E: From<SegmentFault>> Execution<'_, E> {
    pub(super) fn data(&mut self) -> Done<E> {
        if self.flags().or_else(|| self.conversion()).is_some() {
            return Ok(DONE);
        }
        match self.instruction.mnemonic() {
            Mnemonic::Movbe if !self.has(Extension::Movbe) => Ok(Some(StepResult::Fault(fault::UNDEFINED))),
            Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movbe => self.transfer(|value, _| value),
            Mnemonic::Movsx | Mnemonic::Movsxd => self.transfer(|value, from| from.sign_extend(value)),
            Mnemonic::Xchg => self.exchange(),
            Mnemonic::Bswap => self.swap_bytes(),
            Mnemonic::Xlatb => self.translate(),
            Mnemonic::Cmpxchg16b => self.compare_exchange_16b(),
            // They touch memory by no data: what is checked is all there is.
            Mnemonic::Clflush
            | Mnemonic::Clflushopt
            | Mnemonic::Clwb
            | Mnemonic::Nop
            | Mnemonic::Reservednop
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Prefetchw => Ok(DONE),
            _ => self.conditional(),
        }
    }

    /// Instructions without operands on RFLAGS. They access no memory, so they come from real mode, where CPL is 0.
    fn flags(&mut self) -> Option<()> {
        let rflags = self.processor.rflags();
        let ah = self.processor.gpr(Gpr::RAX) >> 8;
        let rflags = match self.instruction.mnemonic() {
            Mnemonic::Pause
            | Mnemonic::Wbinvd
            | Mnemonic::Invd
            | Mnemonic::Lfence
            | Mnemonic::Mfence
            | Mnemonic::Sfence => rflags,
            Mnemonic::Cli => rflags & !RFLAGS_IF,
            Mnemonic::Cld => rflags & !RFLAGS_DF,
            Mnemonic::Std => rflags | RFLAGS_DF,
            Mnemonic::Clc => rflags & !CF,
            Mnemonic::Stc => rflags | CF,
            Mnemonic::Cmc => rflags ^ CF,
            Mnemonic::Sahf => rflags & !LOW_FLAGS | ah & LOW_FLAGS,
            Mnemonic::Lahf => {
                let rax = self.processor.gpr(Gpr::RAX);
                self.processor.set_gpr(Gpr::RAX, rax & !0xff00 | (rflags & LOW_FLAGS | 2) << 8);
                rflags
            }
            _ => return None,
        };
        self.processor.set_rflags(rflags);
        Some(())
    }

    fn conversion(&mut self) -> Option<()> {
        let sign = |width: Width, value: u64| width.sign_extend(value);
        let upper = |width: Width, value: u64| if width.sign_extend(value) >> 63 == 1 { u64::MAX } else { 0 };
        let rax = self.processor.gpr(Gpr::RAX);
        match self.instruction.mnemonic() {
            Mnemonic::Cbw => self.set_gpr(Gpr::RAX, Width::Word, sign(Width::Byte, rax)),
            Mnemonic::Cwde => self.set_gpr(Gpr::RAX, Width::Dword, sign(Width::Word, rax)),
            Mnemonic::Cdqe => self.set_gpr(Gpr::RAX, Width::Qword, sign(Width::Dword, rax)),
            Mnemonic::Cwd => self.set_gpr(Gpr::RDX, Width::Word, upper(Width::Word, rax)),
            Mnemonic::Cdq => self.set_gpr(Gpr::RDX, Width::Dword, upper(Width::Dword, rax)),
            Mnemonic::Cqo => self.set_gpr(Gpr::RDX, Width::Qword, upper(Width::Qword, rax)),
            Mnemonic::Salc => {
                let carry = if self.processor.rflags() & CF != 0 { 0xff } else { 0 };
                self.set_gpr(Gpr::RAX, Width::Byte, carry);
            }
            Mnemonic::Lea => {
                let offset = Address::of(&self.instruction, self.bitness)?.offset(self.processor);
                let width = self.width(0)?;
                let to = crate::registers::Operand::of(self.instruction.op0_register())?;
                to.set(self.processor, width, offset);
            }
            _ => return None,
        }
        Some(())
    }

    /// A move of operand 1 to operand 0, with their own widths. [`tables`](Self::tables) has those of segment registers.
    fn transfer(&mut self, extend: impl FnOnce(u64, Width) -> u64) -> Done<E> {
        let Some(width) = self.width(0) else { return Ok(None) };
        let from_width = self.width(1).unwrap_or(width);
        let (Some(to), Some(from)) = (self.place(0, Kind::Write)?, self.place(1, Kind::Read)?) else { return Ok(None) };
        let mut value = extend(self.get(from, from_width)?, from_width);
        if self.instruction.mnemonic() == Mnemonic::Movbe {
            value = swapped(width, value);
        }
        self.put(to, width, value)?;
        Ok(DONE)
    }

    /// XCHG of registers.
    fn exchange(&mut self) -> Done<E> {
        let Some(width) = self.width(0) else { return Ok(None) };
        let (Some(a), Some(b)) = (self.place(0, Kind::Write)?, self.place(1, Kind::Write)?) else { return Ok(None) };
        let (was_a, was_b) = (self.get(a, width)?, self.get(b, width)?);
        self.put(a, width, was_b)?;
        self.put(b, width, was_a)?;
        Ok(DONE)
    }

    fn swap_bytes(&mut self) -> Done<E> {
        let (Some(width), Some(place)) = (self.width(0), self.place(0, Kind::Write)?) else { return Ok(None) };
        let value = self.get(place, width)?;
        self.put(place, width, swapped(width, value))?;
        Ok(DONE)
    }

    /// XLAT: a table of bytes at RBX, and AL's entry.
    fn translate(&mut self) -> Done<E> {
        let Some(mut address) = Address::of_table(&self.instruction, self.bitness) else { return Ok(None) };
        address.displacement = self.processor.gpr(Gpr::RAX) & 0xff;
        let offset = address.offset(self.processor);
        let segmentation = self.processor.segmentation(address.segment(), self.bitness);
        let at = segmentation.check(offset, 1, Kind::Read)?;
        let value = memory::read(self.memory, at, Width::Byte)?;
        self.set_gpr(Gpr::RAX, Width::Byte, value);
        Ok(DONE)
    }

    /// Other vCPUs may see it half done: no page table of a guest whose tables are watched has entries of 16 bytes.
    fn compare_exchange_16b(&mut self) -> Done<E> {
        let Some(at) = self.linear(16, Kind::Write)? else { return Ok(None) };
        if at.raw() % 16 != 0 {
            return Ok(Some(StepResult::Fault(fault::GENERAL_PROTECTION)));
        }
        let mut bytes = [0; 16];
        self.memory.read(at, &mut bytes)?;
        let old = u128::from_le_bytes(bytes);
        let pair = |high, low| u128::from(high) << 64 | u128::from(low);
        let (rax, rdx) = (self.processor.gpr(Gpr::RAX), self.processor.gpr(Gpr::RDX));
        let rflags = self.processor.rflags() & !ZF;
        if old == pair(rdx, rax) {
            let new = pair(self.processor.gpr(Gpr::RCX), self.processor.gpr(Gpr::RBX));
            self.memory.write(at, &new.to_le_bytes())?;
            self.processor.set_rflags(rflags | ZF);
        } else {
            self.processor.set_gpr(Gpr::RAX, old as u64);
            self.processor.set_gpr(Gpr::RDX, (old >> 64) as u64);
            self.processor.set_rflags(rflags);
        }
        Ok(DONE)
    }

    /// CMOVcc, which reads its operand and clears the upper half of a 32-bit register whatever the condition is, and SETcc.
    fn conditional(&mut self) -> Done<E> {
        let condition = self.instruction.condition_code();
        let is_branch = !matches!(self.instruction.op0_kind(), OpKind::Register);
        if condition == ConditionCode::None || is_branch {
            return Ok(None);
        }
        let (Some(width), Some(to)) = (self.width(0), self.place(0, Kind::Write)?) else { return Ok(None) };
        let holds = holds(condition, self.processor.rflags());
        let value = match self.instruction.op_count() {
            1 => u64::from(holds),
            _ => {
                let Some(from) = self.place(1, Kind::Read)? else { return Ok(None) };
                let value = self.get(from, width)?;
                if holds { value } else { self.get(to, width)? }
            }
        };
        self.put(to, width, value)?;
        Ok(DONE)
    }
}

const fn swapped(width: Width, value: u64) -> u64 {
    value.swap_bytes() >> (64 - width.bits())
}
