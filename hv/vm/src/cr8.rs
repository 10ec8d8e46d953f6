//! CR8, the task priority.
//!
//! Most processors keep it for the guest, whose accesses do not exit: SVM's V_TPR (AMD64 APM vol. 2, section 15.21.4), VMX's TPR shadow
//! (Intel SDM vol. 3, section 30.1.1). The APIC is told when it needs it, and an exit is asked for while an interrupt waits for CR8 to
//! fall. Without them each access exits.

use crate::debug_traps::retire;
use crate::exit::{Cr8, Event};
use crate::exit_handler::ExitHandler;
use crate::flow::Flow;
use crate::trouble::Trouble;
use crate::types::Types;
use crate::vcpu::{Events, Vcpu};
use emul::system::{self, System};
use emul::{Bitness, DecodeError, Gpr, Registers};

impl<T: Types> ExitHandler<'_, T> {
    pub(crate) fn cr8(&mut self, vcpu: &mut T::Vcpu, cr8: Cr8) -> Flow {
        match self.cr8_operand(vcpu, cr8) {
            Ok((gpr, next_rip)) => self.move_cr8(vcpu, cr8, gpr, next_rip),
            Err(trouble) => trouble.tell(vcpu),
        }
    }

    fn move_cr8(&mut self, vcpu: &mut T::Vcpu, cr8: Cr8, gpr: Gpr, next_rip: u64) -> Flow {
        const PRIORITY: u64 = 15;
        let value = vcpu.gpr(gpr);
        if !cr8.is_write() {
            vcpu.set_gpr(gpr, self.context.apic.cr8());
        } else if value & !PRIORITY == 0 {
            self.context.apic.set_cr8(value);
            vcpu.set_cr8(value);
        } else {
            vcpu.inject(Event::GENERAL_PROTECTION);
            return Flow::Resume;
        }
        retire(vcpu, next_rip);
        self.deliver(vcpu);
        Flow::Resume
    }

    /// The MOV to CR8 is done, and with it the interrupt shadow that it may have been in.
    pub(crate) fn task_priority_fell(&mut self, vcpu: &mut T::Vcpu) -> Flow {
        let next = vcpu.rip();
        // Raises the step that the hardware holds pending. What delivers an interrupt would forget it.
        retire(vcpu, next);
        vcpu.watch_cr8(None);
        self.deliver(vcpu);
        Flow::Resume
    }

    /// Has the APIC know what the guest has made of CR8 without an exit.
    #[inline(always)]
    pub(crate) fn update_cr8(&mut self, vcpu: &T::Vcpu) {
        if let Some(value) = vcpu.cr8() {
            self.context.apic.update_cr8(value);
        }
    }

    /// Has the processor know what the guest has made of the APIC's task priority.
    #[inline(always)]
    pub(crate) fn tell_cr8(&self, vcpu: &mut T::Vcpu) {
        let value = self.context.apic.cr8();
        if vcpu.cr8() != Some(value) {
            vcpu.set_cr8(value);
        }
    }

    /// The general register, and where the instruction ends.
    fn cr8_operand(&self, vcpu: &T::Vcpu, cr8: Cr8) -> Result<(Gpr, u64), Trouble> {
        if let Some(told) = cr8.gpr().zip(vcpu.next_rip()) {
            return Ok(told);
        }
        let bitness = Self::bitness(vcpu);
        let decoded = self.decoded(vcpu, bitness, |bytes| system::decode(bytes, bitness))?;
        match (decoded.system, cr8.is_write()) {
            (System::WriteCr { cr: 8, from: gpr }, true) | (System::ReadCr { cr: 8, to: gpr }, false) => {
                Ok((gpr, Bitness::Bits64.advance(vcpu.rip(), decoded.length)))
            }
            _ => Err(DecodeError::Unexpected.into()),
        }
    }
}
