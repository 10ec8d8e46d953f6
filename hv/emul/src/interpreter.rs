//! An interpreter of the instructions that the processor can't execute for the guest: those whose memory operand is a device, or a page
//! that has to be watched, and all code in real mode where the processor has no real mode for guests.
//!
//! It knows the integer instructions, and the loads and stores of x87, MMX and SSE. It checks operands by their segments. Instructions
//! that exit under virtualization, and those on control registers, are decoded and left to the caller. Any other instruction is
//! [`StepResult::Unknown`], on which the caller ends the guest with a message. What is to be done
//! about RFLAGS.TF is the caller's.
//!
//! In protected mode it executes what accesses memory; loads of segment registers and far transfers are left to the caller, who has the descriptors. The guest's other vCPUs may change the
//! code between the exit and the fetch, so an instruction is never taken for one that the processor has checked: privilege is checked
//! here as well.

mod arithmetic;
mod data;
mod flow;
mod operand;
mod stack;
mod tables;
mod vector;

use crate::memory::Memory;
use crate::mmio::{self, Executed};
use crate::segmentation::{SegmentFault, Segmentation};
use crate::system::{self, System};
use crate::{Bitness, DecodeError, Gpr, Registers, Segment, SegmentRegister, Width};
use arch::{CR0_PE, RFLAGS_TF, RFLAGS_VM};
use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind, Register};

pub use flow::{interrupt, push_far};
pub use vector::{Area, VectorInstruction};

/// Vectors of the exceptions that instructions raise here. An error code, of those that have one, is 0.
pub mod fault {
    /// #DE.
    pub const DIVIDE: u8 = 0;
    /// #BR.
    pub const BOUND: u8 = 5;
    /// #UD.
    pub const UNDEFINED: u8 = 6;
    /// #NM.
    pub const DEVICE_NOT_AVAILABLE: u8 = 7;
    /// #GP(0).
    pub const GENERAL_PROTECTION: u8 = 13;
    /// #MF.
    pub const FLOATING_POINT: u8 = 16;
}

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
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

/// What instructions depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the registers' own names")]
pub struct Controls {
    pub cr0: u64,
    pub cr4: u64,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
}

/// Instructions that not all processors have, and that are other ones, or none, for those that have them not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// TZCNT, which is BSF otherwise.
    Bmi1,
    /// LZCNT, which is BSR otherwise.
    Lzcnt,
    /// POPCNT.
    Popcnt,
    /// MOVBE.
    Movbe,
}

/// A set of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions(u8);

impl Extensions {
    /// All of `extensions`.
    pub fn of(extensions: impl IntoIterator<Item = Extension>) -> Self {
        Self(extensions.into_iter().fold(0, |all, extension| all | 1 << extension as u8))
    }

    const fn has(self, extension: Extension) -> bool {
        self.0 >> extension as u8 & 1 != 0
    }
}

/// A vCPU whose instructions are interpreted.
pub trait Processor: Registers {
    /// Sets RIP; an interrupt shadow ends.
    fn jump(&mut self, rip: u64);
    /// An STI is executed: the instruction at RIP is in an interrupt shadow.
    fn shadow_of_sti(&mut self);
    /// The selector in a segment register.
    fn selector(&self, segment: Segment) -> u16;
    /// Loads a segment register as in real mode: the base becomes 16 times the selector; limit and rights stay.
    fn load_segment(&mut self, segment: Segment, selector: u16);
    /// What accesses through a segment register are checked by.
    fn segmentation(&mut self, segment: Segment, bitness: Bitness) -> Segmentation;
    /// GDTR or IDTR.
    fn table(&self, table: Table) -> TableRegister;
    /// Sets GDTR or IDTR.
    fn set_table(&mut self, table: Table, register: TableRegister);
    /// The registers that say what the vCPU may do.
    fn controls(&self) -> Controls;
    /// What the vCPU's CPUID offers.
    fn extensions(&self) -> Extensions;
    /// An IRET is executed: the next NMI can be taken.
    fn unblock_nmis(&mut self);
    /// Executes an instruction on the vCPU's x87, MMX and SSE registers. `area` is its memory operand. RFLAGS behind it.
    fn execute_vector(&mut self, instruction: VectorInstruction, area: &mut Area) -> u64;
}

/// An instruction that exits under virtualization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the instructions' own names and operands")]
pub enum Exiting {
    Cpuid,
    Rdmsr,
    Wrmsr,
    Rdtsc,
    Rdpmc,
    Halt,
    Hypercall,
    Int1,
    In {
        port: u16,
        width: Width,
    },
    Out {
        port: u16,
        width: Width,
    },
    /// INS (`input`) or OUTS.
    String {
        port: u16,
        width: Width,
        input: bool,
    },
}

