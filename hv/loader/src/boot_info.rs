//! The hypervisor's own boot information from the machine's multiboot loader: memory map, modules and command line.

use crate::multiboot::{LOADER_EAX, MAP_ENTRY_SIZE, MODULE_BYTES, flag, info, map_type, u32_at, u64_at};
use crate::ranges::{merge, span, subtract};
use addr::{Hpa, PAGE_SIZE};
use alloc::{string::String, vec, vec::Vec};
use core::{fmt, ops::Range};

/// Reads of physical memory, which the environment provides.
pub trait PhysRead {
    /// Fills `into` from physical memory at `at`.
    ///
    /// # Errors
    /// [`Unreadable`] if part of it can't be read.
    fn read(&self, at: Hpa, into: &mut [u8]) -> Result<(), Unreadable>;
}

/// Physical memory that can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("physical memory can't be read")
    }
}

impl core::error::Error for Unreadable {}

/// A copy of the boot information. Only the modules' contents stay where the loader put them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// The command line, empty if there is none. Bytes that are not UTF-8 are replaced.
    pub command_line: String,
    /// The firmware's map of physical memory, in its order; regions may overlap.
    pub regions: Vec<Region>,
    /// The modules, in order.
    pub modules: Vec<BootModule>,
    /// Malformed entries of the memory map, which are left out.
    pub malformed: Vec<MalformedRegion>,
    /// The ranges of the information itself: structure, tables and strings.
    info: Vec<Range<u64>>,
}

/// A range of physical memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte, and the one after the last.
    pub range: Range<Hpa>,
    /// Its kind.
    pub kind: RegionKind,
}

/// The kind of a region of physical memory, with ACPI's numbers (ACPI 6.5, section 15, "Address range types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// 1: usable RAM.
    Usable,
    /// 3: RAM that is usable after the ACPI tables in it have been read.
    AcpiReclaimable,
    /// 4: RAM that the firmware uses.
    AcpiNvs,
    /// 5: RAM with errors.
    Defective,
    /// 2, and every unknown number.
    Reserved,
}

impl RegionKind {
    fn from_type(number: u32) -> Self {
        match number {
            map_type::USABLE => Self::Usable,
            map_type::ACPI_RECLAIMABLE => Self::AcpiReclaimable,
            map_type::ACPI_NVS => Self::AcpiNvs,
            map_type::DEFECTIVE => Self::Defective,
            _ => Self::Reserved,
        }
    }

    /// Its number, which is the same in e820, multiboot and PVH.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Usable => map_type::USABLE,
            Self::AcpiReclaimable => map_type::ACPI_RECLAIMABLE,
            Self::AcpiNvs => map_type::ACPI_NVS,
            Self::Defective => map_type::DEFECTIVE,
            Self::Reserved => map_type::RESERVED,
        }
    }
}

/// A file that the loader loaded with the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootModule {
    /// Its contents.
    pub range: Range<Hpa>,
    /// Its string, without the final NUL.
    pub string: Vec<u8>,
}

impl BootModule {
    /// The first word of its string, for messages.
    pub fn name(&self) -> &str {
        let word = self.string.split(u8::is_ascii_whitespace).next().unwrap_or_default();
        core::str::from_utf8(word).unwrap_or("?")
    }
}

/// A memory map entry that is empty or passes the end of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedRegion {
    /// Its index in the map, from 0.
    pub index: usize,
    /// Its base address.
    pub base: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl fmt::Display for MalformedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, base, bytes } = self;
        write!(f, "memory map entry {index}: {bytes:#x} bytes at {base:#x} are not a range")
    }
}

/// Why boot information can't be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootInfoError {
    /// A part of it is in memory that can't be read.
    Unreadable {
        /// The part.
        what: &'static str,
        /// Its address.
        at: Hpa,
    },
    /// A table is larger than that of any loader: the structure is garbage.
    TooLarge {
        /// The table.
        what: &'static str,
        /// Its size in bytes or entries.
        size: u32,
        /// The largest size that is accepted.
        limit: u32,
    },
    /// A string has no NUL within the limit.
    EndlessString {
        /// Its address.
        at: Hpa,
    },
    /// The `size` field of a memory map entry is smaller than the other fields, or larger than the map.
    MapEntrySize {
        /// Its index in the map, from 0.
        index: usize,
        /// The value of the field.
        size: u32,
    },
    /// A module starts above its end.
    ModuleRange {
        /// Its index, from 0.
        index: usize,
        /// First byte.
        start: u32,
        /// The byte after its last.
        end: u32,
    },
    /// There is neither a memory map nor the older pair of memory sizes.
    NoMemoryInformation,
}

