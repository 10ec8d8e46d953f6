//! Shadow paging: page faults, and changes of the paging registers.

use crate::debug_traps::{Watch, executed};
use crate::exit::{Event, Exception, NestedFault, PageFault};
use crate::exit_handler::ExitHandler;
use crate::flow::{Flow, Stop};
use crate::memory::{Memory, Resolved};
use crate::trouble::Trouble;
use crate::types::Types;
use crate::vcpu::{Events, Vcpu};
use abi::reasons::ASKS_FOR_LONG_MODE;
use addr::{Gpa, Gva};
use arch::EFER_LME;
use core::mem;
use core::ops::ControlFlow;
use emul::mmio::{Bus, MemoryRef};
use emul::{Known, Registers, Width};
use shadow::{Change, LoadError, Reason};
use walk::{Access, AccessKind, Controls, ErrorCode, Operands, PhysMem, Privilege};
use x86::irq::{DOUBLE_FAULT_VECTOR, PAGE_FAULT_VECTOR};

impl<T: Types> ExitHandler<'_, T> {
    pub(crate) fn page_fault(&mut self, vcpu: &mut T::Vcpu, fault: PageFault, host: &mut T::Host) -> ControlFlow<()> {
        let Some(own) = vcpu.own_paging() else { return ControlFlow::Continue(()) };
        let access = Self::access(vcpu, fault.error_code());
        let flow = match self.memory.shadow_fault(own, fault.address(), access) {
            Ok(shadow::FaultOutcome::Mapped | shadow::FaultOutcome::Retry) => {
                self.context.given_up = 0;
                return ControlFlow::Continue(());
            }
            Ok(shadow::FaultOutcome::Inject { error_code, address }) => {
                raise_page_fault(vcpu, error_code, address.raw())
            }
            Ok(shadow::FaultOutcome::Emulate { gpa, reason: Reason::Mmio }) => {
                let fault =
                    NestedFault::new(gpa, access.kind == AccessKind::Write, access.kind == AccessKind::Fetch, false);
                if self.context.apic.is_at(gpa.raw()) {
                    return self.apic_page(vcpu, fault, host);
                }
                return self.no_page(vcpu, fault, Resolved::NotMemory, host);
            }
            // An event is pushed there: it is a table no more.
            Ok(shadow::FaultOutcome::Emulate { gpa, reason: Reason::Table }) if vcpu.redelivering() => {
                self.give_up_table(gpa)
            }
            Ok(shadow::FaultOutcome::Emulate { gpa, reason }) => {
                let done = self.emulate_write(vcpu);
                match done.unwrap_or_else(|trouble| trouble.tell(vcpu)) {
                    NOT_EMULATED if reason == Reason::Table => self.give_up_table(gpa),
                    flow => flow,
                }
            }
            Ok(shadow::FaultOutcome::Unbacked(_)) => {
                Flow::Stop(Stop::Unhandled("a page table of the guest's is not in memory"))
            }
            Err(shadow::NoMemory) => Flow::Stop(Stop::OutOfMemory),
        };
        self.go(flow)
    }

    /// The access that the processor was refused. At CPL 3 the supervisor's accesses are implicit ones, to which EFLAGS.AC
    /// makes no difference (Intel SDM vol. 3, section 4.6).
    fn access(vcpu: &T::Vcpu, error_code: ErrorCode) -> Access {
        let kind = match () {
            () if error_code.contains(ErrorCode::WRITE) => AccessKind::Write,
            () if error_code.contains(ErrorCode::FETCH) => AccessKind::Fetch,
            () => AccessKind::Read,
        };
        let privilege = match Self::privilege(vcpu) {
            _ if error_code.contains(ErrorCode::USER) => Privilege::User,
            Privilege::User => Privilege::Supervisor { ac: false },
            supervisor => supervisor,
        };
        Access { kind, privilege }
    }

    /// Carries out an instruction that writes memory which no entry may make writable.
    fn emulate_write(&mut self, vcpu: &mut T::Vcpu) -> Result<Flow, Trouble> {
        if vcpu.redelivering() {
            return Ok(Flow::Stop(Stop::Unhandled("the delivery of an event writes memory that has to be emulated")));
        }
        let bitness = Self::bitness(vcpu);
        let instruction = self.decode_mmio(vcpu, bitness)?;
        let Some(instruction) = instruction else { return Ok(NOT_EMULATED) };
        Self::check_moved(vcpu, bitness, &instruction)?;
        let paging = self.paging(vcpu);
        let operands = Operands { mem: &self.memory, paging: &paging, privilege: Self::privilege(vcpu) };
        let linear = instruction.linear(vcpu);
        let mut bus = RamBus { operands, linear, watch: Watch::new(vcpu, linear) };
        let done = instruction.execute(vcpu, &mut bus)?;
        let hits = bus.watch.hits;
        executed(vcpu, done, bitness.advance(vcpu.rip(), instruction.length()), hits);
        Ok(Flow::Resume)
    }
}

