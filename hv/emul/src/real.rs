//! An interpreter of real-mode code, for processors that can't run a guest in real mode.
//!
//! It executes boot code up to the instruction that sets CR0.PE: moves, arithmetic, stack, jumps, calls, interrupts by
//! the vector table, descriptor tables, strings. Instructions that exit under virtualization, and those on control
//! registers, are decoded and left to the caller. Any other instruction is [`StepResult::Unknown`], on which the caller ends
//! the guest with a message. Segment limits are not checked, and RFLAGS.TF is ignored.

mod data;
mod flow;
mod stack;

use crate::mmio::{self, Bus, MemoryRef};
use crate::system::{self, System};
use crate::{Bitness, DecodeError, Gpr, Registers, Segment, Width};
use addr::Gva;
use arch::RFLAGS_TF;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

pub use flow::interrupt;

/// #UD.
pub const UNDEFINED: u8 = 6;

/// The most iterations of a string instruction in one step: a caller that takes many steps at once has to come back to its host in
/// time.
const ITERATIONS: usize = 16;

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// GDTR.
    Global,
    /// IDTR.
    Interrupts,
}

/// The contents of GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u32,
    /// Offset of its last byte.
    pub limit: u16,
}

/// A vCPU in real mode.
pub trait Processor: Registers {
    /// Sets RIP; an interrupt shadow ends.
    fn jump(&mut self, rip: u64);
    /// Puts the instruction at RIP into an interrupt shadow.
    fn shadow(&mut self);
    /// The selector in a segment register.
    fn selector(&self, segment: Segment) -> u16;
    /// Loads a segment register as in real mode: the base becomes 16 times the selector; limit and rights stay.
    fn load_segment(&mut self, segment: Segment, selector: u16);
    /// GDTR or IDTR.
    fn table(&self, table: Table) -> TableRegister;
    /// Sets GDTR or IDTR.
    fn set_table(&mut self, table: Table, register: TableRegister);
}

/// The guest's memory at linear addresses, which equal physical ones in real mode.
pub trait Memory {
    /// The reason of a refused access.
    type Error;

    /// Reads `bytes`.
    fn read(&mut self, at: Gva, bytes: &mut [u8]) -> Result<(), Self::Error>;
    /// Writes `bytes`.
    fn write(&mut self, at: Gva, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Writes `new`, of `width`, if memory still holds `old`, atomically, and tells whether it did.
    fn compare_exchange(&mut self, at: Gva, width: Width, old: u64, new: u64) -> Result<bool, Self::Error>;
}

/// An instruction that exits under virtualization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the instructions' own names and operands")]
pub enum Exiting {
    Cpuid,
    Rdmsr,
    Wrmsr,
    Halt,
    Hypercall,
    In { port: u16, width: Width },
    Out { port: u16, width: Width },
}

/// The result of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// The instruction is executed, or as many of its iterations as one step allows.
    Done,
    /// The instruction raises this exception; nothing was changed.
    Fault(u8),
    /// The caller has to execute this instruction and continue at `next`.
    Exit {
        /// The instruction.
        exit: Exiting,
        /// RIP after it.
        next: u64,
    },
    /// The caller has to execute this instruction on control registers and continue at `next`.
    System {
        /// The instruction.
        system: System,
        /// RIP after it.
        next: u64,
    },
    /// The interpreter does not know the instruction.
    Unknown,
}

