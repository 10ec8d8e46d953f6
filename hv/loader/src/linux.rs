//! Guests that Linux's boot protocol loads: bzImages of version 2.06 and later, which others than Linux also are (Linux's
//! Documentation/arch/x86/boot.rst and zero-page.rst).

use crate::block::Block;
use crate::load::{LoadError, Module, Target};
use crate::memory::{GuestMemory, HIGH_START};
use crate::multiboot::{u32_at, u64_at};
use addr::PAGE_SIZE;
use arch::entry::{self, Entry, Mode};
use core::fmt;

/// Fields of the setup header, at the same offsets in the image and in `boot_params`.
pub(crate) mod header {
    pub(crate) const START: usize = 0x1f1;
    pub(crate) const SETUP_SECTS: usize = 0x1f1;
    pub(crate) const BOOT_FLAG: usize = 0x1fe;
    /// The low byte is the distance of the header's end from [`MAGIC`].
    pub(crate) const JUMP: usize = 0x201;
    pub(crate) const MAGIC: usize = 0x202;
    pub(crate) const VERSION: usize = 0x206;
    pub(crate) const TYPE_OF_LOADER: usize = 0x210;
    pub(crate) const LOADFLAGS: usize = 0x211;
    pub(crate) const CODE32_START: usize = 0x214;
    pub(crate) const RAMDISK_IMAGE: usize = 0x218;
    pub(crate) const RAMDISK_SIZE: usize = 0x21c;
    pub(crate) const COMMAND_LINE: usize = 0x228;
    pub(crate) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(crate) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(crate) const RELOCATABLE: usize = 0x234;
    pub(crate) const XLOADFLAGS: usize = 0x236;
    pub(crate) const CMDLINE_SIZE: usize = 0x238;
    pub(crate) const PREF_ADDRESS: usize = 0x258;
    pub(crate) const INIT_SIZE: usize = 0x260;
    /// `boot_params` has other fields from here on.
    pub(crate) const LIMIT: usize = 0x290;
}

/// Fields of `boot_params`, the "zero page", outside of the header.
pub(crate) mod params {
    pub(crate) const EXT_MEM_K: usize = 0x002;
    pub(crate) const RSDP: usize = 0x070;
    pub(crate) const ALT_MEM_K: usize = 0x1e0;
    pub(crate) const E820_ENTRIES: usize = 0x1e8;
    pub(crate) const E820_TABLE: usize = 0x2d0;
    pub(crate) const BYTES: usize = 0x1000;
}

/// An entry of the e820 table: start and size of 64 bits, type of 32 bits.
pub(crate) const E820_ENTRY_BYTES: usize = 20;

const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: &[u8] = b"HdrS";
const SECTOR: usize = 512;
const LOADED_HIGH: u8 = 1 << 0;
/// `XLF_KERNEL_64`: there is a 64-bit entry point.
const KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry point's distance from the start.
const ENTRY_64: u32 = 0x200;
/// A loader without an assigned number.
const UNDEFINED_LOADER: u8 = 0xff;

/// The oldest version that is loaded: the first that tells the command line's limit.
const OLDEST: u16 = 0x206;
/// The first with [`header::PREF_ADDRESS`] and [`header::INIT_SIZE`].
const WITH_INIT_SIZE: u16 = 0x20a;
/// The first with [`header::XLOADFLAGS`].
const WITH_XLOADFLAGS: u16 = 0x20c;
/// The first with [`params::RSDP`].
const WITH_RSDP: u16 = 0x20e;

/// What is wrong with a header for Linux's boot protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinuxError {
    /// Its version is too old.
    Version(u16),
    /// The kernel is for low memory (a zImage).
    LoadedLow,
    /// The header ends before a field of its version.
    HeaderCut {
        /// The offset of its end.
        end: usize,
        /// The least that it has to be.
        needed: usize,
    },
    /// `kernel_alignment` is no power of two.
    Alignment(u32),
    /// The file has nothing behind the real-mode code.
    NoKernel,
}

impl fmt::Display for LinuxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Linux boot header: ")?;
        match self {
            Self::Version(version) => {
                write!(f, "version {}.{:02}: expected 2.06 or later", version >> 8, version & 0xff)
            }
            Self::LoadedLow => f.write_str("a zImage (loadflags bit 0 is clear), which is loaded below 640 KiB"),
            Self::HeaderCut { end, needed } => write!(f, "it ends at {end:#x}, before {needed:#x}"),
            Self::Alignment(alignment) => write!(f, "kernel_alignment {alignment:#x} is no power of two"),
            Self::NoKernel => f.write_str("the file ends before the protected-mode kernel"),
        }
    }
}

