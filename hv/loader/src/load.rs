//! Loads an image, its modules and its boot information into a guest's memory.

use crate::block::Block;
use crate::image::{Image, ImageError, Segment};
use crate::kernel::Kernel;
use crate::memory::{GuestMemory, GuestRam, HIGH_START, MemoryError};
use crate::memory_map::MemoryMap;
use crate::placer::Placer;
use crate::{bios_data, multiboot1, pvh};
use addr::{Gpa, PAGE_SIZE};
use alloc::vec::Vec;
use arch::Entry;
use core::{fmt, ops::Range};

/// A file and the string that goes with it: `name arg arg…`, without NUL.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// The file's contents.
    pub bytes: &'a [u8],
    /// The string. That of an image has the guest's command line behind the first word. A multiboot guest gets all of it.
    pub string: &'a [u8],
}

impl<'a> Module<'a> {
    /// What follows the first word and the blanks behind it.
    fn arguments(&self) -> &'a [u8] {
        let name = self.string.trim_ascii_start();
        let end = name.iter().position(u8::is_ascii_whitespace).unwrap_or(name.len());
        name[end..].trim_ascii_start()
    }
}

/// A VM as its boot loader finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Its RAM.
    pub ram: GuestRam,
    /// Whether its boot vCPU can be entered in 64-bit mode: not with shadow paging.
    pub long_mode: bool,
    /// Its ACPI tables, if it has any.
    pub acpi: Option<AcpiTables>,
}

/// The ACPI tables that a VM's firmware has made. The loader does not write them, and puts nothing into their ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTables {
    /// The address of the RSDP.
    pub rsdp_at: Gpa,
    /// Its fields.
    pub rsdp: Rsdp,
    /// The tables that the guest may overwrite after it has read them. Empty if there are none, or if they are in the BIOS's ROM,
    /// which is reserved in any case.
    pub reclaimable: Range<Gpa>,
    /// The tables and the memory that the firmware keeps using; may be empty.
    pub nvs: Range<Gpa>,
}

/// The fields of a root system description pointer of revision 2 that differ between VMs (ACPI 6.5, section 5.2.5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rsdp {
    /// OEMID.
    pub oem_id: [u8; 6],
    /// The address of the RSDT.
    pub rsdt: u32,
    /// The address of the XSDT.
    pub xsdt: u64,
}

/// They lie in what every map of memory shows as ROM.
impl From<&bios::Tables> for AcpiTables {
    fn from(tables: &bios::Tables) -> Self {
        let nowhere = Gpa::new(0)..Gpa::new(0);
        let rsdp = Rsdp { oem_id: bios::OEM_ID, rsdt: tables.rsdt().raw() as u32, xsdt: tables.xsdt().raw() };
        Self { rsdp_at: tables.rsdp(), rsdp, reclaimable: nowhere.clone(), nvs: nowhere }
    }
}

