//! ACPI's fixed hardware (ACPI 6.5, section 4.8.3): the PM1a event and control blocks and the power management timer, where a PIIX4
//! has them.
//!
//! The machine is always in ACPI mode: SCI_EN is set, and there is no SMI command port. The power and sleep buttons are never
//! pressed, the global lock belongs to the guest, and of the sleeping states there is S5 alone.

use crate::bus::{DwordWrite, part};
use crate::{Nanoseconds, Size};
use abi::ports::{PM_TIMER, PM1_CONTROL, PM1_EVENT, S5};
use abi::timers::{PM_TIMER_HERTZ, PM_TIMER_MASK};

/// The first port. The PIIX4's function tells it as PMBASE.
pub(crate) const BASE: u16 = PM1_EVENT;

/// Aligned dwords from [`BASE`] on: status and enable, control, timer.
mod block {
    use super::{BASE, PM_TIMER, PM1_CONTROL, PM1_EVENT};

    pub(super) const EVENTS: u16 = PM1_EVENT - BASE;
    pub(super) const CONTROL: u16 = PM1_CONTROL - BASE;
    pub(super) const TIMER: u16 = PM_TIMER - BASE;
}

/// PM1 status and enable: the timer's most significant bit has changed.
const TIMER_EVENT: u32 = 1 << 0;
const ENABLE_SHIFT: u32 = 16;
/// The enable bits of timer, global lock, both buttons and clock.
const ENABLES: u32 = (1 << 0 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10) << ENABLE_SHIFT;

/// PM1 control.
mod control {
    pub(super) const SCI_ENABLE: u32 = 1 << 0;
    pub(super) const BUS_MASTER_RELOAD: u32 = 1 << 1;
    pub(super) const SLEEP_TYPE_SHIFT: u32 = 10;
    pub(super) const SLEEP_TYPE: u32 = 7 << SLEEP_TYPE_SHIFT;
    pub(super) const SLEEP: u32 = 1 << 13;
}

/// The sleep type of S5, as a PIIX4 has it (and, after it, QEMU): "soft off".
pub(crate) const SLEEP_TYPE_S5: u32 = S5 as u32;

/// The timer's most significant bit changes each time after so many ticks, as a power of two.
const CHANGE_SHIFT: u32 = 23;

/// Whether the guest switches its machine off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PowersOff(pub(crate) bool);

#[derive(Debug)]
pub(crate) struct PowerManagement {
    /// The enable register, at its place in the dword.
    enables: u32,
    control: u32,
    /// How often the timer's most significant bit had changed when its status bit was cleared last.
    changes_seen: u64,
}

impl PowerManagement {
    pub(crate) const fn new() -> Self {
        Self { enables: 0, control: control::SCI_ENABLE, changes_seen: 0 }
    }

    /// Reads `port`.
    pub(crate) fn read(&self, port: u16, size: Size, now: Nanoseconds) -> u32 {
        let dword = match (port - BASE) & !3 {
            block::EVENTS => self.enables | self.status(now),
            block::CONTROL => self.control,
            block::TIMER => timer(now),
            _ => 0,
        };
        part(dword, port, size)
    }

    /// Writes `port`.
    pub(crate) fn write(&mut self, port: u16, size: Size, value: u32, now: Nanoseconds) -> PowersOff {
        let write = DwordWrite::new(port, size, value);
        match (port - BASE) & !3 {
            block::EVENTS => {
                self.enables = write.onto(self.enables, ENABLES);
                // A status bit is cleared by writing one.
                if write.value & TIMER_EVENT != 0 {
                    self.changes_seen = changes(now);
                }
            }
            block::CONTROL => return self.write_control(write),
            // The timer is read-only.
            _ => {}
        }
        PowersOff(false)
    }

    /// SLP_EN is write-only. Sleep types that `_S3` and the like would name are not offered, and have no effect.
    fn write_control(&mut self, write: DwordWrite) -> PowersOff {
        self.control = write.onto(self.control, control::BUS_MASTER_RELOAD | control::SLEEP_TYPE);
        let sleep_type = (self.control & control::SLEEP_TYPE) >> control::SLEEP_TYPE_SHIFT;
        PowersOff(write.value & control::SLEEP != 0 && sleep_type == SLEEP_TYPE_S5)
    }

