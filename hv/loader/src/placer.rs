//! Room in a guest's RAM for what the loader puts there.

use crate::memory_map::MemoryMap;
use crate::ranges::{merge, subtract};
use alloc::vec::Vec;
use core::ops::Range;

/// The usable RAM below 4 GiB that nothing has been put into yet.
pub(crate) struct Placer {
    /// In ascending order, and not adjacent.
    free: Vec<Range<u64>>,
}

impl Placer {
    pub(crate) fn new(map: &MemoryMap) -> Self {
        Self { free: map.usable() }
    }

    /// Whether all of `range` is free.
    pub(crate) fn is_free(&self, range: &Range<u64>) -> bool {
        self.free.iter().any(|free| free.start <= range.start && range.end <= free.end)
    }

    /// Takes exactly `range`. False if it is not all free.
    pub(crate) fn take(&mut self, range: &Range<u64>) -> bool {
        let is_free = self.is_free(range);
        if is_free {
            self.free = subtract(&self.free, &merge([range.clone()].into()));
        }
        is_free
    }

    /// The start of the lowest free range of `bytes` in `within` that starts at a multiple of `align`.
    pub(crate) fn lowest(&self, bytes: u64, within: &Range<u64>, align: u64) -> Option<u64> {
        self.free.iter().find_map(|free| starts(free, within, bytes, align)).map(|(lowest, _)| lowest)
    }

    /// The start of the highest such range.
    pub(crate) fn highest(&self, bytes: u64, within: &Range<u64>, align: u64) -> Option<u64> {
        self.free.iter().rev().find_map(|free| starts(free, within, bytes, align)).map(|(_, highest)| highest)
    }

    /// Takes the range at [`lowest`](Self::lowest), and gives its start.
    pub(crate) fn place_lowest(&mut self, bytes: u64, within: &Range<u64>, align: u64) -> Option<u64> {
        self.lowest(bytes, within, align).filter(|&start| self.take(&(start..start + bytes)))
    }

    /// Takes the range at [`highest`](Self::highest), and gives its start.
    pub(crate) fn place_highest(&mut self, bytes: u64, within: &Range<u64>, align: u64) -> Option<u64> {
        self.highest(bytes, within, align).filter(|&start| self.take(&(start..start + bytes)))
    }
}

/// The lowest and the highest multiple of `align` at which `bytes` are in `free` and in `within`.
fn starts(free: &Range<u64>, within: &Range<u64>, bytes: u64, align: u64) -> Option<(u64, u64)> {
    let lowest = free.start.max(within.start).checked_next_multiple_of(align)?;
    let highest = free.end.min(within.end).checked_sub(bytes)?;
    let highest = highest - highest % align;
    (lowest <= highest).then_some((lowest, highest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestRam;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn placer() -> Placer {
        Placer::new(&MemoryMap::new(GuestRam::new(8 * MIB).unwrap(), None))
    }

    #[test]
    fn the_lowest_and_the_highest_place_are_aligned_and_within() {
        let mut placer = placer();
        assert_eq!(placer.place_lowest(0x1001, &(0x9001..8 * MIB), 0x1000), Some(0xa000));
        assert_eq!(placer.place_lowest(0x1000, &(0x9000..8 * MIB), 0x1000), Some(0x9000));
        assert_eq!(placer.place_highest(0x1001, &(0..8 * MIB), 0x1000), Some(8 * MIB - 0x2000));
        assert_eq!(placer.place_highest(0x1000, &(0..5 * MIB + 1), MIB), Some(4 * MIB));
        assert_eq!(placer.place_lowest(7 * MIB, &(0..8 * MIB), 1), None);
        assert_eq!(placer.place_lowest(MIB, &(0..8 * MIB), 64 * MIB), None);
    }

    proptest! {
        #[test]
        fn what_is_placed_is_ram_and_placed_once(
            wanted in prop::collection::vec((0u64..2 * MIB, 0u64..9 * MIB, 0u32..22, any::<bool>()), 0..12),
        ) {
            let mut placer = placer();
            let usable = placer.free.clone();
            let mut placed: Vec<Range<u64>> = Vec::new();
            for (bytes, from, shift, lowest) in wanted {
                let (within, align) = (from..9 * MIB, 1 << shift);
                let start = match lowest {
                    true => placer.place_lowest(bytes, &within, align),
                    false => placer.place_highest(bytes, &within, align),
                };
                let Some(start) = start else { continue };
                let range = start..start + bytes;
                prop_assert!(start % align == 0 && start >= from && range.end <= within.end);
                prop_assert!(usable.iter().any(|part| part.start <= range.start && range.end <= part.end));
                prop_assert!(!placed.iter().any(|other| crate::ranges::overlap(other, &range)));
                placed.push(range);
            }
        }
    }
}
