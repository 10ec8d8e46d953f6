//! A second implementation of the walk, written from the manual's tables mode by mode without shared code, and random
//! tables for both.

use super::*;
use addr::PageSize;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

#[derive(Debug, PartialEq)]
enum Walked {
    Page { gpa: u64, size: u64 },
    Fault(u32),
    NonCanonical,
    Unbacked,
}

fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 == 1
}

fn any_bit(value: u64, range: std::ops::RangeInclusive<u32>) -> bool {
    range.into_iter().any(|n| bit(value, n))
}

/// The result of the access according to the manual, level by level.
fn model(ram: &Ram, paging: &Paging, gva: u64, access: Access) -> Walked {
    let Controls { cr0, cr3, cr4, efer } = paging.controls;
    let max = u32::from(paging.features.maxphyaddr);
    let long = bit(efer, 10);
    let nxe = bit(efer, 11) && bit(cr4, 5);
    let (write, fetch, user) =
        (access.kind == AccessKind::Write, access.kind == AccessKind::Fetch, access.privilege == Privilege::User);
    let base = u32::from(write) << 1 | u32::from(user) << 2 | u32::from(fetch && (nxe || bit(cr4, 20))) << 4;
    let word = |at: u64| ram.read_u64(Gpa::new(at));

    if !bit(cr0, 31) {
        return Walked::Page { gpa: gva & 0xffff_ffff, size: 12 };
    }
    // (table, entry), from the top; the last one is the leaf of 1 << size bytes at page.
    let mut entries = std::vec::Vec::new();
    let (page, size): (u64, u32);
    'walk: {
        if !long && !bit(cr4, 5) {
            let half = |at: u64| word(at & !7).map(|w| if bit(at, 2) { w >> 32 } else { w & 0xffff_ffff });
            let Some(pde) = half((cr3 & 0xffff_f000) + 4 * (gva >> 22 & 1023)) else { return Walked::Unbacked };
            if !bit(pde, 0) {
                return Walked::Fault(base);
            }
            entries.push(pde);
            if bit(pde, 7) && bit(cr4, 4) {
                let m = if paging.features.pse36 { max.min(40) } else { 32 };
                if any_bit(pde, (m - 19)..=21) {
                    return Walked::Fault(base | 9);
                }
                (page, size) = ((pde & 0xffc0_0000) + ((pde >> 13 & 255) << 32), 22);
                break 'walk;
            }
            let Some(pte) = half((pde & 0xffff_f000) + 4 * (gva >> 12 & 1023)) else { return Walked::Unbacked };
            if !bit(pte, 0) {
                return Walked::Fault(base);
            }
            entries.push(pte);
            (page, size) = (pte & 0xffff_f000, 12);
            break 'walk;
        }
        let mut table;
        let top;
        if long {
            top = if bit(cr4, 12) { 5 } else { 4 };
            let sign = gva >> (9 * top + 11);
            if sign != 0 && sign != u64::MAX >> (9 * top + 11) {
                return Walked::NonCanonical;
            }
            table = cr3 & ((1 << max) - 1) & !0xfff;
        } else {
            top = 2;
            let slot = gva >> 30 & 3;
            let pdpte = match paging.pdptes {
                Some(held) => held[slot as usize],
                None => match word((cr3 & 0xffff_ffe0) + 8 * slot) {
                    Some(pdpte) => pdpte,
                    None => return Walked::Unbacked,
                },
            };
            if !bit(pdpte, 0) {
                return Walked::Fault(base);
            }
            let reserved = any_bit(pdpte, 1..=2) || any_bit(pdpte, 6..=8) || any_bit(pdpte, max..=63);
            if paging.pdptes.is_none() && reserved {
                return Walked::Fault(base | 9);
            }
            table = pdpte & 0x000f_ffff_ffff_f000;
        }
        let mut level: u32 = top;
        loop {
            let Some(entry) = word(table + 8 * (gva >> (9 * level + 3) & 511)) else { return Walked::Unbacked };
            if !bit(entry, 0) {
                return Walked::Fault(base);
            }
            let leaf =
                level == 1 || level == 2 && bit(entry, 7) || level == 3 && bit(entry, 7) && paging.features.pages_1g;
            let reserved = any_bit(entry, max..=51)
                || !long && any_bit(entry, 52..=62)
                || !nxe && bit(entry, 63)
                || level >= 3 && bit(entry, 7) && !leaf
                || level >= 4 && bit(entry, 8) && paging.features.pml4e_bit8_reserved
                || leaf && level == 2 && any_bit(entry, 13..=20)
                || leaf && level == 3 && any_bit(entry, 13..=29);
            if reserved {
                return Walked::Fault(base | 9);
            }
            entries.push(entry);
            let width = 9 * level + 3;
            if leaf {
                (page, size) = (entry & 0x000f_ffff_ffff_ffff & !((1 << width) - 1), width);
                break;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            level -= 1;
        }
    }
    let writable = entries.iter().all(|&e| bit(e, 1));
    let user_page = entries.iter().all(|&e| bit(e, 2));
    let no_execute = entries.iter().any(|&e| bit(e, 63));
    let denied = if user {
        !user_page || write && !writable || fetch && no_execute
    } else {
        let closed = user_page && bit(cr4, 21) && access.privilege != Privilege::Supervisor { ac: true };
        match access.kind {
            AccessKind::Read => closed,
            AccessKind::Write => closed || !writable && bit(cr0, 16),
            AccessKind::Fetch => no_execute || user_page && bit(cr4, 20),
        }
    };
    if denied {
        Walked::Fault(base | 1)
    } else {
        Walked::Page { gpa: page + (gva & ((1 << size) - 1)), size: u64::from(size) }
    }
}