    fn status(&self, now: Nanoseconds) -> u32 {
        if changes(now) != self.changes_seen { TIMER_EVENT } else { 0 }
    }

    pub(crate) fn timer_event_enabled(&self) -> bool {
        self.enables & TIMER_EVENT << ENABLE_SHIFT != 0
    }

    /// The level of the SCI. The time is asked for only if it matters.
    pub(crate) fn interrupt(&self, now: impl FnOnce() -> Nanoseconds) -> bool {
        self.timer_event_enabled() && self.status(now()) != 0
    }

    /// When the SCI, which is low, rises, if nothing is written.
    pub(crate) fn next_deadline(&self) -> Option<Nanoseconds> {
        let next = || Nanoseconds::from_ticks((self.changes_seen + 1) << CHANGE_SHIFT, PM_TIMER_HERTZ);
        self.timer_event_enabled().then(next)
    }
}

/// The timer.
#[inline]
pub(crate) fn timer(now: Nanoseconds) -> u32 {
    now.to_ticks::<PM_TIMER_HERTZ>() as u32 & PM_TIMER_MASK
}

/// How often the timer's most significant bit has changed.
fn changes(now: Nanoseconds) -> u64 {
    now.to_ticks::<PM_TIMER_HERTZ>() >> CHANGE_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: u16 = 0x600;
    const ENABLE: u16 = 0x602;
    const CONTROL: u16 = 0x604;

    fn write(pm: &mut PowerManagement, port: u16, value: u32, now: u64) {
        assert_eq!(pm.write(port, Size::Word, value, Nanoseconds(now)), PowersOff(false));
    }

    #[test]
    fn it_is_in_acpi_mode_and_stays_there() {
        let mut pm = PowerManagement::new();
        write(&mut pm, CONTROL, 0, 0);
        assert_eq!(pm.read(CONTROL, Size::Word, Nanoseconds(0)), 0x0001);
        write(&mut pm, CONTROL, 0x1c02, 0);
        assert_eq!(pm.read(CONTROL, Size::Word, Nanoseconds(0)), 0x1c03);
    }

    #[test]
    fn only_s5_powers_off_and_only_with_the_sleep_bit() {
        for (value, off) in [(0x2000, true), (0x2001, true), (0x0000, false), (0x2400, false), (0x3c00, false)] {
            let mut pm = PowerManagement::new();
            assert_eq!(pm.write(CONTROL, Size::Word, value, Nanoseconds(0)), PowersOff(off), "{value:#x}");
            assert_eq!(pm.read(CONTROL, Size::Word, Nanoseconds(0)) & 0x2000, 0, "write-only");
        }
        let mut pm = PowerManagement::new();
        assert_eq!(pm.write(CONTROL + 1, Size::Byte, 0x20, Nanoseconds(0)), PowersOff(true));
    }

    #[test]
    fn enables_keep_what_they_are_given_and_buttons_are_never_pressed() {
        let mut pm = PowerManagement::new();
        write(&mut pm, ENABLE, 0xffff, 0);
        assert_eq!(pm.read(ENABLE, Size::Word, Nanoseconds(0)), 0x0721);
        assert_eq!(pm.read(STATUS, Size::Dword, Nanoseconds(0)), 0x0721_0000);
        assert!(!pm.interrupt(|| Nanoseconds(0)));
    }

    #[test]
    fn the_timer_event_comes_when_bit_23_changes_and_goes_with_a_one() {
        let mut pm = PowerManagement::new();
        assert_eq!(pm.next_deadline(), None);
        write(&mut pm, ENABLE, 1, 0);
        for _ in 0..3 {
            let due = pm.next_deadline().unwrap();
            let timer = |pm: &PowerManagement, now| pm.read(0x608, Size::Dword, Nanoseconds(now));
            assert_ne!(timer(&pm, due.0 - 1) >> 23, timer(&pm, due.0) >> 23);
            assert!(!pm.interrupt(|| Nanoseconds(due.0 - 1)));
            assert!(pm.interrupt(|| due));
            assert_eq!(pm.read(STATUS, Size::Word, due), 1);
            write(&mut pm, STATUS, 0xfffe, due.0);
            assert!(pm.interrupt(|| due), "another bit's one");
            write(&mut pm, STATUS, 1, due.0);
            assert!(!pm.interrupt(|| due));
        }
    }
}
