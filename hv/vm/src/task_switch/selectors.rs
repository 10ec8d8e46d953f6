//! Loads of segment registers by instructions that are carried out here: MOV, POP and LDS, LLDT and LTR, far JMP and CALL (Intel SDM
//! vol. 2).

use super::descriptor::{Descriptor, LoadedSegment};
use super::{ExitHandler, IN_LDT, INDEX, TaskState};
use crate::address_space::Outcome;
use crate::exit::{Event, Exception};
use crate::interpreted::Interpreted;
use crate::system::{Hits, NotExecuted};
use crate::trouble::Trouble;
use crate::types::Types;
use crate::vcpu::{ControlRegisters, Vcpu};
use arch::{CR4_LA57, EFER_LMA};
use emul::interpreter;
use emul::segmentation::is_canonical;
use emul::{Bitness, Segment, SegmentRegister, Width};
use x86::irq::{GENERAL_PROTECTION_FAULT_VECTOR, INVALID_TSS_VECTOR, SEGMENT_NOT_PRESENT_VECTOR};

const GATE: &str = "a far transfer from a device, to a gate or to another task";
const HIGH_BASE: &str = "LLDT or LTR from a device, of a segment above 4 GiB";

fn error(vector: u8, selector: u16) -> NotExecuted {
    Event::Exception(Exception::new(vector, Some(u32::from(selector & !3)))).into()
}

fn refused(selector: u16) -> NotExecuted {
    error(GENERAL_PROTECTION_FAULT_VECTOR, selector)
}

