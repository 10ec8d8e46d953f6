//! Shadow paging: page faults, and changes of the paging registers.

use crate::exit::{Event, Exception, NestedFault, PageFault};
use crate::exit_handler::ExitHandler;
use crate::flow::{Flow, Place, Stop};
use crate::memory::{Memory, Resolved};
use crate::types::Types;
use crate::vcpu::{Events, Vcpu};
use abi::reasons::{ASKS_FOR_LONG_MODE, DELIVERY_WRITES};
use addr::{Gpa, Gva};
use arch::EFER_LME;
use core::mem;
use core::ops::ControlFlow;
use emul::Known;
use shadow::{Change, LoadError, Reason};
use walk::{Access, AccessKind, Controls, ErrorCode, Privilege, SetAccessedDirty, trace};
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
            Ok(shadow::FaultOutcome::Emulate { gpa, reason }) => {
                self.watched_write(vcpu, fault.address(), (gpa, reason), host)
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

    /// A write at `at` to memory that no entry may make writable: the instruction is carried out. Where that can't be done, a table
    /// becomes a page like others.
    // Out of what other page faults execute.
    #[inline(never)]
    fn watched_write(&mut self, vcpu: &mut T::Vcpu, at: Gva, (gpa, reason): (Gpa, Reason), host: &mut T::Host) -> Flow {
        let flow = match vcpu.redelivering() {
            true => Flow::Stop(IN_DELIVERY),
            false => self.carry_out_access(vcpu, Place::Watched, None, host),
        };
        match flow {
            Flow::Stop(stop @ (IN_DELIVERY | Stop::NotEmulated(_))) if reason == Reason::Table => {
                self.give_up_table(vcpu, at, gpa, stop)
            }
            flow => flow,
        }
    }
}

/// How many page faults in a row may give up a table before the VM ends. Other vCPUs that use the table can make its shadow come
/// back, but not so often.
const MAX_GIVEN_UP: u32 = 100_000;

const IN_DELIVERY: Stop = Stop::Unhandled(DELIVERY_WRITES);

impl<T: Types> ExitHandler<'_, T> {
    /// The instruction or the delivery of an event that writes the table at `at` runs again, with the table writable. Other vCPUs that
    /// use the table may come between, but not for ever: then the VM ends by `otherwise`.
    #[cold]
    fn give_up_table(&mut self, vcpu: &T::Vcpu, at: Gva, table: Gpa, otherwise: Stop) -> Flow {
        self.context.given_up += 1;
        if self.context.given_up > MAX_GIVEN_UP || self.translates_itself(vcpu, at, table) {
            return Flow::Stop(otherwise);
        }
        self.memory.unshadow(table);
        Flow::Resume
    }

    /// Whether `at`, where the table is written, or the instruction that writes it is translated by way of that very table as a
    /// directory. It would be one again, and read-only, before it is written. As a table of the last level it would go out of sync.
    fn translates_itself(&self, vcpu: &T::Vcpu, at: Gva, table: Gpa) -> bool {
        let paging = self.paging(vcpu);
        let access = Access { kind: AccessKind::Read, privilege: Privilege::Supervisor { ac: true } };
        let goes_through = |at| {
            let walked = trace(&self.memory, &paging, at, access, SetAccessedDirty::No);
            let mut steps = walked.iter().flat_map(|(_, steps)| steps.as_slice());
            steps.any(|step| step.level > 1 && step.at.frame() == table.frame())
        };
        let is_instruction = !vcpu.redelivering();
        goes_through(at) || is_instruction && goes_through(Self::code_address(vcpu, Self::bitness(vcpu)))
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
