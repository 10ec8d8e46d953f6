//! The fuzz target, which a property test runs too.

use crate::ram::Ram;
use crate::*;

const PAGES: usize = 8;

/// Walks tables with registers from the first bytes of `data` and memory filled with the other bytes, repeated.
///
/// # Panics
/// If a fetch through the cache gives another result than one without.
pub fn walk_tables(data: &[u8]) {
    let Some((head, tables)) = data.split_first_chunk::<40>() else { return };
    let word = |n: usize| u64::from_le_bytes(core::array::from_fn(|byte| head[n * 8 + byte]));
    let flags = word(4);
    let features = Features {
        maxphyaddr: 32 + (flags & 0xff) as u8 % 21,
        pages_1g: flags & (1 << 8) != 0,
        pse36: flags & (1 << 9) != 0,
        pml4e_bit8_reserved: flags & (1 << 10) != 0,
    };
    let controls = Controls { cr0: word(0), cr3: word(1), cr4: word(0) >> 32, efer: flags >> 16 };
    let pdptes = (flags & (1 << 11) != 0).then(|| [word(1), word(2), word(3), word(4)]);
    let access = Access {
        kind: [AccessKind::Read, AccessKind::Write, AccessKind::Fetch][(flags >> 12) as usize % 3],
        privilege: [Privilege::User, Privilege::Supervisor { ac: flags & (1 << 15) != 0 }][(flags >> 14) as usize & 1],
    };

    let ram = Ram::new(PAGES);
    let words = tables.chunks_exact(8).map(|chunk| u64::from_le_bytes(core::array::from_fn(|n| chunk[n])));
    for (n, word) in (0..PAGES as u64 * 512).zip(words.cycle()) {
        ram.set(n * 8, word);
    }

    let mut cache = FetchCache::new();
    for gva in [word(2), word(3), word(2), word(2) ^ word(3)].map(Gva::new) {
        let paging = Paging { controls, pdptes: None, features };
        let _ = translate(&ram, &paging, gva, access, SetAccessedDirty::No);
        same_with_cache(&mut cache, &ram, &paging, gva, access.privilege);
        let held = Paging { pdptes, ..paging };
        for paging in [&paging, &held] {
            if let Some(fault) = missing(&ram, paging, gva, access) {
                assert_eq!(translate(&ram, paging, gva, access, SetAccessedDirty::No), Err(fault));
            }
        }
        let mut buffer = [0; 32];
        let _ = read(&ram, &held, gva, access.privilege, &mut buffer);
        let _ = write(&ram, &held, gva, access.privilege, &buffer);
        let _ = load_pdptes(&ram, &held);
    }
}

/// Checks that a fetch through the cache gives the same bytes as one without.
pub(crate) fn same_with_cache(
    cache: &mut FetchCache<usize>,
    ram: &Ram,
    paging: &Paging,
    gva: Gva,
    privilege: Privilege,
) {
    let plain = fetch(ram, paging, gva, privilege).ok();
    let first = |len: u64| match &plain {
        Some(plain) if gva.page_offset() + len <= addr::PAGE_SIZE => plain.bytes().get(..len as usize),
        _ => None,
    };
    let four = cache.fetch_u32(ram, paging.into(), gva, privilege).map(u32::to_le_bytes);
    assert_eq!(four.as_ref().map(|bytes| &bytes[..]), first(4));
    let eight = cache.fetch_u64(ram, paging.into(), gva, privilege).map(u64::to_le_bytes);
    assert_eq!(eight.as_ref().map(|bytes| &bytes[..]), first(8));
}

#[cfg(test)]
proptest::proptest! {
    #[test]
    fn any_tables_and_registers_can_be_walked(data in proptest::collection::vec(proptest::num::u8::ANY, 40..400)) {
        walk_tables(&data);
    }
}
