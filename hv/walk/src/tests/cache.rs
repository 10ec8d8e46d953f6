use super::model::{PAGES, address, any_access, entry, memory, paging_state};
use super::*;
use crate::fuzz::same_with_cache;
use proptest::prelude::*;

/// Long-mode tables in pages 1 to 4 that map linear address 0 to page 5.
fn tree() -> (Ram, Controls) {
    let ram = Ram::new(32);
    for table in 1..=4 {
        ram.set(table << 12, ((table + 1) << 12) | 3);
    }
    ram.set(0x5000, 0x0706_0504_0302_0100);
    ram.set(0x5008, 0x0f0e_0d0c_0b0a_0908);
    (ram, paging(PE_PG, 0x1000, PAE, LMA).controls)
}

fn bytes_at(cache: &mut FetchCache<usize>, ram: &Ram, controls: &Controls, gva: u64) -> Option<u32> {
    let paging = PagingRef::new(*controls, None, &FEATURES);
    cache.fetch_u32(ram, paging, Gva::new(gva), SUPERVISOR)
}

#[test]
fn four_bytes_at_every_offset_of_a_word() {
    let (ram, controls) = tree();
    let mut cache = FetchCache::new();
    for offset in 0..=8u64 {
        let expected = u32::from_le_bytes(core::array::from_fn(|n| offset as u8 + n as u8));
        assert_eq!(bytes_at(&mut cache, &ram, &controls, offset), Some(expected));
    }
    assert!(bytes_at(&mut cache, &ram, &controls, 0xffc).is_some());
    assert_eq!(bytes_at(&mut cache, &ram, &controls, 0xffd), None);
}

#[test]
fn a_changed_entry_is_seen_at_every_level() {
    for level in 1..=4u64 {
        let (ram, controls) = tree();
        let mut cache = FetchCache::new();
        assert_eq!(bytes_at(&mut cache, &ram, &controls, 0), Some(0x0302_0100));
        // A copy of the tables from page 11 on, which the entry of `level` leads to.
        for table in 11..=14 {
            ram.set(table << 12, ((table + 1) << 12) | 3);
        }
        ram.set(0xf000, 0xdead_beef);
        ram.set(level << 12, ((level + 11) << 12) | 3);
        assert_eq!(bytes_at(&mut cache, &ram, &controls, 0), Some(0xdead_beef), "level {level}");
        ram.set(level << 12, 0);
        assert_eq!(bytes_at(&mut cache, &ram, &controls, 0), None);
    }
}

#[test]
fn other_held_pdptes_are_seen_though_cr3_is_the_same() {
    let ram = Ram::new(32);
    for (directory, page) in [(2u64, 5u64), (3, 6)] {
        ram.set(directory << 12, (directory + 8) << 12 | 3);
        ram.set((directory + 8) << 12, page << 12 | 3);
        ram.set(page << 12, page);
    }
    let mut cache = FetchCache::new();
    for directory in [2u64, 3, 2] {
        let pdptes = Some([directory << 12 | 1, 0, 0, 0]);
        let paging = Paging { pdptes, ..paging(PE_PG, 0x1000, PAE, 0) };
        let found = cache.fetch_u32(&ram, (&paging).into(), Gva::new(0), SUPERVISOR);
        assert_eq!(found, Some(directory as u32 + 3));
    }
}

#[test]
fn toggling_bits_that_fetches_do_not_depend_on_keeps_the_walk() {
    const WP_TS: u64 = 1 << 16 | 1 << 3;
    let (ram, controls) = tree();
    let mut cache = FetchCache::new();
    bytes_at(&mut cache, &ram, &controls, 0);
    let walked = ram.reads.get();
    let toggled = Controls { cr0: controls.cr0 ^ WP_TS, ..controls };
    assert_eq!(bytes_at(&mut cache, &ram, &toggled, 0), Some(0x0302_0100));
    assert_eq!(ram.reads.get(), walked);
}

#[test]
fn changed_code_is_seen() {
    let (ram, controls) = tree();
    let mut cache = FetchCache::new();
    bytes_at(&mut cache, &ram, &controls, 0);
    ram.set(0x5000, 0x1234_5678);
    assert_eq!(bytes_at(&mut cache, &ram, &controls, 0), Some(0x1234_5678));
}

#[test]
fn alternating_pages_are_walked_once() {
    let (ram, controls) = tree();
    for page in 1..4u64 {
        ram.set(0x4000 + page * 8, ((page + 5) << 12) | 3);
        ram.set((page + 5) << 12, page);
    }
    let mut cache = FetchCache::new();
    let mut round = || {
        ram.reads.set(0);
        let bytes = |page| bytes_at(&mut cache, &ram, &controls, page << 12);
        assert_eq!([1u64, 2, 3, 0].map(bytes), [1, 2, 3, 0x0302_0100].map(Some));
        ram.reads.take()
    };
    assert_eq!(round(), 4 * 4, "four entries each");
    assert_eq!(round(), 0);
}

