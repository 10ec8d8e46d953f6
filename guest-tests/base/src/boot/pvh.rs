//! `hvm_start_info` (Xen's xen/include/public/arch-x86/hvm/start_info.h).

use abi::pvh::{MAGIC, MAP_ENTRY_BYTES, MODULE_BYTES, VERSION, info};

use super::{Information, Region, bytes, entry, region, u32_at};

/// Bytes of the RSDP of ACPI 1.0, and of later ones.
const RSDP_BYTES: [u32; 2] = [20, 36];

/// The structure. Addresses have 64 bits, of which the upper half is 0.
pub(super) struct Info(&'static [u8]);

impl Info {
    /// The one at `at`, if it is one of version 1 or later.
    pub(super) fn at(at: u32) -> Option<Self> {
        let start = Self(bytes(at, info::BYTES as u32));
        (start.field(info::MAGIC) == MAGIC && start.field(info::VERSION) >= VERSION).then_some(start)
    }

    fn field(&self, at: usize) -> u32 {
        u32_at(self.0, at).unwrap_or_default()
    }

    fn table(&self, address: usize, count: usize, entry_bytes: usize) -> &'static [u8] {
        bytes(self.field(address), self.field(count).saturating_mul(entry_bytes as u32))
    }

    fn module_list(&self) -> &'static [u8] {
        self.table(info::MODULES_ADDR, info::MODULES_COUNT, MODULE_BYTES)
    }

    fn map(&self) -> &'static [u8] {
        self.table(info::MAP_ADDR, info::MAP_COUNT, MAP_ENTRY_BYTES)
    }
}

impl Information for Info {
    fn command_line(&self) -> Option<u32> {
        Some(self.field(info::COMMAND_LINE)).filter(|&address| address != 0)
    }

    fn loader_name(&self) -> Option<u32> {
        None
    }

    fn memory_kib(&self) -> Option<[u32; 2]> {
        None
    }

    /// Address, size, the address of the string.
    fn module(&self, index: usize) -> Option<[u32; 3]> {
        let entry = entry(self.module_list(), MODULE_BYTES, index)?;
        let start = u32_at(entry, 0)?;
        Some([start, start.checked_add(u32_at(entry, 8)?)?, u32_at(entry, 16)?])
    }

    fn region(&self, index: usize) -> Option<Region> {
        region(entry(self.map(), MAP_ENTRY_BYTES, index)?)
    }

    fn memory_map_is_whole(&self) -> bool {
        true
    }

    /// One of them, by its revision.
    fn rsdps(&self) -> [Option<&'static [u8]>; 2] {
        let at = self.field(info::RSDP);
        let [old, new] = RSDP_BYTES.map(|size| (at != 0).then(|| bytes(at, size)));
        let is_new = old.is_some_and(|rsdp| rsdp[15] >= 2);
        if is_new { [None, new] } else { [old, None] }
    }

    fn tables(&self) -> [&'static [u8]; 3] {
        [self.0, self.map(), self.module_list()]
    }
}
