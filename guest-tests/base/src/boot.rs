//! What the loader handed over.
//!
//! Multiboot specification 0.6.96, section 3.3.

use core::fmt;
use core::ops::Range;
use core::ptr;
use core::slice;
use core::str::{self, SplitAsciiWhitespace};

use abi::multiboot::{LOADER_EAX, map_type};
use addr::{Gfn, Gpa};

pub use abi::multiboot::{HEADER_MAGIC, OUR_FLAGS, flag};

/// The processor as the loader left it, taken down by the first instructions.
#[repr(C)]
#[derive(Debug)]
pub struct EntryState {
    /// EAX: [`LOADER_EAX`] from a multiboot loader.
    pub magic: u32,
    /// EBX: the address of the multiboot information.
    pub info: u32,
    /// EFLAGS.
    pub eflags: u32,
    /// CR0.
    pub cr0: u32,
    /// CR4.
    pub cr4: u32,
    /// The selectors in CS, DS, ES, FS, GS, SS.
    pub selectors: [u16; 6],
    /// The first word of the image as read through CS, DS, ES, FS, GS and SS: the multiboot header's magic number where
    /// the segment's base is 0.
    pub through: [u32; 6],
}

/// The multiboot header and the first instructions, for `global_asm!`: `_start` takes the processor's state down in
/// `entry_state`, sets ESP to `stack_top` and goes on with what follows. Operands: `magic`, `flags`, and `in_NAME`, the offset
/// of each field of [`EntryState`].
#[macro_export]
macro_rules! multiboot_entry {
    () => {
        r#"
.section .multiboot, "a"
.balign 4
multiboot_header:
    .long {magic}
    .long {flags}
    .long -({magic} + {flags})
    .long multiboot_header
    .long __image_start
    .long __load_end
    .long __image_end
    .long _start

.section .text.entry, "ax"
.code32
.global _start
_start:
    mov [entry_state + {in_magic}], eax
    mov [entry_state + {in_info}], ebx
    lea esp, [stack_top]
    pushfd
    pop dword ptr [entry_state + {in_eflags}]
    cld
    mov eax, cr0
    mov [entry_state + {in_cr0}], eax
    mov eax, cr4
    mov [entry_state + {in_cr4}], eax

    mov word ptr [entry_state + {in_selectors} + 0], cs
    mov word ptr [entry_state + {in_selectors} + 2], ds
    mov word ptr [entry_state + {in_selectors} + 4], es
    mov word ptr [entry_state + {in_selectors} + 6], fs
    mov word ptr [entry_state + {in_selectors} + 8], gs
    mov word ptr [entry_state + {in_selectors} + 10], ss
    mov eax, cs:[multiboot_header]
    mov [entry_state + {in_through} + 0], eax
    mov eax, ds:[multiboot_header]
    mov [entry_state + {in_through} + 4], eax
    mov eax, es:[multiboot_header]
    mov [entry_state + {in_through} + 8], eax
    mov eax, fs:[multiboot_header]
    mov [entry_state + {in_through} + 12], eax
    mov eax, gs:[multiboot_header]
    mov [entry_state + {in_through} + 16], eax
    mov eax, ss:[multiboot_header]
    mov [entry_state + {in_through} + 20], eax
"#
    };
}

/// The loader's strings are read no further than this.
const LONGEST_STRING: usize = 4096;

/// The information as it lies in memory, to the last field used.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    flags: u32,
    mem_lower: u32,
    mem_upper: u32,
    boot_device: u32,
    cmdline: u32,
    mods_count: u32,
    mods_addr: u32,
    syms: [u32; 4],
    mmap_length: u32,
    mmap_addr: u32,
    drives: [u32; 2],
    config_table: u32,
    boot_loader_name: u32,
}

/// The information, whose every string and table stays where it is: no free frame holds any of it.
pub struct Boot {
    entry: &'static EntryState,
    info: Info,
    in_use: InUse,
}

/// Why there is no [`Boot`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootError {
    /// EAX, this, is not a multiboot loader's.
    Magic(u32),
    /// EBX, this, is not the address of the information.
    Info(u32),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(eax) => write!(f, "not loaded by multiboot: EAX is {eax:#x}, not {LOADER_EAX:#x}"),
            Self::Info(ebx) => write!(f, "no multiboot information: EBX is {ebx:#x}"),
        }
    }
}

