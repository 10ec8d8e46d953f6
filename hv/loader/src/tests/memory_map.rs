//! Memory maps of guests.

use super::*;
use crate::ranges::overlap;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn usable(map: &MemoryMap) -> Vec<(u64, u64)> {
    let usable = map.regions().filter(|region| region.kind == RegionKind::Usable);
    usable.map(|region| (region.range.start.raw(), region.range.end.raw())).collect()
}

#[test]
fn ram_beyond_3_gib_is_above_the_pci_hole() {
    let high = |bytes| usable(&MemoryMap::new(ram(bytes), None))[1..].to_vec();
    assert_eq!(high(MIB), []);
    assert_eq!(high(3 * GIB), [(MIB, 3 * GIB)]);
    assert_eq!(high(3 * GIB + 4096), [(MIB, 3 * GIB), (4 * GIB, 4 * GIB + 4096)]);
    assert_eq!(high(64 * GIB), [(MIB, 3 * GIB), (4 * GIB, 65 * GIB)]);
    let largest = ram(64 * GIB);
    for (at, is_ram) in
        [(3 * GIB - 1, true), (3 * GIB, false), (4 * GIB - 1, false), (4 * GIB, true), (65 * GIB, false)]
    {
        assert_eq!(largest.backs(Gpa::new(at)), is_ram, "{at:#x}");
    }
    assert!(!ram(3 * GIB).backs(Gpa::new(4 * GIB)));
}

#[test]
fn a_range_of_ram_has_no_part_in_the_pci_hole() {
    let ram = ram(5 * GIB);
    let is_range = |start, bytes| ram.range(start, bytes).is_some();
    assert_eq!(ram.range(GIB, MIB), Some(Gpa::new(GIB)..Gpa::new(GIB + MIB)));
    assert!(is_range(0, 3 * GIB) && is_range(4 * GIB, 2 * GIB));
    assert!(!is_range(0, 3 * GIB + 4096) && !is_range(3 * GIB, 4096) && !is_range(4 * GIB - 4096, 8192));
    assert!(!is_range(4 * GIB, 2 * GIB + 4096) && !is_range(u64::MAX - 4095, 4096) && !is_range(6 * GIB, 4096));
}

#[test]
fn upper_memory_ends_at_the_first_hole() {
    let upper = |bytes| MemoryMap::new(ram(bytes), None).lower_and_upper_kib();
    assert_eq!(upper(MIB), [639, 0]);
    assert_eq!(upper(64 * MIB), [639, 63 << 10]);
    assert_eq!(upper(16 * GIB), [639, (3 << 20) - 1024]);
}

#[test]
fn acpi_ranges_are_in_the_map_instead_of_ram() {
    let acpi = fuzz::acpi_tables();
    let map = MemoryMap::new(ram(4 * MIB), Some(&acpi));
    let of = |kind| map.regions().filter(|region| region.kind == kind).map(|region| region.range).collect::<Vec<_>>();
    assert_eq!(of(RegionKind::AcpiReclaimable), vec![acpi.reclaimable.clone()]);
    assert_eq!(of(RegionKind::AcpiNvs), vec![acpi.nvs.clone()]);
    assert_eq!(usable(&map), [(0, 0x9_fc00), (MIB, 0x3e_0000)]);
    // In the middle of RAM, or where the ROM is, the rest stays what it was.
    let range = |start, end| Gpa::new(start)..Gpa::new(end);
    let acpi = AcpiTables { reclaimable: range(2 * MIB, 3 * MIB), nvs: range(0xf_8000, 0xf_9000), ..acpi };
    let map = MemoryMap::new(ram(4 * MIB), Some(&acpi));
    assert_eq!(usable(&map), [(0, 0x9_fc00), (MIB, 2 * MIB), (3 * MIB, 4 * MIB)]);
    let reserved = map.regions().filter(|region| region.kind == RegionKind::Reserved);
    assert_eq!(reserved.filter(|region| region.range.end.raw() <= MIB).count(), 3);
}

proptest! {
    #[test]
    fn a_map_is_sorted_without_overlaps_and_short(
        pages in 256u64..=(64 << 18),
        starts in any::<[u64; 2]>(),
        sizes in any::<[u32; 2]>(),
    ) {
        let [reclaimable, nvs] = [0, 1].map(|n| {
            let start = starts[n] % (66 * GIB);
            Gpa::new(start)..Gpa::new(start + u64::from(sizes[n]))
        });
        let acpi = AcpiTables { reclaimable, nvs, ..fuzz::acpi_tables() };
        let ram = ram(pages * 4096);
        let map = MemoryMap::new(ram, Some(&acpi));
        let regions: Vec<_> = map.regions().collect();
        prop_assert!(regions.len() <= 16);
        prop_assert!(regions.iter().all(|region| region.range.start < region.range.end));
        prop_assert!(regions.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
        for (start, end) in usable(&map) {
            prop_assert!(ram.backs(Gpa::new(start)) && ram.backs(Gpa::new(end - 1)));
            for claimed in [&acpi.reclaimable, &acpi.nvs].into_iter().filter(|range| !range.is_empty()) {
                prop_assert!(!overlap(&(start..end), &(claimed.start.raw()..claimed.end.raw())));
            }
        }
        let bytes: u64 = usable(&MemoryMap::new(ram, None)).iter().map(|(start, end)| end - start).sum();
        prop_assert_eq!(bytes, ram.bytes() - MIB + 0x9_fc00);
    }
}
