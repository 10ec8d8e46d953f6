//! The machine's ACPI tables, found and mapped: [`firmware`] reads them.

use crate::cpus::MAX_CPUS;
use crate::paging;
use abi::acpi::RSDP_V1_BYTES;
use acpi::AcpiTables;
use addr::Hpa;
use core::ptr::NonNull;
use firmware::{PhysicalMemory, StaticTables};

/// The machine, as far as ACPI tells.
pub(crate) type Topology = firmware::Topology<MAX_CPUS>;

#[derive(Clone, Copy)]
struct DirectMap;

impl PhysicalMemory for DirectMap {
    fn pointer(&self, at: Hpa, _size: usize) -> NonNull<u8> {
        // The direct map has no address 0: its base is added.
        NonNull::new(paging::direct(at)).unwrap_or(NonNull::dangling())
    }
}

/// Reads the tables; None where there are none that make sense.
pub(crate) fn read() -> Option<Topology> {
    let read = |at| {
        let candidate = paging::direct(at).cast::<[u8; RSDP_V1_BYTES]>();
        // SAFETY: the first MiB is in the direct map, and any bytes are bytes.
        unsafe { candidate.read() }
    };
    let rsdp = firmware::find_rsdp(read)?;
    // SAFETY: signature and checksum say that an RSDP is there.
    let tables = unsafe { AcpiTables::from_rsdp(StaticTables(DirectMap), rsdp.raw() as usize) }.ok()?;
    Some(Topology::new(&tables))
}
