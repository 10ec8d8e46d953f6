//! The state of one CPU that other CPUs read.

use core::fmt;

/// The grace period that the CPU last saw, and its mode. In one word, so that both change atomically.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct State(u64);

/// The mode of a CPU as far as it matters to grace periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the hypervisor: it may walk tables in software until its next quiescent state.
    Online,
    /// Idle or offline: it walks no tables, and announces its return.
    Extended,
    /// In guest mode: its hardware walks tables, but none that was unlinked before its entry.
    Guest,
    /// In guest mode, and a table was unlinked and flushed since its entry: grace periods wait until it leaves.
    Stale,
    /// As [`Stale`](Self::Stale), and a kick was sent.
    Kicked,
}

const MODE_BITS: u32 = 3;

impl State {
    pub(crate) const fn new(mode: Mode, grace: u64) -> Self {
        Self(grace << MODE_BITS | mode as u64)
    }

    pub(crate) const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    pub(crate) const fn raw(self) -> u64 {
        self.0
    }

    pub(crate) const fn mode(self) -> Mode {
        match self.0 & ((1 << MODE_BITS) - 1) {
            0 => Mode::Online,
            1 => Mode::Extended,
            2 => Mode::Guest,
            3 => Mode::Stale,
            _ => Mode::Kicked,
        }
    }

    pub(crate) const fn grace(self) -> u64 {
        self.0 >> MODE_BITS
    }

    pub(crate) const fn with_mode(self, mode: Mode) -> Self {
        Self::new(mode, self.grace())
    }

    /// Whether this CPU may still walk tables unlinked before grace period `grace` began.
    pub(crate) fn holds_up(self, grace: u64) -> bool {
        match self.mode() {
            Mode::Online | Mode::Stale | Mode::Kicked => self.grace() < grace,
            Mode::Extended | Mode::Guest => false,
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} since grace period {}", self.mode(), self.grace())
    }
}
