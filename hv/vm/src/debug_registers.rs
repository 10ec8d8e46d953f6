//! MOV to and from a debug register, where the processor must not carry it out.

use crate::exit::Event;
use crate::exit_handler::ExitHandler;
use crate::types::Types;
use crate::vcpu::{DebugRegisters, Vcpu};
use arch::{CR4_DE, DR6_BD, DR6_BREAKPOINTS, DR6_DEFINED, DR7_DEFINED, DR7_GD, reset};

impl<T: Types> ExitHandler<'_, T> {
    pub(crate) fn write_debug_register(vcpu: &mut T::Vcpu, register: u8, value: u64) -> Result<(), Event> {
        Self::check_general_detect(vcpu)?;
        let register = Self::debug_register(vcpu, register)?;
        if register >= 6 && value > u64::from(u32::MAX) {
            return Err(Event::GENERAL_PROTECTION);
        }
        match register {
            6 => vcpu.set_dr6(value & DR6_DEFINED | reset::DR6),
            7 => vcpu.set_debug_register(7, value & DR7_DEFINED | reset::DR7),
            _ => vcpu.set_debug_register(register, value),
        }
        Ok(())
    }

    pub(crate) fn read_debug_register(vcpu: &mut T::Vcpu, register: u8) -> Result<u64, Event> {
        Self::check_general_detect(vcpu)?;
        Ok(match Self::debug_register(vcpu, register)? {
            6 => vcpu.dr6(),
            7 => vcpu.dr7(),
            register => vcpu.breakpoints()[usize::from(register & 3)],
        })
    }

    /// SVM's processors look at GD before they exit; QEMU, as of 7.2, does not look at all. A fault: nothing is written but DR6.BD.
    fn check_general_detect(vcpu: &mut T::Vcpu) -> Result<(), Event> {
        if vcpu.dr7() & DR7_GD == 0 {
            return Ok(());
        }
        vcpu.set_dr6(vcpu.dr6() & !DR6_BREAKPOINTS | DR6_BD);
        Err(Event::DEBUG)
    }

    /// Which register is meant: DR4 and DR5 stand for DR6 and DR7 unless CR4.DE is set (Intel SDM vol. 3, section 18.2.2).
    fn debug_register(vcpu: &T::Vcpu, register: u8) -> Result<u8, Event> {
        match register {
            4 | 5 if vcpu.control().cr4 & CR4_DE != 0 => Err(Event::UNDEFINED),
            4 | 5 => Ok(register + 2),
            _ => Ok(register),
        }
    }
}
