//! What a PC's firmware tells an operating system of the machine: ACPI tables and the MP table, made for a VM.
//!
//! [`Tables::new`] makes them from what the VM has. They lie in the BIOS area below 1 MiB, which no memory map offers as RAM and
//! which operating systems search:
//!
//! ```
//! use bios::{PcConfig, Processor, Tables};
//!
//! let processor = Processor { signature: 0x00a2_0f10, features: 0x078b_fbff };
//! let machine = PcConfig { vcpus: 4, processor, ioapic: true, hpet: None, pci_gsis: [16, 17, 18, 19] };
//! let tables = Tables::new(&machine);
//! // To be written to guest memory before the guest starts:
//! let (at, bytes) = (tables.range().start, tables.bytes());
//! assert_eq!(at.raw(), 0xf_0000);
//! let rsdp = (tables.rsdp().raw() - at.raw()) as usize;
//! assert!(bytes[rsdp..].starts_with(b"RSD PTR "));
//! ```
//!
//! | module | tables | specification |
//! | --- | --- | --- |
//! | `acpi` | RSDP, RSDT, XSDT, FADT, FACS, MADT, HPET | ACPI 6.5, chapter 5; IA-PC HPET 1.0a, section 3.2.4 |
//! | `dsdt` | DSDT: the devices and their resources | ACPI 6.5, chapters 6 and 20 |
//! | `mp` | floating pointer, configuration table | MultiProcessor Specification 1.4, chapter 4 |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod acpi;
mod dsdt;
mod mp;
#[cfg(test)]
mod tests;

pub use acpi::OEM_ID;

use abi::mmio;
use addr::Gpa;
use alloc::vec::Vec;
use core::ops::Range;

/// What of a VM its tables describe. The devices that every VM has are described always: PIC, PIT, RTC, keyboard controller,
/// COM1, PCI, and ACPI's fixed registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcConfig {
    /// How many vCPUs there are, 1 to 254. Their APIC IDs are the first ones.
    pub vcpus: u8,
    /// What each of them is.
    pub processor: Processor,
    /// Whether there is an IOAPIC. Its ID is the first after the vCPUs' APIC IDs; its pin 2 is the timer's. An 82093AA has four
    /// bits of it.
    pub ioapic: bool,
    /// The lower half of the HPET's capabilities register, if there is an HPET.
    pub hpet: Option<u32>,
    /// The GSIs, which are pins of the IOAPIC, of INTA to INTD of PCI device 0; the next device's begin with its INTB's, and so
    /// on (PCI-to-PCI Bridge Architecture Specification 1.2, table 9-1). Level-triggered and active low.
    pub pci_gsis: [u8; 4],
}

/// What CPUID's leaf 1 tells of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// EAX: family, model and stepping.
    pub signature: u32,
    /// EDX: features.
    pub features: u32,
}

/// The PCI device that is the bridge to the ISA bus.
const ISA_BRIDGE: u8 = 1;
/// The PCI devices whose interrupts are routed: all but the host bridge.
const PCI_DEVICES: Range<u8> = 1..32;

impl PcConfig {
    /// The GSI of `pin` (0 for INTA) of PCI device `device`.
    const fn pci_gsi(&self, device: u8, pin: u8) -> u8 {
        self.pci_gsis[((device + pin) % 4) as usize]
    }
}

/// A VM's tables, as bytes of guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    area: Area,
    acpi: acpi::Roots,
    mp_pointer: Option<Gpa>,
}

impl Tables {
    /// Makes the tables of `machine`.
    pub fn new(machine: &PcConfig) -> Self {
        let mut area = Area { bytes: Vec::new() };
        let mp_pointer = machine.ioapic.then(|| mp::place(machine, &mut area));
        let acpi = acpi::place(machine, &mut area);
        Self { area, acpi, mp_pointer }
    }

    /// Where the tables lie: between 0xf0000 and 0xf8000. A BIOS has its entry points behind.
    pub fn range(&self) -> Range<Gpa> {
        Area::START..self.area.end()
    }

    /// The bytes of [`range`](Self::range).
    pub fn bytes(&self) -> &[u8] {
        &self.area.bytes
    }

    /// Where the RSDP lies, by which operating systems find ACPI's tables. Boot protocols pass it on.
    pub fn rsdp(&self) -> Gpa {
        self.acpi.rsdp.0
    }

    /// Where the RSDT lies, as the RSDP says.
    pub fn rsdt(&self) -> Gpa {
        self.acpi.rsdt.0
    }

    /// Where the XSDT lies, as the RSDP says.
    pub fn xsdt(&self) -> Gpa {
        self.acpi.xsdt.0
    }

    /// Where the MP floating pointer lies. None without an IOAPIC, without which there is no MP table (MP Specification 1.4,
    /// section 3.6.5).
    pub fn mp_pointer(&self) -> Option<Gpa> {
        self.mp_pointer
    }
}

/// Guest memory that is filled from its start on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Of the areas that are searched for the MP floating pointer the only one that is no RAM (MP Specification 1.4, chapter 4).
    /// The RSDP is searched for there, too (ACPI 6.5, section 5.2.5.1).
    const START: Gpa = Gpa::new(mmio::BIOS_ROM.start as u64);
    /// As FACS has to be aligned. It suffices for all tables.
    const ALIGNMENT: usize = 64;

    fn end(&self) -> Gpa {
        Self::START.wrapping_add(self.bytes.len() as u64)
    }

    /// Adds a table.
    fn place(&mut self, table: &[u8]) -> Address {
        self.bytes.resize(self.bytes.len().next_multiple_of(Self::ALIGNMENT), 0);
        let at = self.end();
        self.bytes.extend_from_slice(table);
        Address(at)
    }
}

/// Where a table was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address(Gpa);

impl Address {
    /// As most tables have addresses; all tables are below 1 MiB.
    const fn dword(self) -> u32 {
        self.0.raw() as u32
    }
}

/// Sets the byte at `at` such that the sum of all bytes is 0.
fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[at] = bytes[at].wrapping_sub(sum);
}
