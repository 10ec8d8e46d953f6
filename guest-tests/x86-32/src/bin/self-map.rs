//! Page tables that map themselves: by an entry that leads back to its own table, by one table that is used at two levels, and by
//! a page through which a table is written that translates that very page.
#![no_std]
#![no_main]

use core::sync::atomic::Ordering::Relaxed;

use guest32::boot::Boot;
use guest32::exit::GuestStatus;
use guest32::interrupts::{GENERAL_PROTECTION, PAGE_FAULT, expect_fault};
use guest32::ktap::{self, Outcome};
use guest32::memory::{self, Page, Pages};
use guest32::paging::{self, Entry, Mode, PRESENT, Space, TABLE, WRITABLE};
use guest32::{cases, check, check_eq, processor};

guest32::main!(main);

const AT: u32 = 1 << 30;

fn main(_: &Boot) -> GuestStatus {
    ktap::run(
        &(),
        cases![
            two_level_recursive,
            two_level_table_at_two_levels,
            two_level_table_writes_itself,
            two_level_large_page_over_tables,
            two_level_data_becomes_a_table,
            pae_recursive,
            pae_table_at_two_levels,
            pae_table_writes_itself,
            pae_large_page_over_tables,
            pae_data_becomes_a_table,
            pae_entries_by_x87,
            pae_pdptes_are_held,
            pae_pdptes_are_checked,
            modes_share_tables,
        ],
    )
}

/// A space, and two pages of data with numbers in them.
struct Setup {
    mode: Mode,
    pages: Pages,
    space: Space,
    data: [Page; 2],
}

fn with(mode: Mode, test: impl FnOnce(&mut Setup) -> Outcome) -> Outcome {
    let mut pages = Pages::from(memory::START);
    let space = Space::new(mode, &mut pages);
    let data = [1, 2].map(|number| {
        let page = pages.take();
        page.dword(0).store(number, Relaxed);
        page
    });
    let outcome = test(&mut Setup { mode, pages, space, data });
    paging::leave();
    outcome
}

impl Setup {
    fn entry_bytes(&self) -> u32 {
        match self.mode {
            Mode::TwoLevel => 4,
            Mode::Pae => 8,
        }
    }

    /// The entry for data page `number`.
    fn leaf(&self, number: usize) -> u32 {
        self.data[number].address() | (PRESENT | WRITABLE) as u32
    }

    /// The page directory of `AT`'s gigabyte.
    fn directory(&self) -> Page {
        Page::new(self.space.pde(AT).address() & !0xfff)
    }
}

fn is_missing(linear: u32) -> bool {
    expect_fault(|| memory::load(linear))
        .is_some_and(|fault| (fault.frame.vector, fault.frame.error, fault.cr2) == (PAGE_FAULT, 0, linear))
}

/// An entry of the directory leads to the directory: all tables of its part appear in one region, and are written there.
fn recursive(setup: &mut Setup) -> Outcome {
    let large = setup.mode.large_page();
    // The window is the directory's second entry from AT on; pages from the fourth on are made through it.
    let (window, made) = (AT + large, AT + 3 * large);
    let directory = setup.directory();
    setup.space.pde(window).set(u64::from(directory.address()) | TABLE);
    let first = setup.pages.take();
    setup.space.enter();
    let index = |linear: u32| (linear % (1 << 30)) / large;
    let index = |linear| if setup.mode == Mode::TwoLevel { linear / large } else { index(linear) };
    // The directory itself, and the table of `made`, as the window shows them.
    let pde = window + index(window) * 4096 + index(made) * setup.entry_bytes();
    let table = window + index(made) * 4096;
    check!(is_missing(made));
    memory::store(pde, first.address() | TABLE as u32);
    memory::store(table, setup.leaf(0));
    check_eq!(memory::peek(made), 1);
    memory::store(table, setup.leaf(1));
    processor::invlpg(made);
    check_eq!(memory::peek(made), 2);
    memory::store(table, 0);
    processor::invlpg(made);
    check!(is_missing(made));
    memory::store(table, setup.leaf(0));
    check_eq!(memory::peek(made), 1);
    memory::store(pde, 0);
    processor::invlpg(made);
    processor::invlpg(table);
    check!(is_missing(made));
    Ok(())
}