fn walked(found: Result<Translation, Fault>, gva: u64) -> Walked {
    match found {
        Ok(Translation { gpa, size, .. }) => Walked::Page { gpa: gpa.raw(), size: u64::from(size.shift()) },
        Err(Fault::Page { error_code, address }) => {
            assert!(address == Gva::new(gva) || address == Gva::new(gva & 0xffff_ffff));
            Walked::Fault(error_code.bits())
        }
        Err(Fault::NonCanonical) => Walked::NonCanonical,
        Err(Fault::Unbacked(_)) => Walked::Unbacked,
        Err(Fault::Contended) => panic!("no other CPU writes"),
    }
}

pub(crate) const PAGES: u64 = 8;

/// Entries that mostly lead to a page of the memory, with few unusual bits.
pub(crate) fn entry() -> impl Strategy<Value = u64> {
    let odd = prop_oneof![
        6 => Just(0),
        1 => (0u32..64).prop_map(|n| 1 << n),
        1 => Just(PS),
        1 => Just(NX),
    ];
    prop_oneof![
        12 => (0..PAGES, odd, prop_oneof![4 => Just(7u64), 1 => 0..8u64])
            .prop_map(|(page, odd, low)| (page << 12 | low) ^ odd),
        1 => any::<u64>(),
    ]
}

pub(crate) fn paging_state() -> impl Strategy<Value = Paging> {
    let flags = |flags: &'static [u64]| {
        proptest::sample::subsequence(flags, 0..=flags.len()).prop_map(|set| set.iter().fold(0, |a, b| a | b))
    };
    (
        prop_oneof![1 => Just(1u64), 15 => Just(PE_PG)],
        flags(&[WP]),
        prop_oneof![9 => 0..PAGES << 12, 1 => any::<u64>()],
        flags(&[PSE, PAE, LA57, SMEP, SMAP]),
        flags(&[LMA, NXE]),
        proptest::option::of(proptest::array::uniform4(entry())),
        (prop_oneof![32..=52u8, Just(40)], any::<bool>(), any::<bool>(), any::<bool>()),
    )
        .prop_map(|(pg, wp, cr3, cr4, efer, pdptes, (maxphyaddr, pages_1g, pse36, pml4e_bit8_reserved))| Paging {
            // Long mode has PAE set.
            controls: Controls { cr0: pg | wp, cr3, cr4: cr4 | if efer & LMA != 0 { PAE } else { 0 }, efer },
            pdptes,
            features: Features { maxphyaddr, pages_1g, pse36, pml4e_bit8_reserved },
        })
}

