//! Return addresses, by the chain of frame pointers that code compiled with them keeps (System V ABI, AMD64 supplement, 3.2.2).

use core::ops::Range;

/// Return addresses, the innermost first. The chain ends where it leaves the stacks, where it does not go up, or where a return
/// address is not in the code: it may be that of broken code.
///
/// ```
/// // A stack at 0x1000: the frame at 0x1000 belongs to a function that one with its frame at 0x1020 has called.
/// let read = |at: u64| match at {
///     0x1000 => Some([0x1020, 0x8123]),
///     0x1020 => Some([0, 0x8456]),
///     _ => None,
/// };
/// let all: Vec<_> = arch::FramePointers::new(0x1000, 0x8000..0x9000, read).collect();
/// assert_eq!(all, [0x8123]);
/// ```
#[derive(Clone, Debug)]
pub struct FramePointers<R> {
    rbp: u64,
    text: Range<u64>,
    read: R,
}

impl<R: Fn(u64) -> Option<[u64; 2]>> FramePointers<R> {
    /// From the frame at `rbp` on, with return addresses in `text`. `read` is given an aligned address, and reads the two words there,
    /// if a stack is there.
    pub const fn new(rbp: u64, text: Range<u64>, read: R) -> Self {
        Self { rbp, text, read }
    }
}

impl<R: Fn(u64) -> Option<[u64; 2]>> Iterator for FramePointers<R> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let [caller, address] = if self.rbp.is_multiple_of(8) { (self.read)(self.rbp)? } else { return None };
        if caller <= self.rbp || !self.text.contains(&address) {
            return None;
        }
        self.rbp = caller;
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const TEXT: Range<u64> = 0x8000..0x9000;

    fn walk(rbp: u64, stack: &[(u64, [u64; 2])]) -> Vec<u64> {
        let read = |at| stack.iter().find(|(address, _)| *address == at).map(|(_, words)| *words);
        FramePointers::new(rbp, TEXT, read).take(100).collect()
    }

    #[test]
    fn the_chain_ends_where_it_makes_no_sense() {
        let good = (0x1000, [0x1020, 0x8001]);
        assert_eq!(walk(0x1000, &[good, (0x1020, [0x1040, 0x8fff])]), [0x8001, 0x8fff], "it leaves the stack");
        assert_eq!(walk(0x1000, &[good, (0x1020, [0x1040, 0x9000])]), [0x8001], "no code is there");
        assert_eq!(walk(0x1000, &[good, (0x1020, [0x1000, 0x8002])]), [0x8001], "it goes down");
        assert_eq!(walk(0x1000, &[(0x1000, [0x1000, 0x8001])]), [], "it stays where it is");
        assert_eq!(walk(0x1004, &[(0x1004, [0x1020, 0x8001])]), [], "no frame is there");
    }
}
