//! Jumps, calls, returns and interrupts.

use super::stack::Stack;
use super::{Execution, Memory, Processor, StepResult, Table, read};
use crate::mmio::alu::{ZF, holds};
use crate::registers::Operand;
use crate::{Gpr, Segment, Width};
use addr::Gva;
use arch::{RFLAGS_AC, RFLAGS_IF, RFLAGS_TF};
use iced_x86::{Code, ConditionCode, Mnemonic, OpKind};

/// The target of a jump or call.
struct Target {
    selector: Option<u16>,
    offset: u64,
}

/// Delivers interrupt or exception `vector` by the interrupt vector table; `back` is the RIP to return to. False if the
/// vector is beyond the limit in IDTR.
pub fn interrupt<P: Processor, M: Memory>(
    processor: &mut P,
    memory: &mut M,
    vector: u8,
    back: u64,
) -> Result<bool, M::Error> {
    let table = processor.table(Table::Interrupts);
    let entry = u32::from(vector) * 4;
    if entry + 3 > table.limit.into() {
        return Ok(false);
    }
    let handler = read(memory, Gva::new(table.base.wrapping_add(entry).into()), Width::Dword)?;
    let rflags = processor.rflags();
    let mut stack = Stack::of(processor);
    for value in [rflags, processor.selector(Segment::Cs).into(), back] {
        stack.push(memory, Width::Word, value & 0xffff)?;
    }
    stack.commit(processor);
    processor.set_rflags(rflags & !(RFLAGS_IF | RFLAGS_TF | RFLAGS_AC));
    processor.load_segment(Segment::Cs, (handler >> 16) as u16);
    processor.jump(handler & 0xffff);
    Ok(true)
}

