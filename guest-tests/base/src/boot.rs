//! What the loader handed over, by whichever of three protocols.

mod multiboot;
mod multiboot2;
mod pvh;

use core::fmt;
use core::ops::Range;
use core::ptr;
use core::slice;
use core::str::{self, SplitAsciiWhitespace};

use abi::multiboot::{LOADER_EAX, map_type};
use addr::{Gfn, Gpa};

pub use abi::multiboot::{HEADER_MAGIC, OUR_FLAGS};
pub use abi::multiboot2 as multiboot2_header;

/// The processor as the loader left it, taken down by the first instructions.
#[repr(C)]
#[derive(Debug)]
pub struct EntryState {
    /// EAX: a magic number from a loader of multiboot or multiboot2.
    pub magic: u32,
    /// EBX: the address of the information.
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

/// How the image was loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// Multiboot specification 0.6.96.
    Multiboot,
    /// Multiboot2 specification 2.0.
    Multiboot2,
    /// Xen's entry for PVH guests (docs/misc/pvh.pandoc).
    Pvh,
}

impl Protocol {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Multiboot => "multiboot",
            Self::Multiboot2 => "multiboot2",
            Self::Pvh => "pvh",
        }
    }
}

/// What a protocol's information has, by number where there are several.
trait Information {
    /// The address of the command line.
    fn command_line(&self) -> Option<u32>;
    /// The address of the loader's name.
    fn loader_name(&self) -> Option<u32>;
    /// KiB of memory from 0 on, and from 1 MiB on.
    fn memory_kib(&self) -> Option<[u32; 2]>;
    /// A module's first address, the one after its last, and its string's.
    fn module(&self, index: usize) -> Option<[u32; 3]>;
    /// A region of the memory map.
    fn region(&self, index: usize) -> Option<Region>;
    /// Whether the memory map's entries fill its length exactly.
    fn memory_map_is_whole(&self) -> bool;
    /// The RSDP of ACPI 1.0, and that of later versions.
    fn rsdps(&self) -> [Option<&'static [u8]>; 2];
    /// The structures and tables that it has besides strings and modules.
    fn tables(&self) -> [&'static [u8]; 3];
}

/// The loader's strings are read no further than this.
const LONGEST_STRING: usize = 4096;

/// The information, whose every string and table stays where it is: no free frame holds any of it.
pub struct Boot {
    entry: &'static EntryState,
    protocol: Protocol,
    info: Info,
    in_use: InUse,
}

enum Info {
    Multiboot(multiboot::Info),
    Multiboot2(multiboot2::Info),
    Pvh(pvh::Info),
}

impl Info {
    /// What `entry`'s registers point to.
    fn new(entry: &EntryState) -> Option<(Protocol, Self)> {
        let at = Some(entry.info).filter(|&info| info != 0 && info.is_multiple_of(4))?;
        match entry.magic {
            LOADER_EAX => Some((Protocol::Multiboot, Self::Multiboot(multiboot::Info::at(at)))),
            abi::multiboot2::LOADER_EAX => Some((Protocol::Multiboot2, Self::Multiboot2(multiboot2::Info::at(at)?))),
            _ => Some((Protocol::Pvh, Self::Pvh(pvh::Info::at(at)?))),
        }
    }

    fn get(&self) -> &dyn Information {
        match self {
            Self::Multiboot(info) => info,
            Self::Multiboot2(info) => info,
            Self::Pvh(info) => info,
        }
    }
}

/// No protocol's information is where these registers say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootError {
    eax: u32,
    ebx: u32,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loaded by no known protocol: EAX is {:#x}, EBX is {:#x}", self.eax, self.ebx)
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
        let (protocol, info) = Info::new(entry).ok_or(BootError { eax: entry.magic, ebx: entry.info })?;
        let mut boot = Self { entry, protocol, info, in_use: InUse::default() };
        boot.in_use = boot.collect_in_use();
        Ok(boot)
    }

    /// The processor as the loader left it.
    pub fn entry(&self) -> &EntryState {
        self.entry
    }

    /// How the image was loaded.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Memory from 0 on, in KiB.
    pub fn mem_lower(&self) -> Option<u32> {
        self.info.get().memory_kib().map(|[lower, _]| lower)
    }

    /// Memory from 1 MiB on, in KiB.
    pub fn mem_upper(&self) -> Option<u32> {
        self.info.get().memory_kib().map(|[_, upper]| upper)
    }

    /// The whole command line; None if there is none or it is not UTF-8.
    pub fn command_line(&self) -> Option<&'static str> {
        self.info.get().command_line().and_then(text)
    }

    /// The words of the command line, behind the image's name where the protocol has that in it.
    pub fn words(&self) -> SplitAsciiWhitespace<'static> {
        let mut words = self.command_line().unwrap_or_default().split_ascii_whitespace();
        if self.protocol == Protocol::Multiboot {
            words.next();
        }
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
        self.info.get().loader_name().and_then(text)
    }

    /// The modules in their order.
    pub fn modules(&self) -> impl Iterator<Item = Module> {
        (0..).map_while(|index| self.info.get().module(index)).map(|[start, end, string]| Module {
            start: Gpa::new(start.into()),
            bytes: bytes(start, end.saturating_sub(start)),
            string: text(string),
        })
    }

    /// The memory map's regions in their order.
    pub fn memory_map(&self) -> impl Iterator<Item = Region> {
        (0..).map_while(|index| self.info.get().region(index))
    }

    /// Whether the memory map's entries fill its length exactly.
    pub fn memory_map_is_whole(&self) -> bool {
        self.info.get().memory_map_is_whole()
    }

    /// The RSDP of ACPI 1.0, and that of later versions, as far as the information has them.
    pub fn rsdps(&self) -> [Option<&'static [u8]>; 2] {
        self.info.get().rsdps()
    }

    /// Whether the frame holds some of the image, of this information, or of a module.
    pub fn is_in_use(&self, gfn: Gfn) -> bool {
        let (start, end) = (gfn.start().raw(), gfn.add(1).start().raw());
        self.in_use.ranges().any(|range| range.start < end && start < range.end)
    }

    fn collect_in_use(&self) -> InUse {
        let mut in_use = InUse::default();
        in_use.add(image());
        self.info.get().tables().into_iter().for_each(|table| in_use.add_bytes(table));
        in_use.add_bytes(self.command_line().unwrap_or_default().as_bytes());
        in_use.add_bytes(self.loader_name().unwrap_or_default().as_bytes());
        for module in self.modules() {
            in_use.add_bytes(module.bytes);
            in_use.add_bytes(module.string.unwrap_or_default().as_bytes());
        }
        in_use
    }
}

/// An ACPI table by its address: as many bytes as its header says. None if it has another signature.
pub fn acpi_table(address: u32, signature: &[u8; 4]) -> Option<&'static [u8]> {
    let header = Some(bytes(address, 8)).filter(|header| header.starts_with(signature))?;
    Some(bytes(address, u32_at(header, 4)?))
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

/// The entry of `size` bytes with this number.
fn entry(table: &'static [u8], size: usize, index: usize) -> Option<&'static [u8]> {
    table.get(index.checked_mul(size)?..)?.get(..size)
}

/// A region whose start, length and type are the first of these bytes.
fn region(entry: &[u8]) -> Option<Region> {
    let wide = |at| Some(u64::from(u32_at(entry, at)?) | u64::from(u32_at(entry, at + 4)?) << 32);
    Some(Region { start: Gpa::new(wide(0)?), length: wide(8)?, kind: u32_at(entry, 16)? })
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
