//! A guest's linear addresses as the instructions access them that are carried out for it: memory, the page of the vCPU's local APIC,
//! devices, and addresses where nothing answers. There reads give ones and writes are lost, as on a PC's bus.
//!
//! An operand may lie in two pages, of which each is what it is: half in memory and half in none, for example.

use crate::debug_traps::Watch;
use crate::local_apic::ApicClock;
use crate::open_bus::OpenBus;
use crate::shared::Vm;
use crate::trouble::Trouble;
use crate::types::Types;
use addr::{Gpa, Gva, PAGE_SIZE};
use apic::{Effect, LocalApic, Posted, Register};
use emul::Width;
use walk::{Access, AccessKind, Fault, Paging, Privilege, SetAccessedDirty, operand};

/// The translation of an operand, which the exit has told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// Its first byte.
    pub(crate) at: Gva,
    /// Where that is.
    pub(crate) gpa: Gpa,
    /// The exit was by a write.
    pub(crate) is_writable: bool,
}

/// So many effects of one instruction are kept. More registers of the APIC only ENTER can write at once, whose others are lost.
const EFFECTS: usize = 8;

/// What one vCPU's instruction accesses.
pub(crate) struct AddressSpace<'a, T: Types> {
    pub(crate) memory: &'a T::Memory,
    pub(crate) vm: &'a Vm<T::Sink, T::Clock>,
    pub(crate) apic: &'a mut LocalApic,
    pub(crate) posted: &'a Posted,
    pub(crate) paging: Paging,
    pub(crate) privilege: Privilege,
    pub(crate) known: Option<Known>,
    pub(crate) watch: Watch,
    pub(crate) outcome: Outcome,
}

/// What the accesses have led to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    effects: [Option<Effect>; EFFECTS],
    /// Whether a device was accessed.
    pub(crate) devices: bool,
}

impl Outcome {
    /// Those of writes to the APIC, in their order, but that a change of the task priority comes first: what is delivered for another
    /// effect would have the APIC forget it, for the processor's CR8 of before.
    pub(crate) fn effects(&self) -> impl Iterator<Item = Effect> + use<> {
        self.effects.into_iter().flatten()
    }

    /// Adds what later accesses of the same instruction have led to.
    pub(crate) fn add(&mut self, later: &Self) {
        later.effects().for_each(|effect| self.keep(effect));
        self.devices |= later.devices;
    }

    fn keep(&mut self, effect: Effect) {
        if let Some(place) = self.effects.iter().position(Option::is_none) {
            self.effects[place] = Some(effect);
            if effect == Effect::TaskPriority {
                self.effects[..=place].rotate_right(1);
            }
        }
    }
}

/// The part of an operand that lies in one page: where, and which of its bytes.
type Piece = (Gpa, usize, usize);

impl<T: Types> AddressSpace<'_, T> {
    fn translate(&self, at: Gva, kind: AccessKind, set: SetAccessedDirty) -> Result<Gpa, Fault> {
        let access = Access { kind, privilege: self.privilege };
        Ok(walk::translate(&OpenBus(self.memory), &self.paging, at, access, set)?.gpa)
    }

    /// The pieces of the `length` bytes at `at`. Nothing is done if either faults.
    fn pieces(
        &self,
        at: Gva,
        length: usize,
        kind: AccessKind,
        set: SetAccessedDirty,
    ) -> Result<[Option<Piece>; 2], Fault> {
        let first = length.min((PAGE_SIZE - at.page_offset()) as usize);
        let gpa = match self.known {
            Some(known) if known.at == at && (known.is_writable || kind == AccessKind::Read) => known.gpa,
            _ => self.translate(at, kind, set)?,
        };
        let second = match length - first {
            0 => None,
            _ => Some((self.translate(at.wrapping_add(first as u64), kind, set)?, first, length)),
        };
        Ok([Some((gpa, 0, first)), second])
    }

    fn read_piece(&mut self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Trouble> {
        if self.apic.is_at(gpa.raw()) {
            self.read_apic(gpa, bytes);
            return Ok(());
        }
        match operand::load(self.memory, gpa, bytes) {
            Err(Fault::Unbacked(_)) => {
                bytes.fill(0xff);
                self.outcome.devices |= self.vm.devices().read_mmio(gpa, bytes);
                Ok(())
            }
            read => Ok(read?),
        }
    }

    fn write_piece(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), Trouble> {
        if self.apic.is_at(gpa.raw()) {
            self.write_apic(gpa, bytes);
            return Ok(());
        }
        match operand::store(self.memory, gpa, bytes) {
            Err(Fault::Unbacked(_)) => {
                self.outcome.devices |= self.vm.devices().write_mmio(gpa, bytes);
                Ok(())
            }
            written => Ok(written?),
        }
    }

    /// The registers are 32 bits wide, at steps of 16 bytes (Intel SDM vol. 3, section 11.4.1): narrower reads give a part of one, wider
    /// ones nothing above it; other writes than of 32 bits are lost.
    fn read_apic(&mut self, gpa: Gpa, bytes: &mut [u8]) {
        let offset = gpa.page_offset() as u16;
        let Some(register) = apic_register(offset).filter(|_| offset & 15 < 4) else {
            self.apic.illegal_register(self.posted);
            bytes.fill(0);
            return;
        };
        let value = u64::from(self.apic.read(register, self.posted, &ApicClock(self.vm.clock())));
        bytes.fill(0);
        for (byte, part) in bytes.iter_mut().zip((value >> (8 * (offset & 3))).to_le_bytes()) {
            *byte = part;
        }
    }

    fn write_apic(&mut self, gpa: Gpa, bytes: &[u8]) {
        let offset = gpa.page_offset() as u16;
        match (apic_register(offset), bytes.first_chunk()) {
            (None, _) => self.apic.illegal_register(self.posted),
            (Some(register), Some(value)) if bytes.len() == 4 && offset & 15 == 0 => {
                let value = u32::from_le_bytes(*value);
                let effect = self.apic.write(register, value, self.posted, &ApicClock(self.vm.clock()));
                self.outcome.keep(effect);
            }
            _ => {}
        }
    }
}