/// One page is a directory's table at one address and the page of data at another.
fn table_at_two_levels(setup: &mut Setup) -> Outcome {
    let large = setup.mode.large_page();
    let (by_table, as_data) = (AT, AT + large);
    let table = setup.pages.take();
    setup.space.pde(by_table).set(u64::from(table.address()) | TABLE);
    setup.space.pte(as_data, &mut setup.pages).set(u64::from(table.address()) | PRESENT | WRITABLE);
    setup.space.enter();
    for round in 0..20 {
        let number = round % 2;
        memory::store(as_data, setup.leaf(number));
        processor::invlpg(by_table);
        check_eq!(memory::peek(by_table), number as u32 + 1, "in round {round}");
        // Accessed, which is seen where it is data.
        check_eq!(memory::peek(as_data) & 0x20, 0x20);
    }
    Ok(())
}

/// A table maps itself writable; entries are written, and the entry that maps it is taken away, through it.
fn table_writes_itself(setup: &mut Setup) -> Outcome {
    let table = setup.pages.take();
    setup.space.pde(AT).set(u64::from(table.address()) | TABLE);
    Entry::of(table, 0, setup.mode).set(u64::from(table.address()) | PRESENT | WRITABLE);
    setup.space.enter();
    for round in 0..20 {
        let number = round % 2;
        memory::store(AT + 5 * setup.entry_bytes(), setup.leaf(number));
        processor::invlpg(AT + 5 * 4096);
        check_eq!(memory::peek(AT + 5 * 4096), number as u32 + 1, "in round {round}");
    }
    // The first entry is dirty and accessed, and says so at its own address.
    check_eq!(memory::peek(AT), table.address() | (PRESENT | WRITABLE) as u32 | 0x60);
    memory::store(AT, 0);
    processor::invlpg(AT);
    check!(is_missing(AT));
    check_eq!(memory::peek(AT + 5 * 4096), 2);
    Ok(())
}

/// The one-to-one map has the tables in its large pages, too.
fn large_page_over_tables(setup: &mut Setup) -> Outcome {
    let entry = setup.space.pte(AT, &mut setup.pages);
    setup.space.enter();
    for round in 0..20 {
        let number = round % 2;
        memory::store(entry.address(), setup.leaf(number));
        processor::invlpg(AT);
        check_eq!(memory::peek(AT), number as u32 + 1, "in round {round}");
        memory::store(entry.address(), 0);
        processor::invlpg(AT);
        check!(is_missing(AT), "in round {round}");
    }
    Ok(())
}

/// A page far from all tables is written in its large page, and is a table from then on.
fn data_becomes_a_table(setup: &mut Setup) -> Outcome {
    let table = Page::new(memory::END - setup.mode.large_page() / 2 - 4096);
    table.clear();
    setup.space.enter();
    memory::store(table.address(), setup.leaf(0));
    setup.space.pde(AT).set(u64::from(table.address()) | TABLE);
    for round in 0..20 {
        let number = round % 2;
        memory::store(table.address(), setup.leaf(number));
        processor::invlpg(AT);
        check_eq!(memory::peek(AT), number as u32 + 1, "in round {round}");
    }
    Ok(())
}

fn two_level_recursive(_: &()) -> Outcome {
    with(Mode::TwoLevel, recursive)
}

fn two_level_table_at_two_levels(_: &()) -> Outcome {
    with(Mode::TwoLevel, table_at_two_levels)
}

fn two_level_table_writes_itself(_: &()) -> Outcome {
    with(Mode::TwoLevel, table_writes_itself)
}

fn two_level_large_page_over_tables(_: &()) -> Outcome {
    with(Mode::TwoLevel, large_page_over_tables)
}

fn two_level_data_becomes_a_table(_: &()) -> Outcome {
    with(Mode::TwoLevel, data_becomes_a_table)
}

fn pae_recursive(_: &()) -> Outcome {
    with(Mode::Pae, recursive)
}

