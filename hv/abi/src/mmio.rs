//! Guest-physical addresses of a PC's memory-mapped devices.

/// The hole below 4 GiB that has no RAM, up to the first of the chipset's devices: room for the BARs of PCI devices.
pub const PCI_WINDOW: core::ops::Range<u32> = 0xc000_0000..IOAPIC;
/// The IOAPIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The low byte of the IOAPIC's version register: an 82093AA with an EOI register, as in the ICH9.
pub const IOAPIC_VERSION: u8 = 0x20;
/// The HPET.
pub const HPET: u32 = 0xfed0_0000;
/// The local APICs, after reset.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
