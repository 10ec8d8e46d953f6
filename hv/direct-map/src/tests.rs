//! The tables as a processor walks them.

use super::*;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

/// Frames from 16 MiB on, so many at most.
struct Heap {
    tables: BTreeMap<u64, Box<Table>>,
    left: usize,
}

impl Frames for Heap {
    fn alloc(&mut self) -> Option<Hpa> {
        self.left = self.left.checked_sub(1)?;
        let at = (16 << 20) + self.tables.len() as u64 * PAGE_SIZE;
        self.tables.insert(at, Box::new([0; 512]));
        Some(Hpa::new(at))
    }
    fn table(&mut self, table: Hpa) -> &mut Table {
        self.tables.get_mut(&table.raw()).expect("it was given out")
    }
}

/// What is mapped at a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapped {
    at: u64,
    to: u64,
    bytes: u64,
    write: bool,
    execute: bool,
    cached: bool,
}

/// All that the tables map, in the order of linear addresses, with the rights of all levels.
fn walk(heap: &Heap, table: u64, level: u32, at: u64, write: bool, execute: bool, found: &mut Vec<Mapped>) {
    for (index, &entry) in (0u64..).zip(heap.tables[&table].iter()) {
        let bytes = PAGE_SIZE << (9 * level);
        let at = at + index * bytes;
        // Bit 47 is repeated in those above.
        let at = if level == 3 && index >= 256 { at | 0xffff << 48 } else { at };
        let (write, execute) = (write && entry & 2 != 0, execute && entry >> 63 == 0);
        match entry {
            _ if entry & 1 == 0 => {}
            _ if level == 0 || entry & 0x80 != 0 => {
                let to = entry & 0x000f_ffff_ffff_f000;
                found.push(Mapped { at, to, bytes, write, execute, cached: entry & 0x10 == 0 });
            }
            _ => walk(heap, entry & 0x000f_ffff_ffff_f000, level - 1, at, write, execute, found),
        }
    }
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// An image whose loaded part begins two pages below 1 MiB: 3 pages of code, 2 of constants, a guard, and 10 of data.
fn image() -> Image {
    let at = |page: u64| HIGH_HALF + MIB + page * PAGE_SIZE;
    Image { loaded: at(0) - 2 * PAGE_SIZE, start: at(0), text_end: at(3), rodata_end: at(5), guard: at(5), end: at(16) }
}

fn build(frames: usize) -> Result<Builder<Heap>, OutOfFrames> {
    let memory = [0..640 << 10, MIB..512 * MIB, 4 * GIB..4 * GIB + 3 * MIB];
    let memory = memory.map(|range| Hpa::new(range.start)..Hpa::new(range.end));
    let mut builder = Builder::new(Heap { tables: BTreeMap::new(), left: frames }, image())?;
    builder.map_image()?;
    builder.map_memory(&memory)?;
    Ok(builder)
}

fn mapped(builder: &Builder<Heap>) -> Vec<Mapped> {
    let mut found = Vec::new();
    walk(&builder.frames, builder.root().raw(), 3, 0, true, true, &mut found);
    found
}

#[test]
fn nothing_is_writable_and_executable_and_the_lower_half_is_empty() {
    let all = mapped(&build(64).unwrap());
    assert!(all.iter().all(|page| !(page.write && page.execute)));
    assert!(all.iter().all(|page| page.at >= DIRECT_MAP));
    let code: Vec<_> = all.iter().filter(|page| page.execute).map(|page| page.at).collect();
    assert_eq!(code, [0, 1, 2].map(|page| image().start + page * PAGE_SIZE), "the image's code alone");
}

#[test]
fn what_is_constant_is_so_in_both_maps_and_the_guard_is_a_hole() {
    let all = mapped(&build(64).unwrap());
    let frozen = MIB - 2 * PAGE_SIZE..MIB + 5 * PAGE_SIZE;
    for page in &all {
        let covers = page.to < frozen.end && frozen.start < page.to + page.bytes;
        assert_eq!(page.write, !covers, "{page:x?}");
    }
    let in_image = |page: &&Mapped| page.at >= HIGH_HALF;
    assert_eq!(all.iter().filter(in_image).count(), 15, "16 pages without the guard");
    assert!(!all.iter().any(|page| page.at == image().guard));
    assert!(!all.iter().any(|page| image().loaded <= page.at && page.at < image().start), "it has run");
    assert!(all.iter().filter(in_image).all(|page| page.at - HIGH_HALF == page.to));
}

#[test]
fn the_direct_map_has_all_memory_and_what_is_none_below_4_gib_is_uncached() {
    let all = mapped(&build(64).unwrap());
    let direct: Vec<_> = all.iter().filter(|page| page.at < HIGH_HALF).collect();
    assert!(direct.iter().all(|page| page.at - DIRECT_MAP == page.to));
    assert_eq!(direct.iter().map(|page| page.bytes).sum::<u64>(), 4 * GIB + 4 * MIB, "whole pages of 2 MiB");
    for page in direct {
        let is_memory = page.to < 512 * MIB || page.to >= 4 * GIB;
        assert_eq!(page.cached, is_memory, "{page:x?}");
    }
}

#[test]
fn a_guard_is_one_page_alone() {
    let mut builder = build(64).unwrap();
    let before = mapped(&builder);
    for guard in [100 * MIB + 5 * PAGE_SIZE, 100 * MIB + 6 * PAGE_SIZE] {
        assert_eq!(builder.unmap_guard(Hpa::new(guard)), Ok(DIRECT_MAP + guard));
    }
    let after = mapped(&builder);
    let around = DIRECT_MAP + 100 * MIB..DIRECT_MAP + 102 * MIB;
    let (inside, outside): (Vec<_>, Vec<_>) = after.iter().copied().partition(|page| around.contains(&page.at));
    let expected: Vec<_> = before.iter().copied().filter(|page| !around.contains(&page.at)).collect();
    assert_eq!(outside, expected);
    let large = before.iter().find(|page| page.at == around.start).unwrap();
    let small = (0..512).filter(|n| ![5, 6].contains(n)).map(|n| Mapped {
        at: large.at + n * PAGE_SIZE,
        to: large.to + n * PAGE_SIZE,
        bytes: PAGE_SIZE,
        ..*large
    });
    assert_eq!(inside, small.collect::<Vec<_>>());
}

#[test]
fn a_lack_of_frames_is_told() {
    let enough = 64 - build(64).unwrap().frames.left;
    assert!(build(enough).is_ok());
    (0..enough).for_each(|frames| assert_eq!(build(frames).err(), Some(OutOfFrames), "{frames} frames"));
    let mut builder = build(enough).unwrap();
    assert_eq!(builder.unmap_guard(Hpa::new(100 * MIB)), Err(OutOfFrames));
}

#[test]
fn data_is_what_can_be_written_but_for_the_guard() {
    let image = image();
    assert!(!image.is_data(image.rodata_end - 8, 16));
    assert!(!image.is_data(image.guard + 8, 16));
    assert!(image.is_data(image.guard + PAGE_SIZE, 16));
    assert!(image.is_data(image.end - 16, 16) && !image.is_data(image.end - 8, 16));
}

#[test]
fn a_linear_address_of_the_image_or_of_the_direct_map_leads_to_its_memory() {
    for at in [0, 0xfff, MIB, 1 << 32, (1 << 46) - 1].map(Hpa::new) {
        assert_eq!(physical(linear(at)), at);
    }
    for at in [MIB, 64 * MIB, (1 << 31) - 1] {
        assert_eq!(physical(HIGH_HALF + at), Hpa::new(at));
    }
}

#[test]
fn the_boot_tables_map_what_ends_at_4_gib() {
    let end = DEVICES_END.raw();
    assert!(is_boot_mapped(Hpa::new(end - 16), 16));
    assert!(!is_boot_mapped(Hpa::new(end - 16), 17));
    assert!(!is_boot_mapped(Hpa::new(u64::MAX - 1), 4), "the sum passes the end of the address space");
}
