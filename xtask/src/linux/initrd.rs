//! An initial RAM disk: an archive of the "new ASCII" cpio format (Linux, Documentation/driver-api/early-userspace/
//! buffer-format.rst).

use std::io::Write;

/// What a file is, beside its permissions: stat(2).
const FOLDER: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const FILE: u32 = 0o100_000;

/// Names and contents begin at multiples of this.
const ALIGNMENT: usize = 4;

/// An archive.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder; what is in it comes after it.
    pub(crate) fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER | 0o755, (0, 0), &[]);
    }

    /// Adds a file that may be executed.
    pub(crate) fn program(&mut self, name: &str, contents: &[u8]) {
        self.entry(name, FILE | 0o755, (0, 0), contents);
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    /// The archive with its end.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let [size, name_size] = [contents.len(), name.len() + 1].map(|size| size as u32);
        let (links, nobody, never, here, check) = (1, 0, 0, 0, 0);
        self.bytes.extend_from_slice(b"070701");
        let fields =
            [self.entries, mode, nobody, nobody, links, never, size, here, here, major, minor, name_size, check];
        for field in fields {
            // A vector takes whatever is written to it.
            let _ = write!(self.bytes, "{field:08x}");
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mode, device, name and contents.
    type Entry = (u32, (u32, u32), String, Vec<u8>);

    /// Reads an archive back as the kernel does (init/initramfs.c).
    fn read(bytes: &[u8]) -> Vec<Entry> {
        let (mut rest, mut entries) = (bytes, Vec::new());
        loop {
            assert_eq!(&rest[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&rest[6 + 8 * index..][..8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let contents = (110 + name_size).next_multiple_of(4);
            let name = String::from_utf8(rest[110..][..name_size - 1].to_vec()).unwrap();
            assert_eq!(rest[110 + name_size - 1], 0);
            if name == "TRAILER!!!" {
                assert_eq!(rest.len(), contents);
                return entries;
            }
            entries.push((field(1), (field(9), field(10)), name, rest[contents..][..size].to_vec()));
            rest = &rest[(contents + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn an_archive_is_read_back() {
        let mut archive = Archive::default();
        archive.folder("dev");
        archive.device("dev/console", 5, 1);
        for length in 0..5 {
            archive.program(&"x".repeat(length + 1), &vec![7; length]);
        }
        let entries = read(&archive.finish());
        assert_eq!(entries[0], (0o040_755, (0, 0), "dev".to_string(), Vec::new()));
        assert_eq!(entries[1], (0o020_600, (5, 1), "dev/console".to_string(), Vec::new()));
        for (length, entry) in entries[2..].iter().enumerate() {
            assert_eq!(*entry, (0o100_755, (0, 0), "x".repeat(length + 1), vec![7; length]));
        }
        assert_eq!(entries.len(), 7);
    }
}
