//! Guest images: the multiboot header, and the segments with their addresses.

use crate::GuestRam;
use crate::elf_file;
use crate::multiboot::{HAS_ADDRESS_FIELDS, HEADER_MAGIC, HEADER_SEARCH_BYTES, required, u32_at};
use crate::ranges::{overlap, span};
use addr::Gpa;
use alloc::{vec, vec::Vec};
use core::{fmt, ops::Range};

/// A multiboot image that fits into the guest's RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    segments: Vec<Segment<'a>>,
    entry: u32,
}

/// A part of an image: the bytes of the file, and zeros after them up to its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Its first address.
    pub start: Gpa,
    /// Its bytes in the file.
    pub bytes: &'a [u8],
    /// Its size in memory, at least as large as in the file.
    pub size: u64,
}

impl Segment<'_> {
    pub(crate) fn range(&self) -> Range<u64> {
        self.start.raw()..self.start.raw() + self.size
    }
}

/// What is wrong with an image. Segments are counted from 0, as `readelf -l` lists the loadable ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// There is no header in the part of the file that may have it.
    NoHeader {
        /// The offset of the magic number with a wrong checksum.
        bad_checksum: Option<usize>,
    },
    /// The header requires unknown features (bits 0 to 15 of its flags).
    UnknownRequirement {
        /// Those bits.
        flags: u32,
    },
    /// The header requires a video mode, and there is no video.
    VideoRequired,
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
    /// A segment's bytes.
    Segment(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ElfHeader => f.write_str("ELF header"),
            Self::ProgramHeaders => f.write_str("program headers"),
            Self::Segment(n) => write!(f, "segment {n}"),
        }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader { bad_checksum: None } => {
                write!(f, "no multiboot header in the first {HEADER_SEARCH_BYTES} bytes")
            }
            Self::NoHeader { bad_checksum: Some(at) } => {
                write!(f, "no multiboot header: that at offset {at:#x} has a wrong checksum")
            }
            Self::UnknownRequirement { flags } => {
                write!(f, "the multiboot header requires unknown features {flags:#x}")
            }
            Self::VideoRequired => {
                f.write_str("the multiboot header requires a video mode (flag 2), and there is none")
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
                write!(f, "segment {segment}: {file:#x} bytes in the file for {memory:#x} in memory")
            }
            Self::NoSegments => f.write_str("nothing to load"),
            Self::TooManySegments { limit } => write!(f, "more than {limit} segments to load"),
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
    write!(f, "segment {segment}: ")?;
    match start.checked_add(bytes) {
        None => write!(f, "{bytes:#x} bytes at {start:#x} pass the end of the address space"),
        Some(end) if end > ram.bytes() => {
            write!(f, "{start:#x}..{end:#x} lies beyond the guest's {}", Size(ram.bytes()))
        }
        Some(end) => write!(f, "{start:#x}..{end:#x} lies in the hole from 0xa0000 to 0x100000"),
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
const SEGMENT_LIMIT: usize = 64;

impl<'a> Image<'a> {
    /// Parses `file`, for a guest with `ram`. Address fields in the header take precedence over ELF's, as in QEMU and
    /// GRUB.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn parse(file: &'a [u8], ram: GuestRam) -> Result<Self, ImageError> {
        let header = Header::find(file)?;
        let (segments, entry) = match header.flags & HAS_ADDRESS_FIELDS {
            0 => elf_file::segments(file, SEGMENT_LIMIT)?,
            _ => header.flat_segment(file)?,
        };
        check_places(&segments, ram)?;
        let outside = ImageError::EntryOutside { entry };
        if !segments.iter().any(|segment| segment.range().contains(&entry)) {
            return Err(outside);
        }
        Ok(Self { segments, entry: entry.try_into().map_err(|_| outside)? })
    }

    /// The segments, which are in the guest's RAM and do not overlap.
    pub fn segments(&self) -> &[Segment<'a>] {
        &self.segments
    }

    /// Physical address of the first instruction, in one of the segments.
    pub fn entry(&self) -> u32 {
        self.entry
    }

    /// The address after the highest segment.
    pub(crate) fn end(&self) -> u64 {
        self.segments.iter().map(|segment| segment.range().end).max().unwrap_or_default()
    }
}

