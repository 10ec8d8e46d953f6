//! The machine as its firmware describes it in ACPI tables, processors (MADT) and the PM timer (FADT), and the start of the
//! processors ([`start_others`]).
//!
//! The crate knows no hardware. The image finds the tables ([`find_rsdp`]), says where memory is mapped
//! ([`PhysicalMemory`]), and passes the tables to [`Topology::new`].
//!
//! ```
//! use abi::acpi::{RSDP_SIGNATURE, RSDP_V1_BYTES};
//! use addr::Hpa;
//! use firmware::find_rsdp;
//!
//! // The first MiB of a machine, whose BIOS has put the pointer to its tables at 0xf5a40. All bytes of it sum up to zero.
//! let mut memory = vec![0u8; 1 << 20];
//! let rsdp = &mut memory[0xf_5a40..][..RSDP_V1_BYTES];
//! rsdp[..8].copy_from_slice(RSDP_SIGNATURE);
//! rsdp[8] = rsdp.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg();
//!
//! let read = |at: Hpa| std::array::from_fn(|n| memory[at.raw() as usize + n]);
//! assert_eq!(find_rsdp(read), Some(Hpa::new(0xf_5a40)));
//! assert_eq!(find_rsdp(|_| [0; RSDP_V1_BYTES]), None, "a machine without ACPI");
//! ```
#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

mod cpus;
mod handler;
mod startup;
#[cfg(test)]
#[expect(unsafe_code, reason = "`AcpiTables::from_rsdp` is an unsafe function")]
mod tests;

pub use cpus::CpuTable;
pub use handler::{PhysicalMemory, StaticTables};
pub use startup::{LeftOut, StartUp, start_others};

use abi::acpi::{RSDP_SIGNATURE, RSDP_V1_BYTES};
use acpi::sdt::fadt::Fadt;
use acpi::sdt::madt::{Madt, MadtEntry};
use acpi::{AcpiTables, Handler};
use addr::Hpa;
use arrayvec::ArrayVec;
use core::fmt;

/// The machine's processors and timer.
///
/// `MAX` is the number of processors whose APIC IDs are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology<const MAX: usize> {
    /// The number of processors that are enabled.
    pub processors: usize,
    /// The APIC IDs of the first of them.
    pub apic_ids: ArrayVec<u32, MAX>,
    /// The physical address of the local APICs.
    pub local_apic: Option<Hpa>,
    /// The port of the PM timer, which counts at 3.579545 MHz.
    pub pm_timer: Option<u16>,
}

/// Looks for the RSDP where a BIOS puts it, on 16-byte boundaries (ACPI specification 6.5, section 5.2.5.1).
///
/// `read` gives the bytes at an address of the first MiB.
pub fn find_rsdp(read: impl Fn(Hpa) -> [u8; RSDP_V1_BYTES]) -> Option<Hpa> {
    const AREAS: [core::ops::Range<u64>; 2] = [0x9_fc00..0xa_0000, 0xe_0000..0x10_0000];
    AREAS.into_iter().flat_map(|area| area.step_by(16)).map(Hpa::new).find(|&address| {
        let bytes = read(address);
        bytes.starts_with(RSDP_SIGNATURE) && bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)) == 0
    })
}

impl<const MAX: usize> Topology<MAX> {
    /// Reads the tables. A table that is missing leaves its part empty.
    pub fn new(tables: &AcpiTables<impl Handler>) -> Self {
        let mut topology =
            Self { processors: 0, apic_ids: ArrayVec::new(), local_apic: None, pm_timer: pm_timer(tables) };
        // The iterator of `acpi` subtracts the header's length from the table's.
        let is_whole = |madt: &Madt| madt.header.length as usize >= size_of::<Madt>();
        if let Some(madt) = tables.find_table::<Madt>()
            && is_whole(&madt.get())
        {
            topology.local_apic = Some(Hpa::new(u64::from(madt.get().local_apic_address)));
            madt.get().entries().for_each(|entry| topology.add(&entry));
        }
        topology
    }

    fn add(&mut self, entry: &MadtEntry<'_>) {
        if let MadtEntry::LocalApicAddressOverride(entry) = entry {
            self.local_apic = Some(Hpa::new(entry.local_apic_address));
        }
        if let Some(id) = processor(entry) {
            self.processors += 1;
            // A full list keeps the first of them.
            let _ = self.apic_ids.try_push(id);
        }
    }
}

impl<const MAX: usize> fmt::Display for Topology<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ACPI: {} processors", self.processors)?;
        if let Some(address) = self.local_apic {
            write!(f, ", local APICs at {address}")?;
        }
        if let Some(port) = self.pm_timer {
            write!(f, ", PM timer at port {port:#x}")?;
        }
        Ok(())
    }
}

/// The APIC ID of an entry that is a processor, and enabled (ACPI specification 6.5, table 5.21: flags bit 0).
fn processor(entry: &MadtEntry<'_>) -> Option<u32> {
    match entry {
        MadtEntry::LocalApic(apic) if apic.flags & 1 != 0 => Some(apic.apic_id.into()),
        MadtEntry::LocalX2Apic(apic) if apic.flags & 1 != 0 => Some(apic.x2apic_id),
        _ => None,
    }
}

fn pm_timer(tables: &AcpiTables<impl Handler>) -> Option<u16> {
    let register = tables.find_table::<Fadt>()?.pm_timer_block().ok()??;
    u16::try_from(register.address).ok()
}
