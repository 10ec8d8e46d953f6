//! Guests that multiboot2 loads: their header with its tags, and the boot information that they get (Multiboot2 Specification,
//! version 2.0; section numbers are its).

use crate::elf_file;
use crate::image::{Image, ImageError, SEGMENT_LIMIT};
use crate::load::{INFO_FROM, LOADER_NAME, LoadError, Module, Target};
use crate::memory::GuestMemory;
use crate::multiboot::{find_header, u32_at};
use crate::multiboot1::AddressFields;
use abi::acpi::{RSDP_BYTES, RSDP_REVISION};
use abi::multiboot2::header::FIXED_BYTES;
use abi::multiboot2::{HEADER_MAGIC, HEADER_SEARCH_BYTES, I386, LOADER_EAX, header_tag, information};
use alloc::string::String;
use alloc::{vec, vec::Vec};
use arch::entry::{Entry, Mode};
use core::{fmt, ops::Range};
use multiboot2::{
    BasicMemoryInfoTag, BootLoaderNameTag, Builder, CommandLineTag, ImageLoadPhysAddrTag, MaybeDynSized, MemoryArea,
    MemoryAreaType, MemoryMapTag, ModuleTag, RsdpV1Tag, RsdpV2Tag,
};

/// Bit 0 of the console flags: "at least one of supported consoles must be present and information about it must be available".
const CONSOLE_REQUIRED: u32 = 1;

/// What is wrong with a multiboot2 header, or what it requires and can't have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Multiboot2Error {
    /// It is for another architecture than i386.
    Architecture(u32),
    /// Its length is less than its fixed part, or leads out of the part of the file that may have it.
    Length(u32),
    /// A tag is too small for its type, or passes the header's end.
    TagSize {
        /// Its type.
        tag: u16,
        /// Its offset in the header.
        offset: usize,
        /// Its size.
        size: u32,
    },
    /// It requires a tag that is not known.
    UnknownTag(u16),
    /// It requires boot information that there is not.
    NoInformation(u32),
    /// It requires a console that boot information describes.
    NoConsole,
    /// It requires a framebuffer.
    NoFramebuffer,
    /// It has an address tag, and no entry address tag.
    NoEntry,
    /// Its relocatable tag has an alignment that is no power of two.
    Alignment(u32),
}

impl fmt::Display for Multiboot2Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("multiboot2 header: ")?;
        match *self {
            Self::Architecture(number) => write!(f, "architecture {number}: expected 0 (i386)"),
            Self::Length(length) => write!(f, "a length of {length:#x} is impossible"),
            Self::TagSize { tag, offset, size } => {
                write!(f, "the tag at {offset:#x} of type {tag} can't have {size:#x} bytes")
            }
            Self::UnknownTag(tag) => write!(f, "a tag of the unknown type {tag} is required"),
            Self::NoInformation(tag) => {
                let name = information_name(tag).unwrap_or("unknown");
                write!(f, "boot information of type {tag} ({name}) is required, and there is none")
            }
            Self::NoConsole => f.write_str("a console is required (console flags, bit 0), and there is none"),
            Self::NoFramebuffer => f.write_str("a framebuffer is required, and there is none"),
            Self::NoEntry => f.write_str("it has an address tag, but no entry address tag"),
            Self::Alignment(alignment) => {
                write!(f, "the relocatable tag's alignment {alignment:#x} is no power of two")
            }
        }
    }
}

impl core::error::Error for Multiboot2Error {}

fn information_name(tag: u32) -> Option<&'static str> {
    const NAMES: [&str; 21] = [
        "boot command line",
        "boot loader name",
        "modules",
        "basic memory information",
        "BIOS boot device",
        "memory map",
        "VBE info",
        "framebuffer info",
        "ELF symbols",
        "APM table",
        "EFI 32-bit system table",
        "EFI 64-bit system table",
        "SMBIOS tables",
        "ACPI old RSDP",
        "ACPI new RSDP",
        "networking information",
        "EFI memory map",
        "EFI boot services not terminated",
        "EFI 32-bit image handle",
        "EFI 64-bit image handle",
        "image load base physical address",
    ];
    NAMES.get((tag as usize).checked_sub(1)?).copied()
}

/// An image with a multiboot2 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel<'a> {
    image: Image<'a>,
    relocatable: Option<Relocatable>,
    /// The types of boot information that it requires.
    required: Vec<u32>,
}

/// Where an image may be loaded instead of its own addresses (section 3.1.13).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Relocatable {
    /// The addresses that it may occupy.
    within: Range<u64>,
    align: u64,
    preference: Preference,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preference {
    None,
    Lowest,
    Highest,
}

/// The tags of a header that say how to load the image.
#[derive(Default)]
struct Tags {
    address: Option<AddressFields>,
    entry: Option<u32>,
    relocatable: Option<Relocatable>,
    required: Vec<u32>,
}