/// Addresses with few different indices, so that they mostly hit the entries that are set.
pub(crate) fn address() -> impl Strategy<Value = u64> {
    let index = 0..4u64;
    prop_oneof![
        9 => (proptest::array::uniform5(index), 0..4096u64, any::<bool>()).prop_map(|(indices, offset, high)| {
            let low = indices.iter().zip([12, 21, 30, 39, 48]).fold(offset, |gva, (index, shift)| gva | index << shift);
            if high { low | 0xffff << 48 } else { low & 0xffff_ffff_ffff }
        }),
        1 => any::<u64>(),
    ]
}

pub(crate) fn any_access() -> impl Strategy<Value = Access> {
    let kind = prop_oneof![Just(AccessKind::Read), Just(AccessKind::Write), Just(AccessKind::Fetch)];
    let privilege = prop_oneof![Just(Privilege::User), any::<bool>().prop_map(|ac| Privilege::Supervisor { ac }),];
    (kind, privilege).prop_map(|(kind, privilege)| Access { kind, privilege })
}

/// Memory in which the first four entries of each table, of either width, are random.
pub(crate) fn memory() -> impl Strategy<Value = Ram> {
    proptest::collection::vec(entry(), PAGES as usize * 4).prop_map(|entries| {
        let ram = Ram::new(PAGES as usize);
        for (n, entry) in (0..).zip(entries) {
            ram.set(((n / 4) << 12) | ((n % 4) * 8), entry);
        }
        ram
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    #[test]
    fn walks_agree_with_the_model(ram in memory(), paging in paging_state(), gva in address(), access in any_access()) {
        let expected = model(&ram, &paging, gva, access);
        let found = translate(&ram, &paging, Gva::new(gva), access, SetAccessedDirty::No);
        prop_assert_eq!(walked(found, gva), expected);
    }

    /// This covers recursive tables, where setting bits may change entries of later levels.
    #[test]
    fn setting_bits_changes_only_bits_5_and_6(
        ram in memory(), paging in paging_state(), gva in address(), access in any_access(),
    ) {
        let words = || (0..PAGES * 512).map(|n| ram.get(n * 8)).collect::<Vec<_>>();
        let before = words();
        let read_only = translate(&ram, &paging, Gva::new(gva), access, SetAccessedDirty::No);
        let set = translate(&ram, &paging, Gva::new(gva), access, SetAccessedDirty::Yes);
        prop_assert_eq!(read_only.is_ok(), set.is_ok());
        let mask = if paging.controls.mode() == Mode::Bits32 { 0x60_0000_0060 } else { 0x60 };
        for (old, new) in before.iter().zip(words()) {
            prop_assert_eq!(old & !mask, new & !mask);
            prop_assert_eq!(old & new, *old, "no bit is cleared");
            prop_assert!(set.is_ok() || *old == new, "a fault sets nothing");
        }
    }
}

#[test]
fn the_model_finds_pages_of_every_size() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..5_000 {
        let (ram, paging, gva) = (memory(), paging_state(), address()).new_tree(&mut runner).unwrap().current();
        let found = translate(
            &ram,
            &paging,
            Gva::new(gva),
            access(AccessKind::Read, Privilege::Supervisor { ac: true }),
            SetAccessedDirty::No,
        );
        if let Ok(found) = found {
            seen.insert((paging.controls.mode() as u8, found.size.shift()));
        }
    }
    let sizes = |mode: Mode, sizes: &[PageSize]| sizes.iter().all(|size| seen.contains(&(mode as u8, size.shift())));
    assert!(sizes(Mode::Bits32, &[PageSize::Size4K, PageSize::Size4M]));
    assert!(sizes(Mode::Pae, &[PageSize::Size4K, PageSize::Size2M]));
    assert!(sizes(Mode::Long4, &[PageSize::Size4K, PageSize::Size2M, PageSize::Size1G]));
    assert!(sizes(Mode::Long5, &[PageSize::Size4K, PageSize::Size2M, PageSize::Size1G]));
}