/// Why a guest could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// Its image is invalid or does not fit.
    Image(ImageError),
    /// Its RAM has no room for an item.
    NoRoom {
        /// The item.
        what: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// Its command line is longer than the image allows.
    CommandLine {
        /// The bytes of the command line.
        bytes: usize,
        /// The most that the image allows.
        limit: usize,
    },
    /// It has more modules than its protocol can pass on.
    Modules {
        /// The protocol.
        protocol: &'static str,
        /// The most that there may be.
        limit: usize,
        /// How many there are.
        count: usize,
    },
    /// A module is empty, and the protocol has no empty modules.
    EmptyModule {
        /// Which one, from 0.
        index: usize,
    },
    /// Its memory can't be written.
    Memory(MemoryError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::NoRoom { what, bytes } => write!(f, "no room for {what} ({bytes:#x} bytes) in the guest's RAM"),
            Self::CommandLine { bytes, limit } => {
                write!(f, "a command line of {bytes} bytes: the image takes at most {limit}")
            }
            Self::Modules { protocol, limit, count } => {
                write!(f, "{count} modules: {protocol} has room for {limit}")
            }
            Self::EmptyModule { index } => write!(f, "module {index} is empty, and multiboot2 has no empty modules"),
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

/// The lowest address for boot information: above the pages that guests often use (real-mode vectors, start-up code of other
/// processors), and the same as in QEMU.
pub(crate) const INFO_FROM: u64 = 0x9000;
/// The pages that are touched besides those of the files: the firmware's traces, and boot information of a usual size.
pub(crate) const PAGES: u64 = bios_data::PAGES + INFO_PAGES;
/// The most pages of boot information, but for long command lines and many modules: that of a Linux kernel that is entered in
/// 64-bit mode.
const INFO_PAGES: u64 = 8;
/// End of what 32-bit fields can point to.
const BELOW_4G: u64 = 1 << 32;
/// The loader's name in boot information.
pub(crate) const LOADER_NAME: &str = "microhv";

/// Loads `image` and `modules` into the memory of a guest, with boot information about them, by the protocol that the image is
/// for: Linux's (bzImage), multiboot2, multiboot, or PVH. Gives the state in which its boot vCPU starts.
///
/// The firmware's traces in the first MiB come first, so that an image may have segments there. Modules start at page boundaries,
/// above the image, if there is room and its protocol is not Linux's. Boot information is in the first 640 KiB if there is room.
///
/// # Errors
/// [`LoadError`]. Part of the memory may have been written.
pub fn load(
    image: Module<'_>,
    modules: &[Module<'_>],
    platform: &Platform,
    memory: &mut impl GuestMemory,
) -> Result<Entry, LoadError> {
    let kernel = Kernel::parse(image.bytes)?;
    bios_data::write(memory)?;
    let mut target = Target::new(platform, memory);
    match kernel {
        Kernel::Linux(kernel) => kernel.load(image.arguments(), modules, &mut target),
        Kernel::Multiboot2(kernel) => kernel.load(image.arguments(), modules, &mut target),
        Kernel::Multiboot(kernel) => multiboot1::load(&kernel, image.string, modules, &mut target),
        Kernel::Pvh(kernel) => pvh::load(&kernel, image.arguments(), modules, &mut target),
    }
}

/// A guest's memory while it is loaded. All that the loader places there is below 4 GiB.
pub(crate) struct Target<'a, M> {
    memory: &'a mut M,
    ram: GuestRam,
    pub(crate) map: MemoryMap,
    pub(crate) placer: Placer,
    pub(crate) acpi: Option<&'a AcpiTables>,
    pub(crate) long_mode: bool,
}

impl<'a, M: GuestMemory> Target<'a, M> {
    fn new(platform: &'a Platform, memory: &'a mut M) -> Self {
        let Platform { ram, long_mode, ref acpi } = *platform;
        let map = MemoryMap::new(ram, acpi.as_ref());
        let placer = Placer::new(&map);
        Self { memory, ram, map, placer, acpi: acpi.as_ref(), long_mode }
    }

    /// The address of the RSDP; 0 if there is none.
    pub(crate) fn rsdp(&self) -> u64 {
        self.acpi.map_or(0, |acpi| acpi.rsdp_at.raw())
    }

    pub(crate) fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), MemoryError> {
        self.memory.write(Gpa::new(at.into()), bytes)
    }

    /// Loads all segments of `image` to their addresses, which must be free RAM.
    pub(crate) fn load_image(&mut self, image: &Image<'_>) -> Result<(), LoadError> {
        for (index, segment) in image.segments().iter().enumerate() {
            if !self.placer.take(&segment.range()) {
                let (start, bytes, ram) = (segment.start.raw(), segment.size, self.ram);
                return Err(ImageError::OutsideRam { segment: index, start, bytes, ram }.into());
            }
            self.load_segment(segment)?;
        }
        Ok(())
    }

    fn load_segment(&mut self, segment: &Segment<'_>) -> Result<(), MemoryError> {
        self.memory.write(segment.start, segment.bytes)?;
        let from_file = segment.bytes.len() as u64;
        match segment.size - from_file {
            0 => Ok(()),
            zeros => self.memory.zero(segment.start.wrapping_add(from_file), zeros),
        }
    }

    /// Loads each module to the first page boundary with room for it, above 1 MiB and, if there is room, at or above `from`. Gives where
    /// they are.
    pub(crate) fn load_modules(&mut self, modules: &[Module<'_>], from: u64) -> Result<Vec<Range<u32>>, LoadError> {
        let from = from.max(HIGH_START);
        modules.iter().map(|module| self.load_lowest("a module", module.bytes, from)).collect()
    }

    /// Loads boot information, and gives its address, a page boundary.
    pub(crate) fn load_block(&mut self, block: Block) -> Result<u32, LoadError> {
        let at = self.place("the boot information", block.bytes.len(), INFO_FROM)?;
        self.write(at, &block.finish(at))?;
        Ok(at)
    }

    /// The same, of boot information that does not depend on its address.
    pub(crate) fn load_info(&mut self, bytes: &[u8]) -> Result<u32, LoadError> {
        self.load_lowest("the boot information", bytes, INFO_FROM).map(|range| range.start)
    }

    fn load_lowest(&mut self, what: &'static str, bytes: &[u8], from: u64) -> Result<Range<u32>, LoadError> {
        let start = self.place(what, bytes.len(), from)?;
        self.write(start, bytes)?;
        // What is placed ends below 4 GiB.
        Ok(start..start + bytes.len() as u32)
    }

    fn place(&mut self, what: &'static str, bytes: usize, from: u64) -> Result<u32, LoadError> {
        let bytes = bytes as u64;
        let mut place = |from| self.placer.place_lowest(bytes, &(from..BELOW_4G), PAGE_SIZE);
        // An image that prefers the highest addresses leaves no room above it.
        let place = place(from).or_else(|| place(HIGH_START));
        place.map(|start| start as u32).ok_or(LoadError::NoRoom { what, bytes })
    }
}
