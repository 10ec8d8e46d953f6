//! What the crate `acpi` needs to read tables, and no more.

use acpi::{Handler, PciAddress, PhysicalMapping};
use addr::Hpa;
use core::ptr::NonNull;

/// Physical memory, as far as it is mapped.
pub trait PhysicalMemory: Clone {
    /// The address at which `size` bytes at `at` are mapped for as long as tables are read.
    fn pointer(&self, at: Hpa, size: usize) -> NonNull<u8>;
}

/// Memory from which static tables are read. AML is not interpreted, so nothing but the mapping is ever called.
#[derive(Clone, Copy, Debug)]
pub struct StaticTables<M>(pub M);

/// A call that only an AML interpreter makes.
fn unused() -> ! {
    unreachable!("only static tables are read")
}

impl<M: PhysicalMemory> Handler for StaticTables<M> {
    #[expect(unsafe_code, reason = "the trait declares the function unsafe; its body is safe")]
    unsafe fn map_physical_region<T>(&self, physical_address: usize, size: usize) -> PhysicalMapping<Self, T> {
        PhysicalMapping {
            physical_start: physical_address,
            virtual_start: self.0.pointer(Hpa::new(physical_address as u64), size).cast(),
            region_length: size,
            mapped_length: size,
            handler: self.clone(),
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