impl fmt::Display for BootInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("boot information: ")?;
        match self {
            Self::Unreadable { what, at } => write!(f, "{what} at {at} can't be read"),
            Self::TooLarge { what, size, limit } => write!(f, "{what}: {size} is above the limit of {limit}"),
            Self::EndlessString { at } => write!(f, "the string at {at} has no end within {STRING_LIMIT} bytes"),
            Self::MapEntrySize { index, size } => {
                write!(f, "memory map entry {index} has an impossible size of {size}")
            }
            Self::ModuleRange { index, start, end } => {
                write!(f, "module {index} starts at {start:#x}, above its end at {end:#x}")
            }
            Self::NoMemoryInformation => f.write_str("no memory map and no memory sizes"),
        }
    }
}

impl core::error::Error for BootInfoError {}

/// The limit of a string's bytes.
const STRING_LIMIT: u64 = 16 << 10;
/// The limit of a memory map's bytes.
const MAP_LIMIT: u32 = 64 << 10;
/// The limit of modules.
const MODULE_LIMIT: u32 = 1024;

impl BootInfo {
    /// Whether `eax` is the value that a multiboot loader leaves in EAX.
    pub const fn is_magic(eax: u32) -> bool {
        eax == LOADER_EAX
    }

    /// Parses the information structure at `at`, the value of EBX at entry to the hypervisor.
    ///
    /// # Errors
    /// [`BootInfoError`]. Malformed memory map entries are no error; they are listed in [`malformed`](Self::malformed).
    pub fn parse(at: Hpa, phys: &impl PhysRead) -> Result<Self, BootInfoError> {
        let mut parser = Parser { phys, seen: Vec::new() };
        let fields = parser.bytes("the structure", at, info::BYTES)?;
        let field = |offset| u32_at(&fields, offset).unwrap_or_default();
        let flags = field(info::FLAGS);
        let has = |flag| flags & flag != 0;

        let command_line = match has(flag::COMMAND_LINE) {
            true => parser.string(field(info::COMMAND_LINE))?,
            false => Vec::new(),
        };
        let modules = match has(flag::MODULES) {
            true => parser.modules(field(info::MODULES_ADDR), field(info::MODULES_COUNT))?,
            false => Vec::new(),
        };
        let (regions, malformed) = if has(flag::MEMORY_MAP) {
            parser.map(field(info::MAP_ADDR), field(info::MAP_LENGTH))?
        } else if has(flag::MEMORY) {
            (regions_from_sizes(field(info::MEM_LOWER), field(info::MEM_UPPER)), Vec::new())
        } else {
            return Err(BootInfoError::NoMemoryInformation);
        };
        let command_line = String::from_utf8_lossy(&command_line).into_owned();
        Ok(Self { command_line, regions, modules, malformed, info: parser.seen })
    }

    /// The ranges that have memory behind them. The firmware also reserves addresses that have none.
    pub fn memory_ranges(&self) -> Vec<Range<Hpa>> {
        let memory = self.regions.iter().filter(|region| region.kind != RegionKind::Reserved);
        memory.map(|region| region.range.clone()).collect()
    }

    /// Whether the page at `page` is usable RAM in which the loader has left no module.
    pub fn is_free_page(&self, page: Hpa) -> bool {
        let end = page.wrapping_add(PAGE_SIZE);
        let is_ram = |region: &Region| {
            region.kind == RegionKind::Usable && region.range.start <= page && end <= region.range.end
        };
        let is_taken = |module: &BootModule| module.range.start < end && page < module.range.end;
        self.regions.iter().any(is_ram) && !self.modules.iter().any(is_taken)
    }

    /// The ranges of whole pages of usable RAM, without the hypervisor's `image`, the modules, this information, the
    /// first MiB, and all regions that are not usable. They are in ascending order and not adjacent.
    pub fn usable_ranges(&self, image: &Range<Hpa>) -> Vec<Range<Hpa>> {
        const FIRST_MIB: Range<u64> = 0..0x10_0000;
        let raw = |range: &Range<Hpa>| range.start.raw()..range.end.raw();
        let of_kind = |usable: bool| {
            self.regions
                .iter()
                .filter(move |region| (region.kind == RegionKind::Usable) == usable)
                .map(|r| raw(&r.range))
        };
        let holes = of_kind(false)
            .chain(self.modules.iter().map(|module| raw(&module.range)))
            .chain(self.info.iter().cloned())
            .chain([raw(image), FIRST_MIB])
            .filter(|hole| hole.start < hole.end)
            .map(|hole| whole_pages_around(&hole));
        let ram = merge(of_kind(true).collect()).iter().map(whole_pages_within).collect();
        let usable = subtract(&merge(ram), &merge(holes.collect()));
        usable.iter().map(|range| Hpa::new(range.start)..Hpa::new(range.end)).collect()
    }
}

const LAST_PAGE: u64 = !(PAGE_SIZE - 1);

fn whole_pages_around(range: &Range<u64>) -> Range<u64> {
    range.start & LAST_PAGE..range.end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX)
}

