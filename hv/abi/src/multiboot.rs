//! The numbers of the Multiboot Specification, 0.6.96: of the images' headers, and of the boot information that a loader hands over.

/// The magic number in the header of an image (section 3.1.1).
pub const HEADER_MAGIC: u32 = 0x1bad_b002;
/// "The Multiboot header must be contained completely within the first 8192 bytes of the OS image."
pub const HEADER_SEARCH_BYTES: usize = 8192;

/// EAX at entry: "The value 0x2BADB002 indicates to the operating system that it was loaded by a Multiboot-compliant boot
/// loader" (section 3.2).
pub const LOADER_EAX: u32 = 0x2bad_b002;

/// Bits 0 to 15 of the header's flags are requirements.
pub mod required {
    /// Modules begin at pages.
    pub const PAGE_ALIGNED_MODULES: u32 = 1 << 0;
    /// The boot information tells of memory.
    pub const MEMORY_INFORMATION: u32 = 1 << 1;
    /// The boot information tells of the video mode.
    pub const VIDEO_MODE: u32 = 1 << 2;
    /// The bits that are requirements.
    pub const ALL: u32 = 0xffff;
}

/// Bit 16 of the header's flags: the address fields are valid.
pub const HAS_ADDRESS_FIELDS: u32 = 1 << 16;

/// Flags of the information structure (section 3.3).
pub mod flag {
    /// [`info::MEM_LOWER`](super::info::MEM_LOWER) and [`info::MEM_UPPER`](super::info::MEM_UPPER) are valid.
    pub const MEMORY: u32 = 1 << 0;
    /// [`info::COMMAND_LINE`](super::info::COMMAND_LINE) is valid.
    pub const COMMAND_LINE: u32 = 1 << 2;
    /// The table of modules is valid.
    pub const MODULES: u32 = 1 << 3;
    /// The memory map is valid.
    pub const MEMORY_MAP: u32 = 1 << 6;
    /// [`info::LOADER_NAME`](super::info::LOADER_NAME) is valid.
    pub const LOADER_NAME: u32 = 1 << 9;
}

/// Offsets of fields in the header (section 3.1.1).
pub mod header {
    /// The requirements and whether there are address fields.
    pub const FLAGS: usize = 4;
    /// It makes the sum with the magic number and the flags zero.
    pub const CHECKSUM: usize = 8;
    /// Of the address fields, where the memory ends that is to be zeroed.
    pub const BSS_END: usize = 24;
}

/// The flags of this project's images. QEMU takes an ELF64 only with address fields.
pub const OUR_FLAGS: u32 = required::PAGE_ALIGNED_MODULES | required::MEMORY_INFORMATION | HAS_ADDRESS_FIELDS;

/// Offsets of fields in the information structure.
pub mod info {
    /// [`flag`](super::flag).
    pub const FLAGS: usize = 0;
    /// KiB below 640 KiB.
    pub const MEM_LOWER: usize = 4;
    /// KiB above 1 MiB.
    pub const MEM_UPPER: usize = 8;
    /// The command line's address.
    pub const COMMAND_LINE: usize = 16;
    /// How many modules there are.
    pub const MODULES_COUNT: usize = 20;
    /// Where their entries are.
    pub const MODULES_ADDR: usize = 24;
    /// Bytes of the memory map.
    pub const MAP_LENGTH: usize = 44;
    /// Where it is.
    pub const MAP_ADDR: usize = 48;
    /// Where the loader's name is.
    pub const LOADER_NAME: usize = 64;
    /// The size including the fields of the video mode, which stay zero.
    pub const BYTES: usize = 116;
}

/// A module's entry: start, end, string, reserved, 32 bits each.
pub const MODULE_BYTES: usize = 16;

/// The `size` field of a memory map entry, which does not include itself: base and length of 64 bits, type of 32 bits.
pub const MAP_ENTRY_SIZE: u32 = 20;
/// The bytes of an entry including its `size` field.
pub const MAP_ENTRY_BYTES: usize = MAP_ENTRY_SIZE as usize + 4;

/// Types of memory map entries.
pub mod map_type {
    /// RAM that may be used.
    pub const USABLE: u32 = 1;
    /// Not to be used.
    pub const RESERVED: u32 = 2;
    /// ACPI's tables, RAM once they were read.
    pub const ACPI_RECLAIMABLE: u32 = 3;
    /// To be kept over sleep.
    pub const ACPI_NVS: u32 = 4;
    /// RAM that is broken.
    pub const DEFECTIVE: u32 = 5;
}
