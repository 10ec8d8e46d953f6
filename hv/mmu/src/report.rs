//! Statistics of a tree's pages and tables: the `smaps` of a guest.

use crate::entry::{Entry, Leaf, Rights};
use crate::env::Env;
use crate::format::{FormatExt, span};
use crate::level::Level;
use crate::map::{Input, Table};
use crate::range::{RangeError, next_entry};
use crate::tree::Tree;
use addr::PageSize;
use core::fmt;
use core::ops::Range;
use rcu::Guard;

const SIZES: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];

/// Counts of a tree's pages and tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Report {
    /// The number of pages by size, and by rights as three bits.
    pages: [[u64; 8]; SIZES.len()],
    /// The number of tables, including the root.
    pub tables: u64,
    /// The number of pages with the accessed bit.
    pub accessed: u64,
    /// The number of pages with the dirty bit.
    pub dirty: u64,
}

fn rights_index(rights: Rights) -> usize {
    usize::from(rights.write) | usize::from(rights.execute) << 1 | usize::from(rights.user) << 2
}

fn rights_of(index: usize) -> Rights {
    Rights { write: index & 1 != 0, execute: index & 2 != 0, user: index & 4 != 0 }
}

impl Report {
    /// The number of pages of `size`.
    pub fn pages(&self, size: PageSize) -> u64 {
        SIZES.iter().zip(&self.pages).filter(|&(&of, _)| of == size).flat_map(|(_, counts)| counts).sum()
    }

    /// Counts one page more, which an entry of `level` maps.
    pub(crate) fn count(&mut self, level: Level, leaf: &Leaf) {
        if let Some(counts) = self.pages.get_mut(usize::from(level.number())) {
            counts[rights_index(leaf.rights)] += 1;
        }
        self.accessed += u64::from(leaf.accessed);
        self.dirty += u64::from(leaf.dirty);
    }

    /// The number of bytes mapped.
    pub fn bytes(&self) -> u64 {
        SIZES.iter().map(|&size| self.pages(size) * size.bytes()).sum()
    }

    /// The sizes and rights that occur, with the number of pages of each.
    pub fn iter(&self) -> impl Iterator<Item = (PageSize, Rights, u64)> + '_ {
        SIZES.iter().zip(&self.pages).flat_map(|(&size, counts)| {
            let present = counts.iter().enumerate().filter(|&(_, &count)| count != 0);
            present.map(move |(index, &count)| (size, rights_of(index), count))
        })
    }
}

/// One line: `4K rwxu: 12, 2M rwxu: 31, tables: 4`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (size, rights, count) in self.iter() {
            let size = match size {
                PageSize::Size4K => "4K",
                PageSize::Size2M => "2M",
                _ => "1G",
            };
            let right = |granted: bool, letter: char| if granted { letter } else { '-' };
            let (w, x, u) = (right(rights.write, 'w'), right(rights.execute, 'x'), right(rights.user, 'u'));
            write!(f, "{size} r{w}{x}{u}: {count}, ")?;
        }
        write!(f, "tables: {}", self.tables)
    }
}

impl<E: Env> Tree<E> {
    /// Counts pages and tables. It takes no lock, so it delays no fault; an entry that changes meanwhile is counted by
    /// its old or its new value.
    pub fn report(&self, guard: Guard<'_>) -> Report {
        self.report_offsets(guard, 0..1 << E::Format::INPUT_BITS)
    }

    /// The same of the pages that begin in the range, and the tables with entries for it: for a caller that counts in steps.
    ///
    /// # Errors
    /// [`RangeError::Invalid`].
    pub fn report_range(&self, guard: Guard<'_>, range: Range<Input<E>>) -> Result<Report, RangeError> {
        Ok(self.report_offsets(guard, Self::offsets(range)?))
    }

    fn report_offsets(&self, guard: Guard<'_>, range: Range<u64>) -> Report {
        let mut report = Report::default();
        if let Some(root) = self.root_table(guard) {
            count(root, range, &mut report);
        }
        report
    }
}

fn count<E: Env>(table: Table<'_, E>, range: Range<u64>, report: &mut Report) {
    report.tables += 1;
    let mut at = range.start;
    while at < range.end {
        let next = next_entry::<E>(at, table.level);
        let begins = at & (span::<E::Format>(table.level) - 1) == 0;
        let pte = table.get(at);
        if let Some(below) = table.below(pte, at) {
            count(below, at..next.min(range.end), report);
        } else if begins && let Entry::Leaf(leaf) = E::Format::decode(pte, table.level, table.tree.caps) {
            report.count(table.level, &leaf);
        }
        at = next;
    }
}

const _: () = assert!(Level::PUD.number() as usize == SIZES.len() - 1);
