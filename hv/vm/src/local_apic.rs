//! The guest's accesses to its local APIC, and what they lead to.

use crate::exit_handler::ExitHandler;
use crate::host::Host;
use crate::memory::Memory;
use crate::msr::MsrError;
use crate::types::Types;
use crate::vcpu::{Events, Vcpu};
use addr::Gpa;
use apic::{Due, Effect, Ipi, Message};
use arch::RFLAGS_TF;
use arch::apic::{BASE_X2APIC, X2APIC_MSRS, register};
use devices::{Clock, DeliveryMode, DestinationMode, InterruptMessage, Nanoseconds};
use emul::Registers;
use x86::msr::{IA32_APIC_BASE, IA32_TSC_DEADLINE};

const X2APIC_TPR: u32 = X2APIC_MSRS.start + register::TASK_PRIORITY as u32;
const X2APIC_PPR: u32 = X2APIC_MSRS.start + register::PROCESSOR_PRIORITY as u32;

/// The VM's clock, as the timers of its APICs see it.
pub(crate) struct ApicClock<'c, C>(pub(crate) &'c C);

impl<C: Clock> apic::Clock for ApicClock<'_, C> {
    fn nanoseconds(&self) -> u64 {
        self.0.now().0
    }
}

impl From<apic::InvalidMsrAccess> for MsrError {
    fn from(_: apic::InvalidMsrAccess) -> Self {
        Self::Value
    }
}

