//! Loads an image, its modules and its boot information into a guest's memory.

use crate::image::{Image, ImageError, Segment};
use crate::memory::{GuestMemory, GuestRam, MemoryError, Placer};
use crate::multiboot::{LOADER_EAX, MAP_ENTRY_BYTES, MAP_ENTRY_SIZE, MODULE_BYTES, flag, info, map_type, u32_at};
use addr::Gpa;
use alloc::{vec, vec::Vec};
use arch::entry::{Entry, Mode};
use core::{fmt, mem, ops::Range};

/// A file and the string that goes with it: `name arg arg…`, without NUL.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// The file's contents.
    pub bytes: &'a [u8],
    /// The string. That of an image is the guest's command line.
    pub string: &'a [u8],
}

/// Why a guest could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// Its image is invalid or does not fit.
    Image(ImageError),
    /// Its RAM has no room for an item beside the image.
    NoRoom {
        /// The item.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// Its memory can't be written.
    Memory(MemoryError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::NoRoom { what, bytes } => write!(f, "no room for {what} ({bytes:#x} bytes) beside the image"),
            Self::Memory(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for LoadError {}

impl From<ImageError> for LoadError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<MemoryError> for LoadError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

/// The lowest address for the boot information: above the pages that guests often use (real-mode vectors, start-up code
/// of other processors), and the same as in QEMU.
const INFO_FROM: u64 = 0x9000;
/// Modules go above the image, and not below 1 MiB.
const MODULES_FROM: u64 = 0x10_0000;
const LOADER_NAME: &[u8] = b"microhv";

/// Loads `image` and `modules` into the memory of a guest that has `ram`, with boot information about them.
///
/// Modules start at page boundaries above the image. The information is in the first 640 KiB if there is room; it has
/// the memory sizes, the command line, the modules, the memory map and the loader's name (flags 0, 2, 3, 6, 9).
///
/// # Errors
/// [`LoadError`]. Part of the memory may have been written.
pub fn load(
    image: Module<'_>,
    modules: &[Module<'_>],
    ram: GuestRam,
    memory: &mut impl GuestMemory,
) -> Result<Entry, LoadError> {
    let parsed = Image::parse(image.bytes, ram)?;
    for segment in parsed.segments() {
        load_segment(segment, memory)?;
    }
    let mut placer = Placer::new(ram, parsed.segments().iter().map(Segment::range));
    let modules_from = parsed.end().max(MODULES_FROM);
    let mut info = InfoBuilder::new(modules.len());
    for (index, module) in modules.iter().enumerate() {
        let start = place(&mut placer, "a module", module.bytes.len(), modules_from)?;
        memory.write(start, module.bytes)?;
        info.module(index, start, module);
    }
    info.command_line(image.string);
    info.memory(ram);
    info.loader_name();

    let at = place(&mut placer, "the boot information", info.bytes.len(), INFO_FROM)?;
    memory.write(at, &info.finish(at))?;
    // The information is in RAM, which ends below 4 GiB.
    let ebx = at.raw() as u32;
    Ok(Entry { eax: LOADER_EAX, ebx, ..Entry::at(parsed.entry(), Mode::Protected { gdt: None }) })
}

fn load_segment(segment: &Segment<'_>, memory: &mut impl GuestMemory) -> Result<(), MemoryError> {
    memory.write(segment.start, segment.bytes)?;
    let from_file = segment.bytes.len() as u64;
    match segment.size - from_file {
        0 => Ok(()),
        zeros => memory.zero(segment.start.wrapping_add(from_file), zeros),
    }
}

fn place(placer: &mut Placer, what: &'static str, bytes: usize, from: u64) -> Result<Gpa, LoadError> {
    placer.place(bytes as u64, from).map(Gpa::new).ok_or(LoadError::NoRoom { what, bytes })
}

/// The information structure, followed by the tables and strings that it points to, before their address is known.
struct InfoBuilder {
    bytes: Vec<u8>,
    /// The fields that hold an offset in `bytes` and must become an address.
    pointers: Vec<usize>,
}

/// The module table comes first after the structure.
const MODULE_TABLE: usize = info::BYTES;

impl InfoBuilder {
    fn new(modules: usize) -> Self {
        let mut builder = Self { bytes: vec![0; MODULE_TABLE + modules * MODULE_BYTES], pointers: Vec::new() };
        builder.set(info::MODULES_COUNT, modules as u32);
        builder.point(info::MODULES_ADDR, MODULE_TABLE);
        builder.flag(flag::MODULES);
        builder
    }

    fn module(&mut self, index: usize, start: Gpa, module: &Module<'_>) {
        let entry = MODULE_TABLE + index * MODULE_BYTES;
        // Modules are in RAM, which ends below 4 GiB.
        self.set(entry, start.raw() as u32);
        self.set(entry + 4, start.raw() as u32 + module.bytes.len() as u32);
        self.string(entry + 8, module.string);
    }

    fn command_line(&mut self, string: &[u8]) {
        self.string(info::COMMAND_LINE, string);
        self.flag(flag::COMMAND_LINE);
    }

    fn loader_name(&mut self) {
        self.string(info::LOADER_NAME, LOADER_NAME);
        self.flag(flag::LOADER_NAME);
    }

    fn memory(&mut self, ram: GuestRam) {
        let [low, high] = ram.offered();
        let kib = |range: &Range<u64>| ((range.end - range.start) / 1024) as u32;
        self.set(info::MEM_LOWER, kib(&low));
        self.set(info::MEM_UPPER, kib(&high));
        self.flag(flag::MEMORY);

        let map = [(low, map_type::USABLE), (ram.withheld(), map_type::RESERVED), (high, map_type::USABLE)];
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.point(info::MAP_ADDR, self.bytes.len());
        self.set(info::MAP_LENGTH, (map.len() * MAP_ENTRY_BYTES) as u32);
        self.flag(flag::MEMORY_MAP);
        for (range, kind) in map {
            self.bytes.extend(MAP_ENTRY_SIZE.to_le_bytes());
            self.bytes.extend(range.start.to_le_bytes());
            self.bytes.extend((range.end - range.start).to_le_bytes());
            self.bytes.extend(kind.to_le_bytes());
        }
    }

    fn string(&mut self, field: usize, string: &[u8]) {
        self.point(field, self.bytes.len());
        self.bytes.extend_from_slice(string);
        self.bytes.push(0);
    }

    fn point(&mut self, field: usize, offset: usize) {
        self.set(field, offset as u32);
        self.pointers.push(field);
    }

    fn flag(&mut self, flag: u32) {
        self.set(info::FLAGS, self.get(info::FLAGS) | flag);
    }

    fn get(&self, field: usize) -> u32 {
        u32_at(&self.bytes, field).unwrap_or_default()
    }

    fn set(&mut self, field: usize, value: u32) {
        self.bytes[field..][..4].copy_from_slice(&value.to_le_bytes());
    }

    fn finish(mut self, at: Gpa) -> Vec<u8> {
        for field in mem::take(&mut self.pointers) {
            self.set(field, at.raw() as u32 + self.get(field));
        }
        self.bytes
    }
}
