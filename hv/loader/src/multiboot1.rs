//! Guests that multiboot loads: their header, and the boot information that they get (the specification, 0.6.96).

use crate::block::Block;
use crate::elf_file;
use crate::image::{Image, ImageError, Part, SEGMENT_LIMIT, Segment, file_range};
use crate::load::{LOADER_NAME, LoadError, Module, Target};
use crate::memory::GuestMemory;
use crate::memory_map::MemoryMap;
use crate::multiboot::{
    HAS_ADDRESS_FIELDS, HEADER_MAGIC, HEADER_SEARCH_BYTES, LOADER_EAX, MAP_ENTRY_BYTES, MAP_ENTRY_SIZE, MODULE_BYTES,
    find_header, flag, info, required, u32_at,
};
use addr::Gpa;
use alloc::{vec, vec::Vec};
use arch::entry::{Entry, Mode};
use core::ops::Range;

/// The image in `file` that has its header at `offset`. Address fields in the header take precedence over ELF's, as in QEMU and
/// GRUB.
///
/// # Errors
/// [`ImageError`].
pub(crate) fn parse(file: &[u8], offset: usize) -> Result<Image<'_>, ImageError> {
    let flags = u32_at(file, offset + 4).unwrap_or_default();
    check_requirements(flags)?;
    let (segments, entry) = match flags & HAS_ADDRESS_FIELDS {
        0 => elf_file::segments(file, SEGMENT_LIMIT)?,
        _ => flat_segment(file, offset)?,
    };
    Image::new(segments, entry)
}

/// The offset of the first header in the part of the file that may have it (section 3.1).
///
/// # Errors
/// The offset of the first with a wrong checksum, if none has the right one.
pub(crate) fn find(file: &[u8]) -> Result<Option<usize>, usize> {
    find_header::<3>(file, HEADER_MAGIC, 4, HEADER_SEARCH_BYTES)
}

/// "If the boot loader sees any of these bits set but doesn't understand the flag or can't fulfill the requirements it indicates
/// for some reason, it must notify the user and fail to load the OS image."
///
/// A video mode is wished for, and flag 11 of the boot information tells that there is none: kernels that run on a serial line ask for it
/// as well. QEMU loads them, too (`load_multiboot`).
fn check_requirements(flags: u32) -> Result<(), ImageError> {
    use required::{ALL, MEMORY_INFORMATION, PAGE_ALIGNED_MODULES, VIDEO_MODE};
    let unknown = flags & ALL & !(PAGE_ALIGNED_MODULES | MEMORY_INFORMATION | VIDEO_MODE);
    if unknown != 0 {
        return Err(ImageError::UnknownRequirement { flags: unknown });
    }
    Ok(())
}

/// The one segment that the address fields describe (section 3.1.3), and the entry point.
fn flat_segment(file: &[u8], offset: usize) -> Result<(Vec<Segment<'_>>, u64), ImageError> {
    const FIELDS: usize = 12;
    let field = |n: usize| u32_at(file, offset + FIELDS + 4 * n).ok_or(ImageError::AddressFieldsCut);
    let fields = AddressFields { header: field(0)?, load: field(1)?, load_end: field(2)?, bss_end: field(3)? };
    Ok((vec![fields.segment(file, offset)?], field(4)?.into()))
}

/// The address fields of a header: physical addresses. Those of multiboot2 are the same.
pub(crate) struct AddressFields {
    /// Of the header.
    pub(crate) header: u32,
    /// Of the first byte to load.
    pub(crate) load: u32,
    /// Of the byte after the last to load; 0 is the file's end.
    pub(crate) load_end: u32,
    /// Of the byte after the last to zero; 0 if there is none.
    pub(crate) bss_end: u32,
}

impl AddressFields {
    /// The segment of a file with its header at `offset`.
    pub(crate) fn segment<'a>(&self, file: &'a [u8], offset: usize) -> Result<Segment<'a>, ImageError> {
        let Self { header, load, load_end, bss_end } = *self;
        let order = |low, low_value, high, high_value| match low_value > high_value {
            true => Err(ImageError::AddressFieldOrder { low, low_value, high, high_value }),
            false => Ok(high_value - low_value),
        };
        let before_header = order("load_addr", load, "header_addr", header)?;
        let start = offset
            .checked_sub(before_header as usize)
            .ok_or(ImageError::StartsBeforeFile { before_header, header: offset })? as u64;
        let bytes = match load_end {
            0 => file.len() as u64 - start,
            _ => order("load_addr", load, "load_end_addr", load_end)?.into(),
        };
        let bytes = file_range(file, Part::Segment(0), start, bytes)?;
        let size = match bss_end {
            0 => bytes.len() as u64,
            _ => order("load_addr", load, "bss_end_addr", bss_end)?.into(),
        };
        if size < bytes.len() as u64 {
            return Err(ImageError::FileExceedsMemory { segment: 0, file: bytes.len() as u64, memory: size });
        }
        Ok(Segment { start: Gpa::new(load.into()), bytes, size })
    }
}

/// Loads `image`, its modules and its boot information: memory sizes, command line, modules, memory map and the loader's name
/// (flags 0, 2, 3, 6, 9 of section 3.3). The command line is the whole of `string`.
///
/// # Errors
/// [`LoadError`].
pub(crate) fn load(
    image: &Image<'_>,
    string: &[u8],
    modules: &[Module<'_>],
    target: &mut Target<'_, impl GuestMemory>,
) -> Result<Entry, LoadError> {
    target.load_image(image)?;
    let places = target.load_modules(modules, image.span().end)?;
    let mut info = Block::new(info::BYTES);
    write_modules(&mut info, modules, &places);
    info.string(info::COMMAND_LINE, string);
    info.string(info::LOADER_NAME, LOADER_NAME.as_bytes());
    write_memory(&mut info, &target.map);
    let flags = flag::MEMORY | flag::COMMAND_LINE | flag::MODULES | flag::MEMORY_MAP | flag::LOADER_NAME;
    info.set(info::FLAGS, flags);
    let ebx = target.load_block(info)?;
    Ok(Entry { eax: LOADER_EAX, ebx, ..Entry::at(image.entry(), Mode::Protected { gdt: None }) })
}

fn write_modules(info: &mut Block, modules: &[Module<'_>], places: &[Range<u32>]) {
    info.set(info::MODULES_COUNT, modules.len() as u32);
    let table = info.table(info::MODULES_ADDR, modules.len(), MODULE_BYTES, 4);
    for (entry, (module, place)) in table.zip(modules.iter().zip(places)) {
        info.set(entry, place.start);
        info.set(entry + 4, place.end);
        info.string(entry + 8, module.string);
    }
}

fn write_memory(info: &mut Block, map: &MemoryMap) {
    let [lower, upper] = map.lower_and_upper_kib();
    info.set(info::MEM_LOWER, lower);
    info.set(info::MEM_UPPER, upper);
    let entries = map.entries();
    info.set(info::MAP_LENGTH, (entries.len() * MAP_ENTRY_BYTES) as u32);
    let table = info.table(info::MAP_ADDR, entries.len(), MAP_ENTRY_BYTES, 8);
    for (entry, (start, bytes, kind)) in table.zip(entries) {
        info.set(entry, MAP_ENTRY_SIZE);
        info.set_u64(entry + 4, start);
        info.set_u64(entry + 12, bytes);
        info.set(entry + 20, kind);
    }
}
