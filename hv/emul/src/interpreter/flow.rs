//! Jumps, calls, returns and interrupts.

use super::stack::{INTERRUPT_CLEARS, Stack};
use super::{DONE, Done, Execution, Processor, StepResult, Table, fault};
use crate::memory::{self, Memory};
use crate::mmio::alu::{ZF, holds};
use crate::registers::Operand;
use crate::segmentation::{Kind, SegmentFault};
use crate::{Bitness, Gpr, Segment, Width};
use addr::Gva;
use arch::{RFLAGS_IF, RFLAGS_OF};
use iced_x86::{Code, ConditionCode, Mnemonic, OpKind};

const BRANCHED: Option<StepResult> = Some(StepResult::Branched);

/// The target of a jump or call.
struct Target {
    selector: Option<u16>,
    offset: u64,
}

/// Delivers interrupt or exception `vector` by the interrupt vector table; `back` is the RIP to return to. #GP if the vector is beyond
/// the limit in IDTR.
pub fn interrupt<E: From<SegmentFault>>(
    processor: &mut dyn Processor,
    memory: &mut dyn Memory<Error = E>,
    vector: u8,
    back: u64,
) -> Result<(), E> {
    let table = processor.table(Table::Interrupts);
    let entry = u32::from(vector) * 4;
    if entry + 3 > table.limit.into() {
        return Err(SegmentFault::GeneralProtection.into());
    }
    let handler = memory::read(memory, Gva::new(table.base.wrapping_add(entry.into())), Width::Dword)?;
    let rflags = processor.rflags();
    let mut stack = Stack::of(processor, Bitness::Bits16);
    for value in [rflags, processor.selector(Segment::Cs).into(), back] {
        stack.push(memory, Width::Word, value)?;
    }
    stack.commit(processor);
    processor.set_rflags(rflags & !INTERRUPT_CLEARS);
    processor.load_segment(Segment::Cs, (handler >> 16) as u16);
    processor.jump(handler & 0xffff);
    Ok(())
}

/// Pushes the selector of CS and `next`, as a far CALL of code of `bitness` does.
pub fn push_far<E: From<SegmentFault>>(
    processor: &mut dyn Processor,
    memory: &mut dyn Memory<Error = E>,
    bitness: Bitness,
    width: Width,
    next: u64,
) -> Result<(), E> {
    let mut stack = Stack::of(processor, bitness);
    for value in [processor.selector(Segment::Cs).into(), next] {
        stack.push(memory, width, value)?;
    }
    stack.commit(processor);
    Ok(())
}