impl<T: Types> ExitHandler<'_, T> {
    /// RDMSR of a register that is no common one.
    #[cold]
    pub(crate) fn read_rare_msr(&mut self, vcpu: &T::Vcpu, register: u32) -> Result<u64, MsrError> {
        let apic = &mut self.context.apic;
        match register {
            IA32_APIC_BASE => Ok(apic.base()),
            IA32_TSC_DEADLINE => Ok(apic.tsc_deadline()),
            _ if X2APIC_MSRS.contains(&register) => {
                if matches!(register, X2APIC_TPR | X2APIC_PPR) {
                    self.update_cr8(vcpu);
                }
                let apic = &mut self.context.apic;
                Ok(apic.read_msr(register, &self.shared.posted, &ApicClock(self.vm.clock()))?)
            }
            _ => self.context.msrs.read(vcpu, register),
        }
    }

    /// WRMSR of a register that is no common one.
    #[cold]
    pub(crate) fn write_rare_msr(
        &mut self,
        vcpu: &mut T::Vcpu,
        register: u32,
        value: u64,
        host: &mut T::Host,
    ) -> Result<(), MsrError> {
        if register == IA32_APIC_BASE {
            self.update_cr8(vcpu);
        }
        let (apic, posted) = (&mut self.context.apic, &self.shared.posted);
        let effect = match register {
            // The bit is reserved there (Intel SDM vol. 3, section 11.12.1).
            IA32_APIC_BASE if value & BASE_X2APIC != 0 && !self.context.cpuid.has_x2apic() => {
                return Err(MsrError::Value);
            }
            IA32_APIC_BASE => {
                apic.set_base(value, self.context.features.maxphyaddr, posted)?;
                let page = apic.page().map(|at| Gpa::new(at).frame());
                self.memory.hide(self.context.index, page);
                self.context.cpuid.set_apic(apic.is_on());
                // The APIC is reset when it is disabled.
                vcpu.set_cr8(apic.cr8());
                Effect::Timer
            }
            IA32_TSC_DEADLINE => {
                apic.set_tsc_deadline(value);
                Effect::Timer
            }
            _ if X2APIC_MSRS.contains(&register) => {
                apic.write_msr(register, value, posted, &ApicClock(self.vm.clock()))?
            }
            _ => {
                self.context.msrs.write(vcpu, register, value)?;
                // A TSC that was set may have reached the timer's deadline, or is further from it.
                Effect::Timer
            }
        };
        if vcpu.rflags() & RFLAGS_TF != 0 {
            self.carry_out_behind_step(vcpu, effect, host);
        } else {
            self.carry_out(vcpu, effect, host);
        }
        Ok(())
    }

    /// What a write to the APIC leads to.
    #[inline(always)]
    pub(crate) fn carry_out(&mut self, vcpu: &mut T::Vcpu, effect: Effect, host: &mut T::Host) {
        match effect {
            Effect::None => {}
            Effect::TaskPriority => self.tell_cr8(vcpu),
            Effect::Timer => self.time_passes(vcpu, host),
            Effect::Send(ipi) => self.send(ipi, host),
            Effect::BroadcastEoi(vector) => self.broadcast_eoi(vector, host),
        }
        self.deliver(vcpu);
    }

    /// The same of a WRMSR that is stepped over: its trap comes before an interrupt that it makes deliverable. The request has that looked
    /// at behind it.
    #[cold]
    fn carry_out_behind_step(&mut self, vcpu: &mut T::Vcpu, effect: Effect, host: &mut T::Host) {
        match effect {
            Effect::None | Effect::Timer => {}
            Effect::TaskPriority => self.tell_cr8(vcpu),
            Effect::Send(ipi) => self.send(ipi, host),
            Effect::BroadcastEoi(vector) => self.broadcast_eoi(vector, host),
        }
        self.vm.raise_request(self.context.index);
    }

    /// The I/O APIC may send the next message then.
    #[cold]
    fn broadcast_eoi(&mut self, vector: u8, host: &mut T::Host) {
        let vm = self.vm;
        let mut devices = vm.devices();
        devices.eoi(vector);
        self.route(&mut devices, host);
    }

    /// Sends a message of the I/O APIC.
    pub(crate) fn send_message(&mut self, message: InterruptMessage, host: &mut T::Host) {
        let vector = message.vector;
        let delivered = match message.delivery_mode {
            DeliveryMode::Fixed => Message::Fixed(vector),
            DeliveryMode::LowestPriority => Message::LowestPriority(vector),
            DeliveryMode::Nmi => Message::Nmi,
            DeliveryMode::Init => Message::Init,
            DeliveryMode::ExtInt => Message::ExtInt,
        };
        let trigger = match message.trigger {
            devices::Trigger::Edge => apic::Trigger::Edge,
            devices::Trigger::Level => apic::Trigger::Level,
        };
        let is_logical = message.destination_mode == DestinationMode::Logical;
        self.send(Ipi::from_io_apic(delivered, message.destination, is_logical, trigger), host);
    }

    #[inline(never)]
    fn send(&mut self, ipi: Ipi, host: &mut T::Host) {
        let (vm, own) = (self.vm, self.context.index);
        apic::deliver(ipi, own, vm.posted(), |hit| {
            if hit != own && vm.raise_request(hit) {
                host.kick(hit);
            }
        });
        // `carry_out` delivers the vCPU's own vectors; `serve_request` finds its other signals (NMI, INIT, SIPI).
        if self.shared.posted.has_signals() {
            vm.raise_request(own);
        }
    }

    /// The timer's interrupt, if it is due.
    pub(crate) fn expire_timer(&mut self, vcpu: &T::Vcpu) {
        if let Some(due) = self.context.apic.due() {
            let tsc = if let Due::Tsc(_) = due { vcpu.tsc() } else { 0 };
            self.context.apic.expire(&self.shared.posted, &ApicClock(self.vm.clock()), tsc);
        }
    }

    /// When the timer is due next, by the VM's clock.
    pub(crate) fn timer_due(&self, vcpu: &T::Vcpu, host: &T::Host) -> Option<Nanoseconds> {
        match self.context.apic.due()? {
            Due::Nanoseconds(time) => Some(Nanoseconds(time)),
            Due::Tsc(deadline) => {
                let left = deadline.saturating_sub(vcpu.tsc());
                Some(Nanoseconds(self.vm.clock().now().0.saturating_add(host.nanoseconds(left))))
            }
        }
    }
}
