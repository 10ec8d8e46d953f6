//! x2APIC mode, and how it is entered and left (Intel SDM vol. 3, section 11.12).

use crate::Clock;
use crate::local::{COMMAND, Effect, LocalApic};
use crate::posted::Posted;
use crate::register::Register;

/// The access is answered with #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

const ON: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;
const BOOT: u64 = 1 << 8;

/// Of the command: it has nothing to say in this mode, but writing back what xAPIC mode may have read is let pass, as by KVM.
const DELIVERY_STATUS: u32 = 1 << 12;

/// The first MSR of the registers.
const FIRST_MSR: u32 = 0x800;

impl LocalApic {
    /// Whether it is on, in whichever mode.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.base & ON != 0
    }

    #[inline]
    pub(crate) fn is_x2apic(&self) -> bool {
        self.base & X2APIC != 0
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Sets IA32_APIC_BASE, where physical addresses have `address_bits`.
    ///
    /// # Errors
    /// For reserved bits, and the changes of mode that figure 11-27 does not have: into x2APIC mode without being on, and out
    /// of it other than to off.
    pub fn set_base(&mut self, value: u64, address_bits: u8, posted: &Posted) -> Result<(), Refused> {
        let address = ((1u64 << address_bits.clamp(32, 52)) - 1) & !0xfff;
        let mode = |base: u64| (base & ON != 0, base & X2APIC != 0);
        let forbidden = match (mode(self.base), mode(value)) {
            (_, (on, x2apic)) if x2apic && !on => true,
            ((on, _), (true, true)) => !on,
            ((true, true), (on, x2apic)) => on && !x2apic,
            _ => false,
        };
        if value & !(address | ON | X2APIC | BOOT) != 0 || forbidden {
            return Err(Refused);
        }
        let was_on = self.is_on();
        self.base = value & !BOOT | self.base & BOOT;
        if was_on && !self.is_on() {
            self.reset(posted);
        }
        self.publish(posted);
        Ok(())
    }

    /// RDMSR of 800h to 8FFh.
    ///
    /// # Errors
    /// Outside of x2APIC mode, for registers that are not there or can't be read.
    pub fn read_msr(&mut self, msr: u32, posted: &Posted, clock: &impl Clock) -> Result<u64, Refused> {
        let register = self.register(msr)?;
        match register {
            Register::EndOfInterrupt | Register::SelfIpi => Err(Refused),
            Register::CommandLow => Ok(self.command),
            _ => Ok(self.read(register, posted, clock).into()),
        }
    }

    /// WRMSR of 800h to 8FFh.
    ///
    /// # Errors
    /// As [`read_msr`](Self::read_msr), and for reserved bits.
    pub fn write_msr(&mut self, msr: u32, value: u64, posted: &Posted, clock: &impl Clock) -> Result<Effect, Refused> {
        let register = self.register(msr)?;
        let writable: u64 = match register {
            Register::TaskPriority | Register::SelfIpi => 0xff,
            Register::EndOfInterrupt | Register::ErrorStatus => 0,
            Register::Spurious => 0x1ff,
            Register::CommandLow => 0xffff_ffff_0000_0000 | u64::from(COMMAND | DELIVERY_STATUS),
            Register::Local(lvt) => lvt.defined().into(),
            Register::InitialCount => 0xffff_ffff,
            Register::Divide => 0xb,
            _ => return Err(Refused),
        };
        if value & !writable != 0 {
            return Err(Refused);
        }
        if register == Register::CommandLow {
            self.command = value & !0xffff_ffff;
        }
        Ok(self.write(register, value as u32, posted, clock))
    }

    fn register(&self, msr: u32) -> Result<Register, Refused> {
        let number = msr.wrapping_sub(FIRST_MSR);
        let register = u16::try_from(number).ok().and_then(Register::new).filter(|_| self.is_x2apic());
        match register.ok_or(Refused)? {
            // The command is one register, and some are not there in this mode.
            Register::CommandHigh
            | Register::DestinationFormat
            | Register::ArbitrationPriority
            | Register::RemoteRead => Err(Refused),
            register => Ok(register),
        }
    }
}
