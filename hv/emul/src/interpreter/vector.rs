//! Loads and stores of x87, MMX and SSE registers.
//!
//! The registers stay in the processor, and what is done with them is the processor's: the operand goes through an [`Area`]. So an
//! x87 instruction computes as it would have, and leaves the same state behind but for the addresses of the last instruction and
//! operand.

use super::{Controls, DONE, Done, Execution, StepResult, fault};
use crate::registers::Operand;
use crate::segmentation::{Kind, SegmentFault};
use crate::{Bitness, Gpr, Width};
use addr::Gva;
use arch::{CR0_EM, CR0_MP, CR0_TS, CR4_OSFXSR};
use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind, Register};

/// An instruction on x87, MMX or SSE registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorInstruction {
    /// An x87 instruction with a memory operand.
    X87 {
        /// The opcode's low bits: of D8h to DFh.
        opcode: u8,
        /// The number in ModRM, 0 to 7.
        extension: u8,
        /// There is a prefix for 16-bit operands: FNSTENV, FLDENV, FNSAVE and FRSTOR have a shorter operand then.
        short: bool,
    },
    /// An x87 instruction on registers, other than FNSTSW AX. FCMOVcc reads arithmetic flags, and FCOMI and its like write them.
    X87Registers {
        /// The opcode's low bits: of D8h to DFh.
        opcode: u8,
        /// ModRM, from C0h on.
        modrm: u8,
    },
    /// EMMS.
    Emms,
    /// MOVQ from an MMX register, 0 to 7.
    StoreMmx(u8),
    /// MOVQ to an MMX register, 0 to 7.
    LoadMmx(u8),
    /// MOVDQU from an XMM register, 0 to 15.
    StoreXmm(u8),
    /// MOVDQU to an XMM register, 0 to 15.
    LoadXmm(u8),
    /// STMXCSR.
    Stmxcsr,
    /// LDMXCSR of a valid value.
    Ldmxcsr,
    /// FXSAVE, or FXSAVE64.
    Fxsave {
        /// With REX.W.
        wide: bool,
    },
    /// FXRSTOR, or FXRSTOR64, of a valid MXCSR.
    Fxrstor {
        /// With REX.W.
        wide: bool,
    },
}

/// The memory operand of a [`VectorInstruction`].
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct Area(pub [u8; 512]);

impl Area {
    /// Zeros.
    pub const fn new() -> Self {
        Self([0; 512])
    }
}

impl Default for Area {
    fn default() -> Self {
        Self::new()
    }
}

/// FNSTSW to memory.
const FNSTSW: VectorInstruction = VectorInstruction::X87 { opcode: 5, extension: 7, short: false };
/// FNSTCW.
const FNSTCW: VectorInstruction = VectorInstruction::X87 { opcode: 1, extension: 7, short: false };
/// In FSW: an exception that is not masked waits for the next instruction that looks for one.
const EXCEPTION_SUMMARY: u8 = 1 << 7;
/// The bits of MXCSR that exist on every processor with SSE2.
const MXCSR_DEFINED: u32 = 0xffff;
/// So many bytes of its area FXSAVE writes.
const FXSAVE_WRITES: usize = 464;
/// Where FXSAVE's area has MXCSR.
const MXCSR_AT: usize = 24;

/// A move of part of an XMM or MMX register: the register, the offset in it, and whether memory is written.
#[derive(Clone, Copy)]
struct Move {
    register: Register,
    offset: usize,
    stores: bool,
    /// The load clears the rest of the register.
    clears: bool,
    /// Memory has to be aligned to the operand's size.
    aligned: bool,
}

