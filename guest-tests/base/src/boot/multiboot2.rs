//! Multiboot2 specification 2.0, section 3.6.

use abi::multiboot2::information as tag;

use super::{Information, Region, bytes, entry, region, u32_at};

/// Type and size.
const HEAD: usize = 8;

/// All of the information: its size, a reserved word, and tags.
pub(super) struct Info(&'static [u8]);

impl Info {
    /// The one at `at`.
    pub(super) fn at(at: u32) -> Option<Self> {
        Some(Self(bytes(at, u32_at(bytes(at, HEAD as u32), 0)?)))
    }

    /// The fields behind the head of each tag of type `kind`.
    fn tags(&self, kind: u32) -> impl Iterator<Item = &'static [u8]> {
        let mut rest = self.0.get(HEAD..).unwrap_or_default();
        let tags = core::iter::from_fn(move || {
            let (kind, size) = (u32_at(rest, 0)?, u32_at(rest, 4)? as usize);
            let fields = rest.get(HEAD..size)?;
            rest = rest.get(size.next_multiple_of(8)..).unwrap_or_default();
            (kind != tag::END).then_some((kind, fields))
        });
        tags.filter(move |(of, _)| *of == kind).map(|(_, fields)| fields)
    }

    fn tag(&self, kind: u32) -> Option<&'static [u8]> {
        self.tags(kind).next()
    }

    fn string(&self, kind: u32) -> Option<u32> {
        self.tag(kind).map(address)
    }

    /// The memory map's entries, and the size of each.
    fn map(&self) -> Option<(&'static [u8], usize)> {
        let fields = self.tag(tag::MEMORY_MAP)?;
        Some((fields.get(8..)?, u32_at(fields, 0)? as usize))
    }
}

/// Guests are below 4 GiB, and so is all that they are given.
fn address(fields: &'static [u8]) -> u32 {
    fields.as_ptr().addr() as u32
}

impl Information for Info {
    fn command_line(&self) -> Option<u32> {
        self.string(tag::COMMAND_LINE)
    }

    fn loader_name(&self) -> Option<u32> {
        self.string(tag::LOADER_NAME)
    }

    fn memory_kib(&self) -> Option<[u32; 2]> {
        let fields = self.tag(tag::MEMORY)?;
        Some([u32_at(fields, 0)?, u32_at(fields, 4)?])
    }

    /// Start, end, and the string itself.
    fn module(&self, index: usize) -> Option<[u32; 3]> {
        let fields = self.tags(tag::MODULES).nth(index)?;
        Some([u32_at(fields, 0)?, u32_at(fields, 4)?, address(fields) + 8])
    }

    fn region(&self, index: usize) -> Option<Region> {
        let (entries, size) = self.map()?;
        region(entry(entries, size, index)?)
    }

    fn memory_map_is_whole(&self) -> bool {
        self.map().is_some_and(|(entries, size)| size >= 20 && entries.len().is_multiple_of(size))
    }

    fn rsdps(&self) -> [Option<&'static [u8]>; 2] {
        [tag::ACPI_OLD, tag::ACPI_NEW].map(|kind| self.tag(kind))
    }

    fn tables(&self) -> [&'static [u8]; 3] {
        [self.0, &[], &[]]
    }
}