/// The result of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// The instruction is executed.
    Done,
    /// The same, and it has gone elsewhere: a jump, a call, a return, or a conditional branch that was taken.
    Branched,
    /// The same, and it has loaded SS: the next instruction is in an interrupt shadow, and no single step is behind this one (Intel SDM
    /// vol. 3, section 6.8.3).
    LoadedSs,
    /// INT n, INT3 or INTO has gone to its handler. TF is clear, and no single step is behind the instruction.
    Interrupted,
    /// As many of its iterations are as one step allows, and others are left.
    Iterated,
    /// Nothing is done: other vCPUs have changed the instruction, or its operand in the midst of it. The guest tries it again.
    Again,
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
    /// The caller has to load a segment register, by its descriptor, and continue at `next`.
    LoadSegment {
        /// The register.
        register: SegmentRegister,
        /// What it is loaded with.
        selector: u16,
        /// A general register that the instruction loads as well, and all of its value.
        also: Option<(Gpr, u64)>,
        /// As behind [`LoadedSs`](Self::LoadedSs).
        shadows: bool,
        /// RIP after it.
        next: u64,
    },
    /// The instruction goes on behind the bytes of `code`; nothing was changed.
    Truncated,
    /// The caller has to go to another code segment, by its descriptor: a far JMP or CALL in protected mode.
    FarTransfer {
        /// The code segment.
        selector: u16,
        /// RIP there.
        offset: u64,
        /// The width of what CALL [pushes](push_far).
        pushes: Option<Width>,
        /// RIP behind the instruction.
        next: u64,
    },
    /// The interpreter does not know the instruction.
    Unknown,
}

/// Executes the instruction at RIP; `code` is the bytes there. RIP is behind it then, or where it jumps to.
///
/// # Errors
/// Those of `memory`, and of the operands' segments. No register has changed then but by complete iterations, and memory may have changed
/// below the stack pointer.
///
/// The calls go through pointers, so that the hypervisor has the interpreter once, and not for each kind of vCPU.
pub fn step<E: From<SegmentFault>>(
    processor: &mut dyn Processor,
    memory: &mut dyn Memory<Error = E>,
    code: &[u8],
    bitness: Bitness,
) -> Result<StepResult, E> {
    let instruction = match crate::decode(code, bitness) {
        Ok(instruction) => instruction,
        Err(DecodeError::Invalid) => return Ok(StepResult::Fault(fault::UNDEFINED)),
        Err(DecodeError::Truncated) => return Ok(StepResult::Truncated),
        Err(DecodeError::Unexpected) => return Ok(StepResult::Unknown),
    };
    let next = bitness.advance(processor.rip(), instruction.len() as u64);
    let Controls { cr0, cpl, .. } = processor.controls();
    let is_real = cr0 & CR0_PE == 0;
    if is_real {
        if let Some(exit) = exiting(&instruction, processor) {
            return Ok(StepResult::Exit { exit, next });
        }
        if let Some(system) = system::system(&instruction, bitness) {
            return Ok(StepResult::System { system, next });
        }
        if let Some(vector) = unknown_in_real_mode(&instruction) {
            return Ok(StepResult::Fault(vector));
        }
    } else if !accesses_memory(&instruction) {
        return Ok(StepResult::Again);
    } else if cpl != 0 && instruction.is_privileged() {
        return Ok(StepResult::Fault(fault::GENERAL_PROTECTION));
    }
    Execution { processor, memory, instruction, code, bitness, next, is_real }.execute()
}

/// The exception of an instruction that there is not in real mode (Intel SDM vol. 2, "Real-Address Mode Exceptions"), or that this
/// hypervisor offers to no guest.
fn unknown_in_real_mode(instruction: &Instruction) -> Option<u8> {
    let is_hidden = instruction.cpuid_features().iter().any(|feature| {
        matches!(
            feature,
            CpuidFeature::VMX
                | CpuidFeature::SVM
                | CpuidFeature::SKINIT
                | CpuidFeature::SKINIT_or_SVM
                | CpuidFeature::INVPCID
                | CpuidFeature::SMX
                | CpuidFeature::MONITOR
                | CpuidFeature::MONITORX
                | CpuidFeature::XSAVE
                | CpuidFeature::FSGSBASE
                | CpuidFeature::SYSCALL
        )
    });
    match instruction.mnemonic() {
        Mnemonic::Sysenter | Mnemonic::Sysexit => Some(fault::GENERAL_PROTECTION),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::Rsm => Some(fault::UNDEFINED),
        _ if is_hidden || instruction.code().encoding() != EncodingKind::Legacy => Some(fault::UNDEFINED),
        _ => None,
    }
}

/// Whether the instruction reads or writes memory. For those with a stack pointer, that is all it is asked of.
fn accesses_memory(instruction: &Instruction) -> bool {
    let is_memory = |n| {
        matches!(
            instruction.op_kind(n),
            OpKind::Memory
                | OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemorySegDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegRDI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
        )
    };
    (0..instruction.op_count()).any(is_memory) || instruction.is_stack_instruction()
}

