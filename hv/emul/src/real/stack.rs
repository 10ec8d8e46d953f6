//! Instructions on the stack, segment registers and descriptor tables.

use super::{Execution, Memory, Processor, StepResult, Table, TableRegister, read, write};
use crate::registers::Operand;
use crate::{Address, Gpr, Segment, Width};
use addr::Gva;
use iced_x86::{Code, Mnemonic, OpKind};

/// The flags that POPF can change in real mode: all but VM, RF, VIF, VIP and reserved ones.
const POPPED: u64 = 0x24_7fd5;
const ALWAYS: u64 = 1 << 1;

/// Pushes and pops of one instruction. SP changes only by [`commit`](Self::commit), when no access can fault any more.
pub(super) struct Stack {
    base: u64,
    sp: u64,
}

impl Stack {
    pub(super) fn of<P: Processor>(processor: &P) -> Self {
        Self { base: processor.segment_base(Segment::Ss), sp: processor.gpr(Gpr::RSP) & 0xffff }
    }

    fn at(&self) -> Gva {
        Gva::new(self.base.wrapping_add(self.sp) & 0xffff_ffff)
    }

    pub(super) fn push<M: Memory>(&mut self, memory: &mut M, width: Width, value: u64) -> Result<(), M::Error> {
        self.sp = self.sp.wrapping_sub(width.bytes()) & 0xffff;
        write(memory, self.at(), width, value)
    }

    pub(super) fn pop<M: Memory>(&mut self, memory: &mut M, width: Width) -> Result<u64, M::Error> {
        let value = read(memory, self.at(), width)?;
        self.drop(width.bytes());
        Ok(value)
    }

    pub(super) fn drop(&mut self, bytes: u64) {
        self.sp = self.sp.wrapping_add(bytes) & 0xffff;
    }

    pub(super) fn commit<P: Processor>(self, processor: &mut P) {
        Operand::new(Gpr::RSP).set(processor, Width::Word, self.sp);
    }
}

