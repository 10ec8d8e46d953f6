//! Where the guest's output goes.

/// Takes what the guest prints.
pub trait Sink {
    /// Takes one byte.
    fn put(&mut self, byte: u8);
}

impl<F: FnMut(u8)> Sink for F {
    fn put(&mut self, byte: u8) {
        self(byte);
    }
}

/// Collects bytes into lines, so that lines of several guests and of the hypervisor do not mix.
///
/// `W` gets each line with its newline; a line longer than `N` bytes comes in pieces of `N`, of which only the last ends in
/// a newline.
#[derive(Debug)]
pub struct LineBuffer<const N: usize, W> {
    bytes: [u8; N],
    length: usize,
    write: W,
}

impl<const N: usize, W: FnMut(&[u8])> LineBuffer<N, W> {
    /// An empty buffer whose lines go to `write`.
    pub const fn new(write: W) -> Self {
        const { assert!(N > 0) };
        Self { bytes: [0; N], length: 0, write }
    }

    /// Hands over an unfinished line, if there is one.
    pub fn flush(&mut self) {
        if let Some(line @ [_, ..]) = self.bytes.get(..self.length) {
            (self.write)(line);
        }
        self.length = 0;
    }
}

impl<const N: usize, W: FnMut(&[u8])> Sink for LineBuffer<N, W> {
    fn put(&mut self, byte: u8) {
        // There is room: a full buffer is flushed at once.
        if let Some(free) = self.bytes.get_mut(self.length) {
            *free = byte;
            self.length += 1;
        }
        if byte == b'\n' || self.length == N {
            self.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{string::String, vec::Vec};

    fn pieces(text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        let mut buffer =
            LineBuffer::<4, _>::new(|piece: &[u8]| pieces.push(String::from_utf8(piece.to_vec()).unwrap()));
        text.bytes().for_each(|byte| buffer.put(byte));
        buffer.flush();
        buffer.flush();
        pieces
    }

    #[test]
    fn lines_come_whole_long_ones_in_pieces_and_the_last_when_flushed() {
        assert_eq!(pieces("a\n\nbcd\nefghij\nkl"), ["a\n", "\n", "bcd\n", "efgh", "ij\n", "kl"]);
        assert!(pieces("").is_empty());
    }
}
