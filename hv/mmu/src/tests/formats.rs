//! Tests that encoded entries are decoded to the same, and that no other values are decoded as entries.

use crate::format::FormatExt;
use crate::{Caps, Ept, Format, Leaf, Level, LongMode, MemoryType, Npt, Pae, Pte, Rights, Soft};
use addr::{PageSize, Pfn};
use proptest::prelude::*;

const CAPS: Caps = Caps::new(40, PageSize::Size1G, true);

fn leaf() -> impl Strategy<Value = Leaf> {
    let memory = prop_oneof![Just(MemoryType::WriteBack), Just(MemoryType::WriteThrough), Just(MemoryType::Uncached)];
    (0u64..1 << 28, any::<[bool; 6]>(), memory, 0u8..4).prop_map(|(pfn, [w, x, u, a, d, logged], memory, soft)| Leaf {
        pfn: Pfn::new(pfn),
        rights: Rights { write: w, execute: x, user: u },
        memory,
        accessed: a,
        dirty: d,
        logged,
        soft: Soft::new(soft),
    })
}

fn round_trip<F: Format>(leaf: Leaf) {
    for level in [Level::PTE, Level::PMD, Level::PUD] {
        if level >= F::TOP {
            continue;
        }
        let frames = 1 << (9 * level.number());
        let leaf = Leaf { pfn: Pfn::new(leaf.pfn.raw() & !(frames - 1)), ..leaf };
        let pte = F::leaf(&leaf, level);
        assert_eq!(F::decode(pte, level, CAPS), crate::Entry::Leaf(leaf), "{pte:?} of {level:?}");
        let table = F::table(leaf.pfn, level);
        if level > Level::PTE {
            assert_eq!(F::decode(table, level, CAPS), crate::Entry::Table(leaf.pfn));
        }
        assert_eq!(F::decode(F::frozen(pte), level, CAPS), crate::Entry::Frozen);
    }
}

/// A value that decodes as an entry is exactly what the tree would write for it.
fn no_other<F: Format>(raw: u64) {
    for number in 0..=F::TOP.number() {
        let level = Level::from_number(number);
        let pte = Pte::new(raw);
        match F::decode(pte, level, CAPS) {
            crate::Entry::Leaf(leaf) => assert_eq!(F::leaf(&leaf, level), pte),
            crate::Entry::Table(pfn) => {
                assert_eq!(F::table(pfn, level).raw() | F::ACCESSED, raw | F::ACCESSED);
                assert!(pfn.raw() >> 28 == 0);
            }
            crate::Entry::None => assert_eq!(raw, 0),
            crate::Entry::Frozen => assert_eq!(raw & !(F::ACCESSED | F::DIRTY), F::FROZEN),
            crate::Entry::Bad => {}
        }
    }
}

proptest! {
    #[test]
    fn leaves_are_read_back_as_written(leaf in leaf()) {
        round_trip::<Npt>(leaf);
        round_trip::<LongMode<5>>(leaf);
        round_trip::<Pae>(leaf);
        round_trip::<Ept>(leaf);
        round_trip::<Ept<5>>(leaf);
    }

    #[test]
    fn what_decodes_is_what_would_be_written(raw in any::<u64>(), mask in any::<u64>(), leaf in leaf(), flip in 0..64u32) {
        let ept = Ept::<4>::leaf(&leaf, Level::PTE).raw();
        let npt = Npt::leaf(&leaf, Level::PMD).raw();
        for raw in [raw, raw & mask, raw & 0xfff, ept ^ 1 << flip, npt ^ 1 << flip] {
            no_other::<Npt>(raw);
            no_other::<LongMode<5>>(raw);
            no_other::<Pae>(raw);
            no_other::<Ept>(raw);
            no_other::<Ept<5>>(raw);
        }
    }
}