/// A region of the memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Where it begins.
    pub start: Gpa,
    /// Its length in bytes.
    pub length: u64,
    /// Its type: 1 for memory that is free to use, as ACPI's address range types beyond that.
    pub kind: u32,
}

impl Region {
    /// Whether it is memory that is free to use.
    pub fn is_available(&self) -> bool {
        self.kind == map_type::USABLE
    }

    /// Where it ends, at most at the end of the address space.
    pub fn end(&self) -> Gpa {
        Gpa::new(self.start.raw().saturating_add(self.length))
    }
}

/// A module.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Where it is.
    pub start: Gpa,
    /// What it holds.
    pub bytes: &'static [u8],
    /// Its string; None if it is not UTF-8.
    pub string: Option<&'static str>,
}

impl Boot {
    /// The boot information that `entry`'s registers point to.
    pub fn new(entry: &'static EntryState) -> Result<Self, BootError> {
        if entry.magic != LOADER_EAX {
            return Err(BootError::Magic(entry.magic));
        }
        if entry.info == 0 || !entry.info.is_multiple_of(4) {
            return Err(BootError::Info(entry.info));
        }
        let address: *const Info = ptr::with_exposed_provenance(entry.info as usize);
        // SAFETY: aligned, and in the first 4 GiB, which are mapped. Any bit pattern will do.
        let info = unsafe { ptr::read_volatile(address) };
        let mut boot = Self { entry, info, in_use: InUse::default() };
        boot.in_use = boot.collect_in_use();
        Ok(boot)
    }

    /// The processor as the loader left it.
    pub fn entry(&self) -> &EntryState {
        self.entry
    }

    /// Which information is valid.
    pub fn flags(&self) -> u32 {
        self.info.flags
    }

    /// Memory from 0 on, in KiB.
    pub fn mem_lower(&self) -> Option<u32> {
        self.has(flag::MEMORY).then_some(self.info.mem_lower)
    }

    /// Memory from 1 MiB on, in KiB.
    pub fn mem_upper(&self) -> Option<u32> {
        self.has(flag::MEMORY).then_some(self.info.mem_upper)
    }

    /// The whole command line; None if there is none or it is not UTF-8.
    pub fn command_line(&self) -> Option<&'static str> {
        self.has(flag::COMMAND_LINE).then(|| text(self.info.cmdline))?
    }

    /// The words of the command line behind the first, which names the image.
    pub fn words(&self) -> SplitAsciiWhitespace<'static> {
        let mut words = self.command_line().unwrap_or_default().split_ascii_whitespace();
        words.next();
        words
    }

    /// The value of the command line's word `key=value`, if it parses.
    pub fn word<T: str::FromStr>(&self, key: &str) -> Option<T> {
        self.text_word(key)?.parse().ok()
    }

    /// The value of the command line's word `key=value`, as it is.
    pub fn text_word(&self, key: &str) -> Option<&'static str> {
        self.words().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// Whether the command line has this word, such as `--die`.
    pub fn has_word(&self, word: &str) -> bool {
        self.words().any(|one| one == word)
    }

    /// The word behind the command line's word `name`, as in `--seed 7`, if it parses.
    pub fn option<T: str::FromStr>(&self, name: &str) -> Option<T> {
        self.words().skip_while(|word| *word != name).nth(1)?.parse().ok()
    }

    /// The loader's name.
    pub fn loader_name(&self) -> Option<&'static str> {
        self.has(flag::LOADER_NAME).then(|| text(self.info.boot_loader_name))?
    }

    /// The modules in their order.
    pub fn modules(&self) -> impl Iterator<Item = Module> {
        self.module_entries().map(|[start, end, string, _]| Module {
            start: Gpa::new(start.into()),
            bytes: bytes(start, end.saturating_sub(start)),
            string: text(string),
        })
    }

    /// The memory map's regions in their order.
    pub fn memory_map(&self) -> impl Iterator<Item = Region> {
        let mut rest = self.memory_map_bytes();
        core::iter::from_fn(move || {
            let (region, behind) = split_region(rest)?;
            rest = behind;
            Some(region)
        })
    }

    /// Whether the memory map's entries fill its length exactly.
    pub fn memory_map_is_whole(&self) -> bool {
        let mut rest = self.memory_map_bytes();
        while let Some((_, behind)) = split_region(rest) {
            rest = behind;
        }
        rest.is_empty()
    }

    /// Whether the frame holds some of the image, of this information, or of a module.
    pub fn is_in_use(&self, gfn: Gfn) -> bool {
        let (start, end) = (gfn.start().raw(), gfn.add(1).start().raw());
        self.in_use.ranges().any(|range| range.start < end && start < range.end)
    }

    fn collect_in_use(&self) -> InUse {
        let mut in_use = InUse::default();
        let info = u64::from(self.entry.info);
        in_use.add(image());
        in_use.add(info..info + size_of::<Info>() as u64);
        in_use.add_bytes(self.memory_map_bytes());
        in_use.add_bytes(self.module_list());
        in_use.add_bytes(self.command_line().unwrap_or_default().as_bytes());
        in_use.add_bytes(self.loader_name().unwrap_or_default().as_bytes());
        for module in self.modules() {
            in_use.add_bytes(module.bytes);
            in_use.add_bytes(module.string.unwrap_or_default().as_bytes());
        }
        in_use
    }

    fn has(&self, flag: u32) -> bool {
        self.info.flags & flag != 0
    }

    fn memory_map_bytes(&self) -> &'static [u8] {
        if self.has(flag::MEMORY_MAP) { bytes(self.info.mmap_addr, self.info.mmap_length) } else { &[] }
    }

    fn module_list(&self) -> &'static [u8] {
        if !self.has(flag::MODULES) {
            return &[];
        }
        bytes(self.info.mods_addr, self.info.mods_count.saturating_mul(16))
    }

    /// Each module's start, end, string and a word kept for later.
    fn module_entries(&self) -> impl Iterator<Item = [u32; 4]> {
        self.module_list().as_chunks::<16>().0.iter().map(|entry| {
            let word = |index| u32_at(entry, index).unwrap_or_default();
            [word(0), word(4), word(8), word(12)]
        })
    }
}