/// Executes the instruction at RIP; `code` is the bytes there.
pub fn step<P: Processor, M: Memory>(
    processor: &mut P,
    memory: &mut M,
    code: &[u8],
    bitness: Bitness,
) -> Result<StepResult, M::Error> {
    let instruction = match crate::decode(code, bitness) {
        Ok(instruction) => instruction,
        Err(DecodeError::Invalid) => return Ok(StepResult::Fault(UNDEFINED)),
        Err(_) => return Ok(StepResult::Unknown),
    };
    let next = bitness.advance(processor.rip(), instruction.len() as u64);
    if let Some(exit) = exiting(&instruction, processor) {
        return Ok(StepResult::Exit { exit, next });
    }
    if let Some(system) = system::system(&instruction, bitness) {
        return Ok(StepResult::System { system, next });
    }
    let mut execution = Execution { processor, memory, instruction, bitness, next };
    if let Some(step) = execution.in_memory()? {
        return Ok(step);
    }
    if execution.in_registers() {
        execution.processor.jump(next);
        return Ok(StepResult::Done);
    }
    match execution.on_stack()? {
        StepResult::Unknown => execution.control_flow(),
        step => Ok(step),
    }
}

/// The execution of one instruction.
struct Execution<'a, P, M> {
    processor: &'a mut P,
    memory: &'a mut M,
    instruction: Instruction,
    bitness: Bitness,
    next: u64,
}

impl<P: Processor, M: Memory> Execution<'_, P, M> {
    /// Executes an instruction that [`mmio`] emulates. None for another.
    fn in_memory(&mut self) -> Result<Option<StepResult>, M::Error> {
        let Some(instruction) = mmio::of_instruction(&self.instruction, self.bitness) else { return Ok(None) };
        // A single step is behind each.
        let iterations = if self.processor.rflags() & RFLAGS_TF != 0 { 1 } else { ITERATIONS };
        for _ in 0..iterations {
            let mut bus = Data { at: instruction.linear(self.processor), memory: self.memory };
            if instruction.execute(self.processor, &mut bus)? == mmio::Executed::Retired {
                self.processor.jump(self.next);
                break;
            }
        }
        Ok(Some(StepResult::Done))
    }
}

/// The memory operand of one instruction.
struct Data<'a, M> {
    memory: &'a mut M,
    at: Gva,
}

impl<M> Data<'_, M> {
    const fn at(&self, at: MemoryRef) -> Gva {
        match at {
            MemoryRef::Operand => self.at,
            MemoryRef::Linear(at) => at,
        }
    }
}

impl<M: Memory> Bus for Data<'_, M> {
    type Error = M::Error;

    fn read(&mut self, at: MemoryRef, width: Width) -> Result<u64, M::Error> {
        read(self.memory, self.at(at), width)
    }

    fn write(&mut self, at: MemoryRef, width: Width, value: u64) -> Result<(), M::Error> {
        write(self.memory, self.at(at), width, value)
    }

    fn compare_exchange(&mut self, at: MemoryRef, width: Width, old: u64, new: u64) -> Result<bool, M::Error> {
        self.memory.compare_exchange(self.at(at), width, old, new)
    }
}

fn read<M: Memory>(memory: &mut M, at: Gva, width: Width) -> Result<u64, M::Error> {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes[..width.bytes() as usize])?;
    Ok(u64::from_le_bytes(bytes))
}

fn write<M: Memory>(memory: &mut M, at: Gva, width: Width, value: u64) -> Result<(), M::Error> {
    memory.write(at, &value.to_le_bytes()[..width.bytes() as usize])
}

fn exiting<P: Processor>(instruction: &Instruction, processor: &P) -> Option<Exiting> {
    let port = |n| match instruction.op_kind(n) {
        OpKind::Register => processor.gpr(Gpr::RDX) as u16,
        _ => instruction.immediate8().into(),
    };
    let width = |register: Register| Width::from_bytes(register.size());
    Some(match instruction.mnemonic() {
        Mnemonic::Cpuid => Exiting::Cpuid,
        Mnemonic::Rdmsr => Exiting::Rdmsr,
        Mnemonic::Wrmsr => Exiting::Wrmsr,
        Mnemonic::Hlt => Exiting::Halt,
        Mnemonic::Vmcall | Mnemonic::Vmmcall => Exiting::Hypercall,
        Mnemonic::In => Exiting::In { port: port(1), width: width(instruction.op0_register())? },
        Mnemonic::Out => Exiting::Out { port: port(0), width: width(instruction.op1_register())? },
        _ => return None,
    })
}
