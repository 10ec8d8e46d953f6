//! The structures by which a PVH guest is started: Xen's `xen/include/public/arch-x86/hvm/start_info.h`.

/// "xEn3", with bit 7 of the E set.
pub const MAGIC: u32 = 0x336e_c578;
/// The first version of the structure that has a memory map.
pub const VERSION: u32 = 1;

/// Offsets of the fields of `hvm_start_info`.
pub mod info {
    /// [`MAGIC`](super::MAGIC).
    pub const MAGIC: usize = 0;
    /// The structure's version.
    pub const VERSION: usize = 4;
    /// How many modules there are.
    pub const MODULES_COUNT: usize = 12;
    /// Where their entries are.
    pub const MODULES_ADDR: usize = 16;
    /// Where the command line is.
    pub const COMMAND_LINE: usize = 24;
    /// Where the RSDP is.
    pub const RSDP: usize = 32;
    /// Where the memory map is.
    pub const MAP_ADDR: usize = 40;
    /// How many entries it has.
    pub const MAP_COUNT: usize = 48;
    /// The structure's bytes, in [version 1](super::VERSION).
    pub const BYTES: usize = 56;
}

/// `hvm_modlist_entry`: address, size, address of the command line, reserved; 64 bits each.
pub const MODULE_BYTES: usize = 32;
/// `hvm_memmap_table_entry`: address and size of 64 bits, type and a reserved field of 32 bits.
pub const MAP_ENTRY_BYTES: usize = 24;
