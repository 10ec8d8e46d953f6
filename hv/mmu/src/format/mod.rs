//! The encodings of entries: one file for each format.

mod ept;
mod long_mode;
mod pae;
#[cfg(any(test, loom, shuttle, fuzzing, feature = "pool"))]
mod toy;

pub use ept::Ept;
pub use long_mode::{LongMode, Npt};
pub use pae::Pae;
#[cfg(any(test, loom, shuttle, fuzzing, feature = "pool"))]
pub use toy::Toy;

use crate::entry::{Caps, Entry, Leaf, Pte};
use crate::level::{Address, Level};
use addr::{PageSize, Pfn};
use model::sync::AtomicU64;

/// A format of page tables.
///
/// The tree writes table entries only as [`table`](Self::table) encodes them (with all rights, so that only the leaf
/// restricts the rights of a page), and leaves only as [`leaf`](Self::leaf) does. Any other present entry is bad, as
/// with Linux's `pmd_bad`.
pub trait Format: 'static {
    /// The addresses that the tree translates.
    type Input: Address;
    /// One table: `1 << INDEX_BITS` entries.
    type Table: AsRef<[AtomicU64]>;

    /// log2 of the number of a table's entries.
    const INDEX_BITS: u32;
    /// log2 of the number of the root's entries, if it has fewer.
    const ROOT_BITS: u32 = Self::INDEX_BITS;
    /// The level of the root's entries.
    const TOP: Level;
    /// The root table lies below this address.
    const ROOT_END: u64 = u64::MAX;
    /// The largest page that an entry can be.
    const LARGEST: PageSize = PageSize::Size1G;
    /// The present bits: an entry is present if any of them is set.
    const PRESENT: u64;
    /// The accessed bit, which the processor sets when it uses the page.
    const ACCESSED: u64;
    /// The dirty bit, which the processor sets when it writes the page.
    const DIRTY: u64;
    /// A frozen entry without the accessed and dirty bits that it keeps. It is not present and has no address, because
    /// a processor may speculatively use the address of a non-present entry (L1TF).
    const FROZEN: u64;

    /// An entry of `level` for the table in frame `table`.
    fn table(table: Pfn, level: Level) -> Pte;
    /// Whether [`table`](Self::table) gives this entry for a frame within the mask `address`. The accessed bit is
    /// ignored.
    fn is_table(pte: Pte, level: Level, address: u64) -> bool;
    /// An entry of `level` for a page.
    fn leaf(leaf: &Leaf, level: Level) -> Pte;
    /// The page that [`leaf`](Self::leaf) encodes as this entry. None if the entry is not valid, or its frame is not
    /// aligned or not within the mask `address`.
    fn as_leaf(pte: Pte, level: Level, address: u64) -> Option<Leaf>;
}

/// Functions that follow from a format's constants.
pub(crate) trait FormatExt: Format {
    /// log2 of the bytes that all of a tree translates.
    const INPUT_BITS: u32 = shift::<Self>(Self::TOP) + Self::ROOT_BITS;
    const AD: u64 = Self::ACCESSED | Self::DIRTY;

    #[inline]
    fn decode(pte: Pte, level: Level, caps: Caps) -> Entry {
        if pte.is_none() {
            Entry::None
        } else if Self::is_table(pte, level, caps.address_mask()) {
            Entry::Table(table_frame(pte, caps.address_mask()))
        } else if pte.raw() & Self::PRESENT == 0 {
            if Self::is_frozen(pte) { Entry::Frozen } else { Entry::Bad }
        } else if level > Level::of(caps.largest()) {
            Entry::Bad
        } else {
            Self::as_leaf(pte, level, caps.address_mask()).map_or(Entry::Bad, Entry::Leaf)
        }
    }

    fn is_frozen(pte: Pte) -> bool {
        pte.raw() & !Self::AD == Self::FROZEN
    }

    /// The frozen entry with the accessed and dirty bits of `pte`.
    fn frozen(pte: Pte) -> Pte {
        Pte::new(Self::FROZEN | pte.raw() & Self::AD)
    }

    /// `pte` with the accessed and dirty bits of `other` added to its own.
    fn with_ad(pte: Pte, other: Pte) -> Pte {
        Pte::new(pte.raw() | other.raw() & Self::AD)
    }

    /// Whether both entries are equal apart from their accessed and dirty bits, which the processor may set at any
    /// time.
    fn same_but_ad(a: Pte, b: Pte) -> bool {
        (a.raw() ^ b.raw()) & !Self::AD == 0
    }

    /// The entry of `offset` in a table of `level`.
    #[inline]
    fn index(offset: u64, level: Level) -> usize {
        (offset >> shift::<Self>(level)) as usize & (Self::entries(level) - 1)
    }

    #[inline]
    fn entries(level: Level) -> usize {
        1 << if level == Self::TOP { Self::ROOT_BITS } else { Self::INDEX_BITS }
    }
}

impl<F: Format> FormatExt for F {}

/// log2 of the bytes that an entry of `level` translates.
#[inline]
pub(crate) const fn shift<F: Format + ?Sized>(level: Level) -> u32 {
    addr::PAGE_SHIFT + F::INDEX_BITS * level.number() as u32
}

/// The bytes that an entry of `level` translates.
#[inline]
pub(crate) const fn span<F: Format + ?Sized>(level: Level) -> u64 {
    1 << shift::<F>(level)
}

/// The frame that a table entry refers to.
#[inline]
pub(crate) const fn table_frame(pte: Pte, address: u64) -> Pfn {
    Pfn::new((pte.raw() & address) >> addr::PAGE_SHIFT)
}

/// The bits of a leaf's address that must be zero at `level`, below bit 52.
const fn misaligned<F: Format>(level: Level) -> u64 {
    (span::<F>(level) - 1) & !(addr::PAGE_SIZE - 1)
}

/// `bit` if `condition`, else 0.
const fn bit(condition: bool, bit: u64) -> u64 {
    if condition { bit } else { 0 }
}
