//! Operands: registers, immediates, and memory behind the checks of its segment.

use super::Execution;
use crate::memory;
use crate::registers::Operand;
use crate::segmentation::{Kind, SegmentFault};
use crate::{Address, Gpr, Width};
use addr::Gva;
use iced_x86::OpKind;

/// Where an operand is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Register(Operand),
    Memory(Gva),
    Immediate(u64),
}

impl Place {
    /// Whether it is in memory.
    pub(super) const fn is_memory(self) -> bool {
        matches!(self, Self::Memory(_))
    }
}

impl<E: From<SegmentFault>> Execution<'_, E> {
    /// Operand `n`, of which the instruction does `kind`. None of a register that is not general.
    pub(super) fn place(&mut self, n: u32, kind: Kind) -> Result<Option<Place>, E> {
        Ok(match self.instruction.op_kind(n) {
            OpKind::Register => Operand::of(self.instruction.op_register(n)).map(Place::Register),
            OpKind::Memory => {
                let bytes = self.instruction.memory_size().size() as u64;
                self.linear(bytes, kind)?.map(Place::Memory)
            }
            _ => self.instruction.try_immediate(n).ok().map(Place::Immediate),
        })
    }

    /// The memory operand, of so many bytes.
    pub(super) fn linear(&mut self, bytes: u64, kind: Kind) -> Result<Option<Gva>, E> {
        let Some(address) = Address::of(&self.instruction, self.bitness) else { return Ok(None) };
        let offset = address.offset(self.processor);
        let segmentation = self.processor.segmentation(address.segment(), self.bitness);
        Ok(Some(segmentation.check(offset, bytes, kind)?))
    }

    /// The width of operand `n`, a register or in memory.
    pub(super) fn width(&self, n: u32) -> Option<Width> {
        Width::from_bytes(match self.instruction.op_kind(n) {
            OpKind::Register => self.instruction.op_register(n).size(),
            OpKind::Memory => self.instruction.memory_size().size(),
            _ => return None,
        })
    }

    pub(super) fn get(&mut self, place: Place, width: Width) -> Result<u64, E> {
        match place {
            Place::Register(operand) => Ok(operand.get(self.processor, width)),
            Place::Memory(at) => memory::read(self.memory, at, width),
            Place::Immediate(value) => Ok(value & width.mask()),
        }
    }

    /// An immediate can't be written: the decoder gives none as a destination.
    pub(super) fn put(&mut self, place: Place, width: Width, value: u64) -> Result<(), E> {
        match place {
            Place::Register(operand) => operand.set(self.processor, width, value),
            Place::Memory(at) => memory::write(self.memory, at, width, value)?,
            Place::Immediate(_) => {}
        }
        Ok(())
    }

    pub(super) fn gpr(&self, gpr: Gpr, width: Width) -> u64 {
        Operand::new(gpr).get(self.processor, width)
    }

    pub(super) fn set_gpr(&mut self, gpr: Gpr, width: Width, value: u64) {
        Operand::new(gpr).set(self.processor, width, value);
    }
}
