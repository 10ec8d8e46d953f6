//! Interrupts, NMIs and exceptions on their way into the guest (Intel SDM vol. 3, sections 25.8.3 and 27.6).

use super::reason;
use super::task_priority::TaskPriority;
use super::vcpu::VmxVcpu;
use crate::translation::Translation;
use crate::unswitched;
use arch::msr::DEBUGCTL_BTF;
use arch::{CR0_PE, DR6_BD, DR6_BREAKPOINTS, DR6_BS, RFLAGS_IF, RFLAGS_TF};
use vm::{DebugRegisters, Event, Events, Registers};
use x86::irq::{DEBUG_VECTOR, NONMASKABLE_INTERRUPT_VECTOR};
use x86::vmx::vmcs::control::PrimaryControls;
use x86::vmx::vmcs::{control, guest, ro};

// Interruption information of entries and exits, and IDT-vectoring information (SDM tables 25-17, 25-18, 25-20).
pub(super) const EVENT_VALID: u64 = 1 << 31;
pub(super) const EVENT_VECTOR: u64 = 0xff;
pub(super) const EVENT_TYPE: u64 = 7 << 8;
const TYPE_INTERRUPT: u64 = 0 << 8;
pub(super) const TYPE_NMI: u64 = 2 << 8;
const TYPE_EXCEPTION: u64 = 3 << 8;
/// INT1 (Intel calls it a privileged software exception).
pub(super) const TYPE_INT1: u64 = 5 << 8;
/// Software interrupts and exceptions: their instruction runs again.
pub(super) const TYPE_BY_INSTRUCTION: u64 = 4 << 8;
pub(super) const EVENT_ERROR_CODE: u64 = 1 << 11;

/// Interruptibility: blocking by STI and by MOV SS.
pub(super) const INTERRUPT_SHADOW: u64 = 3;
/// Interruptibility: an NMI is being handled.
const NMI_BLOCKED: u64 = 1 << 3;
/// Exit qualification, and interruption information of exits: the IRET that ended an NMI's handling is what exits, and will run again.
const NMI_UNBLOCKED: u64 = 1 << 12;

impl<T: Translation> DebugRegisters for VmxVcpu<T> {
    fn dr6(&self) -> u64 {
        unswitched::dr6()
    }

    fn set_dr6(&mut self, dr6: u64) {
        unswitched::set_dr6(dr6);
    }

    #[inline]
    fn dr7(&self) -> u64 {
        self.vmcs.read(guest::DR7)
    }

    fn set_dr7(&mut self, dr7: u64) {
        self.vmcs.write(guest::DR7, dr7);
    }

    /// Exits save it, and have the host's be 0.
    fn debugctl(&self) -> u64 {
        self.vmcs.read(guest::IA32_DEBUGCTL_FULL)
    }

    fn set_debugctl(&mut self, debugctl: u64) {
        self.vmcs.write(guest::IA32_DEBUGCTL_FULL, debugctl);
    }

    fn breakpoints(&self) -> [u64; 4] {
        unswitched::breakpoints()
    }

    /// The single step is forgotten as well, and not told: the caller raises it if it is due, or has done so. It may be pending behind a MOV to
    /// CR8 that has taken the task priority below the threshold, and in the shadow of STI and MOV SS (Intel SDM vol. 3, section
    /// 28.3.4), where `hold_step` sets it itself. Bochs sets it at each exit of an instruction with TF.
    fn take_pending_traps(&mut self) -> u64 {
        let pending = self.vmcs.read(guest::PENDING_DBG_EXCEPTIONS);
        if pending != 0 {
            self.vmcs.write(guest::PENDING_DBG_EXCEPTIONS, 0);
        }
        if self.in_interrupt_shadow() {
            self.end_shadow();
        }
        pending & DR6_BREAKPOINTS
    }
}

