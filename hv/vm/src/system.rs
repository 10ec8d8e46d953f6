//! Control registers, debug registers and INVLPG: under shadow paging, where they exit with nested paging, and in emulated real mode.

use crate::address_space::Outcome;
use crate::debug_traps::{retire, retire_watched};
use crate::exit::Event;
use crate::exit_handler::ExitHandler;
use crate::flow::Flow;
use crate::memory::Memory;
use crate::task_switch::TaskState;
use crate::trouble::Trouble;
use crate::types::Types;
use crate::vcpu::{ControlRegisters, Vcpu};
use arch::{
    CR0_CD, CR0_DEFINED, CR0_ET, CR0_NW, CR0_PE, CR0_PG, CR0_TS, CR4_PAE, CR4_PCIDE, CR4_UMIP, EFER_LMA, EFER_LME,
};
use emul::segmentation::Kind;
use emul::system::{self, Decoded, StatusWord, System, write_gpr};
use emul::{Bitness, DecodeError, Gpr, Memory as _, Registers, Segment, Width};
use walk::Controls;

/// What LMSW writes.
const STATUS_WORD: u64 = 0xf;

/// The breakpoints that an instruction's operand has met, as bits of DR6.
pub(crate) type Hits = u64;

/// Why an instruction is not carried out.
pub(crate) enum NotExecuted {
    Event(Event),
    Trouble(Trouble),
}

impl<T: Into<Trouble>> From<T> for NotExecuted {
    fn from(trouble: T) -> Self {
        Self::Trouble(trouble.into())
    }
}

impl From<Event> for NotExecuted {
    fn from(event: Event) -> Self {
        Self::Event(event)
    }
}

impl NotExecuted {
    fn tell(self, vcpu: &mut impl Vcpu) -> Flow {
        match self {
            Self::Trouble(trouble) => trouble.tell(vcpu),
            Self::Event(event) => {
                vcpu.inject(event);
                Flow::Resume
            }
        }
    }
}

