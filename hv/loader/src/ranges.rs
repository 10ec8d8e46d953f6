//! Arithmetic on sets of half-open address ranges.

use alloc::vec::Vec;
use core::ops::Range;

pub(crate) fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The range of `bytes` from `start` on, or None if it passes the end of the address space.
pub(crate) fn span(start: u64, bytes: u64) -> Option<Range<u64>> {
    Some(start..start.checked_add(bytes)?)
}

/// The ranges in ascending order, with adjacent and overlapping ones merged and without empty ones.
pub(crate) fn merge(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// The parts of `ranges` that are in none of `holes`. Both must be as [`merge`] returns them, and the result is too.
pub(crate) fn subtract(ranges: &[Range<u64>], holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    for range in ranges {
        let mut start = range.start;
        for hole in holes.iter().filter(|hole| overlap(hole, range)) {
            if start < hole.start {
                left.push(start..hole.start);
            }
            start = hole.end;
        }
        if start < range.end {
            left.push(start..range.end);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn touching_ranges_become_one() {
        assert_eq!(merge(vec![4..6, 0..2, 2..4, 9..9, 8..9]), [0..6, 8..9]);
    }

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        prop::collection::vec((0u64..64, 0u64..16).prop_map(|(start, bytes)| start..start + bytes), 0..12)
    }

    proptest! {
        #[test]
        fn an_address_is_left_iff_it_is_in_a_range_and_in_no_hole(ranges in ranges(), holes in ranges()) {
            let left = subtract(&merge(ranges.clone()), &merge(holes.clone()));
            for at in 0..96 {
                let inside = |set: &[Range<u64>]| set.iter().any(|range| range.contains(&at));
                prop_assert_eq!(inside(&left), inside(&ranges) && !inside(&holes));
            }
            prop_assert!(left.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
