//! Which pages are in use: their accessed bits, read and cleared.

use crate::entry::{Entry, Pte};
use crate::env::Env;
use crate::format::{Format, FormatExt};
use crate::map::{Input, Table};
use crate::range::{RangeError, next_entry};
use crate::tree::Tree;
use core::ops::Range;
use rcu::Guard;

impl<E: Env> Tree<E> {
    /// Clears the accessed bits of all pages in the range, including pages that cross an edge, and returns the number of those that
    /// had one. None has if the processor has no such bits.
    ///
    /// It takes no lock, as KVM since 6.15 (`kvm_tdp_mmu_age_gfn_range`), and delays no fault. It does not flush either, as Linux on
    /// x86 (`ptep_clear_flush_young`): a processor with a cached translation sets the bit again at its next walk only, so that a page
    /// in use may count as unused until then.
    ///
    /// # Errors
    /// [`RangeError::Invalid`].
    pub fn age(&self, guard: Guard<'_>, range: Range<Input<E>>) -> Result<u64, RangeError> {
        let range = Self::offsets(range)?;
        match self.root_table(guard) {
            Some(root) if self.caps.accessed_dirty() => Ok(age_below(root, range)),
            _ => Ok(0),
        }
    }
}

fn age_below<E: Env>(table: Table<'_, E>, range: Range<u64>) -> u64 {
    let mut accessed = 0;
    let mut at = range.start;
    while at < range.end {
        let next = next_entry::<E>(at, table.level);
        match table.below(table.get(at), at) {
            Some(below) => accessed += age_below(below, at..next.min(range.end)),
            None => accessed += u64::from(age_page(table, at)),
        }
        at = next;
    }
    accessed
}

/// Whether there is an accessed page. It is exchanged as a whole: another CPU may have set an entry for a table instead, whose
/// accessed bit has to stay.
fn age_page<E: Env>(table: Table<'_, E>, offset: u64) -> bool {
    let index = E::Format::index(offset, table.level);
    let mut pte = table.at(index);
    while let Entry::Leaf(leaf) = table.decode(pte)
        && leaf.accessed
    {
        match table.cmpxchg(index, pte, Pte::new(pte.raw() & !E::Format::ACCESSED)) {
            Ok(()) => return true,
            Err(now) => pte = now,
        }
    }
    false
}
