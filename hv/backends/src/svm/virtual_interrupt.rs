//! The one virtual interrupt that a VMCB has (APM section 15.21.4): an interrupt for the guest, or a window.
//!
//! The processor takes it as soon as the guest would take an interrupt. Without an intercept that is how the guest gets one
//! that was posted; with an intercept the guest exits instead, and the hypervisor knows that an interrupt would be taken now.
//!
//! Interrupts are injected as events (EVENTINJ), but not on QEMU (as of 7.2): there the processor delivers an injected one
//! a second time if its thread is asked to stop before the next exit, as `helper_vmrun` leaves the vector in
//! `exception_index`. What is posted comes once. It is no choice for all: Bochs (2.7) does not tell at an exit that an
//! interrupt is pending still.

use super::vmcb::{Control, INTERCEPT_CR8_WRITE, misc1};

/// Bits of `virtual_interrupt`. The lowest are the guest's CR8 (V_TPR), which its accesses reach without an exit: an exit writes them
/// back, also QEMU's (as of 7.2). QEMU has no #GP for a reserved bit in CR8; nor has it without the hypervisor.
const TASK_PRIORITY: u64 = 0xf;
const PENDING: u64 = 1 << 8;
const IGNORE_PRIORITY: u64 = 1 << 20;
/// Physical interrupts are masked by the host's RFLAGS.IF alone.
const MASKING: u64 = 1 << 24;
/// The lowest bit of the vector.
const VECTOR: u32 = 32;

impl Control {
    /// There is none, and no exit is asked for.
    pub(super) fn withdraw(&mut self) {
        self.virtual_interrupt = self.virtual_interrupt & TASK_PRIORITY | MASKING;
        self.intercept_misc1 &= !misc1::VINTR;
    }

    /// Has the guest take interrupt `vector`. It replaces a window.
    #[inline]
    pub(super) fn post(&mut self, vector: u8) {
        self.withdraw();
        self.pend(u64::from(vector) << VECTOR);
    }

    /// One is pending: writes of CR8 exit. QEMU (as of 7.2) ends by an assertion at one that does not, as `helper_write_crN` calls
    /// `cpu_interrupt` without its lock then.
    #[inline]
    fn pend(&mut self, vector: u64) {
        self.virtual_interrupt |= PENDING | IGNORE_PRIORITY | vector;
        self.intercept_cr |= INTERCEPT_CR8_WRITE;
    }

    /// Whether one was posted that the guest has not taken yet.
    #[inline]
    pub(super) fn is_posted(&self) -> bool {
        self.virtual_interrupt & PENDING != 0 && self.intercept_misc1 & misc1::VINTR == 0
    }

    /// Has the guest exit as soon as it would take an interrupt, or no longer. Behind one that is posted, it exits where the
    /// handler of that returns: if it lets interrupts in before, the window [is late](Self::window_may_be_late).
    #[inline]
    pub(super) fn request_window(&mut self, wanted: bool) {
        match (self.is_posted(), wanted) {
            (true, true) => self.intercept_misc1 |= misc1::IRET,
            (true, false) => {}
            (false, true) => {
                self.pend(0);
                self.intercept_misc1 |= misc1::VINTR;
            }
            (false, false) => {
                self.virtual_interrupt &= !PENDING;
                self.intercept_misc1 &= !misc1::VINTR;
            }
        }
    }

    /// Whether a window is wanted behind an interrupt that is posted.
    pub(super) fn window_may_be_late(&self) -> bool {
        self.is_posted() && self.intercept_misc1 & misc1::IRET != 0
    }

    /// The guest's CR8.
    #[inline]
    pub(super) fn cr8(&self) -> u64 {
        self.virtual_interrupt & TASK_PRIORITY
    }

    /// The guest's CR8 is `value`, and its writes do not exit.
    pub(super) fn set_cr8(&mut self, value: u64) {
        self.virtual_interrupt = self.virtual_interrupt & !TASK_PRIORITY | value & TASK_PRIORITY;
        self.watch_cr8(false);
    }

    /// Has writes of CR8 exit, or no longer, but for those that [have to](Self::pend). This is KVM's way (`svm_update_cr8_intercept`).
    /// A window of the interrupt's own priority would open when CR8 falls, too, but QEMU (as of 7.2, `ctl_has_irq`) opens it one class
    /// too early: the guest would exit without end.
    pub(super) fn watch_cr8(&mut self, watched: bool) {
        let exits = watched || self.virtual_interrupt & PENDING != 0;
        self.intercept_cr = self.intercept_cr & !INTERCEPT_CR8_WRITE | if exits { INTERCEPT_CR8_WRITE } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::super::vmcb::Vmcb;
    use super::*;

    fn control() -> Control {
        let mut control = Vmcb::zeroed().control;
        control.withdraw();
        control
    }

    #[test]
    fn a_posted_interrupt_is_where_the_manual_draws_it_and_is_not_intercepted() {
        let mut control = control();
        control.request_window(true);
        control.post(0x31);
        assert_eq!(control.virtual_interrupt, 0x31_0110_0100);
        assert_eq!(control.intercept_misc1, 0);
        assert!(control.is_posted());
    }

    #[test]
    fn it_stays_posted_until_the_processor_takes_it() {
        let mut control = control();
        control.post(0x31);
        control.request_window(false);
        assert!(control.is_posted());
        control.virtual_interrupt &= !PENDING;
        assert!(!control.is_posted());
    }

    #[test]
    fn a_window_is_intercepted_and_is_nothing_posted() {
        let mut control = control();
        control.request_window(true);
        assert_eq!((control.intercept_misc1, control.is_posted()), (misc1::VINTR, false));
        assert_ne!(control.virtual_interrupt & PENDING, 0);
        control.request_window(false);
        assert_eq!((control.intercept_misc1, control.virtual_interrupt & PENDING), (0, 0));
    }

    #[test]
    fn interrupts_and_windows_leave_cr8_alone() {
        let mut control = control();
        control.set_cr8(9);
        control.request_window(true);
        control.post(0x31);
        assert_eq!((control.virtual_interrupt, control.cr8()), (0x31_0110_0109, 9));
        control.withdraw();
        assert_eq!((control.virtual_interrupt, control.cr8()), (MASKING | 9, 9));
    }

    #[test]
    fn writes_of_cr8_exit_until_it_is_set() {
        let mut control = control();
        assert_eq!(control.intercept_cr, 0);
        control.watch_cr8(true);
        assert_eq!(control.intercept_cr, 1 << 24);
        control.set_cr8(3);
        assert_eq!(control.intercept_cr, 0);
    }

    #[test]
    fn writes_of_cr8_exit_while_an_interrupt_is_pending() {
        let mut control = control();
        control.request_window(true);
        control.set_cr8(3);
        assert_eq!(control.intercept_cr, 1 << 24, "a window");
        control.request_window(false);
        control.watch_cr8(false);
        assert_eq!(control.intercept_cr, 0);
        control.post(0x31);
        control.watch_cr8(false);
        assert_eq!(control.intercept_cr, 1 << 24, "a posted one");
        control.virtual_interrupt &= !PENDING;
        control.set_cr8(3);
        assert_eq!(control.intercept_cr, 0, "the guest has taken it");
    }

    #[test]
    fn behind_a_posted_interrupt_the_window_is_where_its_handler_returns() {
        let mut control = control();
        control.post(0x31);
        control.request_window(true);
        assert_eq!((control.intercept_misc1, control.is_posted()), (misc1::IRET, true));
        assert!(control.window_may_be_late());
        control.virtual_interrupt &= !PENDING;
        assert!(!control.window_may_be_late(), "the guest has taken it");
    }
}