impl<T: Types> ExitHandler<'_, T> {
    /// MOV to and from a control or debug register, CLTS, LMSW, SMSW or INVLPG.
    pub(crate) fn system(&mut self, vcpu: &mut T::Vcpu, host: &mut T::Host) -> Flow {
        let bitness = Self::bitness(vcpu);
        let done = self.decode_system(vcpu, bitness).and_then(|decoded| {
            let next = bitness.advance(vcpu.rip(), decoded.length);
            self.carry_out_system(vcpu, decoded.system, next, host)
        });
        done.unwrap_or_else(|not_executed| not_executed.tell(vcpu))
    }

    // A call would return all of it through memory: 50 instructions more for each such exit.
    #[inline(always)]
    fn decode_system(&mut self, vcpu: &T::Vcpu, bitness: Bitness) -> Result<Decoded, NotExecuted> {
        let at = Self::code_address(vcpu, bitness);
        match self.first_bytes(vcpu, at).and_then(|first| system::decode_short(first, bitness)) {
            Some(decoded) => Ok(decoded),
            None => Ok(self.decoded(vcpu, bitness, |bytes| system::decode(bytes, bitness))?),
        }
    }

    /// The instruction ends at `next`.
    fn carry_out_system(
        &mut self,
        vcpu: &mut T::Vcpu,
        system: System,
        next: u64,
        host: &mut T::Host,
    ) -> Result<Flow, NotExecuted> {
        let ControlRegisters { cr0, cr3, cr4, cpl, .. } = vcpu.control();
        if cpl != 0 || vcpu.own_paging().is_none() {
            Self::check_system(vcpu, &system)?;
        }
        match system {
            System::Invlpg(page) => self.memory.shadow_invlpg(page.linear(vcpu)),
            System::WriteCr { cr: 3, from } => {
                let cr3 = dword(vcpu, from);
                if vcpu.own_paging().is_none() {
                    vcpu.load_cr3(cr3, None);
                } else {
                    self.write_own_paging(vcpu, |own, memory| own.write_cr3(memory, cr3))?;
                }
            }
            System::WriteCr { cr: 0, from } => {
                let value = Self::register_operand(vcpu, from);
                self.write_cr0(vcpu, value)?;
            }
            System::WriteCr { cr: 4, from } => {
                let value = Self::register_operand(vcpu, from);
                self.write_cr4(vcpu, value)?;
            }
            System::ReadCr { cr: 0, to } => write_gpr(vcpu, to, Width::Dword, cr0),
            System::ReadCr { cr: 3, to } => write_gpr(vcpu, to, Width::Dword, cr3),
            System::ReadCr { cr: 4, to } => write_gpr(vcpu, to, Width::Dword, cr4),
            System::Clts => self.write_cr0(vcpu, cr0 & !CR0_TS)?,
            rare => return Ok(self.rare_system(vcpu, rare, next, host)),
        }
        retire(vcpu, next);
        Ok(Flow::Resume)
    }

    /// Those that switch neither page tables nor modes.
    // Out of what the others execute.
    #[cold]
    #[inline(never)]
    fn rare_system(&mut self, vcpu: &mut T::Vcpu, system: System, next: u64, host: &mut T::Host) -> Flow {
        let mut outcome = Outcome::default();
        let flow = match self.carry_out_rare(vcpu, system, &mut outcome) {
            Ok(hits) => {
                retire_watched(vcpu, next, hits);
                Flow::Resume
            }
            Err(not_executed) => not_executed.tell(vcpu),
        };
        // A trap comes before an interrupt that the instruction makes deliverable.
        self.follow_up(vcpu, &outcome, host);
        flow
    }

    fn carry_out_rare(
        &mut self,
        vcpu: &mut T::Vcpu,
        system: System,
        outcome: &mut Outcome,
    ) -> Result<Hits, NotExecuted> {
        let cr0 = vcpu.control().cr0;
        match system {
            System::WriteCr { cr: 2, from } => {
                let value = Self::register_operand(vcpu, from);
                vcpu.set_cr2(value);
            }
            System::ReadCr { cr: 2, to } => Self::write_register_operand(vcpu, to, vcpu.cr2()),
            System::WriteDr { dr, from } => {
                let value = Self::register_operand(vcpu, from);
                Self::write_debug_register(vcpu, dr, value)?;
            }
            System::ReadDr { dr, to } => {
                let value = Self::read_debug_register(vcpu, dr)?;
                Self::write_register_operand(vcpu, to, value);
            }
            System::Lmsw(from) => {
                let (word, hits) = self.status_word(vcpu, from, outcome)?;
                self.write_cr0(vcpu, cr0 & !(STATUS_WORD & !CR0_PE) | word & STATUS_WORD)?;
                return Ok(hits);
            }
            System::Smsw { to: StatusWord::Register(to), width } => write_gpr(vcpu, to, width, cr0),
            System::Smsw { to: StatusWord::Memory(to), .. } => {
                let at = Self::checked_word(vcpu, to, Kind::Write)?;
                let mut space = self.address_space(vcpu);
                let written = space.write(at, &(cr0 as u16).to_le_bytes());
                let hits = space.watch.hits;
                *outcome = space.outcome;
                written?;
                return Ok(hits);
            }
            System::Invlpg(_) | System::WriteCr { .. } | System::ReadCr { .. } | System::Clts => {
                return Err(DecodeError::Unexpected.into());
            }
        }
        Ok(0)
    }

    /// What has exited may be another instruction by now: one that the CPL does not allow (of all, SMSW is allowed without UMIP), or that
    /// the processor has to know of, as it walks the guest's own tables.
    #[cold]
    #[inline(never)]
    fn check_system(vcpu: &T::Vcpu, system: &System) -> Result<(), NotExecuted> {
        let ControlRegisters { cr0, cr4, cpl, .. } = vcpu.control();
        if cpl != 0 && (!matches!(system, System::Smsw { .. }) || cr4 & CR4_UMIP != 0) {
            return Err(Event::GENERAL_PROTECTION.into());
        }
        let is_of_translations =
            matches!(system, System::Invlpg(_) | System::WriteCr { cr: 3, .. } | System::ReadCr { cr: 3, .. });
        match is_of_translations && vcpu.own_paging().is_none() && cr0 & CR0_PG != 0 {
            true => Err(DecodeError::Unexpected.into()),
            false => Ok(()),
        }
    }

    /// Writes what MOV reads from a control or debug register.
    fn write_register_operand(vcpu: &mut T::Vcpu, gpr: Gpr, value: u64) {
        let width = if Self::bitness(vcpu) == Bitness::Bits64 { Width::Qword } else { Width::Dword };
        write_gpr(vcpu, gpr, width, value);
    }

    /// The operand of a MOV to a control or debug register: all of `gpr` in 64-bit code, else its lower half.
    pub(crate) fn register_operand(vcpu: &T::Vcpu, gpr: Gpr) -> u64 {
        if Self::bitness(vcpu) == Bitness::Bits64 { vcpu.gpr(gpr) } else { dword(vcpu, gpr) }
    }

    /// LMSW's operand, and the breakpoints that reading it has met.
    fn status_word(
        &mut self,
        vcpu: &mut T::Vcpu,
        from: StatusWord,
        outcome: &mut Outcome,
    ) -> Result<(u64, Hits), NotExecuted> {
        let at = match from {
            StatusWord::Register(gpr) => return Ok((vcpu.gpr(gpr), 0)),
            StatusWord::Memory(at) => Self::checked_word(vcpu, at, Kind::Read)?,
        };
        let mut word = [0; 2];
        let mut space = self.address_space(vcpu);
        let read = space.read(at, &mut word);
        let hits = space.watch.hits;
        *outcome = space.outcome;
        read?;
        Ok((u16::from_le_bytes(word).into(), hits))
    }

    /// PG needs PE, NW needs CD, and the upper half is reserved (Intel SDM vol. 2, MOV to control registers).
    fn write_cr0(&mut self, vcpu: &mut T::Vcpu, value: u64) -> Result<(), NotExecuted> {
        let cr0 = value & CR0_DEFINED | CR0_ET;
        let is_reserved = value >> 32 != 0 || cr0 & (CR0_PG | CR0_PE) == CR0_PG || cr0 & (CR0_NW | CR0_CD) == CR0_NW;
        if is_reserved {
            return Err(Event::GENERAL_PROTECTION.into());
        }
        if vcpu.own_paging().is_none() {
            return self.write_nested_cr0(vcpu, cr0);
        }
        Ok(self.write_own_paging(vcpu, |own, memory| own.write(memory, Controls { cr0, ..own.paging().controls }))?)
    }

    /// Long mode is entered with PAE and from code that is not 64-bit, and left from such code, without PCIDE (Intel SDM vol. 3,
    /// sections 9.8.5 and 4.10.1).
    #[cold]
    #[inline(never)]
    fn write_nested_cr0(&mut self, vcpu: &mut T::Vcpu, cr0: u64) -> Result<(), NotExecuted> {
        let control = vcpu.control();
        let ControlRegisters { cr0: old, cr4, efer, .. } = control;
        let is_64_bit = vcpu.segment(Segment::Cs).long;
        let is_wrong = match (old & CR0_PG != 0, cr0 & CR0_PG != 0) {
            (false, true) => efer & EFER_LME != 0 && (cr4 & CR4_PAE == 0 || is_64_bit),
            (true, false) => efer & EFER_LMA != 0 && is_64_bit || cr4 & CR4_PCIDE != 0,
            _ => false,
        };
        if is_wrong {
            return Err(Event::GENERAL_PROTECTION.into());
        }
        let is_turned_on = old & CR0_PG == 0 && cr0 & CR0_PG != 0 && efer & EFER_LME == 0;
        let pdptes = match is_turned_on && vcpu.holds_pdptes(&ControlRegisters { cr0, ..control }) {
            true => self.pdptes(vcpu, Controls { cr0, ..Self::controls(vcpu) })?,
            false => None,
        };
        vcpu.set_cr0(cr0, pdptes);
        Ok(())
    }

    /// Long mode needs PAE (Intel SDM vol. 3, section 4.1.1).
    #[cold]
    #[inline(never)]
    fn write_nested_cr4(vcpu: &mut T::Vcpu, cr4: u64) -> Result<(), NotExecuted> {
        if vcpu.control().efer & EFER_LMA != 0 && cr4 & CR4_PAE == 0 {
            return Err(Event::GENERAL_PROTECTION.into());
        }
        vcpu.set_cr4(cr4);
        Ok(())
    }

    fn write_cr4(&mut self, vcpu: &mut T::Vcpu, cr4: u64) -> Result<(), NotExecuted> {
        if cr4 & !self.context.offered_cr4 != 0 {
            return Err(Event::GENERAL_PROTECTION.into());
        }
        if vcpu.own_paging().is_none() {
            return Self::write_nested_cr4(vcpu, cr4);
        }
        Ok(self.write_own_paging(vcpu, |own, memory| own.write(memory, Controls { cr4, ..own.paging().controls }))?)
    }
}

/// The part of a register that counts outside of long mode.
fn dword<V: Vcpu>(vcpu: &V, gpr: Gpr) -> u64 {
    vcpu.gpr(gpr) & Width::Dword.mask()
}