/// Checks that each segment is in RAM, and that none overlaps another.
fn check_places(segments: &[Segment<'_>], ram: GuestRam) -> Result<(), ImageError> {
    if segments.is_empty() {
        return Err(ImageError::NoSegments);
    }
    for (segment, Segment { start, size, .. }) in segments.iter().enumerate() {
        if !span(start.raw(), *size).is_some_and(|range| ram.holds(&range)) {
            return Err(ImageError::OutsideRam { segment, start: start.raw(), bytes: *size, ram });
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

/// The multiboot header (section 3.1).
struct Header {
    offset: usize,
    flags: u32,
}

impl Header {
    const ALIGNMENT: usize = 4;
    const BYTES: usize = 12;

    /// Finds the first header that lies completely within the searched part of the file.
    fn find(file: &[u8]) -> Result<Self, ImageError> {
        let searched = &file[..file.len().min(HEADER_SEARCH_BYTES)];
        let mut bad_checksum = None;
        for (n, word) in searched.windows(Self::BYTES).step_by(Self::ALIGNMENT).enumerate() {
            let [magic, flags, checksum] = [0, 4, 8].map(|offset| u32_at(word, offset).unwrap_or_default());
            if magic != HEADER_MAGIC {
                continue;
            }
            let offset = n * Self::ALIGNMENT;
            if magic.wrapping_add(flags).wrapping_add(checksum) == 0 {
                return Self { offset, flags }.checked();
            }
            bad_checksum = bad_checksum.or(Some(offset));
        }
        Err(ImageError::NoHeader { bad_checksum })
    }

    /// "If the boot loader sees any of these bits set but doesn't understand the flag or can't fulfill the requirements
    /// it indicates for some reason, it must notify the user and fail to load the OS image."
    fn checked(self) -> Result<Self, ImageError> {
        use required::{ALL, MEMORY_INFORMATION, PAGE_ALIGNED_MODULES, VIDEO_MODE};
        let unknown = self.flags & ALL & !(PAGE_ALIGNED_MODULES | MEMORY_INFORMATION | VIDEO_MODE);
        if unknown != 0 {
            return Err(ImageError::UnknownRequirement { flags: unknown });
        }
        if self.flags & VIDEO_MODE != 0 {
            return Err(ImageError::VideoRequired);
        }
        Ok(self)
    }

    /// The one segment that the address fields describe (section 3.1.3), and the entry point.
    fn flat_segment<'a>(&self, file: &'a [u8]) -> Result<(Vec<Segment<'a>>, u64), ImageError> {
        let field = |n: usize| u32_at(file, self.offset + Self::BYTES + 4 * n).ok_or(ImageError::AddressFieldsCut);
        let [header, load, load_end, bss_end, entry] = [field(0)?, field(1)?, field(2)?, field(3)?, field(4)?];

        let order = |low, low_value, high, high_value| match low_value > high_value {
            true => Err(ImageError::AddressFieldOrder { low, low_value, high, high_value }),
            false => Ok(high_value - low_value),
        };
        let before_header = order("load_addr", load, "header_addr", header)?;
        let start = self
            .offset
            .checked_sub(before_header as usize)
            .ok_or(ImageError::StartsBeforeFile { before_header, header: self.offset })? as u64;
        let bytes = match load_end {
            0 => file.len() as u64 - start,
            _ => order("load_addr", load, "load_end_addr", load_end)?.into(),
        };
        let bytes = file_range(file, Part::Segment(0), start, bytes)?;
        let size = match bss_end {
            0 => bytes.len() as u64,
            _ => order("load_addr", load, "bss_end_addr", bss_end)?.into(),
        };
        if size < bytes.len() as u64 {
            return Err(ImageError::FileExceedsMemory { segment: 0, file: bytes.len() as u64, memory: size });
        }
        Ok((vec![Segment { start: Gpa::new(load.into()), bytes, size }], entry.into()))
    }
}
