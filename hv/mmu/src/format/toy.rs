//! A format for models: tables of two long-mode entries, in as many levels as the model needs.

use super::{Format, Npt, misaligned};
use crate::entry::{Leaf, Pte};
use crate::format::long_mode;
use crate::level::Level;
use addr::{Gpa, Pfn};
use model::sync::AtomicU64;

/// Tables of two entries, in `LEVELS` levels, 2 to 4.
pub struct Toy<const LEVELS: u8>;

impl<const LEVELS: u8> Format for Toy<LEVELS> {
    type Input = Gpa;
    type Table = [AtomicU64; 2];

    const INDEX_BITS: u32 = 1;
    const TOP: Level = Level::from_number(LEVELS - 1);
    const PRESENT: u64 = Npt::PRESENT;
    const ACCESSED: u64 = Npt::ACCESSED;
    const DIRTY: u64 = Npt::DIRTY;
    const FROZEN: u64 = Npt::FROZEN;

    fn table(table: Pfn, level: Level) -> Pte {
        Npt::table(table, level)
    }
    fn is_table(pte: Pte, level: Level, address: u64) -> bool {
        Npt::is_table(pte, level, address)
    }
    fn leaf(leaf: &Leaf, level: Level) -> Pte {
        long_mode::encode(leaf, level)
    }
    fn as_leaf(pte: Pte, level: Level, address: u64) -> Option<Leaf> {
        long_mode::decode(pte, level, address, misaligned::<Self>(level))
    }
}