/// The offset of the first header in the part of the file that may have it (section 3.1.1).
///
/// # Errors
/// The offset of the first with a wrong checksum, if none has the right one.
pub(crate) fn find(file: &[u8]) -> Result<Option<usize>, usize> {
    find_header::<4>(file, HEADER_MAGIC, 8, HEADER_SEARCH_BYTES)
}

impl<'a> Kernel<'a> {
    /// The image in `file` that has its header at `offset`. An address tag takes precedence over ELF's addresses, and an entry
    /// address tag over ELF's entry point.
    ///
    /// # Errors
    /// [`ImageError`].
    pub(crate) fn parse(file: &'a [u8], offset: usize) -> Result<Self, ImageError> {
        let Tags { address, entry, relocatable, required } =
            tags(header(file, offset).map_err(ImageError::Multiboot2)?).map_err(ImageError::Multiboot2)?;
        let (segments, entry) = match address {
            Some(fields) => {
                let entry = entry.ok_or(ImageError::Multiboot2(Multiboot2Error::NoEntry))?;
                (vec![fields.segment(file, offset)?], entry.into())
            }
            None => {
                let (segments, elf_entry) = elf_file::segments(file, SEGMENT_LIMIT)?;
                (segments, entry.map_or(elf_entry, u64::from))
            }
        };
        Ok(Self { image: Image::new(segments, entry)?, relocatable, required })
    }

