//! Images made from one of our guests: of another kind, or with something wrong.

use abi::multiboot::{HAS_ADDRESS_FIELDS, HEADER_MAGIC, HEADER_SEARCH_BYTES, header};
use abi::multiboot2::{self, header as header2, information};
use anyhow::{Context, Result, bail};
use std::ops::Range;

/// What is changed about an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is an ELF32 without the multiboot header's address fields, as most kernels are that others make.
    Elf32,
    /// The file ends within what has to be loaded.
    Truncated,
    /// A segment and the multiboot header's bss end far beyond the guest's memory.
    BeyondMemory,
    /// A text file.
    NotAnElf,
    /// The multiboot header's checksum does not fit.
    NoHeader,
    /// The multiboot2 header's checksum does not fit: the loader goes by that of multiboot.
    NoMultiboot2,
    /// Neither's does: the loader goes by the note of PVH.
    Pvh,
    /// The multiboot2 header requires a tag about SMBIOS.
    RequiresSmbios,
}

/// The first type that the first tag requests.
const FIRST_REQUEST: usize = header2::FIXED_BYTES + 8;

// The ELF64 header, and a program header's fields.
const E_ENTRY: usize = 0x18;
const E_PHOFF: usize = 0x20;
const E_PHENTSIZE: usize = 0x36;
const E_PHNUM: usize = 0x38;
const P_TYPE: usize = 0;
const P_FLAGS: usize = 4;
const P_OFFSET: usize = 8;
const P_FILESZ: usize = 32;
const P_MEMSZ: usize = 40;
const PT_LOAD: u64 = 1;
/// The size of an ELF32 header.
const ELF32_HEADER: u64 = 52;

/// The last page below 4 GiB, and a size that no guest of the tests has.
const FAR: u64 = 0xffff_f000;

/// A copy of an ELF64 image with the change.
pub(crate) fn changed(good: &[u8], change: Change) -> Result<Vec<u8>> {
    let mut image = good.to_vec();
    match change {
        Change::Elf32 => image = elf32(good)?,
        Change::Truncated => {
            let segments = load_segments(&image)?.into_iter();
            let contents = segments.filter_map(|at| {
                Some(number(good, at + P_OFFSET..at + P_OFFSET + 8)? + number(good, at + P_FILESZ..at + P_FILESZ + 8)?)
            });
            let end = contents.max().context("the image has no segment to load")?;
            image.truncate(usize::try_from(end)?.saturating_sub(1));
        }
        Change::NotAnElf => image = b"this is no image of a guest\n".repeat(100),
        Change::NoHeader => {
            let at = header_at(&image)?;
            image[at + header::CHECKSUM] ^= 1;
        }
        Change::NoMultiboot2 => {
            let at = header2_at(&image)?;
            image[at + header2::CHECKSUM] ^= 1;
        }
        Change::Pvh => image = changed(&changed(good, Change::NoMultiboot2)?, Change::NoHeader)?,
        Change::RequiresSmbios => {
            let at = header2_at(&image)?;
            put(&mut image, at + FIRST_REQUEST, &information::SMBIOS.to_le_bytes())?;
        }
        Change::BeyondMemory => {
            let at = header_at(&image)?;
            put(&mut image, at + header::BSS_END, &(FAR as u32).to_le_bytes())?;
            let last = load_segments(&image)?.last().copied().context("the image has no segment to load")?;
            put(&mut image, last + P_MEMSZ, &FAR.to_le_bytes())?;
        }
    }
    Ok(image)
}

/// The same image as an ELF32. Its headers are smaller and stand where the larger ones did; all else stays in place.
fn elf32(good: &[u8]) -> Result<Vec<u8>> {
    let segments = load_segments(good)?;
    let field = |at: usize, size: usize| number(good, at..at + size).context("the image is too short");
    // e_ident, e_type, e_machine (Intel 80386), e_version
    let mut headers = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    let mut words = |words: &[u64]| -> Result<()> {
        for word in words {
            headers.extend(u32::try_from(*word).context("not an image for below 4 GiB")?.to_le_bytes());
        }
        Ok(())
    };
    // e_entry, e_phoff, e_shoff, e_flags; then pairs of halves: e_ehsize and e_phentsize, e_phnum and e_shentsize, …
    words(&[field(E_ENTRY, 8)?, ELF32_HEADER, 0, 0])?;
    words(&[ELF32_HEADER | 32 << 16, segments.len() as u64, 0])?;
    for at in segments {
        // p_type, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_flags, p_align
        let [offset, virtual_address, address] = [P_OFFSET, 16, 24].map(|member| field(at + member, 8));
        words(&[PT_LOAD, offset?, virtual_address?, address?])?;
        words(&[field(at + P_FILESZ, 8)?, field(at + P_MEMSZ, 8)?, field(at + P_FLAGS, 4)?, 4096])?;
    }
    let mut image = good.to_vec();
    put(&mut image, 0, &headers)?;

    let at = header_at(&image)?;
    let flags = field(at + header::FLAGS, 4)? as u32 & !HAS_ADDRESS_FIELDS;
    put(&mut image, at + header::FLAGS, &flags.to_le_bytes())?;
    let checksum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
    put(&mut image, at + header::CHECKSUM, &checksum.to_le_bytes())?;
    Ok(image)
}

