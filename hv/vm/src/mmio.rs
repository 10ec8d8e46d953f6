//! Guest physical addresses that the nested tables do not translate.

use crate::exit::NestedFault;
use crate::machine::{Flow, Machine, Memory, Resolved, Stop};
use crate::open_bus::OpenBus;
use crate::trouble::Trouble;
use crate::vcpu::Vcpu;
use core::ops::ControlFlow;
use devices::{Clock, Sink};
use emul::mmio;

impl<M: Memory, S: Sink, C: Clock + Clone> Machine<'_, M, S, C> {
    #[inline]
    pub(crate) fn nested_fault<V: Vcpu>(&mut self, vcpu: &mut V, fault: NestedFault) -> ControlFlow<()> {
        match self.memory.fault(fault) {
            Resolved::Retry => ControlFlow::Continue(()),
            resolved => self.no_page(vcpu, fault, resolved),
        }
    }

    #[cold]
    fn no_page<V: Vcpu>(&mut self, vcpu: &mut V, fault: NestedFault, resolved: Resolved) -> ControlFlow<()> {
        let flow = match resolved {
            Resolved::Retry => Flow::Resume,
            Resolved::NotMemory if fault.is_fetch() => {
                Flow::Stop(Stop::Unhandled("an instruction fetch from an address that has no memory"))
            }
            Resolved::NotMemory if vcpu.injecting() => {
                Flow::Stop(Stop::Unhandled("the delivery of an event reached an address that has no memory"))
            }
            Resolved::NotMemory => self.no_memory(vcpu).unwrap_or_else(|trouble| trouble.tell(vcpu)),
            Resolved::OutOfMemory => Flow::Stop(Stop::OutOfMemory),
        };
        self.go(flow)
    }

    /// Carries out an instruction whose operand nothing answers.
    fn no_memory<V: Vcpu>(&mut self, vcpu: &mut V) -> Result<Flow, Trouble> {
        let bitness = Self::bitness(vcpu);
        let bytes = self.fetch(vcpu, bitness)?;
        let Ok(instruction) = mmio::decode(bytes.bytes(), bitness) else {
            return Ok(Flow::Stop(Stop::Unhandled(
                "an instruction that is not emulated, on an address that has no memory",
            )));
        };
        let mut bus = OpenBus { memory: &self.memory, paging: self.paging(vcpu), privilege: Self::privilege(vcpu) };
        if instruction.execute(vcpu, &mut bus)? == mmio::Outcome::Retired {
            vcpu.resume_at(bitness.advance(vcpu.rip(), instruction.length()));
        }
        Ok(Flow::Resume)
    }
}