/// How many page faults in a row may give up a table before the VM ends. Other vCPUs that use the table can make its shadow come
/// back, but not so often.
const MAX_GIVEN_UP: u32 = 100_000;

const NOT_EMULATED: Flow =
    Flow::Stop(Stop::Unhandled("an instruction that is not emulated, on memory that it may not simply write"));

impl<T: Types> ExitHandler<'_, T> {
    /// The instruction runs again, with the table writable. Of no use if that very table translates its operand; other vCPUs
    /// that use the table may come between as well, but not for ever.
    #[cold]
    fn give_up_table(&mut self, gpa: Gpa) -> Flow {
        self.context.given_up += 1;
        if self.context.given_up > MAX_GIVEN_UP {
            return NOT_EMULATED;
        }
        self.memory.unshadow(gpa);
        Flow::Resume
    }
}

/// Raises #PF. During the delivery of a #PF it becomes #DF, and during that of a #DF a shutdown (Intel SDM vol. 3, table 6-5).
/// During the delivery of an interrupt the interrupt is lost, as on a processor.
fn raise_page_fault(vcpu: &mut impl Vcpu, error_code: ErrorCode, address: u64) -> Flow {
    vcpu.set_cr2(address);
    vcpu.inject(match vcpu.injected_exception() {
        Some(DOUBLE_FAULT_VECTOR) => return Flow::Stop(Stop::TripleFault),
        Some(PAGE_FAULT_VECTOR) => Event::DOUBLE_FAULT,
        _ => Event::Exception(Exception::new(PAGE_FAULT_VECTOR, Some(error_code.bits()))),
    });
    Flow::Resume
}

/// Memory, at the guest's linear addresses.
struct RamBus<'a, M> {
    operands: Operands<'a, M>,
    /// Where the instruction's operand is.
    linear: Gva,
    watch: Watch,
}

impl<M> RamBus<'_, M> {
    const fn address(&self, at: MemoryRef) -> Gva {
        match at {
            MemoryRef::Operand => self.linear,
            MemoryRef::Linear(at) => at,
        }
    }
}

impl<M: PhysMem> Bus for RamBus<'_, M> {
    type Error = Trouble;

    fn read(&mut self, at: MemoryRef, width: Width) -> Result<u64, Trouble> {
        let mut bytes = [0; 8];
        self.operands.load(self.address(at), &mut bytes[..width.bytes() as usize])?;
        self.watch.read(at, width);
        Ok(u64::from_le_bytes(bytes))
    }

    fn write(&mut self, at: MemoryRef, width: Width, value: u64) -> Result<(), Trouble> {
        self.operands.store(self.address(at), &value.to_le_bytes()[..width.bytes() as usize])?;
        self.watch.write(at, width);
        Ok(())
    }

    fn compare_exchange(&mut self, at: MemoryRef, width: Width, old: u64, new: u64) -> Result<bool, Trouble> {
        self.watch.write(at, width);
        let bytes = width.bytes() as usize;
        let (old, new) = (old.to_le_bytes(), new.to_le_bytes());
        Ok(self.operands.compare_exchange(self.address(at), &old[..bytes], &new[..bytes])?)
    }
}

/// The guest's own paging registers.
impl<T: Types> ExitHandler<'_, T> {
    /// Changes them by `write`, and sees to it that the processor and the shadow know.
    ///
    /// # Errors
    /// #GP(0): there can be no such registers.
    pub(crate) fn write_own_paging(
        &mut self,
        vcpu: &mut T::Vcpu,
        write: impl FnOnce(&mut shadow::Registers, &T::Memory) -> Result<Change, LoadError>,
    ) -> Result<(), Event> {
        let Some(own) = vcpu.own_paging_mut() else { return Ok(()) };
        let change = write(own, &self.memory).map_err(|_| Event::GENERAL_PROTECTION)?;
        let root = (change == Change::Context).then(|| self.memory.load_shadow(own));
        vcpu.apply_paging(root);
        Ok(())
    }

    /// They were reset.
    pub(crate) fn load_own_paging(&mut self, vcpu: &mut T::Vcpu) {
        if let Some(own) = vcpu.own_paging() {
            let root = self.memory.load_shadow(own);
            vcpu.apply_paging(Some(root));
        }
    }

    /// EFER, without long mode: CPUID does not offer it.
    #[cold]
    pub(crate) fn write_own_efer(&mut self, vcpu: &mut T::Vcpu, efer: u64) -> Result<Known, Event> {
        if efer & EFER_LME != 0 && !mem::replace(&mut self.context.told_of_long_mode, true) {
            log::warn!("{ASKS_FOR_LONG_MODE}, which CPUID does not offer without nested paging: #GP");
        }
        if efer & !self.context.offered_efer != 0 {
            return Err(Event::GENERAL_PROTECTION);
        }
        self.write_own_paging(vcpu, |own, memory| own.write(memory, Controls { efer, ..own.paging().controls }))?;
        Ok(Known::Wrmsr)
    }
}
