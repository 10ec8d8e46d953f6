//! The specification's numbers, for the parser of the hypervisor's boot information and the builder of the guests' one.

/// The magic number in the header of an image (section 3.1.1).
pub(crate) const HEADER_MAGIC: u32 = 0x1bad_b002;
/// "The Multiboot header must be contained completely within the first 8192 bytes of the OS image."
pub(crate) const HEADER_SEARCH_BYTES: usize = 8192;

/// EAX at entry: "The value 0x2BADB002 indicates to the operating system that it was loaded by a Multiboot-compliant boot
/// loader" (section 3.2).
pub(crate) const LOADER_EAX: u32 = 0x2bad_b002;

/// Bits 0 to 15 of the header's flags are requirements.
pub(crate) mod required {
    pub(crate) const PAGE_ALIGNED_MODULES: u32 = 1 << 0;
    pub(crate) const MEMORY_INFORMATION: u32 = 1 << 1;
    pub(crate) const VIDEO_MODE: u32 = 1 << 2;
    pub(crate) const ALL: u32 = 0xffff;
}

/// Bit 16 of the header's flags: the address fields are valid.
pub(crate) const HAS_ADDRESS_FIELDS: u32 = 1 << 16;

/// Flags of the information structure (section 3.3).
pub(crate) mod flag {
    pub(crate) const MEMORY: u32 = 1 << 0;
    pub(crate) const COMMAND_LINE: u32 = 1 << 2;
    pub(crate) const MODULES: u32 = 1 << 3;
    pub(crate) const MEMORY_MAP: u32 = 1 << 6;
    pub(crate) const LOADER_NAME: u32 = 1 << 9;
}

/// Offsets of fields in the information structure.
pub(crate) mod info {
    pub(crate) const FLAGS: usize = 0;
    pub(crate) const MEM_LOWER: usize = 4;
    pub(crate) const MEM_UPPER: usize = 8;
    pub(crate) const COMMAND_LINE: usize = 16;
    pub(crate) const MODULES_COUNT: usize = 20;
    pub(crate) const MODULES_ADDR: usize = 24;
    pub(crate) const MAP_LENGTH: usize = 44;
    pub(crate) const MAP_ADDR: usize = 48;
    pub(crate) const LOADER_NAME: usize = 64;
    /// The size including the fields of the video mode, which stay zero.
    pub(crate) const BYTES: usize = 116;
}

/// A module's entry: start, end, string, reserved, 32 bits each.
pub(crate) const MODULE_BYTES: usize = 16;

/// The `size` field of a memory map entry, which does not include itself: base and length of 64 bits, type of 32 bits.
pub(crate) const MAP_ENTRY_SIZE: u32 = 20;
/// The bytes of an entry including its `size` field.
pub(crate) const MAP_ENTRY_BYTES: usize = MAP_ENTRY_SIZE as usize + 4;

/// Types of memory map entries.
pub(crate) mod map_type {
    pub(crate) const USABLE: u32 = 1;
    pub(crate) const RESERVED: u32 = 2;
    pub(crate) const ACPI_RECLAIMABLE: u32 = 3;
    pub(crate) const ACPI_NVS: u32 = 4;
    pub(crate) const DEFECTIVE: u32 = 5;
}

/// The little-endian 32-bit value at `offset`, or None if it is beyond the end.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The little-endian 64-bit value at `offset`, or None if it is beyond the end.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The offset of the first header in the first `limit` bytes of `file`: `magic`, at a multiple of `align`, begins `WORDS` words
/// whose sum is zero.
///
/// # Errors
/// The offset of the first `magic` with another sum, if there is no header.
pub(crate) fn find_header<const WORDS: usize>(
    file: &[u8],
    magic: u32,
    align: usize,
    limit: usize,
) -> Result<Option<usize>, usize> {
    let searched = &file[..file.len().min(limit)];
    let mut wrong = None;
    for (n, header) in searched.windows(WORDS * 4).step_by(align).enumerate() {
        if u32_at(header, 0) != Some(magic) {
            continue;
        }
        let (words, _) = header.as_chunks();
        let sum = words.iter().fold(0u32, |sum, word| sum.wrapping_add(u32::from_le_bytes(*word)));
        if sum == 0 {
            return Ok(Some(n * align));
        }
        wrong = wrong.or(Some(n * align));
    }
    wrong.map_or(Ok(None), Err)
}
