//! Guests that are entered as Xen enters PVH guests: an ELF file with a note that has the entry point, and a structure
//! `hvm_start_info` (Xen's `docs/misc/pvh.pandoc` and `xen/include/public/arch-x86/hvm/start_info.h`).

use crate::block::Block;
use crate::elf_file;
use crate::image::{Image, ImageError, SEGMENT_LIMIT};
use crate::load::{LoadError, Module, Target};
use crate::memory::GuestMemory;
use arch::entry::{Entry, Mode};

/// "xEn3", with bit 7 of the E set.
pub(crate) const MAGIC: u32 = 0x336e_c578;
/// The structure's version: the first that has a memory map.
const VERSION: u32 = 1;

/// Fields of `hvm_start_info`.
pub(crate) mod info {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const VERSION: usize = 4;
    pub(crate) const MODULES_COUNT: usize = 12;
    pub(crate) const MODULES_ADDR: usize = 16;
    pub(crate) const COMMAND_LINE: usize = 24;
    pub(crate) const RSDP: usize = 32;
    pub(crate) const MAP_ADDR: usize = 40;
    pub(crate) const MAP_COUNT: usize = 48;
    pub(crate) const BYTES: usize = 56;
}

/// `hvm_modlist_entry`: address, size, address of the command line, reserved; 64 bits each.
pub(crate) const MODULE_BYTES: usize = 32;
/// `hvm_memmap_table_entry`: address and size of 64 bits, type and a reserved field of 32 bits.
pub(crate) const MAP_ENTRY_BYTES: usize = 24;

/// The image in `file`, if that is an ELF file with a PVH entry point.
///
/// # Errors
/// [`ImageError`].
pub(crate) fn parse(file: &[u8]) -> Result<Option<Image<'_>>, ImageError> {
    let Some(entry) = elf_file::pvh_entry(file)? else { return Ok(None) };
    let (segments, _) = elf_file::segments(file, SEGMENT_LIMIT)?;
    Image::new(segments, entry).map(Some)
}

/// Loads `image`, its modules and its start information.
///
/// # Errors
/// [`LoadError`].
pub(crate) fn load(
    image: &Image<'_>,
    command_line: &[u8],
    modules: &[Module<'_>],
    target: &mut Target<'_, impl GuestMemory>,
) -> Result<Entry, LoadError> {
    target.load_image(image)?;
    let places = target.load_modules(modules, image.span().end)?;
    let mut info = Block::new(info::BYTES);
    info.set(info::MAGIC, MAGIC);
    info.set(info::VERSION, VERSION);
    info.set_u64(info::RSDP, target.rsdp());
    info.string(info::COMMAND_LINE, command_line);

    info.set(info::MODULES_COUNT, modules.len() as u32);
    let table = info.table(info::MODULES_ADDR, modules.len(), MODULE_BYTES, 8);
    for (entry, (module, place)) in table.zip(modules.iter().zip(places)) {
        info.set(entry, place.start);
        info.set(entry + 8, place.end - place.start);
        info.string(entry + 16, module.string);
    }
    let entries = target.map.entries();
    info.set(info::MAP_COUNT, entries.len() as u32);
    let table = info.table(info::MAP_ADDR, entries.len(), MAP_ENTRY_BYTES, 8);
    for (entry, (start, bytes, kind)) in table.zip(entries) {
        info.set_u64(entry, start);
        info.set_u64(entry + 8, bytes);
        info.set(entry + 16, kind);
    }
    let ebx = target.load_block(info)?;
    Ok(Entry { ebx, ..Entry::at(image.entry(), Mode::Protected { gdt: None }) })
}
