//! Interrupts, NMIs and exceptions on their way into the guest (AMD64 APM vol. 2, section 15.20).

use super::vcpu::SvmVcpu;
use super::vmcb::{self, event, exit_code, misc1};
use crate::translation::Translation;
use crate::unswitched;
use arch::{DR6_BREAKPOINTS, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF};
use vm::{DebugRegisters, Event, Events};
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

impl<T: Translation> DebugRegisters for SvmVcpu<T> {
    fn dr6(&self) -> u64 {
        self.vmcb.save.dr6
    }

    fn set_dr6(&mut self, dr6: u64) {
        self.vmcb.save.dr6 = dr6;
    }

    #[inline]
    fn dr7(&self) -> u64 {
        self.vmcb.save.dr7
    }

    fn set_dr7(&mut self, dr7: u64) {
        self.vmcb.save.dr7 = dr7;
    }

    fn debugctl(&self) -> u64 {
        self.vmcb.save.debug_control
    }

    /// VMRUN and exits switch it with LBR virtualization (APM section 15.23), which is on while it is not 0. Processors without that keep
    /// what was written, and a step goes over any instruction: QEMU's (as of 7.2), which has no BTF either.
    fn set_debugctl(&mut self, debugctl: u64) {
        self.vmcb.save.debug_control = debugctl;
        let switched = self.lbr_virtualization && debugctl != 0;
        self.vmcb.control.lbr_control = if switched { vmcb::LBR_VIRTUALIZATION } else { 0 };
    }

    fn breakpoints(&self) -> [u64; 4] {
        unswitched::breakpoints()
    }
}

/// A step over an IRET.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// The linear address of the IRET.
    from: u64,
    /// What the guest has in DR6.
    dr6: u64,
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

    fn set_event(&mut self, event: Event) {
        self.forget_step();
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

    fn window_may_be_late(&self) -> bool {
        self.vmcb.control.window_may_be_late()
    }

    #[inline]
    fn cr8(&self) -> Option<u64> {
        Some(self.vmcb.control.cr8())
    }

    fn set_cr8(&mut self, value: u64) {
        self.vmcb.control.set_cr8(value);
    }

    fn watch_cr8(&mut self, class: Option<u8>) {
        self.vmcb.control.watch_cr8(class.is_some());
    }

    fn ends_own_step(&mut self) -> bool {
        self.step.take().is_some_and(|step| self.end_step(step))
    }

    fn handles_nmi(&self) -> bool {
        match self.nmi {
            Nmi::None => false,
            Nmi::Handled => true,
            Nmi::Returns { from } => self.linear_rip() == from,
        }
    }

    fn takes_nmi(&self) -> bool {
        !self.handles_nmi() && !self.in_interrupt_shadow() && !self.injecting()
    }

    /// There is no such window: IRET exits while an NMI is handled, and is then stepped over. Where something else keeps an NMI back, the
    /// window is an interrupt's.
    fn request_nmi_window(&mut self, wanted: bool) {
        if wanted {
            let exits = match self.nmi {
                Nmi::Handled => true,
                Nmi::Returns { from } => self.linear_rip() == from && self.step_over_iret(),
                Nmi::None => false,
            };
            if !exits {
                self.request_window(true);
            }
        } else if self.vmcb.control.exit_code == exit_code::IRET {
            if self.nmi == Nmi::Handled {
                self.nmi = Nmi::Returns { from: self.linear_rip() };
            }
            self.vmcb.control.intercept_misc1 &= !misc1::IRET;
        }
    }
}

/// The step over the IRET that ends the handling of an NMI, so that there is an exit behind it (as KVM does without virtual NMIs): an
/// interrupt's window does not open while the guest has interrupts off.
impl<T: Translation> SvmVcpu<T> {
    /// TF is set before the IRET, which loads the flags that come behind it. Whether that can be: an event that is delivered first
    /// would push TF, and a step of the guest's own can't be told from this one.
    ///
    /// An IRET that faults in the guest pushes TF, as under KVM: the handler that returns to it gets one step too many.
    fn step_over_iret(&mut self) -> bool {
        let can_step = self.vmcb.save.rflags & RFLAGS_TF == 0 && !self.injecting();
        if can_step {
            self.step = Some(Step { from: self.linear_rip(), dr6: self.vmcb.save.dr6 });
            let save = &mut self.vmcb.save;
            // The IRET has met its own breakpoint before it exited.
            save.rflags |= RFLAGS_TF | RFLAGS_RF;
            // What is set behind it was met by it.
            save.dr6 &= !DR6_BREAKPOINTS;
        }
        can_step
    }

    /// Has the next IRET exit again, unless the step is over: flags and NMIs are the guest's then.
    #[inline(always)]
    pub(super) fn forget_step(&mut self) {
        if self.step.is_some() {
            self.forget_begun_step();
        }
    }

