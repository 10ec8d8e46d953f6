//! Statistics of a tree's pages and tables: the `smaps` of a guest.

use crate::entry::{Entry, Rights};
use crate::env::Env;
use crate::format::{FormatExt, span};
use crate::level::Level;
use crate::map::Table;
use crate::tree::Tree;
use addr::PageSize;
use core::fmt;
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
        let mut report = Report::default();
        if let Some(root) = self.root_table(guard) {
            count(root, 0, &mut report);
        }
        report
    }
}

fn count<E: Env>(table: Table<'_, E>, start: u64, report: &mut Report) {
    report.tables += 1;
    for index in 0..E::Format::entries(table.level) {
        let at = start + (index as u64) * span::<E::Format>(table.level);
        let pte = table.at(index);
        if let Some(below) = table.below(pte, at) {
            count(below, at, report);
        } else if let Entry::Leaf(leaf) = E::Format::decode(pte, table.level, table.tree.caps) {
            if let Some(counts) = report.pages.get_mut(usize::from(table.level.number())) {
                counts[rights_index(leaf.rights)] += 1;
            }
            report.accessed += u64::from(leaf.accessed);
            report.dirty += u64::from(leaf.dirty);
        }
    }
}

const _: () = assert!(Level::PUD.number() as usize == SIZES.len() - 1);