impl core::error::Error for LinuxError {}

/// A bzImage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel<'a> {
    /// The setup header, from [`header::START`] on.
    setup_header: &'a [u8],
    /// What is loaded.
    code: &'a [u8],
    version: u16,
    alignment: u64,
    is_relocatable: bool,
    has_64_bit_entry: bool,
    preferred: u64,
    /// The memory that the kernel needs from its start on, before it looks at the memory map.
    init_size: u64,
    command_line_limit: usize,
    /// The highest address that the initrd may have.
    initrd_max: u32,
}

impl<'a> Kernel<'a> {
    /// The bzImage in `file`, if that is one.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub(crate) fn parse(file: &'a [u8]) -> Result<Option<Self>, LinuxError> {
        let half = |offset: usize| Some(u16::from_le_bytes(*file.get(offset..)?.first_chunk()?));
        let magic = file.get(header::MAGIC..).is_some_and(|rest| rest.starts_with(MAGIC));
        if !magic || half(header::BOOT_FLAG) != Some(BOOT_FLAG) {
            return Ok(None);
        }
        let version = half(header::VERSION).unwrap_or_default();
        if version < OLDEST {
            return Err(LinuxError::Version(version));
        }
        let setup_header = setup_header(file, version)?;
        let byte = |offset: usize| setup_header[offset - header::START];
        let word = |offset: usize| u32_at(setup_header, offset - header::START).unwrap_or_default();
        if byte(header::LOADFLAGS) & LOADED_HIGH == 0 {
            return Err(LinuxError::LoadedLow);
        }
        let alignment = word(header::KERNEL_ALIGNMENT);
        if !alignment.is_power_of_two() {
            return Err(LinuxError::Alignment(alignment));
        }
        let code = code(file)?;
        let has_init_size = version >= WITH_INIT_SIZE;
        let preferred = u64_at(setup_header, header::PREF_ADDRESS - header::START).filter(|_| has_init_size);
        let init_size = match has_init_size {
            true => word(header::INIT_SIZE).into(),
            // GRUB's rule for the kernels that don't tell: they are compressed to a half, and are unpacked in place.
            false => 3 * code.len() as u64,
        };
        let has_xloadflags = version >= WITH_XLOADFLAGS;
        Ok(Some(Self {
            setup_header,
            code,
            version,
            alignment: alignment.into(),
            is_relocatable: byte(header::RELOCATABLE) != 0,
            has_64_bit_entry: has_xloadflags
                && word(header::XLOADFLAGS) as u16 & KERNEL_64 != 0
                && code.len() > ENTRY_64 as usize,
            preferred: preferred.unwrap_or(HIGH_START),
            init_size: init_size.max(code.len() as u64),
            command_line_limit: word(header::CMDLINE_SIZE) as usize,
            initrd_max: word(header::INITRD_ADDR_MAX),
        }))
    }

    /// Loads the kernel, its initrd if there is a module, and `boot_params`.
    ///
    /// # Errors
    /// [`LoadError`].
    pub(crate) fn load(
        &self,
        command_line: &[u8],
        modules: &[Module<'_>],
        target: &mut Target<'_, impl GuestMemory>,
    ) -> Result<Entry, LoadError> {
        if command_line.len() > self.command_line_limit {
            return Err(LoadError::CommandLine { bytes: command_line.len(), limit: self.command_line_limit });
        }
        let initrd = match modules {
            [] => &[],
            [initrd] => initrd.bytes,
            _ => return Err(LoadError::Modules { protocol: "Linux's boot protocol", limit: 1, count: modules.len() }),
        };
        let start = self.place(target)?;
        target.write(start, self.code)?;
        let mut block = self.boot_params(start, target);
        if !initrd.is_empty() {
            let within = HIGH_START..u64::from(self.initrd_max) + 1;
            let place = target.placer.place_highest(initrd.len() as u64, &within, PAGE_SIZE);
            let at = place.ok_or(LoadError::NoRoom { what: "the initrd", bytes: initrd.len() as u64 })? as u32;
            target.write(at, initrd)?;
            block.set(header::RAMDISK_IMAGE, at);
            block.set(header::RAMDISK_SIZE, initrd.len() as u32);
        }
        block.string(header::COMMAND_LINE, command_line);
        let is_long = self.has_64_bit_entry && target.long_mode;
        let tables = is_long.then(|| append_identity_map(&mut block));
        let gdt = append_gdt(&mut block, is_long);
        let at = target.load_block(block)?;
        let gdt = at + gdt;
        let (eip, mode) = match tables {
            Some(tables) => (start + ENTRY_64, Mode::Long { gdt, cr3: at + tables }),
            None => (start, Mode::Protected { gdt: Some(gdt) }),
        };
        Ok(Entry { esi: at, ..Entry::at(eip, mode) })
    }

    /// The kernel's start: where it prefers to be, or the lowest other place if it is relocatable.
    fn place(&self, target: &mut Target<'_, impl GuestMemory>) -> Result<u32, LoadError> {
        let preferred = self.preferred.checked_add(self.init_size).map(|end| self.preferred..end);
        let start = match preferred {
            Some(range) if target.placer.take(&range) => Some(range.start),
            _ if self.is_relocatable => {
                target.placer.place_lowest(self.init_size, &(HIGH_START..1 << 32), self.alignment)
            }
            _ => None,
        };
        // What is placed is below 4 GiB.
        start.map(|start| start as u32).ok_or(LoadError::NoRoom { what: "the kernel", bytes: self.init_size })
    }

    fn boot_params(&self, start: u32, target: &Target<'_, impl GuestMemory>) -> Block {
        let mut block = Block::new(params::BYTES);
        block.write(header::START, self.setup_header);
        block.write(header::TYPE_OF_LOADER, &[UNDEFINED_LOADER]);
        block.set(header::CODE32_START, start);
        if self.version >= WITH_RSDP {
            block.set_u64(params::RSDP, target.rsdp());
        }
        let [_, upper] = target.map.lower_and_upper_kib();
        block.set(params::ALT_MEM_K, upper);
        block.write(params::EXT_MEM_K, &u16::try_from(upper).unwrap_or(u16::MAX).to_le_bytes());
        let entries = target.map.entries();
        block.write(params::E820_ENTRIES, &[entries.len() as u8]);
        for (index, (start, bytes, kind)) in entries.enumerate() {
            let entry = params::E820_TABLE + index * E820_ENTRY_BYTES;
            block.set_u64(entry, start);
            block.set_u64(entry + 8, bytes);
            block.set(entry + 16, kind);
        }
        block
    }
}

