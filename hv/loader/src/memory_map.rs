//! A guest's physical memory as the boot protocols report it to the guest.

use crate::AcpiTables;
use crate::boot_info::RegionKind;
use crate::memory::{GuestRam, HIGH_START, LOW_END};
use crate::ranges::{merge, overlap, subtract};
use abi::mmio;
use addr::Gpa;
use alloc::{vec, vec::Vec};
use core::ops::Range;

/// The extended BIOS data area: the last KiB of conventional memory.
pub(crate) const EBDA: Range<u64> = LOW_END - 0x400..LOW_END;
/// The BIOS's ROM.
const ROM: Range<u64> = mmio::BIOS_ROM.start as u64..mmio::BIOS_ROM.end as u64;
/// What a PC has just below 4 GiB: the ROM's other place, and below it what a hypervisor needs in the guest's memory.
const TOP: Range<u64> = mmio::IDENTITY_MAP as u64..GuestRam::ABOVE_4G;

/// A range of a guest's physical memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestRegion {
    /// First byte, and the one after the last.
    pub range: Range<Gpa>,
    /// Its kind.
    pub kind: RegionKind,
}

/// The map of a guest's physical memory, from which the maps of all boot protocols are made. Regions are in ascending order, not
/// empty and do not overlap. There are at most 16.
///
/// | range | kind |
/// | --- | --- |
/// | 0 to 639 KiB | RAM |
/// | 639 KiB to 640 KiB | reserved: extended BIOS data area |
/// | 640 KiB to 960 KiB | in no region: video memory, and ROMs of devices |
/// | 960 KiB to 1 MiB | reserved: ROM |
/// | 1 MiB to 3 GiB or the RAM's end | RAM |
/// | up to 4 GiB | in no region: the PCI hole, whose last 272 KiB are reserved |
/// | 4 GiB on | RAM: what is beyond 3 GiB |
///
/// ACPI's ranges are in it with their own kinds, instead of what would be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    regions: Vec<(Range<u64>, RegionKind)>,
}

impl MemoryMap {
    /// The map of a guest with `ram`, with `acpi` in it.
    #[must_use]
    pub fn new(ram: GuestRam, acpi: Option<&AcpiTables>) -> Self {
        let usable = ram.ranges().map(|range| (range, RegionKind::Usable));
        let reserved = [EBDA, ROM, TOP].map(|range| (range, RegionKind::Reserved));
        let acpi = acpi.into_iter().flat_map(|acpi| {
            [(&acpi.reclaimable, RegionKind::AcpiReclaimable), (&acpi.nvs, RegionKind::AcpiNvs)]
                .map(|(range, kind)| (range.start.raw()..range.end.raw(), kind))
        });
        let mut map = Self { regions: vec![] };
        usable.into_iter().chain(reserved).chain(acpi).for_each(|(range, kind)| map.put(range, kind));
        map.regions.sort_unstable_by_key(|(range, _)| range.start);
        map
    }

    /// Its regions.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = GuestRegion> + '_ {
        self.regions
            .iter()
            .map(|(range, kind)| GuestRegion { range: Gpa::new(range.start)..Gpa::new(range.end), kind: *kind })
    }

    /// The regions as start, length in bytes, and ACPI's number of the kind, as all boot protocols have them.
    pub(crate) fn entries(&self) -> impl ExactSizeIterator<Item = (u64, u64, u32)> + '_ {
        self.regions.iter().map(|(range, kind)| (range.start, range.end - range.start, kind.number()))
    }

    /// Usable RAM below 4 GiB, in ascending order and not adjacent.
    pub(crate) fn usable(&self) -> Vec<Range<u64>> {
        let usable = self.regions.iter().filter(|(range, kind)| *kind == RegionKind::Usable && range.end <= TOP.end);
        merge(usable.map(|(range, _)| range.clone()).collect())
    }

    /// `mem_lower` and `mem_upper` of multiboot, in KiB: the RAM from 0, and from 1 MiB up to the first hole.
    pub(crate) fn lower_and_upper_kib(&self) -> [u32; 2] {
        let usable = self.usable();
        [0, HIGH_START].map(|start| {
            let range = usable.iter().find(|range| range.start == start);
            range.map_or(0, |range| ((range.end - range.start) / 1024) as u32)
        })
    }

    /// Makes `range` a region of its own, out of those that it is a part of.
    fn put(&mut self, range: Range<u64>, kind: RegionKind) {
        if range.start >= range.end {
            return;
        }
        let (hit, mut regions): (Vec<_>, Vec<_>) =
            self.regions.drain(..).partition(|(region, _)| overlap(region, &range));
        for (region, kind) in hit {
            let rest = subtract(&[region], core::slice::from_ref(&range));
            regions.extend(rest.into_iter().map(|rest| (rest, kind)));
        }
        regions.push((range, kind));
        self.regions = regions;
    }
}