impl<P: Processor, M: Memory> Execution<'_, P, M> {
    pub(super) fn control_flow(&mut self) -> Result<StepResult, M::Error> {
        let known = match self.instruction.mnemonic() {
            Mnemonic::Jmp => self.jump()?,
            Mnemonic::Call => self.call()?,
            Mnemonic::Ret | Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd => self.ret()?,
            Mnemonic::Int => self.interrupt(self.instruction.immediate8())?,
            Mnemonic::Sti => self.sti(),
            Mnemonic::Int3 => self.interrupt(3)?,
            _ => self.branch(),
        };
        Ok(if known { StepResult::Done } else { StepResult::Unknown })
    }

    fn jump(&mut self) -> Result<bool, M::Error> {
        let Some(target) = self.target()? else { return Ok(false) };
        self.go(target);
        Ok(true)
    }

    fn go(&mut self, target: Target) {
        if let Some(selector) = target.selector {
            self.processor.load_segment(Segment::Cs, selector);
        }
        self.processor.jump(target.offset);
    }

    fn call(&mut self) -> Result<bool, M::Error> {
        let Some(target) = self.target()? else { return Ok(false) };
        let pushes = self.instruction.stack_pointer_increment().unsigned_abs() as usize;
        let bytes = if target.selector.is_some() { pushes / 2 } else { pushes };
        let Some(width) = Width::from_bytes(bytes) else { return Ok(false) };
        let mut stack = Stack::of(self.processor);
        if target.selector.is_some() {
            stack.push(self.memory, width, self.processor.selector(Segment::Cs).into())?;
        }
        stack.push(self.memory, width, self.next & width.mask())?;
        stack.commit(self.processor);
        self.go(target);
        Ok(true)
    }

    /// RET, RETF and IRET.
    fn ret(&mut self) -> Result<bool, M::Error> {
        let (width, far) = match self.instruction.code() {
            Code::Retnw | Code::Retnw_imm16 => (Width::Word, false),
            Code::Retnd | Code::Retnd_imm16 => (Width::Dword, false),
            Code::Retfw | Code::Retfw_imm16 | Code::Iretw => (Width::Word, true),
            Code::Retfd | Code::Retfd_imm16 | Code::Iretd => (Width::Dword, true),
            _ => return Ok(false),
        };
        let with_flags = matches!(self.instruction.mnemonic(), Mnemonic::Iret | Mnemonic::Iretd);
        let mut stack = Stack::of(self.processor);
        let offset = stack.pop(self.memory, width)?;
        let selector = if far { Some(stack.pop(self.memory, width)? as u16) } else { None };
        let rflags = if with_flags { Some(stack.pop(self.memory, width)?) } else { None };
        if self.instruction.op_count() == 1 {
            stack.drop(self.instruction.immediate16().into());
        }
        stack.commit(self.processor);
        if let Some(rflags) = rflags {
            self.set_flags(rflags, width);
        }
        self.go(Target { selector, offset });
        Ok(true)
    }

    /// STI: the next instruction is in an interrupt shadow if interrupts were disabled.
    fn sti(&mut self) -> bool {
        let rflags = self.processor.rflags();
        self.processor.set_rflags(rflags | RFLAGS_IF);
        self.processor.jump(self.next);
        if rflags & RFLAGS_IF == 0 {
            self.processor.shadow();
        }
        true
    }

    fn interrupt(&mut self, vector: u8) -> Result<bool, M::Error> {
        interrupt(self.processor, self.memory, vector, self.next)
    }

    /// Jcc, LOOPcc and JCXZ.
    fn branch(&mut self) -> bool {
        let Some(offset) = self.near_target() else { return false };
        let rflags = self.processor.rflags();
        let zero = rflags & ZF != 0;
        let taken = match self.instruction.mnemonic() {
            Mnemonic::Loop => self.count_down(),
            Mnemonic::Loope => self.count_down() && zero,
            Mnemonic::Loopne => self.count_down() && !zero,
            Mnemonic::Jcxz => self.processor.gpr(Gpr::RCX) & 0xffff == 0,
            Mnemonic::Jecxz => self.processor.gpr(Gpr::RCX) & 0xffff_ffff == 0,
            _ => match self.instruction.condition_code() {
                ConditionCode::None => return false,
                condition => holds(condition, rflags),
            },
        };
        self.processor.jump(if taken { offset } else { self.next });
        true
    }

    /// Decrements the counter of LOOP, CX or ECX. Whether it is not zero then.
    fn count_down(&mut self) -> bool {
        let small = matches!(
            self.instruction.code(),
            Code::Loop_rel8_16_CX
                | Code::Loop_rel8_32_CX
                | Code::Loope_rel8_16_CX
                | Code::Loope_rel8_32_CX
                | Code::Loopne_rel8_16_CX
                | Code::Loopne_rel8_32_CX
        );
        let (counter, width) = (Operand::new(Gpr::RCX), if small { Width::Word } else { Width::Dword });
        let left = self.get(counter, width).wrapping_sub(1) & width.mask();
        self.set(counter, width, left);
        left != 0
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
    fn target(&mut self) -> Result<Option<Target>, M::Error> {
        let instruction = self.instruction;
        let near = |offset| Some(Target { selector: None, offset });
        Ok(match instruction.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 => self.near_target().and_then(near),
            OpKind::FarBranch16 => Some(Target {
                selector: Some(instruction.far_branch_selector()),
                offset: instruction.far_branch16().into(),
            }),
            OpKind::FarBranch32 => Some(Target {
                selector: Some(instruction.far_branch_selector()),
                offset: instruction.far_branch32().into(),
            }),
            OpKind::Register => {
                let register = instruction.op0_register();
                let width = Width::from_bytes(register.size());
                Operand::of(register).zip(width).and_then(|(operand, width)| near(self.get(operand, width)))
            }
            OpKind::Memory => self.target_in_memory()?,
            _ => None,
        })
    }

    fn target_in_memory(&mut self) -> Result<Option<Target>, M::Error> {
        let far =
            matches!(self.instruction.code(), Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Call_m1616 | Code::Call_m1632);
        let bytes = self.instruction.memory_size().size() - if far { 2 } else { 0 };
        let Some((at, width)) = self.linear().zip(Width::from_bytes(bytes)) else { return Ok(None) };
        let offset = read(self.memory, at, width)?;
        let selector =
            if far { Some(read(self.memory, at.wrapping_add(width.bytes()), Width::Word)? as u16) } else { None };
        Ok(Some(Target { selector, offset }))
    }
}
