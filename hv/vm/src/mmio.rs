//! Guest physical addresses that the nested tables do not translate.

use crate::address_space::{AddressSpace, Known, Outcome, apic_register};
use crate::context::Context;
use crate::debug_traps::{
    Steps, Watch, between_iterations, end_of_interpreted, end_of_ss_load, executed, retire, retire_watched,
};
use crate::exit::{Event, Exception, NestedFault};
use crate::exit_handler::{ExitHandler, paging_ref};
use crate::flow::{Flow, NotEmulated, Place, Stop};
use crate::interpreted::Interpreted;
use crate::local_apic::ApicClock;
use crate::memory::{Memory, Resolved};
use crate::system::NotExecuted;
use crate::trouble::Trouble;
use crate::types::Types;
use crate::vcpu::{DebugRegisters, Events, Vcpu};
use addr::Gva;
use apic::Register;
use arch::DR7_ENABLED;
use core::ops::ControlFlow;
use emul::interpreter::{self, StepResult, fault};
use emul::mmio::Plain;
use emul::{Bitness, DecodeError, InstructionName, Registers};
use walk::Fetched;

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
            Resolved::NotMemory => self.access_without_memory(vcpu, fault, host),
            Resolved::OutOfMemory => Flow::Stop(Stop::OutOfMemory),
        };
        self.go(flow)
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
        let Some(register) = apic_register(offset).filter(|_| offset & 15 == 0) else {
            return self.apic_page_anew(vcpu, fault, host);
        };
        if matches!(register, Register::TaskPriority | Register::ProcessorPriority) {
            self.update_cr8(vcpu);
        }
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
        let flow = self.access_without_memory(vcpu, fault, host);
        self.go(flow)
    }

    #[cold]
    #[inline(never)]
    fn access_without_memory(&mut self, vcpu: &mut T::Vcpu, fault: NestedFault, host: &mut T::Host) -> Flow {
        match refused(vcpu, fault) {
            Some(stop) => Flow::Stop(stop),
            None => self.carry_out_access(vcpu, Place::NoMemory, Some(fault), host),
        }
    }

    /// Carries out the instruction at RIP, which accesses an address that the processor can't access for the guest. `fault` tells where
    /// one of its operands is.
    pub(crate) fn carry_out_access(
        &mut self,
        vcpu: &mut T::Vcpu,
        place: Place,
        fault: Option<NestedFault>,
        host: &mut T::Host,
    ) -> Flow {
        let mut outcome = Outcome::default();
        let done = self.try_access(vcpu, place, fault, &mut outcome);
        self.follow_up(vcpu, &outcome, host);
        done.unwrap_or_else(|trouble| trouble.tell(vcpu))
    }

    /// Does what the accesses of an instruction have led to.
    pub(crate) fn follow_up(&mut self, vcpu: &mut T::Vcpu, outcome: &Outcome, host: &mut T::Host) {
        for effect in outcome.effects() {
            self.carry_out(vcpu, effect, host);
        }
        if outcome.devices {
            self.devices_changed(vcpu, host);
        }
    }

    fn try_access(
        &mut self,
        vcpu: &mut T::Vcpu,
        place: Place,
        fault: Option<NestedFault>,
        outcome: &mut Outcome,
    ) -> Result<Flow, Trouble> {
        let bitness = Self::bitness(vcpu);
        let fetched = self.fetch(vcpu, bitness)?;
        let instruction = match (self.context.memo.decode(fetched.bytes(), bitness), fetched.then) {
            (Ok(instruction), _) => instruction,
            (Err(DecodeError::Truncated), Some(fault)) => return Err(fault.into()),
            (Err(DecodeError::Unexpected), _) => return self.interpret(vcpu, place, &fetched, outcome),
            (Err(error), _) => return Err(error.into()),
        };
        Self::check_operands(vcpu, bitness, &instruction)?;
        let linear = instruction.linear(vcpu);
        // Of two operands the exit does not say which one it was for.
        let in_walk = vcpu.own_paging().is_none() && vcpu.faulted_in_walk();
        let is_operand = !instruction.has_two_operands() && !in_walk;
        let mut space = self.address_space(vcpu);
        space.known = fault.filter(|_| is_operand).and_then(|fault| known(linear, fault));
        let done = instruction.execute(vcpu, &mut space);
        let hits = space.watch.hits;
        *outcome = space.outcome;
        executed(vcpu, done?, bitness.advance(vcpu.rip(), instruction.length()), hits);
        Ok(Flow::Resume)
    }

    /// The same of an instruction that drivers do not use.
    #[cold]
    #[inline(never)]
    fn interpret(
        &mut self,
        vcpu: &mut T::Vcpu,
        place: Place,
        fetched: &Fetched,
        outcome: &mut Outcome,
    ) -> Result<Flow, Trouble> {
        let bitness = Self::bitness(vcpu);
        let (steps, extensions) = (Steps::over_next(vcpu), self.context.extensions);
        let mut space = self.address_space(vcpu);
        let step = interpreter::step(&mut Interpreted(vcpu, extensions), &mut space, fetched.bytes(), bitness);
        let hits = space.watch.hits;
        *outcome = space.outcome;
        let again = matches!(step, Ok(StepResult::Again | StepResult::Exit { .. }));
        self.context.tried_again = if again { self.context.tried_again + 1 } else { 0 };
        match step? {
            StepResult::Done => end_of_interpreted(vcpu, steps, false, hits),
            StepResult::Branched => end_of_interpreted(vcpu, steps, true, hits),
            StepResult::LoadedSs => end_of_ss_load(vcpu, hits),
            StepResult::Iterated => between_iterations(vcpu, hits),
            // Another vCPU has changed the instruction, or a descriptor table is where no memory is, which nothing will change.
            StepResult::Again | StepResult::Exit { .. } if self.context.tried_again < MAX_TRIED_AGAIN => {}
            StepResult::Fault(vector) => vcpu.inject(exception(vector)),
            StepResult::LoadSegment { register, selector, also, shadows, next } => {
                match self.load_by_selector(vcpu, register, selector) {
                    Ok(()) => {
                        if let Some((gpr, value)) = also {
                            vcpu.set_gpr(gpr, value);
                        }
                        if shadows {
                            vcpu.resume_at(next);
                            end_of_ss_load(vcpu, hits);
                        } else {
                            retire_watched(vcpu, next, hits);
                        }
                    }
                    Err(NotExecuted::Event(event)) => vcpu.inject(event),
                    Err(NotExecuted::Trouble(trouble)) => return Err(trouble),
                }
            }
            StepResult::FarTransfer { selector, offset, pushes, next } => {
                let pushes = pushes.map(|width| (width, next));
                match self.far_transfer(vcpu, selector, offset, pushes, outcome) {
                    Ok(pushed) => end_of_interpreted(vcpu, steps, true, hits | pushed),
                    Err(NotExecuted::Event(event)) => vcpu.inject(event),
                    Err(NotExecuted::Trouble(trouble)) => return Err(trouble),
                }
            }
            _ => {
                return Ok(Flow::Stop(Stop::NotEmulated(NotEmulated {
                    place,
                    name: InstructionName::new(fetched.bytes(), bitness),
                })));
            }
        }
        Ok(Flow::Resume)
    }

    /// What an instruction accesses. The debug registers are those of now.
    pub(crate) fn address_space(&mut self, vcpu: &T::Vcpu) -> AddressSpace<'_, T> {
        self.update_cr8(vcpu);
        AddressSpace {
            paging: self.paging(vcpu),
            privilege: Self::privilege(vcpu),
            memory: &self.memory,
            vm: self.vm,
            apic: &mut self.context.apic,
            posted: &self.shared.posted,
            known: None,
            watch: Watch::new(vcpu),
            outcome: Outcome::default(),
        }
    }
}

/// So often the processor has another look at an instruction that accesses no memory itself.
const MAX_TRIED_AGAIN: u32 = 1000;

/// Where the operand at `linear` is, if the exit was for its first byte.
fn known(linear: Gva, fault: NestedFault) -> Option<Known> {
    let is_first = linear.page_offset() == fault.address().page_offset();
    is_first.then_some(Known { at: linear, gpa: fault.address(), is_writable: fault.is_write() })
}

/// An exception of an instruction, with the error code 0 if it has one.
pub(crate) const fn exception(vector: u8) -> Event {
    let code = if vector == fault::GENERAL_PROTECTION { Some(0) } else { None };
    Event::Exception(Exception::new(vector, code))
}

/// Why an access to an address without memory can't be carried out, whatever the instruction is.
fn refused<V: Vcpu>(vcpu: &V, fault: NestedFault) -> Option<Stop> {
    if fault.is_fetch() {
        return Some(Stop::Unhandled(
            "an instruction fetch from an address that has no memory, or a local APIC over it",
        ));
    }
    vcpu.redelivering().then_some(Stop::Unhandled(
        "the delivery of an event reached an address that has no memory, or a local APIC over it",
    ))
}