/// The addresses that the image and the loader's information occupy; when there are many, what lies between them, too.
#[derive(Default)]
struct InUse {
    ranges: [Range<u64>; 32],
    used: usize,
}

impl InUse {
    fn add(&mut self, range: Range<u64>) {
        if let Some(free) = self.ranges.get_mut(self.used) {
            *free = range;
            self.used += 1;
        } else if let Some(last) = self.ranges.last_mut() {
            *last = last.start.min(range.start)..last.end.max(range.end);
        }
    }

    fn add_bytes(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let range = bytes.as_ptr_range();
            self.add(range.start as u64..range.end as u64);
        }
    }

    fn ranges(&self) -> impl Iterator<Item = &Range<u64>> {
        self.ranges[..self.used].iter()
    }
}

/// The first region of a memory map and what lies behind it; None at the end and before a cut-off or malformed entry.
fn split_region(map: &'static [u8]) -> Option<(Region, &'static [u8])> {
    const SHORTEST: usize = 20;
    let (size, behind) = map.split_first_chunk::<4>()?;
    let size = u32::from_le_bytes(*size) as usize;
    if size < SHORTEST {
        return None;
    }
    let (entry, rest) = behind.split_at_checked(size)?;
    let wide = |at| Some(u64::from(u32_at(entry, at)?) | u64::from(u32_at(entry, at + 4)?) << 32);
    Some((Region { start: Gpa::new(wide(0)?), length: wide(8)?, kind: u32_at(entry, 16)? }, rest))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

/// The addresses of the image, .bss included.
pub fn image() -> Range<u64> {
    unsafe extern "C" {
        safe static __image_start: u8;
        safe static __image_end: u8;
    }
    &raw const __image_start as u64..&raw const __image_end as u64
}

/// `length` bytes of what the loader handed over.
fn bytes(start: u32, length: u32) -> &'static [u8] {
    let length = length.min(u32::MAX - start);
    if start == 0 || length == 0 {
        return &[];
    }
    // SAFETY: in the first 4 GiB, which are mapped, and not null. The callers pass what `is_in_use` knows of, so that it
    // is in no free frame and nothing writes to it.
    unsafe { slice::from_raw_parts(ptr::with_exposed_provenance(start as usize), length as usize) }
}

/// The string that begins at `start`; None if it is not UTF-8 or never ends.
fn text(start: u32) -> Option<&'static str> {
    let end = (u64::from(start)..u64::from(u32::MAX)).take(LONGEST_STRING).find(|&at| {
        // SAFETY: in the first 4 GiB, which are mapped.
        unsafe { ptr::read_volatile(ptr::with_exposed_provenance::<u8>(at as usize)) == 0 }
    })?;
    str::from_utf8(bytes(start, (end - u64::from(start)) as u32)).ok()
}