impl<E: From<SegmentFault>> Execution<'_, E> {
    pub(super) fn control_flow(&mut self) -> Done<E> {
        match self.instruction.mnemonic() {
            Mnemonic::Jmp => self.jump(),
            Mnemonic::Call => self.call(),
            Mnemonic::Ret | Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd => self.ret(),
            Mnemonic::Bound => self.bound(),
            _ if !self.is_real => Ok(None),
            Mnemonic::Int => self.interrupt(self.instruction.immediate8()),
            Mnemonic::Int3 => self.interrupt(3),
            Mnemonic::Into if self.processor.rflags() & RFLAGS_OF != 0 => self.interrupt(4),
            Mnemonic::Into => {
                self.processor.jump(self.next);
                Ok(DONE)
            }
            Mnemonic::Sti => Ok(self.sti()),
            _ => Ok(self.branch()),
        }
    }

    /// A target beyond the end of the code segment is a fault of the instruction that goes there. A far one is of real mode or
    /// virtual-8086 mode, where the limit stays.
    fn is_code(&mut self, target: &Target) -> bool {
        let segmentation = self.processor.segmentation(Segment::Cs, self.bitness);
        segmentation.check(target.offset, 1, Kind::Read).is_ok() || self.is_execute_only(target.offset)
    }

    /// Code that can't be read can be executed.
    fn is_execute_only(&mut self, offset: u64) -> bool {
        let cache = self.processor.segmentation(Segment::Cs, self.bitness).cache;
        self.bitness != Bitness::Bits64 && offset <= cache.limit.into()
    }

    fn jump(&mut self) -> Done<E> {
        let Some(target) = self.target()? else { return Ok(None) };
        if let Some(result) = self.far_transfer(&target, None) {
            return Ok(Some(result));
        }
        if !self.is_code(&target) {
            return Ok(Some(StepResult::Fault(fault::GENERAL_PROTECTION)));
        }
        self.go(target);
        Ok(BRANCHED)
    }

    /// What the caller has to do of a far JMP or CALL, if there are descriptors.
    fn far_transfer(&self, target: &Target, pushes: Option<Width>) -> Option<StepResult> {
        let selector = target.selector.filter(|_| !self.has_no_descriptors())?;
        Some(StepResult::FarTransfer { selector, offset: target.offset, pushes, next: self.next })
    }

    fn go(&mut self, target: Target) {
        if let Some(selector) = target.selector {
            self.processor.load_segment(Segment::Cs, selector);
        }
        self.processor.jump(target.offset);
    }

    fn call(&mut self) -> Done<E> {
        let pushes = self.instruction.stack_pointer_increment().unsigned_abs() as usize;
        let is_far = self.instruction.is_call_far() || self.instruction.is_call_far_indirect();
        let Some(width) = Width::from_bytes(if is_far { pushes / 2 } else { pushes }) else { return Ok(None) };
        Stack::of(self.processor, self.bitness).prepare_push(self.memory, width)?;
        let Some(target) = self.target()? else { return Ok(None) };
        if let Some(result) = self.far_transfer(&target, Some(width)) {
            return Ok(Some(result));
        }
        if !self.is_code(&target) {
            return Ok(Some(StepResult::Fault(fault::GENERAL_PROTECTION)));
        }
        if is_far {
            push_far(self.processor, self.memory, self.bitness, width, self.next)?;
        } else {
            let mut stack = Stack::of(self.processor, self.bitness);
            stack.push(self.memory, width, self.next)?;
            stack.commit(self.processor);
        }
        self.go(target);
        Ok(BRANCHED)
    }

    /// RET, and in real mode RETF and IRET. An IRET ends the blocking of NMIs even if it faults (Intel SDM vol. 3, section 25.3).
    fn ret(&mut self) -> Done<E> {
        let (width, is_far) = match self.instruction.code() {
            Code::Retnw | Code::Retnw_imm16 => (Width::Word, false),
            Code::Retnd | Code::Retnd_imm16 => (Width::Dword, false),
            Code::Retnq | Code::Retnq_imm16 => (Width::Qword, false),
            Code::Retfw | Code::Retfw_imm16 | Code::Iretw if self.is_real => (Width::Word, true),
            Code::Retfd | Code::Retfd_imm16 | Code::Iretd if self.is_real => (Width::Dword, true),
            _ => return Ok(None),
        };
        let with_flags = matches!(self.instruction.mnemonic(), Mnemonic::Iret | Mnemonic::Iretd);
        if with_flags {
            self.processor.unblock_nmis();
        }
        let mut stack = Stack::of(self.processor, self.bitness);
        let offset = stack.pop(self.memory, width)?;
        let selector = if is_far { Some(stack.pop(self.memory, width)? as u16) } else { None };
        let rflags = if with_flags { Some(stack.pop(self.memory, width)?) } else { None };
        if self.instruction.op_count() == 1 {
            stack.drop(self.instruction.immediate16().into());
        }
        let target = Target { selector, offset };
        if !self.is_code(&target) {
            return Ok(Some(StepResult::Fault(fault::GENERAL_PROTECTION)));
        }
        stack.commit(self.processor);
        if let Some(rflags) = rflags {
            self.set_flags(rflags, width);
        }
        self.go(target);
        Ok(BRANCHED)
    }

    /// #BR, if a signed index is not within the two bounds in memory.
    fn bound(&mut self) -> Done<E> {
        let (Some(width), Some(index)) = (self.width(0), self.place(0, Kind::Read)?) else { return Ok(None) };
        let Some(at) = self.linear(2 * width.bytes(), Kind::Read)? else { return Ok(None) };
        let signed = |value| width.sign_extend(value).cast_signed();
        let index = signed(self.get(index, width)?);
        let lower = signed(memory::read(self.memory, at, width)?);
        let upper = signed(memory::read(self.memory, at.wrapping_add(width.bytes()), width)?);
        if !(lower..=upper).contains(&index) {
            return Ok(Some(StepResult::Fault(fault::BOUND)));
        }
        self.processor.jump(self.next);
        Ok(DONE)
    }

    /// STI: the next instruction is in an interrupt shadow if interrupts were disabled.
    fn sti(&mut self) -> Option<StepResult> {
        let rflags = self.processor.rflags();
        self.processor.set_rflags(rflags | RFLAGS_IF);
        self.processor.jump(self.next);
        if rflags & RFLAGS_IF == 0 {
            self.processor.shadow_of_sti();
        }
        DONE
    }

    fn interrupt(&mut self, vector: u8) -> Done<E> {
        interrupt(self.processor, self.memory, vector, self.next)?;
        Ok(Some(StepResult::Interrupted))
    }

    /// Jcc, LOOPcc and JCXZ.
    fn branch(&mut self) -> Option<StepResult> {
        let offset = self.near_target()?;
        let rflags = self.processor.rflags();
        let zero = rflags & ZF != 0;
        let (mnemonic, rcx) = (self.instruction.mnemonic(), self.processor.gpr(Gpr::RCX));
        let taken = match mnemonic {
            Mnemonic::Loop => self.counted_down() != 0,
            Mnemonic::Loope => self.counted_down() != 0 && zero,
            Mnemonic::Loopne => self.counted_down() != 0 && !zero,
            Mnemonic::Jcxz => rcx & 0xffff == 0,
            Mnemonic::Jecxz => rcx & 0xffff_ffff == 0,
            _ => match self.instruction.condition_code() {
                ConditionCode::None => return None,
                condition => holds(condition, rflags),
            },
        };
        if taken && !self.is_code(&Target { selector: None, offset }) {
            return Some(StepResult::Fault(fault::GENERAL_PROTECTION));
        }
        if matches!(mnemonic, Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne) {
            let left = self.counted_down();
            self.set_gpr(Gpr::RCX, self.counter_width(), left);
        }
        self.processor.jump(if taken { offset } else { self.next });
        if taken { BRANCHED } else { DONE }
    }

    /// What LOOP's counter is then.
    fn counted_down(&self) -> u64 {
        let width = self.counter_width();
        self.gpr(Gpr::RCX, width).wrapping_sub(1) & width.mask()
    }

    /// The counter of LOOP is CX or ECX.
    fn counter_width(&self) -> Width {
        let small = matches!(
            self.instruction.code(),
            Code::Loop_rel8_16_CX
                | Code::Loop_rel8_32_CX
                | Code::Loope_rel8_16_CX
                | Code::Loope_rel8_32_CX
                | Code::Loopne_rel8_16_CX
                | Code::Loopne_rel8_32_CX
        );
        if small { Width::Word } else { Width::Dword }
    }

    /// The target of a near branch. [`crate::decode`] decodes as if the instruction were at address 0, so RIP is added.
    fn near_target(&self) -> Option<u64> {
        let mask = match self.instruction.op0_kind() {
            OpKind::NearBranch16 => 0xffff,
            OpKind::NearBranch32 => 0xffff_ffff,
            _ => return None,
        };
        Some(self.processor.rip().wrapping_add(self.instruction.near_branch_target()) & mask)
    }

    /// The target of JMP or CALL.
    fn target(&mut self) -> Result<Option<Target>, E> {
        let instruction = self.instruction;
        let near = |offset| Some(Target { selector: None, offset });
        let far = |selector, offset| Some(Target { selector: Some(selector), offset });
        Ok(match instruction.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 => self.near_target().and_then(near),
            OpKind::FarBranch16 => far(instruction.far_branch_selector(), instruction.far_branch16().into()),
            OpKind::FarBranch32 => far(instruction.far_branch_selector(), instruction.far_branch32().into()),
            OpKind::Register => {
                let register = instruction.op0_register();
                let width = Width::from_bytes(register.size());
                let target = Operand::of(register).zip(width);
                target.and_then(|(operand, width)| near(operand.get(self.processor, width)))
            }
            OpKind::Memory => self.target_in_memory()?,
            _ => None,
        })
    }

    fn target_in_memory(&mut self) -> Result<Option<Target>, E> {
        let is_far = self.instruction.is_jmp_far_indirect() || self.instruction.is_call_far_indirect();
        let bytes = self.instruction.memory_size().size();
        let Some(width) = Width::from_bytes(bytes - if is_far { 2 } else { 0 }) else { return Ok(None) };
        let Some(at) = self.linear(bytes as u64, Kind::Read)? else { return Ok(None) };
        let offset = memory::read(self.memory, at, width)?;
        let selector = match is_far {
            true => Some(memory::read(self.memory, at.wrapping_add(width.bytes()), Width::Word)? as u16),
            false => None,
        };
        Ok(Some(Target { selector, offset }))
    }
}
