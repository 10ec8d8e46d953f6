//! Points in time.

/// A point in time, in ticks of the TSC since it was 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl Instant {
    /// Later than any other instant.
    pub const NEVER: Self = Self(u64::MAX);

    /// The moment at which the TSC is `ticks`.
    #[must_use]
    pub const fn new(ticks: u64) -> Self {
        Self(ticks)
    }

    /// The TSC at this moment.
    #[must_use]
    pub const fn ticks(self) -> u64 {
        self.0
    }

    /// The moment `ticks` later.
    #[must_use]
    pub const fn after(self, ticks: u64) -> Self {
        Self(self.0.saturating_add(ticks))
    }

    /// The ticks from `earlier` to this moment; 0 if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
