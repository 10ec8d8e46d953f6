//! What a guest finds in its memory at entry, read as the protocols say: the reader for tests of all that the loader writes.

use crate::linux;
use crate::multiboot::{self, u32_at, u64_at};
use abi::{multiboot2, pvh};
use alloc::vec::Vec;
use arch::Entry;
use core::ops::Range;

/// The protocol that a guest was loaded by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Linux,
    Multiboot2,
    Multiboot,
    Pvh,
}

/// A guest's boot information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestView {
    pub(crate) protocol: Protocol,
    /// Without the NUL.
    pub(crate) command_line: Vec<u8>,
    /// Where they are, and their strings.
    pub(crate) modules: Vec<(Range<usize>, Vec<u8>)>,
    /// Start, bytes and type.
    pub(crate) map: Vec<(u64, u64, u32)>,
    /// The RSDP's address, or with multiboot2 its XSDT's.
    pub(crate) rsdp: Option<u64>,
}

/// A guest's memory.
struct Memory<'a>(&'a [u8]);

impl Memory<'_> {
    fn word(&self, at: usize) -> usize {
        u32_at(self.0, at).expect("a pointer into RAM") as usize
    }
    fn long(&self, at: usize) -> u64 {
        u64_at(self.0, at).expect("a pointer into RAM")
    }
    fn pointer(&self, at: usize) -> usize {
        usize::try_from(self.long(at)).expect("a pointer into RAM")
    }
    fn string(&self, at: usize) -> Vec<u8> {
        let rest = &self.0[at..];
        rest[..rest.iter().position(|&byte| byte == 0).expect("it ends")].to_vec()
    }
}

impl GuestView {
    /// Reads `memory` as a guest that starts at `entry` does.
    ///
    /// # Panics
    /// If a pointer leads out of memory, or a structure is not as its protocol has it.
    pub(crate) fn read(memory: &[u8], entry: &Entry) -> Self {
        let memory = &Memory(memory);
        let (ebx, esi) = (entry.ebx as usize, entry.esi as usize);
        match entry.eax {
            multiboot::LOADER_EAX => Self::multiboot(memory, ebx),
            multiboot2::LOADER_EAX => Self::multiboot2(memory, ebx),
            _ if esi != 0 => Self::linux(memory, esi),
            _ => Self::pvh(memory, ebx),
        }
    }

    fn multiboot(memory: &Memory<'_>, info: usize) -> Self {
        use multiboot::{MAP_ENTRY_BYTES, MODULE_BYTES, info};
        let field = |field: usize| memory.word(info + field);
        let module = |n: usize| {
            let at = field(info::MODULES_ADDR) + n * MODULE_BYTES;
            (memory.word(at)..memory.word(at + 4), memory.string(memory.word(at + 8)))
        };
        let region = |n: usize| {
            let at = field(info::MAP_ADDR) + n * MAP_ENTRY_BYTES;
            assert_eq!(memory.word(at), MAP_ENTRY_BYTES - 4);
            (memory.long(at + 4), memory.long(at + 12), memory.word(at + 20) as u32)
        };
        Self {
            protocol: Protocol::Multiboot,
            command_line: memory.string(field(info::COMMAND_LINE)),
            modules: (0..field(info::MODULES_COUNT)).map(module).collect(),
            map: (0..field(info::MAP_LENGTH) / MAP_ENTRY_BYTES).map(region).collect(),
            rsdp: None,
        }
    }

    fn multiboot2(memory: &Memory<'_>, info: usize) -> Self {
        let mut view = Self {
            protocol: Protocol::Multiboot2,
            command_line: Vec::new(),
            modules: Vec::new(),
            map: Vec::new(),
            rsdp: None,
        };
        let end = info + memory.word(info);
        let mut tag = info + 8;
        loop {
            let (kind, bytes) = (memory.word(tag), memory.word(tag + 4));
            assert!(bytes >= 8 && tag + bytes <= end, "tag {kind} of {bytes} bytes");
            match kind {
                0 => break,
                1 => view.command_line = memory.string(tag + 8),
                3 => view.modules.push((memory.word(tag + 8)..memory.word(tag + 12), memory.string(tag + 16))),
                6 => {
                    assert_eq!(memory.word(tag + 8), 24, "an entry's size");
                    let entries = (tag + 16..tag + bytes).step_by(24);
                    view.map =
                        entries.map(|at| (memory.long(at), memory.long(at + 8), memory.word(at + 16) as u32)).collect();
                }
                15 => view.rsdp = Some(memory.long(tag + 8 + 24)),
                _ => {}
            }
            tag = (tag + bytes).next_multiple_of(8);
        }
        assert_eq!(tag + 8, end, "the tag of type 0 is the last");
        view
    }

    fn linux(memory: &Memory<'_>, params: usize) -> Self {
        use linux::{E820_ENTRY_BYTES, header, params};
        let field = |field: usize| memory.word(params + field);
        let initrd = field(header::RAMDISK_IMAGE);
        let initrd = initrd..initrd + field(header::RAMDISK_SIZE);
        let region = |n: usize| {
            let at = params + params::E820_TABLE + n * E820_ENTRY_BYTES;
            (memory.long(at), memory.long(at + 8), memory.word(at + 16) as u32)
        };
        let rsdp = memory.long(params + params::RSDP);
        Self {
            protocol: Protocol::Linux,
            command_line: memory.string(field(header::COMMAND_LINE)),
            modules: (!initrd.is_empty()).then_some((initrd, Vec::new())).into_iter().collect(),
            map: (0..usize::from(memory.0[params + params::E820_ENTRIES])).map(region).collect(),
            rsdp: (rsdp != 0).then_some(rsdp),
        }
    }

    fn pvh(memory: &Memory<'_>, start_info: usize) -> Self {
        use pvh::{MAGIC, MAP_ENTRY_BYTES, MODULE_BYTES, info};
        assert_eq!(memory.word(start_info + info::MAGIC), MAGIC as usize);
        assert_eq!(memory.word(start_info + info::VERSION), 1);
        let module = |n: usize| {
            let at = memory.pointer(start_info + info::MODULES_ADDR) + n * MODULE_BYTES;
            let start = memory.pointer(at);
            (start..start + memory.pointer(at + 8), memory.string(memory.pointer(at + 16)))
        };
        let region = |n: usize| {
            let at = memory.pointer(start_info + info::MAP_ADDR) + n * MAP_ENTRY_BYTES;
            (memory.long(at), memory.long(at + 8), memory.word(at + 16) as u32)
        };
        let rsdp = memory.long(start_info + info::RSDP);
        Self {
            protocol: Protocol::Pvh,
            command_line: memory.string(memory.pointer(start_info + info::COMMAND_LINE)),
            modules: (0..memory.word(start_info + info::MODULES_COUNT)).map(module).collect(),
            map: (0..memory.word(start_info + info::MAP_COUNT)).map(region).collect(),
            rsdp: (rsdp != 0).then_some(rsdp),
        }
    }
}
