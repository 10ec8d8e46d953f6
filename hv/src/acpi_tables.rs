//! What the firmware's ACPI tables say of this machine: its processors (MADT) and its timer (FADT).

use crate::paging;
use crate::smp::MAX_CPUS;
use acpi::sdt::fadt::Fadt;
use acpi::sdt::madt::{Madt, MadtEntry};
use acpi::{AcpiTables, Handler, PciAddress, PhysicalMapping};
use addr::Hpa;
use core::ptr::NonNull;

/// Where `acpi` finds physical memory. It only reads tables; nothing here interprets AML, so nothing asks for more.
#[derive(Clone, Copy)]
struct DirectMap;

/// A call that only an AML interpreter makes.
fn unused() -> ! {
    unreachable!("only static tables are read")
}

impl Handler for DirectMap {
    unsafe fn map_physical_region<T>(&self, physical_address: usize, size: usize) -> PhysicalMapping<Self, T> {
        let pointer = paging::direct(Hpa::new(physical_address as u64)).cast::<T>();
        // The direct map has no address 0: its base is added.
        let virtual_start = NonNull::new(pointer).unwrap_or(NonNull::dangling());
        PhysicalMapping {
            physical_start: physical_address,
            virtual_start,
            region_length: size,
            mapped_length: size,
            handler: *self,
        }
    }
    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}

    fn read_u8(&self, _address: usize) -> u8 {
        unused()
    }
    fn read_u16(&self, _address: usize) -> u16 {
        unused()
    }
    fn read_u32(&self, _address: usize) -> u32 {
        unused()
    }
    fn read_u64(&self, _address: usize) -> u64 {
        unused()
    }
    fn write_u8(&self, _address: usize, _value: u8) {
        unused()
    }
    fn write_u16(&self, _address: usize, _value: u16) {
        unused()
    }
    fn write_u32(&self, _address: usize, _value: u32) {
        unused()
    }
    fn write_u64(&self, _address: usize, _value: u64) {
        unused()
    }
    fn read_io_u8(&self, _port: u16) -> u8 {
        unused()
    }
    fn read_io_u16(&self, _port: u16) -> u16 {
        unused()
    }
    fn read_io_u32(&self, _port: u16) -> u32 {
        unused()
    }
    fn write_io_u8(&self, _port: u16, _value: u8) {
        unused()
    }
    fn write_io_u16(&self, _port: u16, _value: u16) {
        unused()
    }
    fn write_io_u32(&self, _port: u16, _value: u32) {
        unused()
    }
    fn read_pci_u8(&self, _address: PciAddress, _offset: u16) -> u8 {
        unused()
    }
    fn read_pci_u16(&self, _address: PciAddress, _offset: u16) -> u16 {
        unused()
    }
    fn read_pci_u32(&self, _address: PciAddress, _offset: u16) -> u32 {
        unused()
    }
    fn write_pci_u8(&self, _address: PciAddress, _offset: u16, _value: u8) {
        unused()
    }
    fn write_pci_u16(&self, _address: PciAddress, _offset: u16, _value: u16) {
        unused()
    }
    fn write_pci_u32(&self, _address: PciAddress, _offset: u16, _value: u32) {
        unused()
    }
    fn nanos_since_boot(&self) -> u64 {
        unused()
    }
    fn stall(&self, _microseconds: u64) {
        unused()
    }
    fn sleep(&self, _milliseconds: u64) {
        unused()
    }
    fn create_mutex(&self) -> acpi::Handle {
        unused()
    }
    fn acquire(&self, _mutex: acpi::Handle, _timeout: u16) -> Result<(), acpi::aml::AmlError> {
        unused()
    }
    fn release(&self, _mutex: acpi::Handle) {
        unused()
    }
}

/// The machine, as far as ACPI tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// How many processors may be started.
    pub(crate) processors: usize,
    /// The APIC IDs of the first of them.
    apic_ids: [u32; MAX_CPUS],
    /// Physical address of the local APICs.
    pub(crate) local_apic: Option<Hpa>,
    /// Port of the 3.579545 MHz timer.
    pub(crate) pm_timer: Option<u16>,
}

impl Machine {
    /// The APIC IDs of the processors that may be started, as many as can take part.
    pub(crate) fn apic_ids(&self) -> impl Iterator<Item = u32> {
        self.apic_ids.into_iter().take(self.processors)
    }
}

/// Looks for the RSDP where BIOSes put it, on 16-byte boundaries (ACPI specification 6.5, section 5.2.5.1).
fn find_rsdp() -> Option<Hpa> {
    const AREAS: [core::ops::Range<u64>; 2] = [0x9_fc00..0xa_0000, 0xe_0000..0x10_0000];
    AREAS.into_iter().flat_map(|area| area.step_by(16)).map(Hpa::new).find(|&address| {
        let candidate = paging::direct(address).cast::<[u8; 20]>();
        // SAFETY: the first MiB is in the direct map, and any bytes are bytes.
        let bytes = unsafe { candidate.read() };
        bytes.starts_with(b"RSD PTR ") && bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)) == 0
    })
}

/// Reads the tables; None where there are none that make sense.
pub(crate) fn read() -> Option<Machine> {
    let rsdp = find_rsdp()?;
    // SAFETY: signature and checksum say that an RSDP is there.
    let tables = unsafe { AcpiTables::from_rsdp(DirectMap, rsdp.raw() as usize) }.ok()?;
    let mut machine = Machine { processors: 0, apic_ids: [0; MAX_CPUS], local_apic: None, pm_timer: None };
    if let Some(madt) = tables.find_table::<Madt>() {
        machine.local_apic = Some(Hpa::new(u64::from(madt.get().local_apic_address)));
        for (index, id) in madt.get().entries().filter_map(|entry| processor(&entry)).enumerate() {
            machine.processors = index + 1;
            if let Some(place) = machine.apic_ids.get_mut(index) {
                *place = id;
            }
        }
    }
    if let Some(fadt) = tables.find_table::<Fadt>() {
        machine.pm_timer =
            fadt.pm_timer_block().ok().flatten().and_then(|register| u16::try_from(register.address).ok());
    }
    Some(machine)
}

/// The APIC ID of an entry that is a processor, and enabled (ACPI specification 6.5, table 5.21: flags bit 0).
fn processor(entry: &MadtEntry<'_>) -> Option<u32> {
    match entry {
        MadtEntry::LocalApic(apic) if apic.flags & 1 != 0 => Some(apic.apic_id.into()),
        MadtEntry::LocalX2Apic(apic) if apic.flags & 1 != 0 => Some(apic.x2apic_id),
        _ => None,
    }
}
