//! Guests with more memory than the other tests' have: what a shadow knows of it, and what makes way.

use super::guest::{Format, Tables, ThisCpu, walk};
use super::vtlb::{CAPS, TWO_LEVELS, WRITE};
use crate::{Backing, BackingPage, Capacity, Counter, FaultOutcome, Memory, NoMemory, Registers, Shadow, View};
use addr::{Gpa, Gva, PageSize, Pfn};
use mmu::pool::{self, Pool};
use walk::{Controls, Features, PhysMem};

const ROOTS: usize = 6;
const FEATURES: Features = Features { maxphyaddr: 40, pages_1g: false, pse36: true, pml4e_bit8_reserved: false };
/// The host's frames, for the tables of the shadow.
const FRAMES: u64 = 256;
/// The pages that one of the guest's tables maps.
const TABLE: u64 = 1024;
/// The pages that one shadow table maps.
const SHADOW_TABLE: u64 = 512;

/// The guest's memory. Each of its pages 1 to 15 is a directory, with tables of its own, and each directory maps the same data, page by
/// page, accessed and dirty. The frame of each page has the page's number.
struct Ram;

impl Ram {
    const DATA: u64 = 0x4_0000;

    /// The directory in page `n` refers to tables in pages from `n` times this on.
    const TABLES: u64 = 0x1000;

    fn entry(at: u64) -> u64 {
        let (page, index) = (at >> 12, at >> 2 & 1023);
        let frame = match page {
            0..16 => page * Self::TABLES + index,
            _ => Self::DATA + page % Self::TABLES * TABLE + index,
        };
        frame << 12 | 0x67
    }
}

impl PhysMem for Ram {
    fn read_u64(&self, _: Gpa) -> Option<u64> {
        None
    }
    fn read_u32(&self, at: Gpa) -> Option<u32> {
        Some(Self::entry(at.raw()) as u32)
    }
    fn cmpxchg_u64(&self, _: Gpa, _: u64, _: u64) -> Option<bool> {
        None
    }
    fn cmpxchg_u32(&self, _: Gpa, _: u32, _: u32) -> Option<bool> {
        None
    }
    fn read(&self, _: Gpa, _: &mut [u8]) -> Option<()> {
        None
    }
    fn write(&self, _: Gpa, _: &[u8]) -> Option<()> {
        None
    }
}

impl Memory for Ram {
    fn backing(&self, at: Gpa, write: bool) -> Result<Backing, NoMemory> {
        Ok(Backing::Page(BackingPage { pfn: Pfn::new(at.frame().raw()), write, size: PageSize::Size4K }))
    }
}

/// A vCPU that writes pages.
struct Walker<'t> {
    tables: &'t Tables,
    shadow: &'t Shadow<Pool<Format>>,
    view: View,
    registers: Registers,
}

impl Walker<'_> {
    /// The address space of the directory in page `directory`.
    fn load(&mut self, cpu: &ThisCpu<'_>, directory: u64) {
        _ = self.registers.write(&Ram, Controls { cr3: directory << 12, ..TWO_LEVELS }).unwrap();
        self.shadow.load(cpu, &self.view, &self.registers);
    }

    fn is_writable(&self, page: u64) -> bool {
        let root = self.shadow.root(&self.view);
        walk(self.tables, root, Gva::new(page << 12)).is_some_and(|found| found.write)
    }

    /// How many page faults it takes to write these pages.
    fn write(&self, cpu: &mut ThisCpu<'_>, pages: impl Iterator<Item = u64>) -> u64 {
        let before = self.count(Counter::Faults);
        for page in pages {
            while !self.is_writable(page) {
                match self.shadow.fault(cpu, &self.view, &Ram, &self.registers, Gva::new(page << 12), WRITE) {
                    Ok(FaultOutcome::Mapped | FaultOutcome::Retry) => {}
                    Err(NoMemory) if self.shadow.make_way(cpu, &self.view) => {
                        cpu.barrier(|table| self.tables.free(table));
                    }
                    outcome => panic!("{outcome:?} at page {page}"),
                }
            }
        }
        self.count(Counter::Faults) - before
    }

    fn count(&self, counter: Counter) -> u64 {
        self.shadow.counts().get(counter)
    }
}

/// Runs `test` on a vCPU in the address space of directory 1.
fn with_walker(capacity: Capacity, test: impl FnOnce(&mut Walker<'_>, &mut ThisCpu<'_>)) {
    let tables = Tables::new(FRAMES as usize);
    let domain = pool::domain::<Format, 1>(&tables);
    let mut cpu = domain.register(0).unwrap();
    let shadow = Shadow::new((0..ROOTS).map(|_| Pool::new(&tables, &domain)), CAPS, capacity, 1).unwrap();
    let (view, registers) = (shadow.view(&cpu).unwrap(), Registers::new(FEATURES));
    let mut walker = Walker { tables: &tables, shadow: &shadow, view, registers };
    walker.load(&cpu, 1);
    test(&mut walker, &mut cpu);
    shadow.into_trees().into_iter().for_each(|tree| tree.free_pgtables(|_, _, _| {}));
    cpu.barrier(|table| tables.free(table));
    assert_eq!(tables.in_use(), 0);
}

