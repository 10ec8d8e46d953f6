//! Guests that are entered as Xen enters PVH guests: an ELF file with a note that has the entry point, and a structure
//! `hvm_start_info` (Xen's `docs/misc/pvh.pandoc` and `xen/include/public/arch-x86/hvm/start_info.h`).

use crate::block::Block;
use crate::elf_file;
use crate::image::{Image, ImageError, SEGMENT_LIMIT};
use crate::load::{LoadError, Module, Target};
use crate::memory::GuestMemory;
use abi::pvh::{MAGIC, MAP_ENTRY_BYTES, MODULE_BYTES, VERSION, info};
use arch::entry::{Entry, Mode};

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