impl<T: Types> ExitHandler<'_, T> {
    /// Loads `register` with `selector`. Nothing has changed on an error, but for the accessed bit of the descriptor.
    pub(crate) fn load_by_selector(
        &mut self,
        vcpu: &mut T::Vcpu,
        register: SegmentRegister,
        selector: u16,
    ) -> Result<(), NotExecuted> {
        let loaded = match register {
            SegmentRegister::Segment(segment) => self.descriptor_segment(vcpu, segment, selector)?,
            SegmentRegister::Ldtr if selector & (INDEX | IN_LDT) == 0 => {
                LoadedSegment { selector, ..Default::default() }
            }
            SegmentRegister::Ldtr | SegmentRegister::Tr => self.system_segment(vcpu, register, selector)?,
        };
        vcpu.load_segment(register, loaded);
        Ok(())
    }

    /// A segment of code or data.
    fn descriptor_segment(
        &mut self,
        vcpu: &mut T::Vcpu,
        register: Segment,
        selector: u16,
    ) -> Result<LoadedSegment, NotExecuted> {
        let cpl = vcpu.control().cpl;
        if selector & (INDEX | IN_LDT) == 0 {
            // 64-bit code below CPL 3 has a stack without a segment.
            let is_allowed = register != Segment::Ss
                || Self::bitness(vcpu) == Bitness::Bits64 && cpl != 3 && (selector & 3) as u8 == cpl;
            return if is_allowed { Ok(LoadedSegment::unloaded(register, selector, cpl)) } else { Err(refused(0)) };
        }
        let table = match selector & IN_LDT != 0 {
            true => vcpu.local_table().ok_or(refused(selector))?,
            false => vcpu.gdt(),
        };
        let tables = self.tables(vcpu);
        let Some((at, descriptor)) = tables.descriptor(table, selector)? else { return Err(refused(selector)) };
        descriptor.check(register, (selector & 3) as u8, cpl).map_err(|vector| match vector {
            // What is that for a new task's registers.
            INVALID_TSS_VECTOR => refused(selector),
            vector => error(vector, selector),
        })?;
        let type_byte = descriptor.type_byte() | Descriptor::ACCESSED;
        if type_byte != descriptor.type_byte() {
            tables.change_byte(at + Descriptor::TYPE_BYTE, |byte| byte | Descriptor::ACCESSED)?;
        }
        Ok(descriptor.loaded(selector, type_byte))
    }

    /// A far JMP, or a CALL, which pushes CS and an offset (`pushes`, of this width): to the code segment of `selector`, at `offset`. The
    /// breakpoints that the stack has met.
    pub(crate) fn far_transfer(
        &mut self,
        vcpu: &mut T::Vcpu,
        selector: u16,
        offset: u64,
        pushes: Option<(Width, u64)>,
        outcome: &mut Outcome,
    ) -> Result<Hits, NotExecuted> {
        let code = self.code_segment(vcpu, selector, offset)?;
        let mut hits = 0;
        if let Some((width, next)) = pushes {
            let (bitness, extensions) = (Self::bitness(vcpu), self.context.extensions);
            let mut space = self.address_space(vcpu);
            let pushed = interpreter::push_far(&mut Interpreted(vcpu, extensions), &mut space, bitness, width, next);
            hits = space.watch.hits;
            outcome.add(&space.outcome);
            pushed?;
        }
        vcpu.load_segment(SegmentRegister::Segment(Segment::Cs), code);
        vcpu.resume_at(offset);
        Ok(hits)
    }

    /// The code segment that a far JMP or CALL of code at the same privilege goes to.
    fn code_segment(&mut self, vcpu: &mut T::Vcpu, selector: u16, offset: u64) -> Result<LoadedSegment, NotExecuted> {
        let ControlRegisters { cpl, cr4, efer, .. } = vcpu.control();
        if selector & (INDEX | IN_LDT) == 0 {
            return Err(refused(0));
        }
        let table = match selector & IN_LDT != 0 {
            true => vcpu.local_table().ok_or(refused(selector))?,
            false => vcpu.gdt(),
        };
        let tables = self.tables(vcpu);
        let Some((at, descriptor)) = tables.descriptor(table, selector)? else { return Err(refused(selector)) };
        let is_long = efer & EFER_LMA != 0;
        if descriptor.leads_elsewhere(is_long) {
            return Err(Trouble::Unable(GATE).into());
        }
        descriptor.check_transfer((selector & 3) as u8, cpl, is_long).map_err(|vector| error(vector, selector))?;
        let type_byte = descriptor.type_byte() | Descriptor::ACCESSED;
        let code = descriptor.loaded(selector & !3 | u16::from(cpl), type_byte);
        let is_in_segment = match is_long && code.is_long() {
            true => is_canonical(offset, if cr4 & CR4_LA57 == 0 { 48 } else { 57 }),
            false => offset <= code.limit.into(),
        };
        if !is_in_segment {
            return Err(Event::GENERAL_PROTECTION.into());
        }
        if type_byte != descriptor.type_byte() {
            tables.change_byte(at + Descriptor::TYPE_BYTE, |byte| byte | Descriptor::ACCESSED)?;
        }
        Ok(code)
    }

    /// An LDT or a TSS, whose descriptor is 16 bytes long in long mode.
    fn system_segment(
        &mut self,
        vcpu: &mut T::Vcpu,
        register: SegmentRegister,
        selector: u16,
    ) -> Result<LoadedSegment, NotExecuted> {
        if selector & IN_LDT != 0 || selector & INDEX == 0 {
            return Err(refused(selector));
        }
        let is_long = vcpu.control().efer & EFER_LMA != 0;
        let tables = self.tables(vcpu);
        let Some((at, descriptor)) = tables.descriptor(vcpu.gdt(), selector)? else { return Err(refused(selector)) };
        if is_long {
            let upper = selector.checked_add(8).map(|upper| tables.descriptor(vcpu.gdt(), upper)).transpose()?;
            match upper.flatten() {
                Some((_, Descriptor(0))) => {}
                Some(_) => return Err(Trouble::Unable(HIGH_BASE).into()),
                None => return Err(refused(selector)),
            }
        }
        let is_right = match register {
            SegmentRegister::Tr => matches!(descriptor.as_tss(), Some((is_wide, false)) if is_wide || !is_long),
            _ => descriptor.names_ldt(),
        };
        if !is_right {
            return Err(refused(selector));
        }
        if !descriptor.is_present() {
            return Err(error(SEGMENT_NOT_PRESENT_VECTOR, selector));
        }
        let mut type_byte = descriptor.type_byte();
        if register == SegmentRegister::Tr {
            type_byte |= Descriptor::BUSY;
            tables.change_byte(at + Descriptor::TYPE_BYTE, |byte| byte | Descriptor::BUSY)?;
        }
        Ok(descriptor.loaded(selector, type_byte))
    }
}
