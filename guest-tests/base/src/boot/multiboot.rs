//! Multiboot specification 0.6.96, section 3.3.

use abi::multiboot::flag;
use core::ptr;

use super::{Information, Region, bytes, entry, region, u32_at};

/// The information as it lies in memory, to the last field used.
#[repr(C)]
#[derive(Clone, Copy)]
struct Fields {
    flags: u32,
    mem_lower: u32,
    mem_upper: u32,
    boot_device: u32,
    cmdline: u32,
    mods_count: u32,
    mods_addr: u32,
    syms: [u32; 4],
    mmap_length: u32,
    mmap_addr: u32,
    drives: [u32; 2],
    config_table: u32,
    boot_loader_name: u32,
}

/// The information, and where it lies.
pub(super) struct Info {
    fields: Fields,
    at: u32,
}

impl Info {
    /// The one at `at`, a multiple of 4.
    pub(super) fn at(at: u32) -> Self {
        let address: *const Fields = ptr::with_exposed_provenance(at as usize);
        // SAFETY: aligned, and in the first 4 GiB, which are mapped. Any bit pattern will do.
        Self { fields: unsafe { ptr::read_volatile(address) }, at }
    }

    fn valid<T>(&self, flag: u32, value: T) -> Option<T> {
        (self.fields.flags & flag != 0).then_some(value)
    }

    fn map(&self) -> &'static [u8] {
        self.valid(flag::MEMORY_MAP, bytes(self.fields.mmap_addr, self.fields.mmap_length)).unwrap_or_default()
    }

    fn module_list(&self) -> &'static [u8] {
        let list = bytes(self.fields.mods_addr, self.fields.mods_count.saturating_mul(16));
        self.valid(flag::MODULES, list).unwrap_or_default()
    }
}

impl Information for Info {
    fn command_line(&self) -> Option<u32> {
        self.valid(flag::COMMAND_LINE, self.fields.cmdline)
    }

    fn loader_name(&self) -> Option<u32> {
        self.valid(flag::LOADER_NAME, self.fields.boot_loader_name)
    }

    fn memory_kib(&self) -> Option<[u32; 2]> {
        self.valid(flag::MEMORY, [self.fields.mem_lower, self.fields.mem_upper])
    }

    /// Start, end, string, and a word kept for later.
    fn module(&self, index: usize) -> Option<[u32; 3]> {
        let entry = entry(self.module_list(), 16, index)?;
        Some([u32_at(entry, 0)?, u32_at(entry, 4)?, u32_at(entry, 8)?])
    }

    fn region(&self, index: usize) -> Option<Region> {
        regions(self.map()).nth(index).map(|(region, _)| region)
    }

    fn memory_map_is_whole(&self) -> bool {
        regions(self.map()).last().is_some_and(|(_, rest)| rest.is_empty())
    }

    fn rsdps(&self) -> [Option<&'static [u8]>; 2] {
        [None; 2]
    }

    fn tables(&self) -> [&'static [u8]; 3] {
        [bytes(self.at, size_of::<Fields>() as u32), self.map(), self.module_list()]
    }
}

/// Each region with what lies behind it, up to the end or a cut-off or malformed entry.
fn regions(map: &'static [u8]) -> impl Iterator<Item = (Region, &'static [u8])> {
    let mut rest = map;
    core::iter::from_fn(move || {
        let (region, behind) = split_region(rest)?;
        rest = behind;
        Some((region, behind))
    })
}

/// An entry has its own size before it, which does not count itself.
fn split_region(map: &'static [u8]) -> Option<(Region, &'static [u8])> {
    let (size, behind) = map.split_first_chunk::<4>()?;
    let (entry, rest) = behind.split_at_checked(u32::from_le_bytes(*size) as usize)?;
    Some((region(entry)?, rest))
}