    #[cold]
    #[inline(never)]
    fn forget_begun_step(&mut self) {
        let Some(step) = self.step.take() else { return };
        if self.linear_rip() == step.from {
            self.vmcb.save.rflags &= !RFLAGS_TF;
            self.vmcb.save.dr6 = step.dr6;
            self.nmi = Nmi::Handled;
            self.vmcb.control.intercept_misc1 |= misc1::IRET;
        } else {
            self.vmcb.save.dr6 |= step.dr6;
            self.nmi = Nmi::None;
        }
    }

    /// DR6 is as before, but for breakpoints of the guest's that were met as well. Whether there were none.
    fn end_step(&mut self, step: Step) -> bool {
        let save = &mut self.vmcb.save;
        self.nmi = Nmi::None;
        let met = save.dr6 & DR6_BREAKPOINTS;
        let is_enabled = |number: u64| met >> number & 1 != 0 && save.dr7 >> (2 * number) & 3 != 0;
        let is_own = !(0..4).any(is_enabled);
        save.dr6 = if is_own { step.dr6 } else { step.dr6 & !DR6_BREAKPOINTS | met };
        is_own
    }

    fn linear_rip(&self) -> u64 {
        self.vmcb.save.cs.base.wrapping_add(self.vmcb.save.rip)
    }
}

impl<T: Translation> SvmVcpu<T> {
    /// Injects the event again whose delivery the exit interrupted (APM section 15.20), unless its instruction runs again. `injected`
    /// is what the guest was entered with.
    #[cold]
    pub(super) fn redeliver(&mut self, injected: u64) {
        match Redelivery::of(self.vmcb.control.exit_interrupt_info, injected, self.posts_interrupts) {
            Redelivery::Instruction => {}
            Redelivery::Posted(event) => {
                self.vmcb.control.withdraw();
                self.vmcb.control.event_injection = event;
            }
            Redelivery::Event(event) => self.vmcb.control.event_injection = event,
        }
    }
}

/// How an event is delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Redelivery {
    /// Its instruction runs again.
    Instruction,
    /// It is injected, and pending no more.
    Posted(u64),
    /// It is injected.
    Event(u64),
}

impl Redelivery {
    /// What becomes of the event `info` (EXITINTINFO). `posts`: interrupts are posted, rather than injected.
    fn of(info: u64, injected: u64, posts: bool) -> Self {
        const WHICH: u64 = event::VALID | event::TYPE | 0xff;
        match (info & event::TYPE, info as u8) {
            _ if event::is_by_instruction(info) => Self::Instruction,
            // An interrupt that was not injected: Bochs has no word for INT n, and leaves zeroes.
            (event::TYPE_INTERRUPT, _) if !posts && (info ^ injected) & WHICH != 0 => Self::Instruction,
            // No exception: QEMU's word for an interrupt that was posted, and is pending still.
            (event::TYPE_EXCEPTION, vector @ 32..) => {
                Self::Posted(event::VALID | event::TYPE_INTERRUPT | u64::from(vector))
            }
            _ => Self::Event(info),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_instruction_raises_itself_is_raised_by_it_again() {
        for event in [event::TYPE_SOFTWARE | 0x80, event::TYPE_EXCEPTION | 3, event::TYPE_EXCEPTION | 4] {
            assert_eq!(Redelivery::of(event::VALID | event, 0, false), Redelivery::Instruction);
        }
    }

    #[test]
    fn faults_interrupts_and_nmis_are_injected_again() {
        let fault = event::VALID | event::ERROR_CODE_VALID | event::TYPE_EXCEPTION | 14 | 2 << 32;
        let interrupt = event::VALID | event::TYPE_INTERRUPT | 0x40;
        let nmi = event::VALID | event::TYPE_NMI | 2;
        for (event, injected) in [(fault, 0), (interrupt, interrupt), (nmi, nmi)] {
            assert_eq!(Redelivery::of(event, injected, false), Redelivery::Event(event));
        }
    }

    #[test]
    fn an_interrupt_that_was_posted_is_injected() {
        let interrupt = event::VALID | event::TYPE_INTERRUPT | 0x40;
        assert_eq!(Redelivery::of(interrupt, 0, true), Redelivery::Event(interrupt));
        assert_eq!(Redelivery::of(event::VALID | event::TYPE_EXCEPTION | 0x40, 0, true), Redelivery::Posted(interrupt));
    }

    #[test]
    fn an_interrupt_from_nowhere_is_one_of_an_instruction() {
        let injected = event::VALID | event::TYPE_INTERRUPT | 0x40;
        for injected in [0, injected] {
            assert_eq!(Redelivery::of(event::VALID, injected, false), Redelivery::Instruction);
        }
    }
}
