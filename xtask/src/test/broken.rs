//! Images that must be refused, made from a good one.

use anyhow::{Context, Result, bail};
use std::ops::Range;

/// What is wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// The file ends within what has to be loaded.
    Truncated,
    /// A segment and the multiboot header's bss end far beyond the guest's memory.
    BeyondMemory,
    /// A text file.
    NotAnElf,
    /// The multiboot header's checksum does not fit.
    NoHeader,
}

const MULTIBOOT_MAGIC: u32 = 0x1BAD_B002;
/// The header lies in the first 8192 bytes, 4-byte aligned (Multiboot specification 0.6.96, section 3.1).
const MULTIBOOT_SEARCH: usize = 8192;
const MULTIBOOT_CHECKSUM: usize = 8;
const MULTIBOOT_BSS_END: usize = 24;

// The ELF64 header, and a program header's fields.
const E_PHOFF: usize = 0x20;
const E_PHENTSIZE: usize = 0x36;
const E_PHNUM: usize = 0x38;
const P_TYPE: usize = 0;
const P_OFFSET: usize = 8;
const P_FILESZ: usize = 32;
const P_MEMSZ: usize = 40;
const PT_LOAD: u64 = 1;

/// The last page below 4 GiB, and a size that no guest of the tests has.
const FAR: u64 = 0xffff_f000;

/// A copy of a good ELF64 image that has the defect.
pub(crate) fn broken(good: &[u8], defect: Defect) -> Result<Vec<u8>> {
    let mut image = good.to_vec();
    match defect {
        Defect::Truncated => {
            let segments = load_segments(&image)?.into_iter();
            let contents = segments.filter_map(|at| {
                Some(number(good, at + P_OFFSET..at + P_OFFSET + 8)? + number(good, at + P_FILESZ..at + P_FILESZ + 8)?)
            });
            let end = contents.max().context("the image has no segment to load")?;
            image.truncate(usize::try_from(end)?.saturating_sub(1));
        }
        Defect::NotAnElf => image = b"this is no image of a guest\n".repeat(100),
        Defect::NoHeader => {
            let at = header(&image)?;
            image[at + MULTIBOOT_CHECKSUM] ^= 1;
        }
        Defect::BeyondMemory => {
            let at = header(&image)?;
            put(&mut image, at + MULTIBOOT_BSS_END, &(FAR as u32).to_le_bytes())?;
            let last = load_segments(&image)?.last().copied().context("the image has no segment to load")?;
            put(&mut image, last + P_MEMSZ, &FAR.to_le_bytes())?;
        }
    }
    Ok(image)
}

/// Where the multiboot header is.
fn header(image: &[u8]) -> Result<usize> {
    let found = (0..image.len().min(MULTIBOOT_SEARCH))
        .step_by(4)
        .find(|at| number(image, *at..*at + 4) == Some(MULTIBOOT_MAGIC.into()));
    found.context("the image has no multiboot header")
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
        image[0x200..0x204].copy_from_slice(&MULTIBOOT_MAGIC.to_le_bytes());
        image
    }

    #[test]
    fn each_defect_is_where_it_should_be() {
        let good = good();
        assert_eq!(broken(&good, Defect::Truncated).unwrap(), good[..0x2ff]);
        assert!(!broken(&good, Defect::NotAnElf).unwrap().starts_with(b"\x7fELF"));

        let headless = broken(&good, Defect::NoHeader).unwrap();
        assert_eq!(headless.iter().zip(&good).filter(|(a, b)| a != b).count(), 1);
        assert_ne!(headless[0x208], good[0x208]);

        let beyond = broken(&good, Defect::BeyondMemory).unwrap();
        assert_eq!(number(&beyond, 0x200 + MULTIBOOT_BSS_END..0x204 + MULTIBOOT_BSS_END), Some(FAR));
        assert_eq!(number(&beyond, 0x78 + P_MEMSZ..0x80 + P_MEMSZ), Some(FAR));
        assert_eq!(number(&beyond, 0x40 + P_MEMSZ..0x48 + P_MEMSZ), Some(0));
    }

    #[test]
    fn a_bad_original_is_an_error() {
        for image in [&b""[..], b"\x7fELF", &[0; 9000]] {
            assert!(broken(image, Defect::BeyondMemory).is_err());
            assert!(broken(image, Defect::NoHeader).is_err());
        }
        let mut outside = good();
        outside[E_PHOFF + 3] = 1;
        assert!(broken(&outside, Defect::BeyondMemory).is_err());
    }
}
