//! Guest-physical addresses of a PC's memory-mapped devices.

/// The BIOS's ROM below 1 MiB.
pub const BIOS_ROM: core::ops::Range<u32> = 0xf_0000..0x10_0000;
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
/// What the hypervisor needs in a guest's memory, just below where a PC has its BIOS's ROM once more; reserved in memory maps. At its
/// start is the identity map with which unpaged code runs on a processor that has no unrestricted guest. KVM has its own there, too.
pub const IDENTITY_MAP: u32 = 0xfffb_c000;