fn pae_table_at_two_levels(_: &()) -> Outcome {
    with(Mode::Pae, table_at_two_levels)
}

fn pae_table_writes_itself(_: &()) -> Outcome {
    with(Mode::Pae, table_writes_itself)
}

fn pae_large_page_over_tables(_: &()) -> Outcome {
    with(Mode::Pae, large_page_over_tables)
}

fn pae_data_becomes_a_table(_: &()) -> Outcome {
    with(Mode::Pae, data_becomes_a_table)
}

/// A table is written by an instruction that few hypervisors emulate.
fn pae_entries_by_x87(_: &()) -> Outcome {
    with(Mode::Pae, |setup| {
        let entry = setup.space.pte(AT, &mut setup.pages);
        setup.space.enter();
        for round in 0..20 {
            let number = round % 2;
            entry.set_by_x87(setup.leaf(number).into());
            processor::invlpg(AT);
            check_eq!(memory::peek(AT), number as u32 + 1, "in round {round}");
        }
        Ok(())
    })
}

/// CR3 is loaded with what it holds: from then on other PDPTEs are used.
fn pae_pdptes_are_held(_: &()) -> Outcome {
    with(Mode::Pae, |setup| {
        setup.space.pte(AT, &mut setup.pages).set(setup.leaf(0).into());
        let root = setup.space.root();
        let with_data = root.qword(1).load(Relaxed);
        let empty = u64::from(setup.pages.take().address()) | PRESENT;
        setup.space.enter();
        for round in 0..4 {
            root.qword(1).store(empty, Relaxed);
            setup.space.load();
            check!(is_missing(AT), "in round {round}");
            root.qword(1).store(with_data, Relaxed);
            setup.space.load();
            check_eq!(memory::peek(AT), 1, "in round {round}");
        }
        Ok(())
    })
}

/// A reserved bit in a PDPTE: #GP by the processors that hold PDPTEs, when CR3 is loaded, and CR3 is as before; #PF by those that
/// read them at each walk, and nothing at all in QEMU's TCG.
fn pae_pdptes_are_checked(_: &()) -> Outcome {
    const RESERVED: u64 = 1 << 1;
    with(Mode::Pae, |setup| {
        setup.space.pte(AT, &mut setup.pages).set(setup.leaf(0).into());
        let other = Space::new(Mode::Pae, &mut setup.pages);
        other.pte(AT, &mut setup.pages).set(setup.leaf(1).into());
        let pdpte = other.root().qword(1);
        pdpte.store(pdpte.load(Relaxed) | RESERVED, Relaxed);
        setup.space.enter();
        match expect_fault(|| other.load()) {
            Some(fault) => {
                check_eq!((fault.frame.vector, fault.frame.error), (GENERAL_PROTECTION, 0));
                check_eq!((processor::cr3(), memory::peek(AT)), (setup.space.cr3(), 1));
            }
            None => {
                check_eq!(processor::cr3(), other.cr3());
                if let Some(fault) = expect_fault(|| memory::load(AT)) {
                    check_eq!((fault.frame.vector, fault.cr2), (PAGE_FAULT, AT));
                } else {
                    check_eq!(memory::peek(AT), 2);
                }
            }
        }
        Ok(())
    })
}

/// The same pages are tables of two levels and of PAE by turns.
fn modes_share_tables(_: &()) -> Outcome {
    let mut pages = Pages::from(memory::START);
    let spaces = [Mode::TwoLevel, Mode::Pae].map(|mode| Space::new(mode, &mut pages));
    let (table, data) = (pages.take(), pages.take());
    data.dword(0).store(7, Relaxed);
    for space in spaces {
        space.pde(AT).set(u64::from(table.address()) | TABLE);
    }
    // The first entry of either format is the same: the upper half of PAE's is zero.
    table.qword(0).store(u64::from(data.address()) | PRESENT | WRITABLE, Relaxed);
    for round in 0..6 {
        spaces[round % 2].enter();
        memory::store(AT, round as u32);
        let seen = memory::peek(AT);
        paging::leave();
        check_eq!((seen, data.dword(0).load(Relaxed)), (round as u32, round as u32));
    }
    Ok(())
}
