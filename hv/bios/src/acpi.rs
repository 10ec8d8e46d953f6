//! ACPI's tables but for the DSDT (ACPI specification 6.5, chapter 5).

use crate::{Address, Area, PcConfig, dsdt, set_checksum};
use abi::acpi::{RSDP_BYTES, RSDP_REVISION, RSDP_SIGNATURE, RSDP_V1_BYTES};
use abi::irq::{self, SCI, TIMER_PIN};
use abi::{mmio, ports};
use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;
use alloc::vec::Vec;

/// The maker of the machine, as the RSDP and all tables with ACPI's header have it.
pub const OEM_ID: [u8; 6] = *b"GUEST ";
const OEM_TABLE: [u8; 8] = *b"VM      ";
const OEM_REVISION: u32 = 1;

/// Where the tables are that lead to all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Roots {
    pub(crate) rsdp: Address,
    pub(crate) rsdt: Address,
    pub(crate) xsdt: Address,
}

/// Adds all tables.
pub(crate) fn place(machine: &PcConfig, area: &mut Area) -> Roots {
    let facs = area.place(&encoded(&FACS::new()));
    // Revision 2: integers have 64 bits.
    let dsdt = area.place(&table(*b"DSDT", 2, &dsdt::aml(machine)));
    let mut tables = Vec::from([area.place(&fadt(facs, dsdt)), area.place(&madt(machine))]);
    if let Some(id) = machine.hpet {
        tables.push(area.place(&hpet(id)));
    }
    let rsdt: Vec<u8> = tables.iter().flat_map(|table| table.dword().to_le_bytes()).collect();
    let xsdt: Vec<u8> = tables.iter().flat_map(|table| table.0.raw().to_le_bytes()).collect();
    let rsdt = area.place(&table(*b"RSDT", 1, &rsdt));
    let xsdt = area.place(&table(*b"XSDT", 1, &xsdt));
    let rsdp = area.place(&rsdp(rsdt, xsdt));
    Roots { rsdp, rsdt, xsdt }
}

fn encoded(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with the common header (section 5.2.6).
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    const HEADER: u32 = 36;
    let mut table = Sdt::new(signature, HEADER, revision, OEM_ID, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

/// Revision 2 (section 5.2.5.3): a checksum of the first 20 bytes, as ACPI 1.0 has it, and one of all.
fn rsdp(rsdt: Address, xsdt: Address) -> Vec<u8> {
    const CHECKSUM: usize = 8;
    const EXTENDED_CHECKSUM: usize = 32;
    let mut bytes = RSDP_SIGNATURE.to_vec();
    bytes.push(0);
    bytes.extend(OEM_ID);
    bytes.push(RSDP_REVISION);
    bytes.extend(rsdt.dword().to_le_bytes());
    bytes.extend((RSDP_BYTES as u32).to_le_bytes());
    bytes.extend(xsdt.0.raw().to_le_bytes());
    bytes.extend([0; 4]);
    set_checksum(&mut bytes[..RSDP_V1_BYTES], CHECKSUM);
    set_checksum(&mut bytes, EXTENDED_CHECKSUM);
    bytes
}

/// Some of `IAPC_BOOT_ARCH` (table 5.11).
mod boot_architecture {
    pub(super) const LEGACY_DEVICES: u16 = 1 << 0;
    pub(super) const KEYBOARD_CONTROLLER: u16 = 1 << 1;
    pub(super) const NO_VGA: u16 = 1 << 2;
}

/// Section 5.2.9. ACPI mode is on from the start: there is no SMI command, so there is no other mode.
fn fadt(facs: Address, dsdt: Address) -> Vec<u8> {
    use boot_architecture::{KEYBOARD_CONTROLLER, LEGACY_DEVICES, NO_VGA};
    /// So slow that the processor power states C2 and C3 do not exist.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE, OEM_REVISION);
    fadt.firmware_ctrl = facs.dword().into();
    fadt.dsdt = dsdt.dword().into();
    fadt.x_dsdt = dsdt.0.raw().into();
    fadt.sci_int = u16::from(SCI).into();
    fadt.pm1a_evt_blk = u32::from(ports::PM1_EVENT).into();
    fadt.pm1a_cnt_blk = u32::from(ports::PM1_CONTROL).into();
    fadt.pm_tmr_blk = u32::from(ports::PM_TIMER).into();
    [fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len] = [4, 2, 4];
    fadt.x_pm1a_evt_blk = GAS::new(AddressSpace::SystemIo, 32, 0, AccessSize::WordAccess, ports::PM1_EVENT.into());
    fadt.x_pm1a_cnt_blk = GAS::new(AddressSpace::SystemIo, 16, 0, AccessSize::WordAccess, ports::PM1_CONTROL.into());
    fadt.x_pm_tmr_blk = GAS::new(AddressSpace::SystemIo, 32, 0, AccessSize::DwordAccess, ports::PM_TIMER.into());
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = ports::RTC_CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | KEYBOARD_CONTROLLER | NO_VGA).into();
    fadt.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, ports::RESET_CONTROL.into());
    fadt.reset_value = ports::RESET_NOW;
    // PwrButton, SlpButton: the PM1 event registers have no buttons. FixRtc: they have no alarm of the RTC.
    let fadt = [Flags::Wbinvd, Flags::ProcC1, Flags::PwrButton, Flags::SlpButton, Flags::FixRtc, Flags::ResetRegSup]
        .into_iter()
        .fold(fadt, FADTBuilder::flag);
    encoded(&fadt.finalize())
}