impl<E: From<SegmentFault>> Execution<'_, E> {
    pub(super) fn vector(&mut self) -> Done<E> {
        if let Some((opcode, modrm)) = x87_encoding(self.code, self.bitness) {
            return self.x87(match modrm >> 6 {
                3 => VectorInstruction::X87Registers { opcode: opcode & 7, modrm },
                _ => VectorInstruction::X87 {
                    opcode: opcode & 7,
                    extension: modrm >> 3 & 7,
                    short: matches!(self.instruction.memory_size(), MemorySize::FpuEnv14 | MemorySize::FpuState94),
                },
            });
        }
        match self.instruction.mnemonic() {
            Mnemonic::Wait => self.x87(FNSTSW),
            Mnemonic::Emms => self.end_mmx(),
            Mnemonic::Stmxcsr => self.store(VectorInstruction::Stmxcsr, 4),
            Mnemonic::Ldmxcsr => self.load_state(VectorInstruction::Ldmxcsr, 4, 0),
            Mnemonic::Fxsave => self.store(VectorInstruction::Fxsave { wide: false }, 512),
            Mnemonic::Fxsave64 => self.store(VectorInstruction::Fxsave { wide: true }, 512),
            Mnemonic::Fxrstor => self.load_state(VectorInstruction::Fxrstor { wide: false }, 512, MXCSR_AT),
            Mnemonic::Fxrstor64 => self.load_state(VectorInstruction::Fxrstor { wide: true }, 512, MXCSR_AT),
            _ => match move_of(&self.instruction) {
                Some(wanted) => self.move_vector(wanted),
                None => Ok(None),
            },
        }
    }

    /// The exceptions that come before the operand is looked at (Intel SDM vol. 3, table 2-2 and section 13.1).
    fn refused(&self, is_x87: bool, is_sse: bool) -> Option<StepResult> {
        let Controls { cr0, cr4, .. } = self.processor.controls();
        match () {
            () if cr0 & CR0_EM != 0 && !is_x87 => Some(StepResult::Fault(fault::UNDEFINED)),
            () if is_sse && cr4 & CR4_OSFXSR == 0 => Some(StepResult::Fault(fault::UNDEFINED)),
            () if cr0 & (CR0_TS | if is_x87 { CR0_EM } else { 0 }) != 0 => {
                Some(StepResult::Fault(fault::DEVICE_NOT_AVAILABLE))
            }
            () => None,
        }
    }

    /// WAIT looks at TS if MP is set, and not at EM.
    fn refused_wait(&self) -> Option<StepResult> {
        let Controls { cr0, .. } = self.processor.controls();
        let is_refused = cr0 & (CR0_TS | CR0_MP) == CR0_TS | CR0_MP;
        is_refused.then_some(StepResult::Fault(fault::DEVICE_NOT_AVAILABLE))
    }

    /// An exception of an earlier x87 instruction. It must not come to the hypervisor, in whose place the instruction is executed.
    fn exception_waits(&mut self) -> bool {
        let mut area = Area::new();
        self.processor.execute_vector(FNSTSW, &mut area);
        area.0[0] & EXCEPTION_SUMMARY != 0
    }

    /// Whether the last instruction has stored its result: not with an exception that is not masked, but for that of precision (Intel SDM
    /// vol. 1, section 8.5).
    fn has_stored(&mut self) -> bool {
        const EXCEPTIONS: u8 = 0x3f;
        const PRECISION: u8 = 1 << 5;
        let (mut status, mut control) = (Area::new(), Area::new());
        self.processor.execute_vector(FNSTSW, &mut status);
        self.processor.execute_vector(FNSTCW, &mut control);
        status.0[0] & !control.0[0] & EXCEPTIONS & !PRECISION == 0
    }

    fn x87(&mut self, instruction: VectorInstruction) -> Done<E> {
        let mnemonic = self.instruction.mnemonic();
        let refused = match mnemonic {
            Mnemonic::Wait => self.refused_wait(),
            _ => self.refused(true, false),
        };
        if refused.is_some() {
            return Ok(refused);
        }
        let waits = !matches!(
            mnemonic,
            Mnemonic::Fninit
                | Mnemonic::Fnclex
                | Mnemonic::Fnstcw
                | Mnemonic::Fnstsw
                | Mnemonic::Fnstenv
                | Mnemonic::Fnsave
        );
        if waits && self.exception_waits() {
            return Ok(Some(StepResult::Fault(fault::FLOATING_POINT)));
        }
        match mnemonic {
            Mnemonic::Wait => return Ok(DONE),
            Mnemonic::Fnstsw if self.instruction.op0_kind() == OpKind::Register => {
                let mut area = Area::new();
                self.processor.execute_vector(FNSTSW, &mut area);
                let [low, high, ..] = area.0;
                Operand::new(Gpr::RAX).set(self.processor, Width::Word, u16::from_le_bytes([low, high]).into());
                return Ok(DONE);
            }
            _ => {}
        }
        if let VectorInstruction::X87Registers { .. } = instruction {
            return self.without_operand(instruction);
        }
        let bytes = self.instruction.memory_size().size();
        if !x87_writes(mnemonic) {
            return self.load(instruction, bytes);
        }
        let Some(at) = self.prepared(bytes, false)? else { return Ok(None) };
        let mut area = Area::new();
        self.processor.execute_vector(instruction, &mut area);
        if !waits || self.has_stored() {
            self.memory.write(at, &area.0[..bytes])?;
        }
        Ok(DONE)
    }

    fn without_operand(&mut self, instruction: VectorInstruction) -> Done<E> {
        let rflags = self.processor.execute_vector(instruction, &mut Area::new());
        self.processor.set_rflags(rflags);
        Ok(DONE)
    }

    fn end_mmx(&mut self) -> Done<E> {
        if let Some(refused) = self.refused(false, false) {
            return Ok(Some(refused));
        }
        if self.exception_waits() {
            return Ok(Some(StepResult::Fault(fault::FLOATING_POINT)));
        }
        self.without_operand(VectorInstruction::Emms)
    }

    /// Where `bytes` are to be written; a fault comes before a register changes.
    fn prepared(&mut self, bytes: usize, aligned: bool) -> Result<Option<Gva>, E> {
        let Some(at) = self.vector_operand(bytes, aligned, Kind::Write)? else { return Ok(None) };
        self.memory.prepare_write(at, bytes)?;
        Ok(Some(at))
    }

    fn vector_operand(&mut self, bytes: usize, aligned: bool, kind: Kind) -> Result<Option<Gva>, E> {
        let at = self.linear(bytes as u64, kind)?;
        match at {
            Some(at) if aligned && at.raw() % 16 != 0 => Err(SegmentFault::GeneralProtection.into()),
            at => Ok(at),
        }
    }

    fn load(&mut self, instruction: VectorInstruction, bytes: usize) -> Done<E> {
        let Some(at) = self.linear(bytes as u64, Kind::Read)? else { return Ok(None) };
        let mut area = Area::new();
        self.memory.read(at, &mut area.0[..bytes])?;
        self.processor.execute_vector(instruction, &mut area);
        Ok(DONE)
    }

    fn store(&mut self, instruction: VectorInstruction, bytes: usize) -> Done<E> {
        if let Some(refused) = self.refused(bytes == 512, bytes != 512) {
            return Ok(Some(refused));
        }
        let Some(at) = self.prepared(bytes, bytes == 512)? else { return Ok(None) };
        let mut area = Area::new();
        self.processor.execute_vector(instruction, &mut area);
        // What is behind is for software (Intel SDM vol. 1, section 10.5.1).
        self.memory.write(at, &area.0[..bytes.min(FXSAVE_WRITES)])?;
        Ok(DONE)
    }

    /// LDMXCSR and FXRSTOR. Reserved bits of MXCSR, which is `mxcsr_at` in the operand, must not come to the processor: it would raise #GP
    /// in the hypervisor.
    fn load_state(&mut self, instruction: VectorInstruction, bytes: usize, mxcsr_at: usize) -> Done<E> {
        if let Some(refused) = self.refused(bytes == 512, bytes != 512) {
            return Ok(Some(refused));
        }
        let Some(at) = self.vector_operand(bytes, bytes == 512, Kind::Read)? else { return Ok(None) };
        let mut area = Area::new();
        self.memory.read(at, &mut area.0[..bytes])?;
        let mxcsr = area.0[mxcsr_at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        if mxcsr & !MXCSR_DEFINED != 0 {
            return Ok(Some(StepResult::Fault(fault::GENERAL_PROTECTION)));
        }
        self.processor.execute_vector(instruction, &mut area);
        Ok(DONE)
    }

    fn move_vector(&mut self, wanted: Move) -> Done<E> {
        let is_xmm = wanted.register.is_xmm();
        if let Some(refused) = self.refused(false, is_xmm) {
            return Ok(Some(refused));
        }
        if !is_xmm && self.exception_waits() {
            return Ok(Some(StepResult::Fault(fault::FLOATING_POINT)));
        }
        let number = wanted.register.number() as u8;
        let (store, load) = match is_xmm {
            true => (VectorInstruction::StoreXmm(number), VectorInstruction::LoadXmm(number)),
            false => (VectorInstruction::StoreMmx(number), VectorInstruction::LoadMmx(number)),
        };
        let bytes = self.instruction.memory_size().size();
        let part = wanted.offset..wanted.offset + bytes;
        let mut area = Area::new();
        if wanted.stores {
            let Some(at) = self.prepared(bytes, wanted.aligned)? else { return Ok(None) };
            self.processor.execute_vector(store, &mut area);
            self.memory.write(at, &area.0[part])?;
        } else {
            let Some(at) = self.vector_operand(bytes, wanted.aligned, Kind::Read)? else { return Ok(None) };
            if !wanted.clears {
                self.processor.execute_vector(store, &mut area);
            }
            self.memory.read(at, &mut area.0[part])?;
            self.processor.execute_vector(load, &mut area);
        }
        Ok(DONE)
    }
}

