//! The other end of the guest's consoles: it takes their output, and has COM1's input.

use crate::Nanoseconds;

/// Takes the guest's output, and may have input for its COM1.
pub trait Sink {
    /// Takes one byte.
    fn put(&mut self, byte: u8);

    /// Whether there is room for a byte. Without room, a write that prints has no effect, and must be repeated later
    /// ([`Effect::Wait`](crate::Effect::Wait)).
    fn has_room(&mut self) -> bool {
        true
    }

    /// Takes the next byte of the input out. None: there is none at the moment.
    fn take(&mut self) -> Option<u8> {
        None
    }

    /// The time between two looks for input, in nanoseconds. None: there will never be any.
    fn input_period(&self) -> Option<Nanoseconds> {
        None
    }
}

impl<F: FnMut(u8)> Sink for F {
    fn put(&mut self, byte: u8) {
        self(byte);
    }
}
