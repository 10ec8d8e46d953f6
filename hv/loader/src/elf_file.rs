//! ELF images: ELF32 for i386 and ELF64 for x86-64. Both are entered in 32-bit mode.

use crate::image::{ImageError, Part, Segment, file_range};
use crate::multiboot::{u32_at, u64_at};
use addr::Gpa;
use alloc::vec::Vec;
use elf::abi::{EI_NIDENT, ELFMAGIC, EM_386, EM_X86_64, ET_EXEC, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::file::{Class, ELF32_EHDR_TAILSIZE, ELF64_EHDR_TAILSIZE, FileHeader, parse_ident};
use elf::note::{Note, NoteAny, NoteIterator};
use elf::parse::ParseAt;
use elf::segment::{ProgramHeader, SegmentTable};

/// The loadable segments by their physical addresses, and the entry point's physical address.
pub(crate) fn segments(file: &[u8], limit: usize) -> Result<(Vec<Segment<'_>>, u64), ImageError> {
    let header = header(file)?;
    let mut segments = Vec::new();
    let mut entry = None;
    for program in program_headers(file, &header)?.iter().filter(|p| p.p_type == PT_LOAD && p.p_memsz != 0) {
        if segments.len() == limit {
            return Err(ImageError::TooManySegments { limit });
        }
        entry = entry.or_else(|| physical(&program, header.e_entry));
        segments.push(segment(file, segments.len(), &program)?);
    }
    Ok((segments, entry.unwrap_or(header.e_entry)))
}

/// The PVH entry point of an ELF file; None if `file` is none, or has no note with it (XEN_ELFNOTE_PHYS32_ENTRY in Xen's
/// `xen/include/public/elfnote.h`).
pub(crate) fn pvh_entry(file: &[u8]) -> Result<Option<u64>, ImageError> {
    const PHYS32_ENTRY: u64 = 18;
    const XEN: &[u8] = b"Xen\0";
    if !file.starts_with(&ELFMAGIC) {
        return Ok(None);
    }
    let header = header(file)?;
    for program in program_headers(file, &header)?.iter().filter(|program| program.p_type == PT_NOTE) {
        let bytes = file_range(file, Part::Notes, program.p_offset, program.p_filesz)?;
        // Only notes of GNU properties are aligned to 8 bytes; lower values mean 4 as well.
        let align = if program.p_align == 8 { 8 } else { 4 };
        for note in NoteIterator::new(header.endianness, header.class, align, bytes) {
            if let Note::Unknown(NoteAny { n_type: PHYS32_ENTRY, name: XEN, desc }) = note {
                return physical_entry(desc).map(Some);
            }
        }
    }
    Ok(None)
}

/// The address in a note: as wide as the file's, or of 32 bits.
fn physical_entry(note: &[u8]) -> Result<u64, ImageError> {
    match note.len() {
        4 => Ok(u32_at(note, 0).unwrap_or_default().into()),
        8 => Ok(u64_at(note, 0).unwrap_or_default()),
        bytes => Err(ImageError::PvhEntry { bytes }),
    }
}

/// The physical address of virtual address `address`, if it is in this segment. The entry point in the file is a
/// virtual address, which loaders translate (GRUB, QEMU).
fn physical(program: &ProgramHeader, address: u64) -> Option<u64> {
    let offset = address.checked_sub(program.p_vaddr).filter(|&offset| offset < program.p_memsz)?;
    program.p_paddr.checked_add(offset)
}

fn segment<'a>(file: &'a [u8], index: usize, program: &ProgramHeader) -> Result<Segment<'a>, ImageError> {
    if program.p_filesz > program.p_memsz {
        return Err(ImageError::FileExceedsMemory { segment: index, file: program.p_filesz, memory: program.p_memsz });
    }
    let bytes = file_range(file, Part::Segment(index), program.p_offset, program.p_filesz)?;
    Ok(Segment { start: Gpa::new(program.p_paddr), bytes, size: program.p_memsz })
}

fn header(file: &[u8]) -> Result<FileHeader<LittleEndian>, ImageError> {
    if !file.starts_with(&ELFMAGIC) {
        return Err(ImageError::NotElf);
    }
    let ident = parse_ident::<LittleEndian>(file_range(file, Part::ElfHeader, 0, EI_NIDENT as u64)?)
        .map_err(|_| kind("class, byte order and version", ident_word(file), "a little-endian ELF32 or ELF64"))?;
    let tail_bytes = match ident.1 {
        Class::ELF32 => ELF32_EHDR_TAILSIZE,
        Class::ELF64 => ELF64_EHDR_TAILSIZE,
    };
    let bytes = file_range(file, Part::ElfHeader, 0, (EI_NIDENT + tail_bytes) as u64)?;
    let header = FileHeader::parse_tail(ident, &bytes[EI_NIDENT..]).map_err(|_| ImageError::NotElf)?;
    if !matches!(header.e_machine, EM_386 | EM_X86_64) {
        return Err(kind("machine", header.e_machine.into(), "3 (i386) or 62 (x86-64)"));
    }
    if header.e_type != ET_EXEC {
        return Err(kind("type", header.e_type.into(), "2 (executable at fixed addresses)"));
    }
    Ok(header)
}

fn program_headers<'a>(
    file: &'a [u8],
    header: &FileHeader<LittleEndian>,
) -> Result<SegmentTable<'a, LittleEndian>, ImageError> {
    let entry_bytes = ProgramHeader::size_for(header.class);
    if header.e_phnum == 0 {
        return Err(ImageError::NoSegments);
    }
    if usize::from(header.e_phentsize) != entry_bytes {
        return Err(kind("size of a program header", header.e_phentsize.into(), "32 for ELF32, 56 for ELF64"));
    }
    let bytes = entry_bytes as u64 * u64::from(header.e_phnum);
    let table = file_range(file, Part::ProgramHeaders, header.e_phoff, bytes)?;
    Ok(SegmentTable::new(header.endianness, header.class, table))
}

fn kind(what: &'static str, value: u32, expected: &'static str) -> ImageError {
    ImageError::ElfKind { what, value, expected }
}

/// Class, byte order and version as one number.
fn ident_word(file: &[u8]) -> u32 {
    file.iter().skip(ELFMAGIC.len()).take(3).fold(0, |word, &byte| word << 8 | u32::from(byte))
}