#[test]
fn entries_are_as_the_manuals_say() {
    let leaf = Leaf::new(Pfn::new(0x1234), Rights::ALL);
    assert_eq!(Npt::leaf(&leaf, Level::PTE).raw(), 0x123_4007);
    assert_eq!(Ept::<4>::leaf(&leaf, Level::PTE).raw(), 0x123_4037);
    let large = Leaf { pfn: Pfn::new(0x200), dirty: true, accessed: true, ..leaf };
    assert_eq!(Npt::leaf(&large, Level::PMD).raw(), 0x20_00e7);
    assert_eq!(Ept::<4>::leaf(&large, Level::PMD).raw(), 0x20_03b7);
    // The processor sees no page: bits 2:0 are clear in EPT, and NPT refuses each access by U/S.
    let hidden = Leaf { rights: Rights::HIDDEN, ..leaf };
    assert_eq!(Npt::leaf(&hidden, Level::PTE).raw(), 0x123_4003);
    assert_eq!(Ept::<4>::leaf(&hidden, Level::PTE).raw(), 0x0700_0000_0123_4030);
    let data = Rights { execute: false, user: false, write: true };
    assert_eq!(Pae::<addr::Gva>::leaf(&Leaf::new(Pfn::new(1), data), Level::PTE).raw(), 0x8000_0000_0000_1003);
    let device = Leaf { memory: MemoryType::Uncached, ..Leaf::new(Pfn::new(0xfee00), Rights::ALL) };
    assert_eq!(Npt::leaf(&device, Level::PTE).raw(), 0xfee0_001f);
    assert_eq!(Ept::<4>::leaf(&device, Level::PTE).raw(), 0xfee0_0047);
    // Entries for tables are born accessed, so that no processor changes them.
    assert_eq!(Npt::table(Pfn::new(5), Level::PMD).raw(), 0x5027);
    assert_eq!(Ept::<4>::table(Pfn::new(5), Level::PMD).raw(), 0x5107);
    assert_eq!(Pae::<addr::Gva>::table(Pfn::new(5), Level::PMD).raw(), 0x5027);
    // PDPTEs have no rights and no accessed bit (though QEMU sets one), and are never leaves.
    assert_eq!(Pae::<addr::Gva>::table(Pfn::new(5), Level::PUD).raw(), 0x5001);
    let pdpte = Pae::<addr::Gva>::decode(Pte::new(0x5021), Level::PUD, CAPS);
    assert_eq!(pdpte, crate::Entry::Table(Pfn::new(5)));
    for reserved in [1u64 << 1, 1 << 2, 1 << 6, 1 << 7, 1 << 8, 1 << 40, 1 << 52, 1 << 63] {
        assert_eq!(Pae::<addr::Gva>::decode(Pte::new(0x5001 | reserved), Level::PUD, CAPS), crate::Entry::Bad);
    }
    // Write without read, and reserved memory types, are EPT misconfigurations.
    for misconfigured in [0x1032u64, 0x1036, 0x1017, 0x101f, 0x103f, 1 << 40 | 0x37] {
        assert_eq!(Ept::<4>::decode(Pte::new(misconfigured), Level::PTE, CAPS), crate::Entry::Bad);
    }
    // An uncached page that leaves the guest's PAT in force is valid, but the tree writes none, nor is it a table.
    assert_eq!(Ept::<4>::decode(Pte::new(0x1007), Level::PTE, CAPS), crate::Entry::Bad);
    // A frame that is not aligned to its page.
    assert_eq!(Npt::decode(Pte::new(0x20_1087), Level::PMD, CAPS), crate::Entry::Bad);
    // A 1 GiB page on a processor without such pages.
    let small = Caps::new(40, PageSize::Size2M, true);
    assert_eq!(Npt::decode(Pte::new(0x4000_0087), Level::PUD, small), crate::Entry::Bad);
    assert!(matches!(Npt::decode(Pte::new(0x4000_0087), Level::PUD, CAPS), crate::Entry::Leaf(_)));
}

#[test]
fn what_is_no_page_is_decoded_as_none() {
    const ADDRESS: u64 = CAPS.address_mask();
    assert!(Npt::as_leaf(Pte::new(0x1007), Level::PTE, ADDRESS).is_some());
    assert_eq!(Npt::as_leaf(Pte::new(0x1006), Level::PTE, ADDRESS), None, "it is not present");
    assert!(Pae::<addr::Gva>::as_leaf(Pte::new(0x20_0087), Level::PMD, ADDRESS).is_some());
    assert_eq!(Pae::<addr::Gva>::as_leaf(Pte::new(0x4000_0087), Level::PUD, ADDRESS), None, "a PDPTE is no page");
}

#[test]
fn tables_have_as_many_entries_as_the_manuals_say() {
    assert_eq!([Level::PTE, Level::PMD, Level::PUD].map(Pae::<addr::Gva>::entries), [512, 512, 4]);
    assert_eq!([Level::PTE, Level::P4D].map(Npt::entries), [512; 2]);
}