/// The register at `offset` of the APIC's page, or around it. [`Register::SelfIpi`] is only in x2APIC mode.
#[inline]
pub(crate) fn apic_register(offset: u16) -> Option<Register> {
    Register::new(offset >> 4).filter(|&register| register != Register::SelfIpi)
}

impl<T: Types> emul::Memory for AddressSpace<'_, T> {
    type Error = Trouble;

    #[inline]
    fn read(&mut self, at: Gva, bytes: &mut [u8]) -> Result<(), Trouble> {
        for (gpa, start, end) in
            self.pieces(at, bytes.len(), AccessKind::Read, SetAccessedDirty::Yes)?.into_iter().flatten()
        {
            self.read_piece(gpa, &mut bytes[start..end])?;
        }
        self.watch.read(at, bytes.len());
        Ok(())
    }

    #[inline]
    fn write(&mut self, at: Gva, bytes: &[u8]) -> Result<(), Trouble> {
        for (gpa, start, end) in
            self.pieces(at, bytes.len(), AccessKind::Write, SetAccessedDirty::Yes)?.into_iter().flatten()
        {
            self.write_piece(gpa, &bytes[start..end])?;
        }
        self.watch.write(at, bytes.len());
        Ok(())
    }

    /// Of an operand in two pages, or in a device, other vCPUs may see half.
    fn compare_exchange(&mut self, at: Gva, width: Width, old: u64, new: u64) -> Result<bool, Trouble> {
        let length = width.bytes() as usize;
        let (old, new) = (old.to_le_bytes(), new.to_le_bytes());
        let (old, new) = (&old[..length], &new[..length]);
        if let [Some((gpa, ..)), None] = self.pieces(at, length, AccessKind::Write, SetAccessedDirty::Yes)?
            && !self.apic.is_at(gpa.raw())
        {
            match operand::compare_exchange(self.memory, gpa, old, new) {
                Err(Fault::Unbacked(_)) => {}
                exchanged => {
                    self.watch.write(at, length);
                    return Ok(exchanged?);
                }
            }
        }
        self.write(at, new).map(|()| true)
    }

    fn prepare_write(&mut self, at: Gva, bytes: usize) -> Result<(), Trouble> {
        self.pieces(at, bytes, AccessKind::Write, SetAccessedDirty::No)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_task_priority_is_told_first() {
        let mut outcome = Outcome::default();
        for effect in [Effect::None, Effect::Timer, Effect::TaskPriority, Effect::None] {
            outcome.keep(effect);
        }
        assert!(outcome.effects().eq([Effect::TaskPriority, Effect::None, Effect::Timer, Effect::None]));
        let mut first = Outcome::default();
        first.keep(Effect::Timer);
        first.add(&Outcome { devices: true, ..outcome });
        let effects = [Effect::TaskPriority, Effect::Timer, Effect::None, Effect::Timer, Effect::None];
        assert!(first.effects().eq(effects) && first.devices);
    }
}
