//! The root system description pointer (RSDP), by which an operating system finds ACPI's tables (ACPI specification 6.5, section
//! 5.2.5.3): a VM's guests find it in memory or in their boot information, and the hypervisor that of its machine.

/// What it begins with.
pub const RSDP_SIGNATURE: &[u8; 8] = b"RSD PTR ";
/// The revision of ACPI 2.0 and later.
pub const RSDP_REVISION: u8 = 2;
/// Bytes of revision 2.
pub const RSDP_BYTES: usize = 36;
/// Bytes of ACPI 1.0's, which later ones begin with.
pub const RSDP_V1_BYTES: usize = 20;
