//! Guest physical addresses that the nested tables do not translate.

use crate::exit::NestedFault;
use crate::local_apic::ApicClock;
use crate::machine::{Flow, Host, Machine, Memory, Resolved, Stop};
use crate::open_bus::OpenBus;
use crate::trouble::Trouble;
use crate::vcpu::Vcpu;
use apic::{Effect, LocalApic, Mailbox, Register};
use core::ops::ControlFlow;
use devices::{Clock, Sink};
use emul::mmio::{Bus, Mmio, Outcome, Place};
use emul::{Bitness, Width};

impl<M: Memory, S: Sink, C: Clock + Clone> Machine<'_, M, S, C> {
    #[inline]
    pub(crate) fn nested_fault<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        fault: NestedFault,
        host: &mut impl Host<V>,
    ) -> ControlFlow<()> {
        match self.memory.fault(fault) {
            Resolved::Retry => ControlFlow::Continue(()),
            resolved => self.no_page(vcpu, fault, resolved, host),
        }
    }

    #[inline(never)]
    fn no_page<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        fault: NestedFault,
        resolved: Resolved,
        host: &mut impl Host<V>,
    ) -> ControlFlow<()> {
        let flow = match resolved {
            Resolved::Retry => Flow::Resume,
            Resolved::NotMemory if fault.is_fetch() => {
                Flow::Stop(Stop::Unhandled("an instruction fetch from an address that has no memory"))
            }
            Resolved::NotMemory if vcpu.injecting() => {
                Flow::Stop(Stop::Unhandled("the delivery of an event reached an address that has no memory"))
            }
            Resolved::NotMemory => {
                let apic = self.context.apic.page() == Some(fault.address().frame().start().raw());
                let done = if apic { self.apic_page(vcpu, fault, host) } else { self.no_memory(vcpu) };
                done.unwrap_or_else(|trouble| trouble.tell(vcpu))
            }
            Resolved::OutOfMemory => Flow::Stop(Stop::OutOfMemory),
        };
        self.go(flow)
    }

    /// The exiting instruction; None if it is not emulated.
    fn decode_mmio<V: Vcpu>(&mut self, vcpu: &V, bitness: Bitness) -> Result<Option<Mmio>, Trouble> {
        let bytes = self.fetch(vcpu, bitness)?;
        Ok(self.context.memo.decode(bytes.bytes(), bitness).ok())
    }

    /// An access to the registers of the local APIC.
    #[inline]
    fn apic_page<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        fault: NestedFault,
        host: &mut impl Host<V>,
    ) -> Result<Flow, Trouble> {
        let bitness = Self::bitness(vcpu);
        let at = Self::code_address(vcpu, bitness);
        let (controls, privilege) = (Self::controls(vcpu), Self::fetch_privilege(vcpu));
        let context = &mut *self.context;
        let first = context.code.fetch_u64(&self.memory, &controls, &context.features, at, privilege);
        let mut bus = ApicBus {
            apic: &mut context.apic,
            mailbox: &self.door.mailbox,
            clock: ApicClock(self.vm.clock()),
            offset: fault.address().page_offset() as u16,
            effect: None,
        };
        match first.and_then(|first| context.memo.get(first, bitness)) {
            Some(known) if !known.is_linear() => bus.access(vcpu, known, bitness)?,
            _ => return self.apic_page_anew(vcpu, fault, bitness, host),
        }
        if let Some(effect) = bus.effect {
            self.carry_out(vcpu, effect, host);
        }
        Ok(Flow::Resume)
    }

    /// The same for an instruction that is not the last one's like.
    #[cold]
    fn apic_page_anew<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        fault: NestedFault,
        bitness: Bitness,
        host: &mut impl Host<V>,
    ) -> Result<Flow, Trouble> {
        let Some(instruction) = self.decode_mmio(vcpu, bitness)? else { return Ok(NOT_EMULATED) };
        // A string move between the registers and memory: nobody does that.
        if instruction.is_linear() {
            return self.no_memory(vcpu);
        }
        let mut bus = ApicBus {
            apic: &mut self.context.apic,
            mailbox: &self.door.mailbox,
            clock: ApicClock(self.vm.clock()),
            offset: fault.address().page_offset() as u16,
            effect: None,
        };
        bus.access(vcpu, &instruction, bitness)?;
        if let Some(effect) = bus.effect {
            self.carry_out(vcpu, effect, host);
        }
        Ok(Flow::Resume)
    }

    /// Carries out an instruction whose operand nothing answers.
    fn no_memory<V: Vcpu>(&mut self, vcpu: &mut V) -> Result<Flow, Trouble> {
        let bitness = Self::bitness(vcpu);
        let Some(instruction) = self.decode_mmio(vcpu, bitness)? else { return Ok(NOT_EMULATED) };
        let mut bus = OpenBus { memory: &self.memory, paging: self.paging(vcpu), privilege: Self::privilege(vcpu) };
        if instruction.execute(vcpu, &mut bus)? == Outcome::Retired {
            vcpu.resume_at(bitness.advance(vcpu.rip(), instruction.length()));
        }
        Ok(Flow::Resume)
    }
}

const NOT_EMULATED: Flow =
    Flow::Stop(Stop::Unhandled("an instruction that is not emulated, on an address that has no memory"));

/// The page of the local APIC's registers. They are 32 bits wide, at steps of 16 bytes (Intel SDM vol. 3, section 11.4.1):
/// narrower reads give a part of one, wider ones nothing above it; other writes are lost.
struct ApicBus<'a, C> {
    apic: &'a mut LocalApic,
    mailbox: &'a Mailbox,
    clock: ApicClock<'a, C>,
    offset: u16,
    /// What the last write leads to.
    effect: Option<Effect>,
}

impl<C: Clock> ApicBus<'_, C> {
    #[inline]
    fn access<V: Vcpu>(&mut self, vcpu: &mut V, instruction: &Mmio, bitness: Bitness) -> Result<(), Trouble> {
        if instruction.execute(vcpu, self)? == Outcome::Retired {
            vcpu.resume_at(bitness.advance(vcpu.rip(), instruction.length()));
        }
        Ok(())
    }
}

impl<C: Clock> Bus for ApicBus<'_, C> {
    type Error = Trouble;

    /// There is one operand.
    #[inline]
    fn read(&mut self, _: Place, width: Width) -> Result<u64, Trouble> {
        let Some(register) = Register::new(self.offset >> 4).filter(|_| self.offset & 15 < 4) else {
            self.apic.illegal_register(self.mailbox);
            return Ok(0);
        };
        let value = self.apic.read(register, self.mailbox, &self.clock);
        Ok(u64::from(value) >> (8 * (self.offset & 3)) & width.mask())
    }

    #[inline]
    fn write(&mut self, _: Place, width: Width, value: u64) -> Result<(), Trouble> {
        match Register::new(self.offset >> 4) {
            // The last one is only in x2APIC mode.
            Some(Register::SelfIpi) | None => self.apic.illegal_register(self.mailbox),
            Some(register) if width == Width::Dword && self.offset & 15 == 0 => {
                self.effect = Some(self.apic.write(register, value as u32, self.mailbox, &self.clock));
            }
            Some(_) => {}
        }
        Ok(())
    }
}