/// The execution of one instruction.
struct Execution<'a, E> {
    processor: &'a mut dyn Processor,
    memory: &'a mut dyn Memory<Error = E>,
    instruction: Instruction,
    /// Its bytes, and others behind it.
    code: &'a [u8],
    bitness: Bitness,
    next: u64,
    /// Real mode, with CPL 0.
    is_real: bool,
}

/// What comes of an instruction. None: it is another group's.
type Done<E> = Result<Option<StepResult>, E>;

const DONE: Option<StepResult> = Some(StepResult::Done);

impl<E: From<SegmentFault>> Execution<'_, E> {
    fn execute(mut self) -> Result<StepResult, E> {
        match self.straight()? {
            Some(StepResult::Done) => {
                self.processor.jump(self.next);
                Ok(if self.shadows_next() { StepResult::LoadedSs } else { StepResult::Done })
            }
            Some(result) => Ok(result),
            None => Ok(self.control_flow()?.unwrap_or(StepResult::Unknown)),
        }
    }

    /// The instructions behind which the next one is executed.
    fn straight(&mut self) -> Done<E> {
        if let Some(result) = self.in_memory()? {
            return Ok(Some(result));
        }
        if let Some(result) = self.data()? {
            return Ok(Some(result));
        }
        if let Some(result) = self.arithmetic()? {
            return Ok(Some(result));
        }
        if let Some(result) = self.vector()? {
            return Ok(Some(result));
        }
        match self.stack()? {
            Some(result) => Ok(Some(result)),
            None => self.tables(),
        }
    }

    /// Executes an instruction that [`mmio`] emulates. None for another.
    fn in_memory(&mut self) -> Done<E> {
        let Some(instruction) = mmio::of_instruction(&self.instruction, self.bitness) else { return Ok(None) };
        // A single step is behind each.
        let iterations = if self.processor.rflags() & RFLAGS_TF != 0 { 1 } else { ITERATIONS };
        for _ in 0..iterations {
            for operand in instruction.operands(self.processor).into_iter().flatten().flatten() {
                let segmentation = self.processor.segmentation(operand.segment, self.bitness);
                segmentation.check(operand.offset, instruction.width().bytes(), operand.kind)?;
            }
            match instruction.execute(self.processor, self.memory)? {
                Executed::Retired => return Ok(DONE),
                Executed::Again => return Ok(Some(StepResult::Again)),
                Executed::Iterated => {}
            }
        }
        Ok(Some(StepResult::Iterated))
    }

    /// Loads a segment register, and the general register `also`: of real mode and virtual-8086 mode here, else by the caller.
    fn load_segment(&mut self, segment: Segment, selector: u16, also: Option<(Gpr, u64)>) -> Done<E> {
        if segment == Segment::Cs {
            return Ok(Some(StepResult::Fault(fault::UNDEFINED)));
        }
        if !self.is_real && !is_virtual_8086(self.processor.rflags()) {
            let register = SegmentRegister::Segment(segment);
            let shadows = self.shadows_next();
            return Ok(Some(StepResult::LoadSegment { register, selector, also, shadows, next: self.next }));
        }
        if let Some((gpr, value)) = also {
            self.processor.set_gpr(gpr, value);
        }
        self.processor.load_segment(segment, selector);
        Ok(DONE)
    }

    fn has(&self, extension: Extension) -> bool {
        self.processor.extensions().has(extension)
    }

    /// No interrupt is taken right behind MOV SS and POP SS.
    fn shadows_next(&self) -> bool {
        let loads = matches!(self.instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop);
        loads && self.instruction.op0_register() == Register::SS
    }
}

fn exiting(instruction: &Instruction, processor: &dyn Processor) -> Option<Exiting> {
    let dx = processor.gpr(Gpr::RDX) as u16;
    let port = |n| match instruction.op_kind(n) {
        OpKind::Register => dx,
        _ => instruction.immediate8().into(),
    };
    let width = |register: Register| Width::from_bytes(register.size());
    let string =
        |input| Some(Exiting::String { port: dx, width: Width::from_bytes(instruction.memory_size().size())?, input });
    Some(match instruction.mnemonic() {
        Mnemonic::Cpuid => Exiting::Cpuid,
        Mnemonic::Rdmsr => Exiting::Rdmsr,
        Mnemonic::Wrmsr => Exiting::Wrmsr,
        Mnemonic::Rdtsc => Exiting::Rdtsc,
        Mnemonic::Rdpmc => Exiting::Rdpmc,
        Mnemonic::Hlt => Exiting::Halt,
        Mnemonic::Vmcall | Mnemonic::Vmmcall => Exiting::Hypercall,
        Mnemonic::Int1 => Exiting::Int1,
        Mnemonic::In => Exiting::In { port: port(1), width: width(instruction.op0_register())? },
        Mnemonic::Out => Exiting::Out { port: port(0), width: width(instruction.op1_register())? },
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => string(true)?,
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => string(false)?,
        _ => return None,
    })
}

/// Whether RFLAGS.VM is set.
const fn is_virtual_8086(rflags: u64) -> bool {
    rflags & RFLAGS_VM != 0
}
