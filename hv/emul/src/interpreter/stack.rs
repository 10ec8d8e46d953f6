//! Instructions on the stack.

use super::{Controls, DONE, Done, Execution, Processor, StepResult, fault, is_virtual_8086};
use crate::memory::{self, Memory};
use crate::registers::Operand;
use crate::segmentation::{Kind, SegmentFault, Segmentation};
use crate::{Address, Bitness, Gpr, Segment, Width};
use addr::Gva;
use arch::{RFLAGS_AC, RFLAGS_IF, RFLAGS_IOPL, RFLAGS_RF, RFLAGS_VM};
use iced_x86::{Code, Mnemonic, OpKind};

/// The flags that POPF can change: all but VM, RF, VIF, VIP and reserved ones.
const POPPED: u64 = 0x24_7fd5;
const ALWAYS: u64 = 1 << 1;

/// In the order of PUSHA.
const ALL: [Gpr; 8] = [Gpr::RAX, Gpr::RCX, Gpr::RDX, Gpr::RBX, Gpr::RSP, Gpr::RBP, Gpr::RSI, Gpr::RDI];

/// Pushes and pops of one instruction. SP changes only by [`commit`](Self::commit), when no access can fault any more.
pub(super) struct Stack {
    segmentation: Segmentation,
    /// The width of SP that is used.
    size: Width,
    sp: u64,
}

impl Stack {
    /// The stack of code of `bitness`.
    pub(super) fn of(processor: &mut dyn Processor, bitness: Bitness) -> Self {
        let segmentation = processor.segmentation(Segment::Ss, bitness);
        let size = match bitness {
            Bitness::Bits64 => Width::Qword,
            _ if segmentation.cache.is_big() => Width::Dword,
            _ => Width::Word,
        };
        Self { segmentation, size, sp: processor.gpr(Gpr::RSP) & size.mask() }
    }

    /// Where the next push writes.
    fn below(&self, width: Width) -> Result<Gva, SegmentFault> {
        self.segmentation.check(self.sp.wrapping_sub(width.bytes()) & self.size.mask(), width.bytes(), Kind::Write)
    }

    pub(super) fn push<E: From<SegmentFault>>(
        &mut self,
        memory: &mut dyn Memory<Error = E>,
        width: Width,
        value: u64,
    ) -> Result<(), E> {
        memory::write(memory, self.below(width)?, width, value)?;
        self.drop(width.bytes().wrapping_neg());
        Ok(())
    }

    /// Sees that the next push of this width will not fault.
    pub(super) fn prepare_push<E: From<SegmentFault>>(
        &self,
        memory: &mut dyn Memory<Error = E>,
        width: Width,
    ) -> Result<(), E> {
        memory.prepare_write(self.below(width)?, width.bytes() as usize)
    }

    pub(super) fn pop<E: From<SegmentFault>>(
        &mut self,
        memory: &mut dyn Memory<Error = E>,
        width: Width,
    ) -> Result<u64, E> {
        let at = self.segmentation.check(self.sp, width.bytes(), Kind::Read)?;
        let value = memory::read(memory, at, width)?;
        self.drop(width.bytes());
        Ok(value)
    }

    pub(super) fn drop(&mut self, bytes: u64) {
        self.sp = self.sp.wrapping_add(bytes) & self.size.mask();
    }

    pub(super) fn commit(self, processor: &mut dyn Processor) {
        Operand::new(Gpr::RSP).set(processor, self.size, self.sp);
    }
}

