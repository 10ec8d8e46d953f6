//! How entries are spelled: one file for each format.

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
use crate::sync::AtomicU64;
use addr::{PageSize, Pfn};

/// A format of page tables.
///
/// The tree writes table entries in one way only ([`table`](Self::table): all rights, so that those of a page are its leaf's
/// alone), and leaves only as [`leaf`](Self::leaf) spells them. Anything else that is present is bad, as for Linux's
/// `pmd_bad`.
pub trait Format: 'static {
    /// What the tree translates.
    type Input: Address;
    /// One table: `1 << INDEX_BITS` entries.
    type Table: AsRef<[AtomicU64]>;

    /// log2 of a table's entries.
    const INDEX_BITS: u32;
    /// log2 of the root's entries, where it has fewer.
    const ROOT_BITS: u32 = Self::INDEX_BITS;
    /// The level of the root's entries.
    const TOP: Level;
    /// The root table lies below this address.
    const ROOT_END: u64 = u64::MAX;
    /// The largest page that an entry can be.
    const LARGEST: PageSize = PageSize::Size1G;
    /// The bits of which the processor takes any one for "present".
    const PRESENT: u64;
    /// Set by the processor at a page's use.
    const ACCESSED: u64;
    /// Set by the processor at a page's first write.
    const DIRTY: u64;
    /// A frozen entry, apart from the accessed and dirty bits that it keeps. Not present, and with no address in it, so
    /// that no processor is tempted to look at one (L1TF).
    const FROZEN: u64;

    /// An entry of `level` for the table in frame `table`.
    fn table(table: Pfn, level: Level) -> Pte;
    /// Whether this is what [`table`](Self::table) makes of a frame within `address`, accessed or not.
    fn is_table(pte: Pte, level: Level, address: u64) -> bool;
    /// An entry of `level` for a page.
    fn leaf(leaf: &Leaf, level: Level) -> Pte;
    /// What [`leaf`](Self::leaf) made this of. None: nothing that is valid, or a frame not aligned or not within `address`.
    fn as_leaf(pte: Pte, level: Level, address: u64) -> Option<Leaf>;
}

/// What follows from a format's constants.
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

    /// The frozen entry that keeps what the processor ad in `pte`.
    fn frozen(pte: Pte) -> Pte {
        Pte::new(Self::FROZEN | pte.raw() & Self::AD)
    }

    /// `pte` with the accessed and dirty bits of `other` besides its own.
    fn with_ad(pte: Pte, other: Pte) -> Pte {
        Pte::new(pte.raw() | other.raw() & Self::AD)
    }

    /// Whether both are the same but for what the processor may have ad meanwhile.
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

/// `bit` if `condition`.
const fn bit(condition: bool, bit: u64) -> u64 {
    if condition { bit } else { 0 }
}