impl<T: Translation> Events for VmxVcpu<T> {
    #[inline]
    fn interruptible(&self) -> bool {
        self.rflags() & RFLAGS_IF != 0 && !self.in_interrupt_shadow() && !self.injecting()
    }

    #[inline]
    fn in_interrupt_shadow(&self) -> bool {
        self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & INTERRUPT_SHADOW != 0
    }

    /// Processors do behind STI and MOV SS, Bochs at each such exit.
    #[cold]
    fn forget_pending_step(&mut self) {
        let pending = self.vmcs.read(guest::PENDING_DBG_EXCEPTIONS);
        self.vmcs.write(guest::PENDING_DBG_EXCEPTIONS, pending & !DR6_BS);
        if self.debugctl() & DEBUGCTL_BTF == 0 {
            self.end_shadow();
        }
    }

    #[inline]
    fn set_event(&mut self, event: Event) {
        let info = match event {
            Event::Interrupt(vector) => TYPE_INTERRUPT | u64::from(vector),
            Event::Nmi => TYPE_NMI | u64::from(NONMASKABLE_INTERRUPT_VECTOR),
            Event::Exception(exception) => {
                let mut info = TYPE_EXCEPTION | u64::from(exception.vector());
                // In real mode none is pushed, and an entry with one is refused.
                if let Some(code) = exception.error_code()
                    && self.vmcs.read(guest::CR0) & CR0_PE != 0
                {
                    self.vmcs.write(control::VMENTRY_EXCEPTION_ERR_CODE, u64::from(code));
                    info |= EVENT_ERROR_CODE;
                }
                info
            }
        };
        self.vmcs.write(control::VMENTRY_INTERRUPTION_INFO_FIELD, EVENT_VALID | info);
    }

    #[inline]
    fn injecting(&self) -> bool {
        self.vmcs.read(control::VMENTRY_INTERRUPTION_INFO_FIELD) & EVENT_VALID != 0
    }

    fn injected_exception(&self) -> Option<u8> {
        let info = self.vmcs.read(control::VMENTRY_INTERRUPTION_INFO_FIELD);
        (info & (EVENT_VALID | EVENT_TYPE) == EVENT_VALID | TYPE_EXCEPTION).then_some(info as u8)
    }

    fn injected_vector(&self) -> Option<u8> {
        let info = self.vmcs.read(control::VMENTRY_INTERRUPTION_INFO_FIELD);
        (info & EVENT_VALID != 0).then_some((info & EVENT_VECTOR) as u8)
    }

    #[inline]
    fn request_window(&mut self, wanted: bool) {
        self.set_primary(PrimaryControls::INTERRUPT_WINDOW_EXITING.bits(), wanted);
    }

    #[inline]
    fn cr8(&self) -> Option<u64> {
        self.task_priority.as_ref().map(TaskPriority::cr8)
    }

    fn set_cr8(&mut self, value: u64) {
        if let Some(task_priority) = &mut self.task_priority {
            task_priority.set_cr8(&mut self.vmcs, value);
        }
    }

    fn watch_cr8(&mut self, class: Option<u8>) {
        if self.task_priority.is_some() {
            TaskPriority::watch(&mut self.vmcs, class.unwrap_or(0));
        }
    }

    fn handles_nmi(&self) -> bool {
        const NMI: u64 = EVENT_VALID | TYPE_NMI;
        let event = self.vmcs.read(control::VMENTRY_INTERRUPTION_INFO_FIELD);
        self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & NMI_BLOCKED != 0 || event & (EVENT_VALID | EVENT_TYPE) == NMI
    }

    fn takes_nmi(&self) -> bool {
        self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & (INTERRUPT_SHADOW | NMI_BLOCKED) == 0 && !self.injecting()
    }

    fn request_nmi_window(&mut self, wanted: bool) {
        self.set_primary(PrimaryControls::NMI_WINDOW_EXITING.bits(), wanted);
    }
}

