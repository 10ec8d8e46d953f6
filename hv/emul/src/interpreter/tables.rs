//! Segment registers, and the registers of descriptor tables.

use super::{Controls, DONE, Done, Execution, StepResult, Table, TableRegister, fault, is_virtual_8086};
use crate::memory;
use crate::registers::Operand;
use crate::segmentation::{Kind, SegmentFault};
use crate::{Bitness, Segment, SegmentRegister, Width};
use arch::CR4_UMIP;
use iced_x86::{Code, Mnemonic};

impl<E: From<SegmentFault>> Execution<'_, E> {
    pub(super) fn tables(&mut self) -> Done<E> {
        match self.instruction.mnemonic() {
            Mnemonic::Mov => self.segment_register(),
            Mnemonic::Lds => self.load_far_pointer(Segment::Ds),
            Mnemonic::Les => self.load_far_pointer(Segment::Es),
            Mnemonic::Lss => self.load_far_pointer(Segment::Ss),
            Mnemonic::Lfs => self.load_far_pointer(Segment::Fs),
            Mnemonic::Lgs => self.load_far_pointer(Segment::Gs),
            Mnemonic::Lgdt => self.load_table(Table::Global),
            Mnemonic::Lidt => self.load_table(Table::Interrupts),
            Mnemonic::Sgdt => self.store_table(Table::Global),
            Mnemonic::Sidt => self.store_table(Table::Interrupts),
            Mnemonic::Smsw => self.store_status_word(),
            Mnemonic::Lldt if !self.has_no_descriptors() => self.load_system(SegmentRegister::Ldtr),
            Mnemonic::Ltr if !self.has_no_descriptors() => self.load_system(SegmentRegister::Tr),
            Mnemonic::Lldt
            | Mnemonic::Sldt
            | Mnemonic::Ltr
            | Mnemonic::Str
            | Mnemonic::Lar
            | Mnemonic::Lsl
            | Mnemonic::Verr
            | Mnemonic::Verw
            | Mnemonic::Arpl
                if self.has_no_descriptors() =>
            {
                Ok(Some(StepResult::Fault(fault::UNDEFINED)))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn has_no_descriptors(&self) -> bool {
        self.is_real || is_virtual_8086(self.processor.rflags())
    }

    /// LLDT and LTR.
    fn load_system(&mut self, register: SegmentRegister) -> Done<E> {
        let Some(from) = self.place(0, Kind::Read)? else { return Ok(None) };
        let selector = self.get(from, Width::Word)? as u16;
        Ok(Some(StepResult::LoadSegment { register, selector, also: None, shadows: false, next: self.next }))
    }

    /// MOV to and from segment registers.
    fn segment_register(&mut self) -> Done<E> {
        let (to, from) = (self.instruction.op0_register(), self.instruction.op1_register());
        if let Some(segment) = Segment::of(from) {
            let selector = self.processor.selector(segment).into();
            // 16 bits of memory, but all of a register.
            let width = Width::from_bytes(to.size()).unwrap_or(Width::Word);
            let Some(to) = self.place(0, Kind::Write)? else { return Ok(None) };
            self.put(to, if to.is_memory() { Width::Word } else { width }, selector)?;
            return Ok(DONE);
        }
        let (Some(segment), Some(from)) = (Segment::of(to), self.place(1, Kind::Read)?) else { return Ok(None) };
        let selector = self.get(from, Width::Word)? as u16;
        self.load_segment(segment, selector, None)
    }

    /// LDS and its like.
    fn load_far_pointer(&mut self, segment: Segment) -> Done<E> {
        let (Some(width), Some(to)) = (self.width(0), Operand::of(self.instruction.op0_register())) else {
            return Ok(None);
        };
        let Some(at) = self.linear(width.bytes() + 2, Kind::Read)? else { return Ok(None) };
        let offset = memory::read(self.memory, at, width)?;
        let selector = memory::read(self.memory, at.wrapping_add(width.bytes()), Width::Word)?;
        let also = (to.gpr(), to.changed(self.processor, width, offset));
        self.load_segment(segment, selector as u16, Some(also))
    }

    /// The bytes of a table register in memory: a limit, and a base of 32 bits, or 64 in 64-bit mode.
    const fn table_bytes(&self) -> usize {
        match self.bitness {
            Bitness::Bits64 => 10,
            _ => 6,
        }
    }

    /// LGDT and LIDT. With 16-bit operands the base has 24 bits.
    fn load_table(&mut self, table: Table) -> Done<E> {
        let length = self.table_bytes();
        let Some(at) = self.linear(length as u64, Kind::Read)? else { return Ok(None) };
        let mut bytes = [0; 10];
        self.memory.read(at, &mut bytes[..length])?;
        let [low, high, base @ ..] = bytes;
        let base = u64::from_le_bytes(base);
        let small = matches!(self.instruction.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16);
        let base = if small { base & 0x00ff_ffff } else { base };
        self.processor.set_table(table, TableRegister { base, limit: u16::from_le_bytes([low, high]) });
        Ok(DONE)
    }

    /// UMIP keeps user programs from SGDT, SIDT and SMSW (Intel SDM vol. 3, section 2.5).
    fn is_prevented(&self) -> bool {
        let Controls { cr4, cpl, .. } = self.processor.controls();
        !self.is_real && cpl != 0 && cr4 & CR4_UMIP != 0
    }

    fn store_table(&mut self, table: Table) -> Done<E> {
        if self.is_prevented() {
            return Ok(Some(StepResult::Fault(fault::GENERAL_PROTECTION)));
        }
        let length = self.table_bytes();
        let Some(at) = self.linear(length as u64, Kind::Write)? else { return Ok(None) };
        let register = self.processor.table(table);
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&register.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&register.base.to_le_bytes());
        self.memory.write(at, &bytes[..length])?;
        Ok(DONE)
    }

    /// SMSW to memory.
    fn store_status_word(&mut self) -> Done<E> {
        if self.is_prevented() {
            return Ok(Some(StepResult::Fault(fault::GENERAL_PROTECTION)));
        }
        let Some(at) = self.linear(2, Kind::Write)? else { return Ok(None) };
        let Controls { cr0, .. } = self.processor.controls();
        memory::write(self.memory, at, Width::Word, cr0)?;
        Ok(DONE)
    }
}
