//! MOV to a debug register, where the processor must not carry it out.

use crate::exit::Event;
use crate::exit_handler::ExitHandler;
use crate::flow::Flow;
use crate::types::Types;
use crate::vcpu::{DebugRegisters, Vcpu};
use arch::{CR4_DE, DR6_BD, DR6_BREAKPOINTS, DR7_GD};
use emul::DecodeError;
use emul::system::System;

impl<T: Types> ExitHandler<'_, T> {
    pub(crate) fn write_debug_register(&mut self, vcpu: &mut T::Vcpu) -> Flow {
        self.execute_system(vcpu, |_, vcpu, system| {
            let System::WriteDr { dr, from } = system else { return Err(DecodeError::Unexpected.into()) };
            // SVM's processors look at GD before they exit; QEMU, as of 7.2, does not look at all. A fault: it writes nothing.
            if vcpu.dr7() & DR7_GD != 0 {
                vcpu.set_dr6(vcpu.dr6() & !DR6_BREAKPOINTS | DR6_BD);
                return Err(Event::DEBUG.into());
            }
            let value = Self::register_operand(vcpu, from);
            let register = Self::debug_register(vcpu, dr, value)?;
            vcpu.set_debug_register(register, value);
            Ok(0)
        })
    }

    /// Which register is meant: DR4 and DR5 stand for DR6 and DR7 unless CR4.DE is set, and the upper half of these two is
    /// reserved (Intel SDM vol. 3, sections 18.2.2 and 18.2.6).
    fn debug_register(vcpu: &T::Vcpu, register: u8, value: u64) -> Result<u8, Event> {
        let register = match register {
            4 | 5 if vcpu.control().cr4 & CR4_DE != 0 => return Err(Event::UNDEFINED),
            4 | 5 => register + 2,
            _ => register,
        };
        let is_reserved = register >= 6 && value > u64::from(u32::MAX);
        if is_reserved { Err(Event::GENERAL_PROTECTION) } else { Ok(register) }
    }
}