impl<E: From<SegmentFault>> Execution<'_, E> {
    pub(super) fn stack(&mut self) -> Done<E> {
        match self.instruction.mnemonic() {
            Mnemonic::Push => self.push(),
            Mnemonic::Pop => self.pop(),
            Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => self.push_flags(),
            Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => self.pop_flags(),
            Mnemonic::Pusha | Mnemonic::Pushad => self.push_all(),
            Mnemonic::Popa | Mnemonic::Popad => self.pop_all(),
            Mnemonic::Enter => self.enter(),
            Mnemonic::Leave => self.leave(),
            _ => Ok(None),
        }
    }

    fn push_value(&mut self, width: Width, value: u64) -> Done<E> {
        let mut stack = Stack::of(self.processor, self.bitness);
        stack.push(self.memory, width, value)?;
        stack.commit(self.processor);
        Ok(DONE)
    }

    fn push(&mut self) -> Done<E> {
        let Some(width) = self.stack_width() else { return Ok(None) };
        if let Some(segment) = Segment::of(self.instruction.op0_register()) {
            let selector = self.processor.selector(segment).into();
            return self.push_value(width, selector);
        }
        Stack::of(self.processor, self.bitness).prepare_push(self.memory, width)?;
        let Some(from) = self.place(0, Kind::Read)? else { return Ok(None) };
        let value = self.get(from, width)?;
        self.push_value(width, value)
    }

    /// The address of an operand in memory is computed when SP has changed already (Intel SDM vol. 2, POP).
    fn pop(&mut self) -> Done<E> {
        let Some(width) = self.stack_width() else { return Ok(None) };
        let segment = Segment::of(self.instruction.op0_register());
        let mut stack = Stack::of(self.processor, self.bitness);
        if self.instruction.op0_kind() == OpKind::Memory {
            let at = self.operand_behind_pop(&stack, width)?;
            self.memory.prepare_write(at, width.bytes() as usize)?;
            let value = stack.pop(self.memory, width)?;
            memory::write(self.memory, at, width, value)?;
            stack.commit(self.processor);
            return Ok(DONE);
        }
        let value = stack.pop(self.memory, width)?;
        if let Some(segment) = segment {
            let rsp = Operand::new(Gpr::RSP).changed(self.processor, stack.size, stack.sp);
            return self.load_segment(segment, value as u16, Some((Gpr::RSP, rsp)));
        }
        let Some(operand) = Operand::of(self.instruction.op0_register()) else { return Ok(None) };
        stack.commit(self.processor);
        operand.set(self.processor, width, value);
        Ok(DONE)
    }

    fn operand_behind_pop(&mut self, stack: &Stack, width: Width) -> Result<Gva, E> {
        let rsp = self.processor.gpr(Gpr::RSP);
        let behind = Stack { sp: stack.sp.wrapping_add(width.bytes()) & stack.size.mask(), ..*stack };
        behind.commit(self.processor);
        let address = Address::of(&self.instruction, self.bitness);
        let offset = address.map(|address| (address.segment(), address.offset(self.processor)));
        self.processor.set_gpr(Gpr::RSP, rsp);
        let (segment, offset) = offset.unwrap_or((Segment::Ds, 0));
        Ok(self.processor.segmentation(segment, self.bitness).check(offset, width.bytes(), Kind::Write)?)
    }

    /// VM and RF are pushed as zeros.
    fn push_flags(&mut self) -> Done<E> {
        let Some(width) = self.stack_width() else { return Ok(None) };
        if self.flags_are_trapped() {
            return Ok(Some(StepResult::Fault(fault::GENERAL_PROTECTION)));
        }
        let rflags = self.processor.rflags() & !(RFLAGS_VM | RFLAGS_RF);
        self.push_value(width, rflags)
    }

    fn pop_flags(&mut self) -> Done<E> {
        let Some(width) = self.stack_width() else { return Ok(None) };
        if self.flags_are_trapped() {
            return Ok(Some(StepResult::Fault(fault::GENERAL_PROTECTION)));
        }
        let mut stack = Stack::of(self.processor, self.bitness);
        let value = stack.pop(self.memory, width)?;
        stack.commit(self.processor);
        self.set_flags(value, width);
        Ok(DONE)
    }

    /// PUSHF and POPF in virtual-8086 mode need the IOPL (Intel SDM vol. 3, section 21.2.7); VME is not taken into account.
    fn flags_are_trapped(&self) -> bool {
        let rflags = self.processor.rflags();
        is_virtual_8086(rflags) && rflags & RFLAGS_IOPL != RFLAGS_IOPL
    }

    /// IOPL is CPL 0's to change, and IF theirs whom IOPL allows it (Intel SDM vol. 2, POPF).
    pub(super) fn set_flags(&mut self, value: u64, width: Width) {
        let rflags = self.processor.rflags();
        let Controls { cpl, .. } = self.processor.controls();
        let cpl = if self.is_real { 0 } else { u64::from(cpl) };
        let iopl = (rflags & RFLAGS_IOPL) >> RFLAGS_IOPL.trailing_zeros();
        let kept = if cpl == 0 { 0 } else { RFLAGS_IOPL } | if cpl <= iopl { 0 } else { RFLAGS_IF };
        let changed = POPPED & width.mask() & !kept;
        self.processor.set_rflags(rflags & !changed | value & changed | ALWAYS);
    }

    fn push_all(&mut self) -> Done<E> {
        let width = if self.instruction.code() == Code::Pushaw { Width::Word } else { Width::Dword };
        let mut stack = Stack::of(self.processor, self.bitness);
        for gpr in ALL {
            let value = self.gpr(gpr, width);
            stack.push(self.memory, width, value)?;
        }
        stack.commit(self.processor);
        Ok(DONE)
    }

    /// SP's own is not loaded.
    fn pop_all(&mut self) -> Done<E> {
        let width = if self.instruction.code() == Code::Popaw { Width::Word } else { Width::Dword };
        let mut stack = Stack::of(self.processor, self.bitness);
        let mut values = [0; 8];
        for value in values.iter_mut().rev() {
            *value = stack.pop(self.memory, width)?;
        }
        for (gpr, value) in ALL.into_iter().zip(values).filter(|&(gpr, _)| gpr != Gpr::RSP) {
            self.set_gpr(gpr, width, value);
        }
        stack.commit(self.processor);
        Ok(DONE)
    }

    /// The outer frames' pointers, of nested procedures, are read from the outer frame and pushed, and then the new frame's own.
    fn enter(&mut self) -> Done<E> {
        let width = match self.instruction.code() {
            Code::Enterw_imm16_imm8 => Width::Word,
            Code::Enterd_imm16_imm8 => Width::Dword,
            _ => Width::Qword,
        };
        let (bytes, level) = (u64::from(self.instruction.immediate16()), self.instruction.immediate8_2nd() & 31);
        let mut stack = Stack::of(self.processor, self.bitness);
        let mut outer = Stack { sp: self.gpr(Gpr::RBP, stack.size), ..stack };
        let frame_pointer = self.gpr(Gpr::RBP, width);
        stack.push(self.memory, width, frame_pointer)?;
        let frame = stack.sp;
        for _ in 1..level {
            outer.drop(width.bytes().wrapping_neg());
            let pointer = Stack { ..outer }.pop(self.memory, width)?;
            stack.push(self.memory, width, pointer)?;
        }
        if level != 0 {
            stack.push(self.memory, width, frame)?;
        }
        stack.drop(bytes.wrapping_neg());
        stack.prepare_push(self.memory, Width::Byte)?;
        // Of a 16-bit stack, too, all of the register is the frame pointer.
        let pointer = Operand::new(Gpr::RSP).changed(self.processor, stack.size, frame);
        self.set_gpr(Gpr::RBP, width, pointer);
        stack.commit(self.processor);
        Ok(DONE)
    }

    fn leave(&mut self) -> Done<E> {
        let width = match self.instruction.code() {
            Code::Leavew => Width::Word,
            Code::Leaved => Width::Dword,
            _ => Width::Qword,
        };
        let mut stack = Stack::of(self.processor, self.bitness);
        stack.sp = self.gpr(Gpr::RBP, stack.size);
        let value = stack.pop(self.memory, width)?;
        self.set_gpr(Gpr::RBP, width, value);
        stack.commit(self.processor);
        Ok(DONE)
    }

    fn stack_width(&self) -> Option<Width> {
        Width::from_bytes(self.instruction.stack_pointer_increment().unsigned_abs() as usize)
    }
}

/// INT clears these, among others.
pub(super) const INTERRUPT_CLEARS: u64 = RFLAGS_IF | arch::RFLAGS_TF | RFLAGS_AC;
