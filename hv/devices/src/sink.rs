//! The sink of the guest's output.

/// Takes the guest's output.
pub trait Sink {
    /// Takes one byte.
    fn put(&mut self, byte: u8);

    /// Whether there is room for a byte. Without room, a write that prints has no effect, and must be repeated later
    /// ([`Effect::Wait`](crate::Effect::Wait)).
    fn has_room(&mut self) -> bool {
        true
    }
}

impl<F: FnMut(u8)> Sink for F {
    fn put(&mut self, byte: u8) {
        self(byte);
    }
}
