//! Loads of segment registers by instructions that are carried out here: MOV, POP and LDS, LLDT and LTR (Intel SDM vol. 2).

use super::descriptor::{Descriptor, LoadedSegment};
use super::{ExitHandler, IN_LDT, INDEX, TaskState};
use crate::exit::{Event, Exception};
use crate::system::NotExecuted;
use crate::trouble::Trouble;
use crate::types::Types;
use crate::vcpu::Vcpu;
use arch::EFER_LMA;
use emul::{Bitness, Segment, SegmentRegister};
use x86::irq::{GENERAL_PROTECTION_FAULT_VECTOR, INVALID_TSS_VECTOR, SEGMENT_NOT_PRESENT_VECTOR};

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
