//! MOV to a debug register, where the processor must not carry it out.

use crate::exit::Event;
use crate::exit_handler::ExitHandler;
use crate::flow::Flow;
use crate::trouble::Trouble;
use crate::types::Types;
use crate::vcpu::{Events, Vcpu};
use arch::CR4_DE;
use emul::system::{self, System};
use emul::{Bitness, DecodeError, Registers};

impl<T: Types> ExitHandler<'_, T> {
    pub(crate) fn write_debug_register(&mut self, vcpu: &mut T::Vcpu) -> Flow {
        let bitness = Self::bitness(vcpu);
        match self.decode_debug_register(vcpu, bitness) {
            Ok((register, value, length)) => match Self::debug_register(vcpu, register, value) {
                Ok(register) => {
                    vcpu.set_debug_register(register, value);
                    vcpu.resume_at(bitness.advance(vcpu.rip(), length));
                }
                Err(exception) => vcpu.inject(exception),
            },
            Err(trouble) => return trouble.tell(vcpu),
        }
        Flow::Resume
    }

    /// The register's number, the value, and the instruction's length.
    fn decode_debug_register(&self, vcpu: &T::Vcpu, bitness: Bitness) -> Result<(u8, u64, u64), Trouble> {
        let decoded = system::decode(self.fetch(vcpu, bitness)?.bytes(), bitness)?;
        let System::WriteDr { dr, from } = decoded.system else { return Err(DecodeError::Unexpected.into()) };
        let value = vcpu.gpr(from);
        let value = if bitness == Bitness::Bits64 { value } else { value & u64::from(u32::MAX) };
        Ok((dr, value, decoded.length))
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