#[test]
fn each_of_a_guests_pages_stays_mapped() {
    const PAGES: u64 = 40_000;
    with_walker(Capacity::of(65_536, ROOTS), |walker, cpu| {
        assert_eq!(walker.write(cpu, 0..PAGES), PAGES);
        assert_eq!(walker.write(cpu, 0..PAGES), 0, "in the second round");
        assert_eq!(walker.count(Counter::Rmap), PAGES);
        assert_eq!(walker.count(Counter::ShadowTables), PAGES.div_ceil(SHADOW_TABLE));
    });
}

#[test]
fn the_oldest_mappings_make_way_for_new_ones() {
    const MAPPINGS: u64 = 4096;
    const MORE: u64 = 200;
    with_walker(Capacity { mappings: MAPPINGS as u32, ..Capacity::of(0, ROOTS) }, |walker, cpu| {
        walker.write(cpu, 0..MAPPINGS);
        assert_eq!(walker.count(Counter::Evicted), 0);
        let flushes = walker.shadow.space(&walker.view).flushes();
        assert_eq!(walker.write(cpu, MAPPINGS..MAPPINGS + MORE), MORE);
        let evicted = walker.count(Counter::Evicted);
        assert!((MORE..MORE + 64).contains(&evicted), "{evicted}");
        assert_eq!(walker.shadow.space(&walker.view).flushes() - flushes, MORE.div_ceil(64), "one flush for many");
        assert!((0..evicted).all(|page| !walker.is_writable(page)));
        assert!((evicted..MAPPINGS + MORE).all(|page| walker.is_writable(page)));
        // A guest that walks round loses them all, one by one, and no more.
        assert_eq!(walker.write(cpu, 0..MAPPINGS + MORE), MAPPINGS + MORE);
    });
}

/// Writes the first page of each of `count` shadow tables.
fn tables(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|n| n * SHADOW_TABLE)
}

#[test]
fn the_address_space_that_was_loaded_longest_ago_makes_way_for_tables() {
    let usual = Capacity::of(0, ROOTS);
    for (capacity, most) in [(Capacity { tables: 50, ..usual }, 50), (Capacity { uses: 32, ..usual }, 64)] {
        with_walker(capacity, |walker, cpu| {
            for directory in [1, 2, 3] {
                walker.load(cpu, directory);
                assert_eq!(walker.write(cpu, tables(22)), 22 + u64::from(directory == 3));
            }
            assert_eq!(walker.count(Counter::Dropped), 1);
            assert_eq!(walker.count(Counter::ShadowTables), most);
            for directory in [3, 2] {
                walker.load(cpu, directory);
                assert_eq!(walker.write(cpu, tables(22)), 0, "it is still there");
            }
            walker.load(cpu, 1);
            assert!(walker.write(cpu, tables(22)) >= 22);
        });
    }
}

#[test]
fn tables_make_way_where_the_host_has_no_frame() {
    with_walker(Capacity::of(65_536, ROOTS), |walker, cpu| {
        for directory in [1, 2, 3] {
            walker.load(cpu, directory);
            walker.write(cpu, tables(FRAMES * 2 / 3));
        }
        assert_eq!(walker.write(cpu, tables(FRAMES * 2 / 3)), 0, "the last one is still there");
        // By itself it has more than there are frames.
        walker.write(cpu, tables(2 * FRAMES));
    });
}

#[test]
fn none_makes_way_where_there_is_no_table() {
    with_walker(Capacity::of(0, ROOTS), |walker, cpu| {
        walker.write(cpu, tables(8));
        assert!(walker.shadow.make_way(cpu, &walker.view));
        assert!(!walker.shadow.make_way(cpu, &walker.view));
        assert_eq!(walker.count(Counter::Dropped), 1);
    });
}

#[test]
fn only_a_page_that_needs_a_table_makes_another_one_make_way() {
    with_walker(Capacity { tables: 8, ..Capacity::of(0, ROOTS) }, |walker, cpu| {
        walker.write(cpu, tables(8));
        assert_eq!(walker.write(cpu, tables(8).map(|page| page + 1)), 8);
        assert_eq!((walker.count(Counter::ShadowTables), walker.count(Counter::Dropped)), (8, 0));
    });
}

#[test]
fn a_shadow_has_room_for_what_its_guest_can_use() {
    let [small, large] = [16, 1024].map(|mib| Capacity::of(mib << 8, 20));
    assert_eq!(small, Capacity::of(0, 20));
    assert_eq!((large.tables, large.mappings), (1 << 18 >> 5, 2 << 18));
    assert_eq!(large.uses as usize, large.tables + 20 * 512);
    // All that there can be is bounded by the address spaces.
    assert_eq!(Capacity::of(1 << 40, 2), Capacity { tables: 4096, uses: 4096, mappings: 2 << 20 });
}
