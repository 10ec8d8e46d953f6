//! x2APIC mode, and how it is entered and left (Intel SDM vol. 3, section 11.12).

use crate::Clock;
use crate::local::{COMMAND, Effect, LocalApic};
use crate::posted::Posted;
use crate::register::Register;
use arch::apic::{BASE_BSP, BASE_ENABLED, BASE_X2APIC, DELIVERY_STATUS, X2APIC_MSRS};
use core::error::Error;
use core::fmt;

/// The access to an MSR is invalid: the guest gets #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidMsrAccess;

impl fmt::Display for InvalidMsrAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid access to an MSR of the APIC")
    }
}

impl Error for InvalidMsrAccess {}

impl LocalApic {
    /// Whether IA32_APIC_BASE enables the APIC, in xAPIC or x2APIC mode.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.base & BASE_ENABLED != 0
    }

    #[inline]
    pub(crate) fn is_x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    /// Reads IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE. `address_bits` is the width of physical addresses (MAXPHYADDR).
    ///
    /// # Errors
    /// For reserved bits, and for mode changes that figure 11-27 does not allow: from disabled to x2APIC mode, and from x2APIC
    /// mode to xAPIC mode.
    pub fn set_base(&mut self, value: u64, address_bits: u8, posted: &Posted) -> Result<(), InvalidMsrAccess> {
        let address = ((1u64 << address_bits.clamp(32, 52)) - 1) & !0xfff;
        const X2APIC: u64 = BASE_ENABLED | BASE_X2APIC;
        let modes = (self.base & X2APIC, value & X2APIC);
        let allowed = matches!(modes, (_, 0) | (0 | BASE_ENABLED, BASE_ENABLED) | (BASE_ENABLED | X2APIC, X2APIC));
        if value & !(address | X2APIC | BASE_BSP) != 0 || !allowed {
            return Err(InvalidMsrAccess);
        }
        let was_on = self.is_on();
        self.base = value & !BASE_BSP | self.base & BASE_BSP;
        if was_on && !self.is_on() {
            self.reset(posted);
        }
        self.publish(posted);
        Ok(())
    }

    /// RDMSR of 800h to 8FFh.
    ///
    /// # Errors
    /// Outside of x2APIC mode, and for registers that do not exist or are write-only.
    pub fn read_msr(&mut self, msr: u32, posted: &Posted, clock: &impl Clock) -> Result<u64, InvalidMsrAccess> {
        let register = self.register(msr)?;
        match register {
            Register::EndOfInterrupt | Register::SelfIpi => Err(InvalidMsrAccess),
            Register::CommandLow => Ok(self.command),
            _ => Ok(self.read(register, posted, clock).into()),
        }
    }

    /// WRMSR of 800h to 8FFh.
    ///
    /// # Errors
    /// Outside of x2APIC mode, for registers that do not exist or are read-only, and for reserved bits.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        posted: &Posted,
        clock: &impl Clock,
    ) -> Result<Effect, InvalidMsrAccess> {
        let register = self.register(msr)?;
        let writable: u64 = match register {
            Register::TaskPriority | Register::SelfIpi => 0xff,
            Register::EndOfInterrupt | Register::ErrorStatus => 0,
            Register::Spurious => 0x1ff,
            // The delivery status is reserved, but a write of it is accepted, as in KVM: the guest may write back what it has read
            // in xAPIC mode.
            Register::CommandLow => 0xffff_ffff_0000_0000 | u64::from(COMMAND | DELIVERY_STATUS),
            Register::Local(lvt) => lvt.defined().into(),
            Register::InitialCount => 0xffff_ffff,
            Register::Divide => 0xb,
            _ => return Err(InvalidMsrAccess),
        };
        if value & !writable != 0 {
            return Err(InvalidMsrAccess);
        }
        if register == Register::CommandLow {
            self.command = value & !0xffff_ffff;
        }
        Ok(self.write(register, value as u32, posted, clock))
    }

    fn register(&self, msr: u32) -> Result<Register, InvalidMsrAccess> {
        let number = msr.wrapping_sub(X2APIC_MSRS.start);
        let register = u16::try_from(number).ok().and_then(Register::new).filter(|_| self.is_x2apic());
        match register.ok_or(InvalidMsrAccess)? {
            // In this mode the ICR is one register of 64 bits, and the others do not exist.
            Register::CommandHigh
            | Register::DestinationFormat
            | Register::ArbitrationPriority
            | Register::RemoteRead => Err(InvalidMsrAccess),
            register => Ok(register),
        }
    }
}