#[test]
fn a_new_generation_drops_walks_of_memory_that_moved() {
    let (ram, controls) = tree();
    let mut cache = FetchCache::new();
    bytes_at(&mut cache, &ram, &controls, 0);
    // All memory moves 16 pages further on; the old pages still hold the old values.
    let old = (0..8 * 512).map(|n| ram.get(n * 8)).collect::<Vec<_>>();
    ram.shift.set(16 * 512);
    for (n, word) in (0..).zip(old) {
        ram.set(n * 8, word);
    }
    ram.set(0x5000, 0xfeed);
    ram.generation.set(1);
    assert_eq!(bytes_at(&mut cache, &ram, &controls, 0), Some(0xfeed));
}

#[test]
fn a_walk_of_five_levels_is_walked_again() {
    let ram = Ram::new(16);
    (1..=5).for_each(|level| ram.set(level << 12, (level + 1) << 12 | 3));
    (6..=7).for_each(|page| ram.set(page << 12, page));
    let controls = Controls { cr0: PE_PG, cr3: 0x1000, cr4: PAE | LA57, efer: LMA };
    let mut cache = FetchCache::new();
    for page in [6, 7] {
        ram.set(0x5000, page << 12 | 3);
        assert_eq!(bytes_at(&mut cache, &ram, &controls, 0), Some(page as u32), "the last entry has changed");
    }
}

/// Memory in which another CPU changes the entry at `at` behind the walk, before the cache reads it.
struct Racing {
    ram: Ram,
    at: u64,
    to: u64,
}

impl PhysMem for Racing {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        self.ram.read_u64(at)
    }
    fn read_u32(&self, at: Gpa) -> Option<u32> {
        self.ram.read_u32(at)
    }
    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        self.ram.cmpxchg_u64(at, old, new)
    }
    fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        self.ram.cmpxchg_u32(at, old, new)
    }
    fn read(&self, at: Gpa, bytes: &mut [u8]) -> Option<()> {
        self.ram.read(at, bytes)
    }
    fn write(&self, at: Gpa, bytes: &[u8]) -> Option<()> {
        self.ram.write(at, bytes)
    }
}

impl HandleMem for Racing {
    type Handle = usize;

    fn handle(&self, at: Gpa) -> Option<usize> {
        if at.raw() == self.at {
            self.ram.set(self.at, self.to);
        }
        self.ram.handle(at)
    }
    fn load(&self, handle: usize) -> u64 {
        self.ram.load(handle)
    }
    fn load_u32(&self, handle: usize, offset: u64) -> u32 {
        self.ram.load_u32(handle, offset)
    }
    fn generation(&self) -> u64 {
        self.ram.generation()
    }
}

#[test]
fn an_entry_that_changes_behind_the_walk_is_not_kept_with_its_page() {
    let (ram, controls) = tree();
    ram.set(0x6000, 0xfeed);
    let racing = Racing { ram, at: 0x4000, to: 0x6000 | 3 };
    let paging = Paging { controls, pdptes: None, features: FEATURES };
    let mut cache = FetchCache::new();
    let mut fetch = || cache.fetch_u32(&racing, (&paging).into(), Gva::new(0), SUPERVISOR);
    assert_eq!(fetch(), Some(0x0302_0100), "the walk came first");
    assert_eq!(fetch(), Some(0xfeed));
}

#[test]
fn without_paging_bytes_come_from_the_address_itself() {
    let (ram, mut controls) = tree();
    controls.cr0 = 1;
    let mut cache = FetchCache::new();
    for _ in 0..2 {
        assert_eq!(bytes_at(&mut cache, &ram, &controls, 0x5004), Some(0x0706_0504));
        assert_eq!(bytes_at(&mut cache, &ram, &controls, 0x6004), Some(0));
    }
}

#[derive(Clone, Debug)]
enum Event {
    Write(u64, u64),
    Controls(Paging),
    Fetch(u64, Privilege),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => ((0..PAGES, 0..4u64), entry()).prop_map(|((page, n), value)| Event::Write((page << 12) | (n * 8), value)),
        1 => paging_state().prop_map(Event::Controls),
        4 => (address(), any_access()).prop_map(|(gva, access)| Event::Fetch(gva, access.privilege)),
        4 => (0..4u64).prop_map(|n| Event::Fetch(n << 12, SUPERVISOR)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    /// After any events of the guest, the cache gives what a walk without it gives.
    #[test]
    fn cached_fetches_are_fetches(
        ram in memory(),
        start in paging_state(),
        events in proptest::collection::vec(event(), 1..40),
    ) {
        let mut paging = Paging { pdptes: None, ..start };
        let mut cache = FetchCache::new();
        for event in events {
            match event {
                Event::Write(at, value) => ram.set(at, value),
                Event::Controls(new) => paging.controls = new.controls,
                Event::Fetch(gva, privilege) => {
                    for _ in 0..2 {
                        same_with_cache(&mut cache, &ram, &paging, Gva::new(gva), privilege);
                    }
                }
            }
        }
    }
}