/// Opcode and ModRM of an x87 instruction, behind its prefixes.
fn x87_encoding(code: &[u8], bitness: Bitness) -> Option<(u8, u8)> {
    let is_rex = |byte: u8| bitness == Bitness::Bits64 && byte & 0xf0 == 0x40;
    let is_prefix = |byte| is_rex(byte) || matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let mut rest = code.iter().copied().skip_while(|&byte| is_prefix(byte));
    let opcode = rest.next().filter(|opcode| (0xd8..=0xdf).contains(opcode))?;
    Some((opcode, rest.next()?))
}

/// Whether an x87 instruction writes its memory operand.
const fn x87_writes(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Fst
            | Mnemonic::Fstp
            | Mnemonic::Fist
            | Mnemonic::Fistp
            | Mnemonic::Fisttp
            | Mnemonic::Fbstp
            | Mnemonic::Fnstcw
            | Mnemonic::Fnstsw
            | Mnemonic::Fnstenv
            | Mnemonic::Fnsave
    )
}

/// The move between a register and memory that the instruction is.
fn move_of(instruction: &Instruction) -> Option<Move> {
    let memory = (0..instruction.op_count()).find(|&n| instruction.op_kind(n) == OpKind::Memory)?;
    let register = instruction.op_register(1 - memory.min(1));
    if !(register.is_xmm() || register.is_mm()) || instruction.op_count() != 2 {
        return None;
    }
    let plain = Move { register, offset: 0, stores: memory == 0, clears: true, aligned: false };
    Some(match instruction.mnemonic() {
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu | Mnemonic::Lddqu => plain,
        Mnemonic::Movss | Mnemonic::Movsd | Mnemonic::Movd | Mnemonic::Movq | Mnemonic::Movntq => plain,
        Mnemonic::Movaps
        | Mnemonic::Movapd
        | Mnemonic::Movdqa
        | Mnemonic::Movntdq
        | Mnemonic::Movntps
        | Mnemonic::Movntpd
        | Mnemonic::Movntdqa => Move { aligned: true, ..plain },
        Mnemonic::Movlps | Mnemonic::Movlpd => Move { clears: false, ..plain },
        Mnemonic::Movhps | Mnemonic::Movhpd => Move { offset: 8, clears: false, ..plain },
        _ => return None,
    })
}