    /// Loads the image, its modules and its boot information.
    ///
    /// # Errors
    /// [`LoadError`].
    pub(crate) fn load(
        self,
        command_line: &[u8],
        modules: &[Module<'_>],
        target: &mut Target<'_, impl GuestMemory>,
    ) -> Result<Entry, LoadError> {
        self.check_information(target.acpi.is_some())?;
        let is_relocatable = self.relocatable.is_some();
        let image = self.placed(target)?;
        target.load_image(&image)?;
        let span = image.span();
        let places = target.load_modules(modules, span.end)?;
        let mut info = Builder::new()
            .cmdline(CommandLineTag::new(&text(command_line)))
            .bootloader(BootLoaderNameTag::new(LOADER_NAME));
        for (index, (module, place)) in modules.iter().zip(places).enumerate() {
            if place.is_empty() {
                return Err(LoadError::EmptyModule { index });
            }
            info = info.add_module(ModuleTag::new(place.start, place.end, &text(module.string)));
        }
        let [lower, upper] = target.map.lower_and_upper_kib();
        let area = |(start, bytes, kind)| MemoryArea::new(start, bytes, MemoryAreaType::from(kind));
        let areas: Vec<_> = target.map.entries().map(area).collect();
        info = info.meminfo(BasicMemoryInfoTag::new(lower, upper)).mmap(MemoryMapTag::new(&areas));
        if let Some(acpi) = target.acpi {
            let rsdp = acpi.rsdp;
            info = info.rsdpv1(RsdpV1Tag::new(rsdp.oem_id, 0, rsdp.rsdt)).rsdpv2(rsdp_tag(&rsdp));
        }
        if is_relocatable {
            // An image that is loaded is below 4 GiB.
            info = info.image_load_addr(ImageLoadPhysAddrTag::new(span.start as u32));
        }
        let ebx = target.load_info(info.build().as_bytes().as_ref())?;
        Ok(Entry { eax: LOADER_EAX, ebx, ..Entry::at(image.entry(), Mode::Protected { gdt: None }) })
    }

    fn check_information(&self, has_acpi: bool) -> Result<(), ImageError> {
        use information::*;
        let is_there = |tag: u32| match tag {
            COMMAND_LINE | LOADER_NAME | MODULES | MEMORY | MEMORY_MAP => true,
            ACPI_OLD | ACPI_NEW => has_acpi,
            LOAD_BASE => self.relocatable.is_some(),
            _ => false,
        };
        match self.required.iter().find(|tag| !is_there(**tag)) {
            Some(&tag) => Err(ImageError::Multiboot2(Multiboot2Error::NoInformation(tag))),
            None => Ok(()),
        }
    }

    /// The image where it is loaded. Without a preference it stays at its own addresses if they are free.
    fn placed(self, target: &mut Target<'_, impl GuestMemory>) -> Result<Image<'a>, LoadError> {
        let Some(Relocatable { within, align, preference }) = self.relocatable else { return Ok(self.image) };
        let span = self.image.span();
        let bytes = span.end - span.start;
        let placer = &target.placer;
        let is_within = within.start <= span.start && span.end <= within.end && span.start.is_multiple_of(align);
        let start = match preference {
            Preference::None if is_within && placer.is_free(&span) => Some(span.start),
            Preference::None | Preference::Lowest => placer.lowest(bytes, &within, align),
            Preference::Highest => placer.highest(bytes, &within, align),
        };
        let moved = start.and_then(|start| self.image.moved_to(start));
        moved.ok_or(LoadError::NoRoom { what: "the image in the range of its relocatable tag", bytes })
    }
}

fn rsdp_tag(rsdp: &crate::Rsdp) -> RsdpV2Tag {
    RsdpV2Tag::new(rsdp.oem_id, RSDP_REVISION, rsdp.rsdt, RSDP_BYTES as u32, rsdp.xsdt)
}

/// Strings of boot information are UTF-8 (section 3.6.3). Other bytes are replaced.
fn text(string: &[u8]) -> alloc::borrow::Cow<'_, str> {
    String::from_utf8_lossy(string)
}

/// The header at `offset`, whose magic number and checksum are right.
fn header(file: &[u8], offset: usize) -> Result<&[u8], Multiboot2Error> {
    let [architecture, length] = [4, 8].map(|field| u32_at(file, offset + field).unwrap_or_default());
    if architecture != I386 {
        return Err(Multiboot2Error::Architecture(architecture));
    }
    let searched = &file[..file.len().min(HEADER_SEARCH_BYTES)];
    let header = searched.get(offset..).and_then(|rest| rest.get(..length as usize));
    header.filter(|header| header.len() >= FIXED_BYTES).ok_or(Multiboot2Error::Length(length))
}

/// Reads the tags up to that of type 0, or the header's end. Each begins at a multiple of 8.
fn tags(header: &[u8]) -> Result<Tags, Multiboot2Error> {
    const HEAD: usize = 8;
    let mut tags = Tags::default();
    let mut offset = FIXED_BYTES;
    while let Some(head) = header.get(offset..).and_then(|rest| rest.first_chunk::<HEAD>()) {
        let [kind, flags] = [0, 2].map(|half| u16::from_le_bytes([head[half], head[half + 1]]));
        let size = u32_at(head, 4).unwrap_or_default();
        if kind == header_tag::END {
            break;
        }
        let wrong = Multiboot2Error::TagSize { tag: kind, offset, size };
        let tag = header[offset..].get(HEAD..size as usize).ok_or(wrong)?;
        tags.read(kind, flags & header_tag::OPTIONAL != 0, tag, wrong)?;
        offset = (offset + size as usize).next_multiple_of(8);
    }
    Ok(tags)
}

impl Tags {
    /// Takes in a tag of type `kind`, whose fields behind type, flags and size are `fields`. `cut` is the error if one is
    /// missing.
    fn read(
        &mut self,
        kind: u16,
        is_optional: bool,
        fields: &[u8],
        cut: Multiboot2Error,
    ) -> Result<(), Multiboot2Error> {
        let field = |n: usize| u32_at(fields, 4 * n).ok_or(cut);
        match kind {
            header_tag::INFORMATION_REQUEST if is_optional => {}
            header_tag::INFORMATION_REQUEST => {
                let (types, _) = fields.as_chunks();
                self.required.extend(types.iter().map(|number| u32::from_le_bytes(*number)));
            }
            header_tag::ADDRESS => {
                let (header, load, load_end, bss_end) = (field(0)?, field(1)?, field(2)?, field(3)?);
                self.address = Some(AddressFields { header, load, load_end, bss_end });
            }
            header_tag::ENTRY_ADDRESS => self.entry = Some(field(0)?),
            header_tag::CONSOLE_FLAGS if !is_optional && field(0)? & CONSOLE_REQUIRED != 0 => {
                return Err(Multiboot2Error::NoConsole);
            }
            header_tag::FRAMEBUFFER if !is_optional => return Err(Multiboot2Error::NoFramebuffer),
            header_tag::RELOCATABLE => {
                let (min, max, align, preference) = (field(0)?, field(1)?, field(2)?, field(3)?);
                if !align.is_power_of_two() {
                    return Err(Multiboot2Error::Alignment(align));
                }
                let preference = match preference {
                    1 => Preference::Lowest,
                    2 => Preference::Highest,
                    _ => Preference::None,
                };
                // The vectors of real mode are kept. max_addr is the "highest possible physical address at which loaded image should end".
                self.relocatable = Some(Relocatable {
                    within: u64::from(min).max(INFO_FROM)..max.into(),
                    align: align.into(),
                    preference,
                });
            }
            // Modules are always at page boundaries, and the EFI tags are for machines with EFI.
            header_tag::CONSOLE_FLAGS
            | header_tag::FRAMEBUFFER
            | header_tag::MODULE_ALIGNMENT
            | header_tag::EFI_BOOT_SERVICES
            | header_tag::EFI_I386_ENTRY
            | header_tag::EFI_AMD64_ENTRY => {}
            _ if is_optional => {}
            _ => return Err(Multiboot2Error::UnknownTag(kind)),
        }
        Ok(())
    }
}
