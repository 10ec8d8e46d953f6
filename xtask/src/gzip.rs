//! Files that gzip compressed.

use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What each such file begins with (RFC 1952, 2.3.1).
const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Whether the file is one.
pub(crate) fn is_gzip(file: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(file)?.take(MAGIC.len() as u64).read_to_end(&mut start)?;
    Ok(start == MAGIC)
}

/// Unpacks one file into another.
pub(crate) fn unpack(from: &Path, to: &Path) -> io::Result<()> {
    io::copy(&mut MultiGzDecoder::new(File::open(from)?), &mut File::create(to)?).map(drop)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::fs;
    use std::io::Write;

    /// Writes a compressed file.
    pub(crate) fn pack(bytes: &[u8], to: &Path) {
        let mut encoder = GzEncoder::new(File::create(to).unwrap(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap();
    }

    #[test]
    fn a_file_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let [packed, plain] = ["packed", "plain"].map(|name| folder.path().join(name));
        let bytes: Vec<u8> = (0..100_000_u32).map(|number| (number / 7) as u8).collect();
        pack(&bytes, &packed);
        assert!(is_gzip(&packed).unwrap());
        unpack(&packed, &plain).unwrap();
        assert_eq!(fs::read(&plain).unwrap(), bytes);
        assert!(!is_gzip(&plain).unwrap());
    }

    #[test]
    fn a_broken_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let [packed, plain] = ["packed", "plain"].map(|name| folder.path().join(name));
        pack(&[7; 1000], &packed);
        let bytes = fs::read(&packed).unwrap();
        fs::write(&packed, &bytes[..bytes.len() - 9]).unwrap();
        assert!(unpack(&packed, &plain).is_err());
        fs::write(&plain, [MAGIC[0]]).unwrap();
        assert!(!is_gzip(&plain).unwrap());
    }
}
