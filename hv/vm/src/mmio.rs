//! Guest physical addresses that the nested tables do not translate.

use crate::context::Context;
use crate::debug_traps::{Watch, executed, retire};
use crate::device_bus::DeviceBus;
use crate::exit::NestedFault;
use crate::exit_handler::{ExitHandler, paging_ref};
use crate::flow::{Flow, Stop};
use crate::local_apic::ApicClock;
use crate::memory::{Memory, Resolved};
use crate::trouble::Trouble;
use crate::types::Types;
use crate::vcpu::{DebugRegisters, Vcpu};
use apic::{Effect, LocalApic, Posted, Register};
use arch::DR7_ENABLED;
use core::ops::ControlFlow;
use devices::Clock;
use emul::mmio::{Bus, MemoryRef, Mmio, Plain};
use emul::{Bitness, DecodeError, Registers, Width};

impl<T: Types> ExitHandler<'_, T> {
    #[inline]
    pub(crate) fn nested_fault(
        &mut self,
        vcpu: &mut T::Vcpu,
        fault: NestedFault,
        host: &mut T::Host,
    ) -> ControlFlow<()> {
        // First, as it costs little, and finding that there is no memory costs more.
        if self.context.apic.is_at(fault.address().raw()) {
            return self.apic_page(vcpu, fault, host);
        }
        match self.memory.fault(fault) {
            Resolved::Retry => ControlFlow::Continue(()),
            resolved => self.no_page(vcpu, fault, resolved, host),
        }
    }

    #[inline(never)]
    pub(crate) fn no_page(
        &mut self,
        vcpu: &mut T::Vcpu,
        fault: NestedFault,
        resolved: Resolved,
        host: &mut T::Host,
    ) -> ControlFlow<()> {
        let flow = match resolved {
            Resolved::Retry => Flow::Resume,
            Resolved::NotMemory => match refused(vcpu, fault) {
                Some(stop) => Flow::Stop(stop),
                None => self.no_memory(vcpu, fault, host).unwrap_or_else(|trouble| trouble.tell(vcpu)),
            },
            Resolved::OutOfMemory => Flow::Stop(Stop::OutOfMemory),
        };
        self.go(flow)
    }

    /// The exiting instruction; None if it is not emulated.
    pub(crate) fn decode_mmio(&mut self, vcpu: &T::Vcpu, bitness: Bitness) -> Result<Option<Mmio>, Trouble> {
        let fetched = self.fetch(vcpu, bitness)?;
        match (self.context.memo.decode(fetched.bytes(), bitness), fetched.then) {
            (Ok(instruction), _) => Ok(Some(instruction)),
            (Err(DecodeError::Truncated), Some(fault)) => Err(fault.into()),
            (Err(_), _) => Ok(None),
        }
    }

    /// An access to the page of the local APIC's registers. The MOVs that kernels use take the short way.
    #[inline(never)]
    pub(crate) fn apic_page(&mut self, vcpu: &mut T::Vcpu, fault: NestedFault, host: &mut T::Host) -> ControlFlow<()> {
        let offset = fault.address().page_offset() as u16;
        // What is fetched or pushed there is no operand of the instruction at RIP.
        let is_plain = refused(vcpu, fault).is_none() && vcpu.dr7() & DR7_ENABLED == 0;
        let plain = if is_plain { self.plain_mmio(vcpu) } else { None };
        let Some((plain, length, bitness)) = plain else {
            return self.apic_page_anew(vcpu, fault, host);
        };
        let Some(register) = ApicBus::<T::Clock>::register(offset).filter(|_| offset & 15 == 0) else {
            return self.apic_page_anew(vcpu, fault, host);
        };
        let (apic, posted, clock) = (&mut self.context.apic, &self.shared.posted, ApicClock(self.vm.clock()));
        let effect = match plain {
            Plain::Load(to) => {
                vcpu.set_gpr(to, apic.read(register, posted, &clock).into());
                None
            }
            Plain::Store(from) => Some(apic.write(register, vcpu.gpr(from) as u32, posted, &clock)),
            Plain::StoreImmediate(value) => Some(apic.write(register, value, posted, &clock)),
        };
        retire(vcpu, bitness.advance(vcpu.rip(), length));
        if let Some(effect) = effect {
            self.carry_out(vcpu, effect, host);
        }
        ControlFlow::Continue(())
    }

    /// The exiting instruction, with its length and the bitness, if it is a plain one that was decoded lately.
    #[inline]
    fn plain_mmio(&mut self, vcpu: &T::Vcpu) -> Option<(Plain, u64, Bitness)> {
        let bitness = Self::bitness(vcpu);
        let at = Self::code_address(vcpu, bitness);
        let privilege = Self::fetch_privilege(vcpu);
        let Context { code, memo, features, .. } = &mut *self.context;
        let paging = paging_ref(vcpu, features)?;
        let mut fetch = |at| code.fetch_u64(&self.memory, paging, at, privilege);
        let first = fetch(at)?;
        let known = memo.get(first, || fetch(at.wrapping_add(8)), bitness)?;
        Some((known.plain()?, known.length(), bitness))
    }

    /// The same for any instruction, and those that can't be carried out.
    #[cold]
    fn apic_page_anew(&mut self, vcpu: &mut T::Vcpu, fault: NestedFault, host: &mut T::Host) -> ControlFlow<()> {
        let flow = match refused(vcpu, fault) {
            Some(stop) => Flow::Stop(stop),
            None => self.apic_access(vcpu, fault, host).unwrap_or_else(|trouble| trouble.tell(vcpu)),
        };
        self.go(flow)
    }

    fn apic_access(&mut self, vcpu: &mut T::Vcpu, fault: NestedFault, host: &mut T::Host) -> Result<Flow, Trouble> {
        let bitness = Self::bitness(vcpu);
        let Some(instruction) = self.decode_mmio(vcpu, bitness)? else { return Ok(NOT_EMULATED) };
        // A string move between the registers and memory is treated like one without memory: no kernel uses it.
        if instruction.is_linear() {
            return self.no_memory(vcpu, fault, host);
        }
        let mut bus = ApicBus {
            apic: &mut self.context.apic,
            posted: &self.shared.posted,
            clock: ApicClock(self.vm.clock()),
            offset: fault.address().page_offset() as u16,
            effect: None,
            watch: Watch::new(vcpu, instruction.linear(vcpu)),
        };
        let done = instruction.execute(vcpu, &mut bus)?;
        let (effect, hits) = (bus.effect, bus.watch.hits);
        executed(vcpu, done, bitness.advance(vcpu.rip(), instruction.length()), hits);
        if let Some(effect) = effect {
            self.carry_out(vcpu, effect, host);
        }
        Ok(Flow::Resume)
    }

    /// Carries out an instruction whose operand is no memory.
    fn no_memory(&mut self, vcpu: &mut T::Vcpu, fault: NestedFault, host: &mut T::Host) -> Result<Flow, Trouble> {
        let bitness = Self::bitness(vcpu);
        let Some(instruction) = self.decode_mmio(vcpu, bitness)? else { return Ok(NOT_EMULATED) };
        Self::check_moved(vcpu, bitness, &instruction)?;
        let mut bus = DeviceBus {
            memory: &self.memory,
            paging: self.paging(vcpu),
            privilege: Self::privilege(vcpu),
            vm: self.vm,
            operand: fault.address(),
            watch: Watch::new(vcpu, instruction.linear(vcpu)),
            accessed: false,
        };
        let done = instruction.execute(vcpu, &mut bus)?;
        let (accessed, hits) = (bus.accessed, bus.watch.hits);
        executed(vcpu, done, bitness.advance(vcpu.rip(), instruction.length()), hits);
        if accessed {
            self.devices_changed(vcpu, host);
        }
        Ok(Flow::Resume)
    }
}

