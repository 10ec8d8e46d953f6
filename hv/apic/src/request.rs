//! What makes a vCPU look at its [`Posted`](crate::Posted).

use model::sync::{AtomicBool, Ordering};

/// A request to a vCPU: it has something to look at before its next entry to guest mode.
///
/// A request is never lost. The sender stores its message, raises the request, and kicks the vCPU's CPU if that CPU is in guest
/// mode or asleep; a fence separates the request from that test (`rcu`'s `is_away`). The vCPU's CPU announces guest mode or sleep,
/// fences (`rcu`'s guest entry and idle do both), and then tests for a request before it enters or sleeps. So at least one side sees
/// the other.
pub struct Request(AtomicBool);

impl Request {
    /// None is pending.
    #[expect(clippy::new_without_default, reason = "as the other parts of a vCPU are made")]
    pub fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Whether one is pending.
    #[inline]
    pub fn is_pending(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Raises it, and releases the message before. False if it was pending already: then another sender kicks the vCPU's CPU.
    pub fn raise(&self) -> bool {
        !self.0.swap(true, Ordering::Release)
    }

    /// Clears it. The vCPU reads messages only afterwards: a message that comes later raises the request again.
    pub fn clear(&self) {
        self.0.swap(false, Ordering::Acquire);
    }
}
