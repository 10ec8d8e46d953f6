//! Levels of a tree, and the addresses that select entries.

use addr::{Gpa, Gva, PageSize};
use core::fmt;

/// The level of an entry, counted from the `pte`, which is 0.
///
/// The names are Linux's, but in Linux a tree of four levels has a `pgd` and no `p4d`. Here its root is
/// [`P4D`](Self::P4D), because levels are counted from below.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// The entries map 4 KiB pages.
    pub const PTE: Self = Self(0);
    /// The entries refer to tables of `pte`s, or map 2 MiB pages.
    pub const PMD: Self = Self(1);
    /// The entries refer to tables of `pmd`s, or map 1 GiB pages.
    pub const PUD: Self = Self(2);
    /// The root of four levels.
    pub const P4D: Self = Self(3);
    /// The root of five levels.
    pub const PGD: Self = Self(4);

    /// The number of levels below this one.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The level of the table that an entry of this level refers to. None for the `pte`.
    pub const fn below(self) -> Option<Self> {
        match self.0 {
            0 => None,
            n => Some(Self(n - 1)),
        }
    }

    pub(crate) const fn above(self) -> Self {
        Self(self.0 + 1)
    }

    /// The size of a leaf of this level. None above the `pud`, where there are no leaves.
    pub const fn page_size(self) -> Option<PageSize> {
        match self.0 {
            0 => Some(PageSize::Size4K),
            1 => Some(PageSize::Size2M),
            2 => Some(PageSize::Size1G),
            _ => None,
        }
    }

    /// The level whose leaves are of `size`. For 4 MiB, which no format here has, it is the next smaller one.
    pub const fn of(size: PageSize) -> Self {
        match size {
            PageSize::Size4K => Self::PTE,
            PageSize::Size2M | PageSize::Size4M => Self::PMD,
            PageSize::Size1G => Self::PUD,
        }
    }

    pub(crate) const fn from_number(number: u8) -> Self {
        Self(number)
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["pte", "pmd", "pud", "p4d", "pgd"].get(usize::from(self.0)).unwrap_or(&"?"))
    }
}

/// An address that a tree translates.
pub trait Address: Copy + PartialEq + fmt::Debug {
    /// The offset into a space of 2^`bits` bytes, or None if the address is outside of it.
    fn to_offset(self, bits: u32) -> Option<u64>;
    /// The address at that offset.
    fn from_offset(offset: u64, bits: u32) -> Self;
    /// The address after the whole space, as a range's end. None if there is no such address.
    fn end(bits: u32) -> Option<Self>;
}

impl Address for Gpa {
    fn to_offset(self, bits: u32) -> Option<u64> {
        (self.raw() >> bits == 0).then_some(self.raw())
    }
    fn from_offset(offset: u64, _bits: u32) -> Self {
        Self::new(offset)
    }
    fn end(bits: u32) -> Option<Self> {
        Some(Self::new(1 << bits))
    }
}

impl Address for Gva {
    /// Spaces of 48 and 57 bits hold the canonical addresses, a space of 32 bits the addresses below 4 GiB.
    fn to_offset(self, bits: u32) -> Option<u64> {
        let offset = self.raw() & ((1 << bits) - 1);
        (Self::from_offset(offset, bits) == self).then_some(offset)
    }
    fn from_offset(offset: u64, bits: u32) -> Self {
        let unused = if bits > 32 { 64 - bits } else { 0 };
        Self::new(((offset << unused) as i64 >> unused) as u64)
    }
    /// A space of canonical addresses ends with the highest 64-bit address.
    fn end(bits: u32) -> Option<Self> {
        (bits <= 32).then(|| Self::new(1 << bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_addresses_fold_and_unfold() {
        for (address, offset) in
            [(0, 0), (0x7fff_ffff_ffff, 0x7fff_ffff_ffff), (0xffff_8000_0000_0000, 0x8000_0000_0000)]
        {
            assert_eq!(Gva::new(address).to_offset(48), Some(offset));
            assert_eq!(Gva::from_offset(offset, 48), Gva::new(address));
        }
        assert_eq!(Gva::new(0x8000_0000_0000).to_offset(48), None);
        assert_eq!(Gva::new(0xffff_ffff).to_offset(32), Some(0xffff_ffff));
        assert_eq!(Gva::new(0x1_0000_0000).to_offset(32), None);
        assert_eq!(Gpa::new(1 << 48).to_offset(48), None);
    }

    #[test]
    fn levels_and_sizes_correspond() {
        for size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
            assert_eq!(Level::of(size).page_size(), Some(size));
        }
        assert_eq!(Level::PMD.below(), Some(Level::PTE));
        assert_eq!(Level::PTE.below(), None);
    }
}
