//! Images of segments with addresses, and what can be wrong with an image.

use crate::GuestRam;
use crate::linux::LinuxError;
use crate::memory::{HIGH_START, LOW_END};
use crate::multiboot::HEADER_SEARCH_BYTES;
use crate::multiboot2::Multiboot2Error;
use crate::ranges::{overlap, span};
use abi::reasons::{self, WRONG_CHECKSUM};
use addr::Gpa;
use alloc::vec::Vec;
use core::{fmt, ops::Range};

/// An image of segments with fixed addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image<'a> {
    segments: Vec<Segment<'a>>,
    entry: u32,
}

/// A part of an image: the bytes of the file, and zeros after them up to its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    /// Its first address.
    pub(crate) start: Gpa,
    /// Its bytes in the file.
    pub(crate) bytes: &'a [u8],
    /// Its size in memory, at least as large as in the file.
    pub(crate) size: u64,
}

impl Segment<'_> {
    pub(crate) fn range(&self) -> Range<u64> {
        self.start.raw()..self.start.raw() + self.size
    }
}

/// What is wrong with an image. Segments are counted from 0, as `readelf -l` lists the loadable ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// It is an image of no known kind.
    Unknown {
        /// The header that would have been one, but for its checksum: the protocol, and its offset in the file.
        bad_checksum: Option<(&'static str, usize)>,
    },
    /// Its header for Linux's boot protocol is wrong.
    Linux(LinuxError),
    /// Its multiboot2 header is wrong.
    Multiboot2(Multiboot2Error),
    /// Its PVH entry point has neither 32 nor 64 bits.
    PvhEntry {
        /// The bytes that it has.
        bytes: usize,
    },
    /// The header requires unknown features (bits 0 to 15 of its flags).
    UnknownRequirement {
        /// Those bits.
        flags: u32,
    },
    /// The header has the flag of address fields, but the file ends before them.
    AddressFieldsCut,
    /// An address field has a higher value than one that limits it.
    AddressFieldOrder {
        /// The field.
        low: &'static str,
        /// Its value.
        low_value: u32,
        /// The field that limits it.
        high: &'static str,
        /// Its value.
        high_value: u32,
    },
    /// According to the address fields the image starts before the file.
    StartsBeforeFile {
        /// The distance from the image's start to the header.
        before_header: u32,
        /// The header's offset in the file.
        header: usize,
    },
    /// The image has no address fields and is no ELF file.
    NotElf,
    /// The image is an ELF file of the wrong kind.
    ElfKind {
        /// The wrong field.
        what: &'static str,
        /// Its value.
        value: u32,
        /// The values that can be loaded.
        expected: &'static str,
    },
    /// A part of the file is beyond its end.
    BeyondFile {
        /// The part.
        part: Part,
        /// First byte in the file.
        start: u64,
        /// Its length in bytes.
        bytes: u64,
        /// Bytes in the file.
        file: usize,
    },
    /// A segment has more bytes in the file than in memory.
    FileExceedsMemory {
        /// Which one.
        segment: usize,
        /// Bytes in the file.
        file: u64,
        /// Bytes in memory.
        memory: u64,
    },
    /// The image has no segments to load.
    NoSegments,
    /// The image has too many segments.
    TooManySegments {
        /// The most that are loaded.
        limit: usize,
    },
    /// A segment passes the end of the address space.
    PassesEnd {
        /// Which one.
        segment: usize,
        /// First address.
        start: u64,
        /// Bytes in memory.
        bytes: u64,
    },
    /// A segment is outside of the guest's RAM.
    OutsideRam {
        /// Which one.
        segment: usize,
        /// First address.
        start: u64,
        /// Bytes in memory.
        bytes: u64,
        /// The guest's RAM.
        ram: GuestRam,
    },
    /// Two segments share addresses.
    Overlap {
        /// One of them.
        first: usize,
        /// The other.
        second: usize,
        /// The common range.
        shared: Range<Gpa>,
    },
    /// The entry point is in no segment.
    EntryOutside {
        /// Its address.
        entry: u64,
    },
}

/// A part of an image's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The ELF header.
    ElfHeader,
    /// The table of program headers.
    ProgramHeaders,
    /// Notes.
    Notes,
    /// A segment's bytes.
    Segment(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ElfHeader => f.write_str("ELF header"),
            Self::ProgramHeaders => f.write_str("program headers"),
            Self::Notes => f.write_str("notes"),
            Self::Segment(n) => reasons::Segment(*n).fmt(f),
        }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { bad_checksum: None } => {
                write!(
                    f,
                    "an image of no known kind: no Linux boot header at offset 0x202, no multiboot2 header in the first {} \
                     bytes, no multiboot header in the first {} bytes, no ELF file with a PVH entry point",
                    abi::multiboot2::HEADER_SEARCH_BYTES,
                    HEADER_SEARCH_BYTES
                )
            }
            Self::Unknown { bad_checksum: Some((protocol, at)) } => {
                write!(f, "an image of no known kind: the {protocol} header at offset {at:#x} {WRONG_CHECKSUM}")
            }
            Self::Linux(error) => error.fmt(f),
            Self::Multiboot2(error) => error.fmt(f),
            Self::PvhEntry { bytes } => write!(f, "the PVH entry point has {bytes} bytes: expected 4 or 8"),
            Self::UnknownRequirement { flags } => {
                write!(f, "the multiboot header requires unknown features {flags:#x}")
            }
            Self::AddressFieldsCut => f.write_str("the file ends within the multiboot header's address fields"),
            Self::AddressFieldOrder { low, low_value, high, high_value } => {
                write!(f, "multiboot header: {low} {low_value:#x} lies above {high} {high_value:#x}")
            }
            Self::StartsBeforeFile { before_header, header } => {
                write!(
                    f,
                    "multiboot header: load_addr is {before_header:#x} bytes before the header, which is at {header:#x} in the file"
                )
            }
            Self::NotElf => f.write_str("neither an ELF file nor address fields in the multiboot header (flag 16)"),
            Self::ElfKind { what, value, expected } => write!(f, "ELF {what} {value}: expected {expected}"),
            Self::BeyondFile { part, start, bytes, file } => {
                write!(f, "{part}: {bytes:#x} bytes at {start:#x} lie beyond the file's end at {file:#x}")
            }
            Self::FileExceedsMemory { segment, file, memory } => {
                write!(f, "{}: {file:#x} bytes in the file for {memory:#x} in memory", reasons::Segment(*segment))
            }
            Self::NoSegments => f.write_str("nothing to load"),
            Self::TooManySegments { limit } => write!(f, "more than {limit} segments to load"),
            Self::PassesEnd { segment, start, bytes } => {
                write!(
                    f,
                    "{}: {bytes:#x} bytes at {start:#x} pass the end of the address space",
                    reasons::Segment(*segment)
                )
            }
            Self::OutsideRam { segment, start, bytes, ram } => outside_ram(f, *segment, *start, *bytes, *ram),
            Self::Overlap { first, second, shared } => {
                write!(f, "segments {first} and {second} overlap: {}..{}", shared.start, shared.end)
            }
            Self::EntryOutside { entry } => write!(f, "the entry point {entry:#x} lies in no segment"),
        }
    }
}

