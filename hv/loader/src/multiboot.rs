//! Reading what multiboot's and other formats are made of. The specification's numbers are in [`abi::multiboot`].

pub(crate) use abi::multiboot::*;

/// The little-endian 32-bit value at `offset`, or None if it is beyond the end.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The little-endian 64-bit value at `offset`, or None if it is beyond the end.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The offset of the first header in the first `limit` bytes of `file`: `magic`, at a multiple of `align`, begins `WORDS` words
/// whose sum is zero.
///
/// # Errors
/// The offset of the first `magic` with another sum, if there is no header.
pub(crate) fn find_header<const WORDS: usize>(
    file: &[u8],
    magic: u32,
    align: usize,
    limit: usize,
) -> Result<Option<usize>, usize> {
    let searched = &file[..file.len().min(limit)];
    let mut wrong = None;
    for (n, header) in searched.windows(WORDS * 4).step_by(align).enumerate() {
        if u32_at(header, 0) != Some(magic) {
            continue;
        }
        let (words, _) = header.as_chunks();
        let sum = words.iter().fold(0u32, |sum, word| sum.wrapping_add(u32::from_le_bytes(*word)));
        if sum == 0 {
            return Ok(Some(n * align));
        }
        wrong = wrong.or(Some(n * align));
    }
    wrong.map_or(Ok(None), Err)
}