/// The header, with all fields of `version` that are used.
fn setup_header(file: &[u8], version: u16) -> Result<&[u8], LinuxError> {
    let needed = match version >= WITH_INIT_SIZE {
        true => header::INIT_SIZE + 4,
        false => header::CMDLINE_SIZE + 4,
    };
    let jump = file.get(header::JUMP).copied().unwrap_or_default();
    let end = (header::MAGIC + usize::from(jump)).min(header::LIMIT);
    let cut = LinuxError::HeaderCut { end: end.min(file.len()), needed };
    file.get(header::START..end).filter(|_| end >= needed).ok_or(cut)
}

/// What follows the boot sector and the sectors of real-mode code. "For backwards compatibility, if the setup_sects field
/// contains 0, the real value is 4."
fn code(file: &[u8]) -> Result<&[u8], LinuxError> {
    let sectors = match file.get(header::SETUP_SECTS) {
        None | Some(0) => 4,
        Some(&sectors) => usize::from(sectors),
    };
    file.get((sectors + 1) * SECTOR..).filter(|code| !code.is_empty()).ok_or(LinuxError::NoKernel)
}

/// Appends tables that map the first 4 GiB to themselves by pages of 2 MiB, and gives the offset of the PML4.
fn append_identity_map(block: &mut Block) -> u32 {
    const PRESENT_WRITABLE: usize = 0x3;
    const LARGE: u64 = 0x80;
    const TABLE: usize = PAGE_SIZE as usize;
    const GIBS: usize = 4;
    let pml4 = block.append((2 + GIBS) * TABLE, TABLE);
    let (pdpt, directories) = (pml4 + TABLE, pml4 + 2 * TABLE);
    block.point(pml4, pdpt | PRESENT_WRITABLE);
    for gib in 0..GIBS {
        block.point(pdpt + 8 * gib, (directories + gib * TABLE) | PRESENT_WRITABLE);
    }
    for page in 0..GIBS * 512 {
        block.set_u64(directories + 8 * page, (page as u64) << 21 | LARGE | PRESENT_WRITABLE as u64);
    }
    pml4 as u32
}

fn append_gdt(block: &mut Block, is_long: bool) -> u32 {
    let table = entry::gdt(is_long);
    let offset = block.append(size_of_val(&table), 8);
    for (index, descriptor) in table.into_iter().enumerate() {
        block.set_u64(offset + 8 * index, descriptor);
    }
    offset as u32
}