impl core::error::Error for ImageError {}

fn outside_ram(f: &mut fmt::Formatter<'_>, segment: usize, start: u64, bytes: u64, ram: GuestRam) -> fmt::Result {
    let range = start..start.saturating_add(bytes);
    write!(f, "{}: {start:#x}..{:#x} ", reasons::Segment(segment), range.end)?;
    if range.end > ram.low_end() {
        write!(f, "lies beyond the guest's {}", Size(ram.low_end()))
    } else if overlap(&range, &(LOW_END..HIGH_START)) {
        write!(f, "lies in the hole from {LOW_END:#x} to {HIGH_START:#x}")
    } else {
        f.write_str("is not all usable RAM: the firmware keeps some of it")
    }
}

/// A size in bytes, printed in MiB or KiB.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1 << 20) {
            write!(f, "{} MiB", self.0 >> 20)
        } else {
            write!(f, "{} KiB", self.0 >> 10)
        }
    }
}

/// The most segments of one image. Linkers make a few.
pub(crate) const SEGMENT_LIMIT: usize = 64;

impl<'a> Image<'a> {
    /// An image of `segments` that is entered at `entry`.
    ///
    /// # Errors
    /// [`ImageError`] if there are none, if two overlap, or if the entry point is in none.
    pub(crate) fn new(segments: Vec<Segment<'a>>, entry: u64) -> Result<Self, ImageError> {
        check_segments(&segments)?;
        let outside = ImageError::EntryOutside { entry };
        if !segments.iter().any(|segment| segment.range().contains(&entry)) {
            return Err(outside);
        }
        Ok(Self { entry: entry.try_into().map_err(|_| outside)?, segments })
    }

    /// The segments, which do not overlap.
    pub(crate) fn segments(&self) -> &[Segment<'a>] {
        &self.segments
    }

    /// Physical address of the first instruction, in one of the segments.
    pub(crate) fn entry(&self) -> u32 {
        self.entry
    }

    /// From the lowest segment's start to the highest segment's end.
    pub(crate) fn span(&self) -> Range<u64> {
        let ranges = || self.segments.iter().map(Segment::range);
        let start = ranges().map(|range| range.start).min().unwrap_or_default();
        start..ranges().map(|range| range.end).max().unwrap_or_default()
    }

    /// The same image, the lowest segment of which starts at `start`. None if it passes the end of the 32-bit addresses.
    pub(crate) fn moved_to(mut self, start: u64) -> Option<Self> {
        let Range { start: old, end } = self.span();
        start.checked_add(end - old).filter(|&end| end <= 1 << 32)?;
        for segment in &mut self.segments {
            segment.start = Gpa::new(segment.start.raw() - old + start);
        }
        self.entry = (u64::from(self.entry) - old + start).try_into().ok()?;
        Some(self)
    }
}

/// Checks that each segment is in the address space, and that none overlaps another.
fn check_segments(segments: &[Segment<'_>]) -> Result<(), ImageError> {
    if segments.is_empty() {
        return Err(ImageError::NoSegments);
    }
    for (segment, Segment { start, size, .. }) in segments.iter().enumerate() {
        if span(start.raw(), *size).is_none() {
            return Err(ImageError::PassesEnd { segment, start: start.raw(), bytes: *size });
        }
    }
    for (second, b) in segments.iter().enumerate() {
        for (first, a) in segments[..second].iter().enumerate() {
            let (a, b) = (a.range(), b.range());
            if overlap(&a, &b) {
                let shared = Gpa::new(a.start.max(b.start))..Gpa::new(a.end.min(b.end));
                return Err(ImageError::Overlap { first, second, shared });
            }
        }
    }
    Ok(())
}

/// `bytes` bytes of the file from `start` on, for `part`.
pub(crate) fn file_range(file: &[u8], part: Part, start: u64, bytes: u64) -> Result<&[u8], ImageError> {
    span(start, bytes)
        .filter(|range| range.end <= file.len() as u64)
        .and_then(|range| file.get(range.start as usize..range.end as usize))
        .ok_or(ImageError::BeyondFile { part, start, bytes, file: file.len() })
}