/// Flags of the MADT's interrupt entries (table 5.26): active high and level-triggered.
const HIGH_LEVEL: u16 = 0b1101;
/// As the bus has it, which for ISA is active high and edge-triggered.
const BUS_DEFAULT: u16 = 0;

/// Section 5.2.12.
fn madt(machine: &PcConfig) -> Vec<u8> {
    /// There are two 8259s.
    const PCAT_COMPAT: u32 = 1;
    const REVISION: u8 = 6;
    let mut body = mmio::LOCAL_APIC.to_le_bytes().to_vec();
    body.extend(PCAT_COMPAT.to_le_bytes());
    for id in 0..machine.vcpus {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    if machine.ioapic {
        IoApic::new(machine.vcpus, mmio::IOAPIC, 0).to_aml_bytes(&mut body);
        body.extend(source_override(irq::TIMER, TIMER_PIN, BUS_DEFAULT));
        body.extend(source_override(SCI, SCI, HIGH_LEVEL));
    }
    body.extend(nmi_on_lint1());
    table(*b"APIC", REVISION, &body)
}

/// ISA's interrupt `irq` is that of `gsi` (section 5.2.12.5).
fn source_override(irq: u8, gsi: u8, flags: u16) -> [u8; 10] {
    const ISA: u8 = 0;
    let [low, high] = flags.to_le_bytes();
    [2, 10, ISA, irq, gsi, 0, 0, 0, low, high]
}

/// Local APIC NMI (section 5.2.12.7).
fn nmi_on_lint1() -> [u8; 6] {
    const ALL_PROCESSORS: u8 = 0xff;
    let [low, high] = BUS_DEFAULT.to_le_bytes();
    [4, 6, ALL_PROCESSORS, low, high, 1]
}

/// The HPET's description table (IA-PC HPET 1.0a, section 3.2.4).
fn hpet(id: u32) -> Vec<u8> {
    /// The least ticks of a periodic timer whose interrupts are not lost, as QEMU has it.
    const MIN_TICKS: u16 = 100;
    const NUMBER: u8 = 0;
    const PAGE_PROTECTION: u8 = 0;
    let mut body = id.to_le_bytes().to_vec();
    GAS::new(AddressSpace::SystemMemory, 64, 0, AccessSize::Undefined, mmio::HPET.into()).to_aml_bytes(&mut body);
    body.push(NUMBER);
    body.extend(MIN_TICKS.to_le_bytes());
    body.push(PAGE_PROTECTION);
    table(*b"HPET", 1, &body)
}
