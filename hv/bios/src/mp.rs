//! The MP table (MultiProcessor Specification 1.4, chapter 4), for kernels that don't know ACPI.

use crate::{Area, PCI_DEVICES, PcConfig, Processor, set_checksum};
use abi::irq::{self, SCI, TIMER_PIN};
use abi::mmio;
use addr::Gpa;
use alloc::vec::Vec;

/// Version 1.4.
const SPECIFICATION: u8 = 4;

/// The buses, by their numbers.
const PCI: u8 = 0;
const ISA: u8 = 1;
const BUSES: [(u8, &[u8; 6]); 2] = [(PCI, b"PCI   "), (ISA, b"ISA   ")];

/// Adds the table, and gives the place of its floating pointer.
pub(crate) fn place(machine: &PcConfig, area: &mut Area) -> Gpa {
    let table = area.place(&configuration(machine));
    area.place(&floating_pointer(table.dword())).0
}

/// Section 4.1. The second feature byte says that interrupts reach the boot processor by virtual wire: there is no IMCR.
fn floating_pointer(table: u32) -> [u8; 16] {
    const PARAGRAPHS: u8 = 1;
    const CHECKSUM: usize = 10;
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&table.to_le_bytes());
    bytes[8..10].copy_from_slice(&[PARAGRAPHS, SPECIFICATION]);
    set_checksum(&mut bytes, CHECKSUM);
    bytes
}

/// Section 4.2: a header, and the entries, which are in the order of their types.
fn configuration(machine: &PcConfig) -> Vec<u8> {
    const HEADER: usize = 44;
    const CHECKSUM: usize = 7;
    let entries = Entries::new(machine);
    let length = (HEADER + entries.bytes.len()) as u16;
    let mut bytes = b"PCMP".to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend([SPECIFICATION, 0]);
    bytes.extend(b"GUEST   VM          ");
    // No table of the OEM's.
    bytes.extend([0; 6]);
    bytes.extend(entries.count.to_le_bytes());
    bytes.extend(mmio::LOCAL_APIC.to_le_bytes());
    // No extended entries.
    bytes.extend([0; 4]);
    bytes.extend(entries.bytes);
    set_checksum(&mut bytes, CHECKSUM);
    bytes
}

/// Where an interrupt comes from, for [`Entries::interrupt`] (tables 4-9 to 4-11).
struct Source {
    kind: u8,
    flags: u16,
    bus: u8,
    irq: u8,
}

/// Kinds of interrupts.
mod kind {
    pub(super) const INT: u8 = 0;
    pub(super) const NMI: u8 = 1;
    pub(super) const EXT_INT: u8 = 3;
}

/// As the bus has it; active high and level-triggered.
const BUS_DEFAULT: u16 = 0;
const HIGH_LEVEL: u16 = 0b1101;

#[derive(Default)]
struct Entries {
    count: u16,
    bytes: Vec<u8>,
}

impl Entries {
    fn new(machine: &PcConfig) -> Self {
        let mut entries = Self::default();
        (0..machine.vcpus).for_each(|id| entries.processor(id, machine.processor));
        for (number, name) in BUSES {
            let [a, b, c, d, e, f] = *name;
            entries.add(&[1, number, a, b, c, d, e, f]);
        }
        entries.ioapic(machine.vcpus);
        entries.io_interrupts(machine);
        entries.local_interrupts();
        entries
    }

    fn add(&mut self, entry: &[u8]) {
        self.count += 1;
        self.bytes.extend_from_slice(entry);
    }

    fn processor(&mut self, id: u8, processor: Processor) {
        const ENABLED: u8 = 1;
        const BOOT: u8 = 2;
        /// Family, model and stepping, four bits each.
        const SIGNATURE: u32 = 0xfff;
        let flags = if id == 0 { ENABLED | BOOT } else { ENABLED };
        let mut entry = [0; 20];
        entry[1..4].copy_from_slice(&[id, arch::apic::VERSION, flags]);
        entry[4..8].copy_from_slice(&(processor.signature & SIGNATURE).to_le_bytes());
        entry[8..12].copy_from_slice(&processor.features.to_le_bytes());
        self.add(&entry);
    }

    fn ioapic(&mut self, id: u8) {
        const ENABLED: u8 = 1;
        let [a, b, c, d] = mmio::IOAPIC.to_le_bytes();
        self.add(&[2, id, mmio::IOAPIC_VERSION, ENABLED, a, b, c, d]);
    }

    /// An I/O interrupt (type 3) or a local one (type 4), to a pin of an APIC.
    fn interrupt(&mut self, entry: u8, source: Source, apic: u8, pin: u8) {
        let [low, high] = source.flags.to_le_bytes();
        self.add(&[entry, source.kind, low, high, source.bus, source.irq, apic, pin]);
    }

    /// ISA's, without IRQ 2, which is the cascade of the 8259s, and those that PCI has. PCI's, of which a source is device and pin
    /// (section D.3).
    fn io_interrupts(&mut self, machine: &PcConfig) {
        const ENTRY: u8 = 3;
        const CASCADE: u8 = 2;
        for irq in (0..16).filter(|irq| *irq != CASCADE && !machine.pci_gsis.contains(irq)) {
            let flags = if irq == SCI { HIGH_LEVEL } else { BUS_DEFAULT };
            let pin = if irq == irq::TIMER { TIMER_PIN } else { irq };
            self.interrupt(ENTRY, Source { kind: kind::INT, flags, bus: ISA, irq }, machine.vcpus, pin);
        }
        for (device, pin) in PCI_DEVICES.flat_map(|device| (0..4).map(move |pin| (device, pin))) {
            let source = Source { kind: kind::INT, flags: BUS_DEFAULT, bus: PCI, irq: device << 2 | pin };
            self.interrupt(ENTRY, source, machine.vcpus, machine.pci_gsi(device, pin));
        }
    }

    /// The 8259s' on LINT0 and NMIs on LINT1 of every processor.
    fn local_interrupts(&mut self) {
        const ENTRY: u8 = 4;
        const ALL: u8 = 0xff;
        for (kind, pin) in [(kind::EXT_INT, 0), (kind::NMI, 1)] {
            self.interrupt(ENTRY, Source { kind, flags: BUS_DEFAULT, bus: ISA, irq: 0 }, ALL, pin);
        }
    }
}