fn whole_pages_within(range: &Range<u64>) -> Range<u64> {
    range.start.checked_next_multiple_of(PAGE_SIZE).unwrap_or(LAST_PAGE)..range.end & LAST_PAGE
}

/// `mem_lower` and `mem_upper` are KiB from 0 and from 1 MiB on.
fn regions_from_sizes(lower: u32, upper: u32) -> Vec<Region> {
    let region = |start: u64, kib: u32| Region {
        range: Hpa::new(start)..Hpa::new(start + u64::from(kib) * 1024),
        kind: RegionKind::Usable,
    };
    vec![region(0, lower), region(0x10_0000, upper)]
}

/// Reads the information and records the ranges that it has read.
struct Parser<'a, P> {
    phys: &'a P,
    seen: Vec<Range<u64>>,
}

impl<P: PhysRead> Parser<'_, P> {
    fn bytes(&mut self, what: &'static str, at: Hpa, bytes: usize) -> Result<Vec<u8>, BootInfoError> {
        let unreadable = BootInfoError::Unreadable { what, at };
        let mut buffer = vec![0; bytes];
        let range = span(at.raw(), bytes as u64).ok_or(unreadable)?;
        self.phys.read(at, &mut buffer).map_err(|Unreadable| unreadable)?;
        self.seen.push(range);
        Ok(buffer)
    }

    /// The NUL-terminated string at `at`, without the NUL. It is read in pieces, because it may end just before
    /// unreadable memory.
    fn string(&mut self, at: u32) -> Result<Vec<u8>, BootInfoError> {
        const PIECE: u64 = 64;
        let start = Hpa::new(at.into());
        let mut string = Vec::new();
        while (string.len() as u64) < STRING_LIMIT {
            let from = start.wrapping_add(string.len() as u64);
            let mut piece = [0; PIECE as usize];
            let piece = &mut piece[..(PIECE - from.raw() % PIECE) as usize];
            self.phys
                .read(from, piece)
                .map_err(|Unreadable| BootInfoError::Unreadable { what: "a string", at: from })?;
            match piece.iter().position(|&byte| byte == 0) {
                Some(end) => {
                    string.extend_from_slice(&piece[..end]);
                    self.seen.push(start.raw()..start.raw() + string.len() as u64 + 1);
                    return Ok(string);
                }
                None => string.extend_from_slice(piece),
            }
        }
        Err(BootInfoError::EndlessString { at: start })
    }

    fn modules(&mut self, at: u32, count: u32) -> Result<Vec<BootModule>, BootInfoError> {
        limit("modules", count, MODULE_LIMIT)?;
        let table = self.bytes("the module table", Hpa::new(at.into()), count as usize * MODULE_BYTES)?;
        let (entries, _) = table.as_chunks::<MODULE_BYTES>();
        entries.iter().enumerate().map(|(index, entry)| self.module(index, entry)).collect()
    }

    fn module(&mut self, index: usize, entry: &[u8; MODULE_BYTES]) -> Result<BootModule, BootInfoError> {
        let [start, end, string] = [0, 4, 8].map(|offset| u32_at(entry, offset).unwrap_or_default());
        if start > end {
            return Err(BootInfoError::ModuleRange { index, start, end });
        }
        let string = if string == 0 { Vec::new() } else { self.string(string)? };
        Ok(BootModule { range: Hpa::new(start.into())..Hpa::new(end.into()), string })
    }

    /// The `size` field of an entry, which does not include itself, gives the address of the next one (section 3.3).
    fn map(&mut self, at: u32, bytes: u32) -> Result<(Vec<Region>, Vec<MalformedRegion>), BootInfoError> {
        limit("memory map", bytes, MAP_LIMIT)?;
        let map = self.bytes("the memory map", Hpa::new(at.into()), bytes as usize)?;
        let (mut regions, mut malformed) = (Vec::new(), Vec::new());
        let mut rest = map.as_slice();
        for index in 0.. {
            let Some(size) = u32_at(rest, 0) else { break };
            let wrong = BootInfoError::MapEntrySize { index, size };
            let entry = rest.get(4..).and_then(|entry| entry.get(..size as usize)).ok_or(wrong)?;
            if size < MAP_ENTRY_SIZE {
                return Err(wrong);
            }
            let [base, bytes] = [0, 8].map(|offset| u64_at(entry, offset).unwrap_or_default());
            let kind = RegionKind::from_type(u32_at(entry, 16).unwrap_or_default());
            match span(base, bytes).filter(|range| range.start < range.end) {
                Some(range) => regions.push(Region { range: Hpa::new(range.start)..Hpa::new(range.end), kind }),
                None => malformed.push(MalformedRegion { index, base, bytes }),
            }
            rest = &rest[4 + size as usize..];
        }
        Ok((regions, malformed))
    }
}

fn limit(what: &'static str, size: u32, limit: u32) -> Result<(), BootInfoError> {
    if size > limit { Err(BootInfoError::TooLarge { what, size, limit }) } else { Ok(()) }
}
