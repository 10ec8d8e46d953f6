//! Where the guest's output goes.

/// Takes what the guest prints.
pub trait Sink {
    /// Takes one byte.
    fn put(&mut self, byte: u8);

    /// Whether there is room for one. Without room a write that prints has no effect, and is to be repeated later
    /// ([`Outcome::Wait`](crate::Outcome::Wait)).
    fn has_room(&mut self) -> bool {
        true
    }
}

impl<F: FnMut(u8)> Sink for F {
    fn put(&mut self, byte: u8) {
        self(byte);
    }
}
