//! The numbers of the Multiboot2 Specification, version 2.0: of the images' headers, and of the boot information that a loader hands over.

/// The magic number in the header of an image (section 3.1.2).
pub const HEADER_MAGIC: u32 = 0xe852_50d6;
/// "The Multiboot2 header must be contained completely within the first 32768 bytes of the OS image" (section 3.1.1).
pub const HEADER_SEARCH_BYTES: usize = 32768;
/// EAX at entry (section 3.3).
pub const LOADER_EAX: u32 = 0x36d7_6289;
/// The architecture of a header: 32-bit protected mode.
pub const I386: u32 = 0;

/// Offsets in the header (section 3.1.2).
pub mod header {
    /// It makes the sum of the header's four fields zero.
    pub const CHECKSUM: usize = 12;
    /// The bytes of the four fields: magic number, architecture, length, checksum. Tags follow.
    pub const FIXED_BYTES: usize = 16;
}

/// Types of the header's tags (sections 3.1.4 to 3.1.13).
pub mod header_tag {
    /// There are no more.
    pub const END: u16 = 0;
    /// Types of boot information that the image needs: [`information`](super::information).
    pub const INFORMATION_REQUEST: u16 = 1;
    /// Where the image is to be loaded.
    pub const ADDRESS: u16 = 2;
    /// Where it is entered.
    pub const ENTRY_ADDRESS: u16 = 3;
    /// Which consoles it can do with.
    pub const CONSOLE_FLAGS: u16 = 4;
    /// The video mode that it wants.
    pub const FRAMEBUFFER: u16 = 5;
    /// Modules begin at pages.
    pub const MODULE_ALIGNMENT: u16 = 6;
    /// EFI's boot services are left on.
    pub const EFI_BOOT_SERVICES: u16 = 7;
    /// Where 32-bit EFI enters it.
    pub const EFI_I386_ENTRY: u16 = 8;
    /// Where 64-bit EFI enters it.
    pub const EFI_AMD64_ENTRY: u16 = 9;
    /// It can be loaded elsewhere.
    pub const RELOCATABLE: u16 = 10;
    /// "If bit 0 of 'flags' (also known as 'optional') is set, the bootloader may ignore this tag if it lacks relevant support."
    pub const OPTIONAL: u16 = 1;
}

/// Types of the boot information's tags (section 3.6).
pub mod information {
    /// There are no more.
    pub const END: u32 = 0;
    /// The command line.
    pub const COMMAND_LINE: u32 = 1;
    /// The loader's name.
    pub const LOADER_NAME: u32 = 2;
    /// A module.
    pub const MODULES: u32 = 3;
    /// KiB of memory below and above 1 MiB.
    pub const MEMORY: u32 = 4;
    /// The memory map.
    pub const MEMORY_MAP: u32 = 6;
    /// Tables of the firmware that no VM has.
    pub const SMBIOS: u32 = 13;
    /// The RSDP of ACPI 1.0.
    pub const ACPI_OLD: u32 = 14;
    /// The RSDP of ACPI 2.0 and later.
    pub const ACPI_NEW: u32 = 15;
    /// Where a relocatable image was loaded.
    pub const LOAD_BASE: u32 = 21;
}
