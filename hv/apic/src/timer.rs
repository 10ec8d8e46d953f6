//! The timer (Intel SDM vol. 3, section 11.5.4).

use crate::Clock;
use arch::apic::TIMER_MODE_SHIFT;

/// When the timer is next due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// At this time of the clock, in nanoseconds.
    Nanoseconds(u64),
    /// When the guest's TSC has this value.
    Tsc(u64),
}

/// How the timer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    OneShot,
    Periodic,
    Deadline,
}

impl Mode {
    /// The mode in bits 18:17 of the timer's LVT entry.
    pub(crate) const fn new(lvt: u32) -> Self {
        match lvt >> TIMER_MODE_SHIFT & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            _ => Self::Deadline,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Timer {
    pub(crate) initial: u32,
    /// The divide configuration register.
    pub(crate) divide: u32,
    /// The time at which the count was at its initial value, in nanoseconds. None: the timer is stopped.
    start: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    pub(crate) deadline: u64,
}

impl Timer {
    pub(crate) const fn new() -> Self {
        Self { initial: 0, divide: 0, start: None, deadline: 0 }
    }

    /// Clock periods per count, from bits 0, 1 and 3 of the divide configuration register.
    const fn divisor(&self) -> u64 {
        match (self.divide & 3) | (self.divide >> 1 & 4) {
            7 => 1,
            power => 2 << power,
        }
    }

    /// The time from the initial count to 0, in nanoseconds.
    const fn period(&self) -> u64 {
        self.initial as u64 * self.divisor()
    }

    pub(crate) fn set_initial(&mut self, initial: u32, mode: Mode, clock: &impl Clock) {
        if mode == Mode::Deadline {
            return;
        }
        self.initial = initial;
        self.start = (initial != 0).then(|| clock.nanoseconds());
    }

    /// Changes the divisor. A running count continues from its current value.
    pub(crate) fn set_divide(&mut self, divide: u32, mode: Mode, clock: &impl Clock) {
        let count = self.current(mode, clock);
        self.divide = divide & 0xb;
        if self.start.is_some() {
            let done = u64::from(self.initial - count.min(self.initial)) * self.divisor();
            self.start = Some(clock.nanoseconds().saturating_sub(done));
        }
    }

    /// The current count.
    pub(crate) fn current(&self, mode: Mode, clock: &impl Clock) -> u32 {
        let Some(start) = self.start else { return 0 };
        let passed = clock.nanoseconds().saturating_sub(start);
        let left = match mode {
            Mode::Periodic => self.period() - passed % self.period().max(1),
            _ => self.period().saturating_sub(passed),
        };
        left.div_ceil(self.divisor()) as u32
    }

    /// Changing between TSC-deadline mode and the other two disarms the timer.
    pub(crate) fn change_mode(&mut self, old: Mode, new: Mode) {
        if (old == Mode::Deadline) != (new == Mode::Deadline) {
            self.start = None;
            self.initial = 0;
            self.deadline = 0;
        }
    }

    pub(crate) fn due(&self, mode: Mode) -> Option<Due> {
        match mode {
            Mode::Deadline => (self.deadline != 0).then_some(Due::Tsc(self.deadline)),
            _ => self.start.map(|start| Due::Nanoseconds(start.saturating_add(self.period()))),
        }
    }

    /// Whether the timer has expired since the last call. Several periods that have ended since then count as one.
    pub(crate) fn expires(&mut self, mode: Mode, clock: &impl Clock, tsc: u64) -> bool {
        match self.due(mode) {
            None => false,
            Some(Due::Tsc(deadline)) => {
                let past = tsc >= deadline;
                if past {
                    self.deadline = 0;
                }
                past
            }
            Some(Due::Nanoseconds(end)) => {
                let now = clock.nanoseconds();
                if now < end {
                    return false;
                }
                let period = self.period().max(1);
                self.start = (mode == Mode::Periodic).then(|| now - (now - end) % period);
                true
            }
        }
    }
}
