//! Time, as the devices that tell it are told it.

/// Nanoseconds since the VM's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanoseconds(pub u64);

/// Tells the time. Never goes back.
pub trait Clock {
    /// The time now.
    fn now(&self) -> Nanoseconds;
}

impl<C: Clock> Clock for &C {
    fn now(&self) -> Nanoseconds {
        (**self).now()
    }
}