impl<P: Processor, M: Memory> Execution<'_, P, M> {
    pub(super) fn on_stack(&mut self) -> Result<StepResult, M::Error> {
        let done = match self.instruction.mnemonic() {
            Mnemonic::Push | Mnemonic::Pushf | Mnemonic::Pushfd => self.push()?,
            Mnemonic::Pop | Mnemonic::Popf | Mnemonic::Popfd => self.pop()?,
            Mnemonic::Mov => self.segment_register()?,
            Mnemonic::Lgdt => self.load_table(Table::Global)?,
            Mnemonic::Lidt => self.load_table(Table::Interrupts)?,
            Mnemonic::Sgdt => self.store_table(Table::Global)?,
            Mnemonic::Sidt => self.store_table(Table::Interrupts)?,
            _ => None,
        };
        Ok(done.map_or(StepResult::Unknown, |()| StepResult::Done))
    }

    fn push(&mut self) -> Result<Option<()>, M::Error> {
        let Some(width) = self.stack_width() else { return Ok(None) };
        let value = match self.instruction.mnemonic() {
            // VM and RF are pushed as zeros.
            Mnemonic::Pushf | Mnemonic::Pushfd => Some(self.processor.rflags() & 0xfc_ffff),
            _ => self.pushed(width)?,
        };
        let Some(value) = value else { return Ok(None) };
        let mut stack = Stack::of(self.processor);
        stack.push(self.memory, width, value)?;
        stack.commit(self.processor);
        self.processor.jump(self.next);
        Ok(Some(()))
    }

    /// The operand of PUSH.
    fn pushed(&mut self, width: Width) -> Result<Option<u64>, M::Error> {
        let register = self.instruction.op0_register();
        Ok(match self.instruction.op0_kind() {
            OpKind::Register => match (Operand::of(register), Segment::of(register)) {
                (Some(operand), _) => Some(self.get(operand, width)),
                (None, Some(segment)) => Some(self.processor.selector(segment).into()),
                _ => None,
            },
            OpKind::Memory => match self.linear() {
                Some(at) => Some(read(self.memory, at, width)?),
                None => None,
            },
            _ => self.instruction.try_immediate(0).ok(),
        })
    }

    fn pop(&mut self) -> Result<Option<()>, M::Error> {
        let Some(width) = self.stack_width() else { return Ok(None) };
        let mut stack = Stack::of(self.processor);
        let value = stack.pop(self.memory, width)?;
        let register = self.instruction.op0_register();
        let segment = Segment::of(register);
        if matches!(self.instruction.mnemonic(), Mnemonic::Popf | Mnemonic::Popfd) {
            stack.commit(self.processor);
            self.set_flags(value, width);
        } else if let Some(operand) = Operand::of(register) {
            stack.commit(self.processor);
            self.set(operand, width, value);
        } else if let Some(segment) = segment {
            stack.commit(self.processor);
            self.processor.load_segment(segment, value as u16);
        } else {
            return Ok(None);
        }
        self.processor.jump(self.next);
        if segment == Some(Segment::Ss) {
            self.processor.shadow();
        }
        Ok(Some(()))
    }

    pub(super) fn set_flags(&mut self, value: u64, width: Width) {
        let changed = POPPED & width.mask();
        let rflags = self.processor.rflags() & !changed | value & changed | ALWAYS;
        self.processor.set_rflags(rflags);
    }

    fn stack_width(&self) -> Option<Width> {
        Width::from_bytes(self.instruction.stack_pointer_increment().unsigned_abs() as usize)
    }

    /// MOV to and from segment registers.
    fn segment_register(&mut self) -> Result<Option<()>, M::Error> {
        let (to, from) = (self.instruction.op0_register(), self.instruction.op1_register());
        if let Some(segment) = Segment::of(from) {
            let selector = self.processor.selector(segment).into();
            match (Operand::of(to), self.linear()) {
                (Some(operand), _) => {
                    let Some(width) = Width::from_bytes(to.size()) else { return Ok(None) };
                    self.set(operand, width, selector);
                }
                (None, Some(at)) => write(self.memory, at, Width::Word, selector)?,
                _ => return Ok(None),
            }
            self.processor.jump(self.next);
            return Ok(Some(()));
        }
        let Some(segment) = Segment::of(to) else { return Ok(None) };
        let selector = match (Operand::of(from), self.linear()) {
            (Some(operand), _) => self.get(operand, Width::Word),
            (None, Some(at)) => read(self.memory, at, Width::Word)?,
            _ => return Ok(None),
        };
        self.processor.load_segment(segment, selector as u16);
        self.processor.jump(self.next);
        if segment == Segment::Ss {
            self.processor.shadow();
        }
        Ok(Some(()))
    }

    /// LGDT and LIDT. With 16-bit operands the base has 24 bits.
    fn load_table(&mut self, table: Table) -> Result<Option<()>, M::Error> {
        let Some(at) = self.linear() else { return Ok(None) };
        let mut bytes = [0; 6];
        self.memory.read(at, &mut bytes)?;
        let [low, high, base @ ..] = bytes;
        let base = u32::from_le_bytes(base);
        let small = matches!(self.instruction.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16);
        let base = if small { base & 0x00ff_ffff } else { base };
        self.processor.set_table(table, TableRegister { base, limit: u16::from_le_bytes([low, high]) });
        self.processor.jump(self.next);
        Ok(Some(()))
    }

    fn store_table(&mut self, table: Table) -> Result<Option<()>, M::Error> {
        let Some(at) = self.linear() else { return Ok(None) };
        let register = self.processor.table(table);
        let [low, high] = register.limit.to_le_bytes();
        let [a, b, c, d] = register.base.to_le_bytes();
        self.memory.write(at, &[low, high, a, b, c, d])?;
        self.processor.jump(self.next);
        Ok(Some(()))
    }

    /// The linear address of the memory operand, if there is one.
    pub(super) fn linear(&self) -> Option<Gva> {
        let is_memory = |n| self.instruction.op_kind(n) == OpKind::Memory;
        (0..self.instruction.op_count())
            .any(is_memory)
            .then(|| Address::of(&self.instruction, self.bitness))?
            .map(|address| address.linear(self.processor))
    }
}
