//! The one virtual interrupt that a VMCB has (APM section 15.21.4): an interrupt for the guest, or a window.
//!
//! The processor takes it as soon as the guest would take an interrupt. Without an intercept that is how the guest gets one
//! that was posted; with an intercept the guest exits instead, and the hypervisor knows that an interrupt would be taken now.
//!
//! Interrupts are injected as events (EVENTINJ), but not on QEMU (as of 7.2): there the processor delivers an injected one
//! a second time if its thread is asked to stop before the next exit, as `helper_vmrun` leaves the vector in
//! `exception_index`. What is posted comes once. It is no choice for all: Bochs (2.7) does not tell at an exit that an
//! interrupt is pending still.

use super::vmcb::{Control, misc1};

/// Bits of `virtual_interrupt`.
const PENDING: u64 = 1 << 8;
const IGNORE_PRIORITY: u64 = 1 << 20;
/// Physical interrupts are masked by the host's RFLAGS.IF alone.
const MASKING: u64 = 1 << 24;
/// The lowest bit of the vector.
const VECTOR: u32 = 32;

impl Control {
    /// There is none, and no exit is asked for.
    pub(super) fn withdraw(&mut self) {
        self.virtual_interrupt = MASKING;
        self.intercept_misc1 &= !misc1::VINTR;
    }

    /// Has the guest take interrupt `vector`. It replaces a window.
    #[inline]
    pub(super) fn post(&mut self, vector: u8) {
        self.virtual_interrupt = MASKING | PENDING | IGNORE_PRIORITY | u64::from(vector) << VECTOR;
        self.intercept_misc1 &= !misc1::VINTR;
    }

    /// Whether one was posted that the guest has not taken yet.
    #[inline]
    pub(super) fn is_posted(&self) -> bool {
        self.virtual_interrupt & PENDING != 0 && self.intercept_misc1 & misc1::VINTR == 0
    }

    /// Has the guest exit as soon as it would take an interrupt, or no longer. Behind one that is posted, it exits where the
    /// handler of that returns: if it lets interrupts in before, they wait for that or for another exit.
    #[inline]
    pub(super) fn request_window(&mut self, wanted: bool) {
        match (self.is_posted(), wanted) {
            (true, true) => self.intercept_misc1 |= misc1::IRET,
            (true, false) => {}
            (false, true) => {
                self.virtual_interrupt |= PENDING | IGNORE_PRIORITY;
                self.intercept_misc1 |= misc1::VINTR;
            }
            (false, false) => {
                self.virtual_interrupt &= !PENDING;
                self.intercept_misc1 &= !misc1::VINTR;
            }
        }
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
    fn behind_a_posted_interrupt_the_window_is_where_its_handler_returns() {
        let mut control = control();
        control.post(0x31);
        control.request_window(true);
        assert_eq!((control.intercept_misc1, control.is_posted()), (misc1::IRET, true));
    }
}