/// Where the multiboot header is.
fn header_at(image: &[u8]) -> Result<usize> {
    find(image, HEADER_MAGIC, HEADER_SEARCH_BYTES).context("the image has no multiboot header")
}

/// Where the multiboot2 header is.
fn header2_at(image: &[u8]) -> Result<usize> {
    find(image, multiboot2::HEADER_MAGIC, multiboot2::HEADER_SEARCH_BYTES).context("the image has no multiboot2 header")
}

fn find(image: &[u8], magic: u32, within: usize) -> Option<usize> {
    (0..image.len().min(within)).step_by(4).find(|at| number(image, *at..*at + 4) == Some(magic.into()))
}

/// Where the program headers of the segments to load are.
fn load_segments(image: &[u8]) -> Result<Vec<usize>> {
    if !image.starts_with(b"\x7fELF\x02\x01") {
        bail!("the image is no ELF64 of a little-endian machine");
    }
    let field = |range| number(image, range).context("the image is too short");
    let start = field(E_PHOFF..E_PHOFF + 8)?;
    let (size, count) = (field(E_PHENTSIZE..E_PHENTSIZE + 2)?, field(E_PHNUM..E_PHNUM + 2)?);
    let headers = (0..count).map(|n| (start + n * size) as usize);
    Ok(headers.filter(|at| number(image, *at + P_TYPE..*at + P_TYPE + 4) == Some(PT_LOAD)).collect())
}

/// A little-endian number of up to eight bytes.
fn number(image: &[u8], range: Range<usize>) -> Option<u64> {
    let mut bytes = [0; 8];
    let field = image.get(range)?;
    bytes[..field.len()].copy_from_slice(field);
    Some(u64::from_le_bytes(bytes))
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    image.get_mut(at..at + bytes.len()).context("the image is too short")?.copy_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF64 header, one segment to load after one of another type, and a multiboot header.
    fn good() -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[E_PHOFF] = 0x40;
        image[E_PHENTSIZE] = 56;
        image[E_PHNUM] = 2;
        image[0x40] = 4;
        image[0x40 + 56] = 1;
        image[0x78 + P_OFFSET + 1] = 2;
        image[0x78 + P_FILESZ + 1] = 1;
        image[0x200..0x204].copy_from_slice(&HEADER_MAGIC.to_le_bytes());
        image[0x204..0x208].copy_from_slice(&(HAS_ADDRESS_FIELDS | 3).to_le_bytes());
        image[0x240..0x244].copy_from_slice(&multiboot2::HEADER_MAGIC.to_le_bytes());
        image
    }

    #[test]
    fn an_elf32_is_read_as_what_the_elf64_was() {
        use object::{Object, ObjectSegment};
        let mut original = good();
        original[E_ENTRY + 2] = 0x10;
        let small = changed(&original, Change::Elf32).unwrap();
        let file = object::File::parse(&*small).unwrap();
        assert!(!file.is_64());
        assert_eq!(file.entry(), 0x10_0000);
        let segments: Vec<_> = file.segments().map(|segment| segment.file_range()).collect();
        assert_eq!(segments, [(0x200, 0x100)]);
        let [magic, flags, checksum] = [0x200, 0x204, 0x208].map(|at| number(&small, at..at + 4).unwrap());
        assert_eq!((magic + flags + checksum) as u32, 0);
        assert_eq!(flags as u32 & HAS_ADDRESS_FIELDS, 0);
    }

    #[test]
    fn each_defect_is_where_it_should_be() {
        let good = good();
        assert_eq!(changed(&good, Change::Truncated).unwrap(), good[..0x2ff]);
        assert!(!changed(&good, Change::NotAnElf).unwrap().starts_with(b"\x7fELF"));

        let headless = changed(&good, Change::NoHeader).unwrap();
        assert_eq!(headless.iter().zip(&good).filter(|(a, b)| a != b).count(), 1);
        assert_ne!(headless[0x208], good[0x208]);

        let differing = |change| {
            let image = changed(&good, change).unwrap();
            (0..image.len()).filter(|&at| image[at] != good[at]).collect::<Vec<_>>()
        };
        assert_eq!(differing(Change::NoMultiboot2), [0x24c]);
        assert_eq!(differing(Change::Pvh), [0x208, 0x24c]);
        assert_eq!(differing(Change::RequiresSmbios), [0x258]);

        let beyond = changed(&good, Change::BeyondMemory).unwrap();
        assert_eq!(number(&beyond, 0x200 + header::BSS_END..0x204 + header::BSS_END), Some(FAR));
        assert_eq!(number(&beyond, 0x78 + P_MEMSZ..0x80 + P_MEMSZ), Some(FAR));
        assert_eq!(number(&beyond, 0x40 + P_MEMSZ..0x48 + P_MEMSZ), Some(0));
    }

    #[test]
    fn a_bad_original_is_an_error() {
        for image in [&b""[..], b"\x7fELF", &[0; 9000]] {
            assert!(changed(image, Change::BeyondMemory).is_err());
            assert!(changed(image, Change::NoHeader).is_err());
            assert!(changed(image, Change::RequiresSmbios).is_err());
        }
        let mut outside = good();
        outside[E_PHOFF + 3] = 1;
        assert!(changed(&outside, Change::BeyondMemory).is_err());
    }
}
