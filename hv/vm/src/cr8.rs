//! CR8, the task priority.

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
        } else {
            vcpu.inject(Event::GENERAL_PROTECTION);
            return Flow::Resume;
        }
        retire(vcpu, next_rip);
        self.deliver(vcpu);
        Flow::Resume
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