/// Why an access to an address without memory can't be carried out, whatever the instruction is.
fn refused<V: Vcpu>(vcpu: &V, fault: NestedFault) -> Option<Stop> {
    if fault.is_fetch() {
        return Some(Stop::Unhandled("an instruction fetch from an address that has no memory"));
    }
    vcpu.redelivering().then_some(Stop::Unhandled("the delivery of an event reached an address that has no memory"))
}

const NOT_EMULATED: Flow =
    Flow::Stop(Stop::Unhandled("an instruction that is not emulated, on an address that has no memory"));

/// The page of the local APIC's registers. They are 32 bits wide, at steps of 16 bytes (Intel SDM vol. 3, section 11.4.1):
/// narrower reads give a part of one, wider ones nothing above it; other writes are lost.
struct ApicBus<'a, C> {
    apic: &'a mut LocalApic,
    posted: &'a Posted,
    clock: ApicClock<'a, C>,
    offset: u16,
    /// What the last write leads to.
    effect: Option<Effect>,
    watch: Watch,
}

impl<C> ApicBus<'_, C> {
    /// The register at `offset`, or around it. [`Register::SelfIpi`] is only in x2APIC mode.
    #[inline]
    fn register(offset: u16) -> Option<Register> {
        Register::new(offset >> 4).filter(|&register| register != Register::SelfIpi)
    }
}

impl<C: Clock> Bus for ApicBus<'_, C> {
    type Error = Trouble;

    /// There is one operand.
    #[inline]
    fn read(&mut self, at: MemoryRef, width: Width) -> Result<u64, Trouble> {
        self.watch.read(at, width);
        let Some(register) = Self::register(self.offset).filter(|_| self.offset & 15 < 4) else {
            self.apic.illegal_register(self.posted);
            return Ok(0);
        };
        let value = self.apic.read(register, self.posted, &self.clock);
        Ok(u64::from(value) >> (8 * (self.offset & 3)) & width.mask())
    }

    #[inline]
    fn write(&mut self, at: MemoryRef, width: Width, value: u64) -> Result<(), Trouble> {
        self.watch.write(at, width);
        match Self::register(self.offset) {
            None => self.apic.illegal_register(self.posted),
            Some(register) if width == Width::Dword && self.offset & 15 == 0 => {
                self.effect = Some(self.apic.write(register, value as u32, self.posted, &self.clock));
            }
            Some(_) => {}
        }
        Ok(())
    }
}
