//! Interrupts, NMIs and exceptions on their way into the guest (AMD64 APM vol. 2, section 15.20).

use super::vcpu::SvmVcpu;
use super::vmcb::{self, event, exit_code, misc1};
use crate::translation::Translation;
use arch::RFLAGS_IF;
use vm::{Event, Events, Registers};
use x86::irq::NONMASKABLE_INTERRUPT_VECTOR;

/// The guest's progress with its last NMI. The processor does not report it, so IRET is intercepted while an NMI is handled (as
/// KVM does without virtual NMIs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nmi {
    /// No NMI is being handled.
    None,
    /// Its handler runs, up to the next IRET.
    Handled,
    /// That IRET, at this address, is about to be executed, or was.
    Returns { from: u64 },
}

impl<T: Translation> Events for SvmVcpu<T> {
    #[inline]
    fn interruptible(&self) -> bool {
        self.vmcb.save.rflags & RFLAGS_IF != 0 && !self.in_interrupt_shadow() && !self.injecting()
    }

    #[inline]
    fn in_interrupt_shadow(&self) -> bool {
        self.vmcb.control.interrupt_state & vmcb::INTERRUPT_SHADOW != 0
    }

    fn inject(&mut self, event: Event) {
        if event == Event::Nmi {
            self.nmi = Nmi::Handled;
            self.vmcb.control.intercept_misc1 |= misc1::IRET;
        }
        self.vmcb.control.event_injection = event::VALID
            | match event {
                Event::Interrupt(vector) if self.posts_interrupts => return self.vmcb.control.post(vector),
                Event::Interrupt(vector) => event::TYPE_INTERRUPT | u64::from(vector),
                Event::Nmi => event::TYPE_NMI | u64::from(NONMASKABLE_INTERRUPT_VECTOR),
                Event::Exception(exception) => {
                    let error =
                        exception.error_code().map_or(0, |code| event::ERROR_CODE_VALID | u64::from(code) << 32);
                    event::TYPE_EXCEPTION | u64::from(exception.vector()) | error
                }
            };
    }

    #[inline]
    fn injecting(&self) -> bool {
        self.redelivering() || self.vmcb.control.is_posted()
    }

    #[inline]
    fn redelivering(&self) -> bool {
        self.vmcb.control.event_injection & event::VALID != 0
    }

    fn injected_exception(&self) -> Option<u8> {
        const KIND: u64 = event::VALID | event::TYPE;
        let event = self.vmcb.control.event_injection;
        (event & KIND == event::VALID | event::TYPE_EXCEPTION).then_some(event as u8)
    }

    #[inline]
    fn request_window(&mut self, wanted: bool) {
        self.vmcb.control.request_window(wanted);
    }

    fn takes_nmi(&self) -> bool {
        let over = match self.nmi {
            Nmi::None => true,
            Nmi::Handled => false,
            Nmi::Returns { from } => self.rip() != from,
        };
        over && !self.in_interrupt_shadow() && !self.injecting()
    }

    /// There is no such window: IRET exits while an NMI is handled, and behind it an interrupt's window opens if anything does.
    fn request_nmi_window(&mut self, wanted: bool) {
        if wanted {
            self.request_window(true);
        } else if self.vmcb.control.exit_code == exit_code::IRET {
            if self.nmi == Nmi::Handled {
                self.nmi = Nmi::Returns { from: self.rip() };
            }
            self.vmcb.control.intercept_misc1 &= !misc1::IRET;
        }
    }
}

impl<T: Translation> SvmVcpu<T> {
    /// Injects the event again whose delivery the exit interrupted (APM section 15.20). Software interrupts and exceptions are not
    /// injected: their instruction runs again.
    #[cold]
    pub(super) fn redeliver(&mut self) {
        let info = self.vmcb.control.exit_interrupt_info;
        match (info & event::TYPE, info as u8) {
            _ if event::is_by_instruction(info) => {}
            // No exception: QEMU's word for an interrupt that was posted, and is pending still.
            (event::TYPE_EXCEPTION, vector @ 32..) => {
                self.vmcb.control.withdraw();
                self.vmcb.control.event_injection = event::VALID | event::TYPE_INTERRUPT | u64::from(vector);
            }
            _ => self.vmcb.control.event_injection = info,
        }
    }
}