impl<T: Translation> VmxVcpu<T> {
    /// Restores what the exit interrupted: the delivery of an event, and the blocking of NMIs.
    pub(super) fn restore_events(&mut self) {
        let interrupted = self.vmcs.read(ro::IDT_VECTORING_INFO);
        if interrupted & EVENT_VALID != 0 {
            // An injected NMI must not find NMIs blocked: the entry would fail (SDM section 27.3.1.5).
            if interrupted & EVENT_TYPE == TYPE_NMI {
                self.block_nmis(false);
            }
            self.redeliver(interrupted);
        } else if self.unblocked_nmis() {
            self.block_nmis(true);
        }
    }

    /// Keeps an NMI for the host. Writes DR6 for a #DB, which exits before the processor does (SDM section 28.1).
    pub(super) fn exception(&mut self) {
        const DR6_STATUS: u64 = DR6_BREAKPOINTS | DR6_BD | DR6_BS;
        let info = self.vmcs.read(ro::VMEXIT_INTERRUPTION_INFO);
        if info & EVENT_TYPE == TYPE_NMI {
            self.nmi = true;
        } else if info & EVENT_VECTOR == u64::from(DEBUG_VECTOR) && info & EVENT_TYPE != TYPE_INT1 {
            let status = self.qualification() & DR6_STATUS;
            unswitched::set_dr6(unswitched::dr6() & !DR6_BREAKPOINTS | status);
        }
    }

    /// Injects the event again whose delivery the exit interrupted (SDM section 28.2.4). Software interrupts and exceptions are not
    /// injected: RIP is at their instruction, which runs again.
    fn redeliver(&mut self, info: u64) {
        if info & EVENT_TYPE >= TYPE_BY_INSTRUCTION {
            return;
        }
        if info & EVENT_ERROR_CODE != 0 {
            let error_code = self.vmcs.read(ro::IDT_VECTORING_ERR_CODE);
            self.vmcs.write(control::VMENTRY_EXCEPTION_ERR_CODE, error_code);
        }
        // Bit 12 is undefined there and reserved here.
        self.vmcs.write(control::VMENTRY_INTERRUPTION_INFO_FIELD, info & !(1 << 12));
    }

    /// Has a step be pending if TF makes one behind each instruction, as in an interrupt shadow.
    pub(super) fn hold_step(&mut self) {
        let steps = self.rflags() & RFLAGS_TF != 0 && self.debugctl() & DEBUGCTL_BTF == 0;
        let pending = self.vmcs.read(guest::PENDING_DBG_EXCEPTIONS) & !DR6_BS;
        self.vmcs.write(guest::PENDING_DBG_EXCEPTIONS, pending | if steps { DR6_BS } else { 0 });
    }

    /// Ends the interrupt shadow, as the delivery of an exception does. An entry with a shadow and TF, but without the step pending, is
    /// refused (SDM section 27.3.1.5).
    fn end_shadow(&mut self) {
        let state = self.vmcs.read(guest::INTERRUPTIBILITY_STATE);
        self.vmcs.write(guest::INTERRUPTIBILITY_STATE, state & !INTERRUPT_SHADOW);
    }

    /// Whether the exit was by an IRET that had ended an NMI's handling, and will run again.
    fn unblocked_nmis(&self) -> bool {
        match self.reason {
            reason::EPT_VIOLATION => self.qualification() & NMI_UNBLOCKED != 0,
            reason::EXCEPTION_OR_NMI => {
                let info = self.vmcs.read(ro::VMEXIT_INTERRUPTION_INFO);
                info & EVENT_TYPE != TYPE_NMI && info & NMI_UNBLOCKED != 0
            }
            _ => false,
        }
    }

    pub(super) fn block_nmis(&mut self, blocked: bool) {
        let state = self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & !NMI_BLOCKED;
        self.vmcs.write(guest::INTERRUPTIBILITY_STATE, state | if blocked { NMI_BLOCKED } else { 0 });
    }
}
