//! Port I/O of all widths, and its string forms.
//!
//! No port of the machines that a guest runs on reads or writes memory by itself, so none of this can harm Rust's
//! objects; the string forms take a [`RawGva`], which no object has.

use core::arch::asm;

use addr::PAGE_SIZE;

use crate::raw_gva::RawGva;

pub use base::port::*;

/// RFLAGS.DF during a string instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// DF = 0.
    Up,
    /// DF = 1.
    Down,
}

/// What a string instruction left in its registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StringEnd {
    /// RCX: iterations left.
    pub count: u64,
    /// RDI of INS, RSI of OUTS: where the next element would be.
    pub next: u64,
}

/// What an instruction with the 32-bit address size prefix must ignore in RCX, RSI and RDI.
const HIGH_HALF: u64 = 0x5a5a << 32;

/// Panics if `bytes` from `at` on, in steps of `width`, may reach a Rust object.
fn assert_reach(at: RawGva, direction: Direction, bytes: u64, width: u64) {
    let offset = at.gva().page_offset();
    let inside = match direction {
        Direction::Up => offset + bytes <= PAGE_SIZE,
        Direction::Down => offset + width <= PAGE_SIZE && bytes <= offset + width,
    };
    assert!(inside || at.is_above_identity(), "{bytes:#x} bytes at {at:?} leave the frame");
}

macro_rules! string_io {
    ($(#[$doc:meta])* $name:ident, $instruction:literal, $pointer:tt, $width:literal, $ignored:expr) => {
        $(#[$doc])*
        /// `count` elements between `port` and memory from `at` on.
        pub fn $name(port: u16, at: RawGva, count: u64, direction: Direction) -> StringEnd {
            assert_reach(at, direction, count * $width, $width);
            assert!($ignored == 0 || !at.is_above_identity(), "{at:?} has more than 32 bits");
            let (mut left, mut next) = (count | $ignored, at.raw() | $ignored);
            match direction {
                // SAFETY: see the module's head; the assertions have seen to the memory.
                Direction::Up => unsafe {
                    asm!($instruction, in("dx") port, inout("rcx") left, inout($pointer) next,
                        options(nostack, preserves_flags))
                },
                // SAFETY: as above; DF is clear again afterwards.
                Direction::Down => unsafe {
                    asm!("std", $instruction, "cld", in("dx") port, inout("rcx") left, inout($pointer) next,
                        options(nostack, preserves_flags))
                },
            }
            StringEnd { count: left, next }
        }
    };
}

string_io!(
    /// REP INSB:
    rep_insb, "rep insb", "rdi", 1, 0
);
string_io!(
    /// REP INSW:
    rep_insw, "rep insw", "rdi", 2, 0
);
string_io!(
    /// REP INSD:
    rep_insd, "rep insd", "rdi", 4, 0
);
string_io!(
    /// REP INSB with the 32-bit address size prefix, and the high halves of RCX and RDI set:
    addr32_rep_insb, ".byte 0x67, 0xf3, 0x6c", "rdi", 1, HIGH_HALF
);
string_io!(
    /// REP OUTSB:
    rep_outsb, "rep outsb", "rsi", 1, 0
);
string_io!(
    /// REP OUTSW:
    rep_outsw, "rep outsw", "rsi", 2, 0
);
string_io!(
    /// REP OUTSD:
    rep_outsd, "rep outsd", "rsi", 4, 0
);
string_io!(
    /// REP OUTSB with the 32-bit address size prefix, and the high halves of RCX and RSI set:
    addr32_rep_outsb, ".byte 0x67, 0xf3, 0x6e", "rsi", 1, HIGH_HALF
);
