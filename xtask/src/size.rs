//! Sizes of memory as users write them: `64M`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes, a whole number of KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(u64);

impl Size {
    pub(crate) const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// Rounded up to whole MiB, as emulators want it.
    pub(crate) const fn in_mib(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }

    pub(crate) const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no size: write a number and K, M or G, such as 64M");
        let (number, shift) = match text.char_indices().last().ok_or_else(wrong)? {
            (at, 'K' | 'k') => (&text[..at], 10),
            (at, 'M' | 'm') => (&text[..at], 20),
            (at, 'G' | 'g') => (&text[..at], 30),
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        match number.checked_mul(1 << shift) {
            Some(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes.is_multiple_of(1 << 30) => write!(f, "{}G", bytes >> 30),
            bytes if bytes.is_multiple_of(1 << 20) => write!(f, "{}M", bytes >> 20),
            bytes => write!(f, "{}K", bytes >> 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_back() {
        for (text, bytes, back) in
            [("64M", 64 << 20, "64M"), ("4k", 4096, "4K"), ("2048K", 2 << 20, "2M"), ("3g", 3 << 30, "3G")]
        {
            let size: Size = text.parse().unwrap();
            assert_eq!(size, Size(bytes));
            assert_eq!(size.to_string(), back);
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "64", "0M", "-1M", "6 M", "1T", "99999999999999G", "ü"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn emulators_get_whole_mebibytes() {
        assert_eq!("1025K".parse::<Size>().unwrap().in_mib(), 2);
        assert_eq!(Size::mib(64).plus(Size::mib(1)).in_mib(), 65);
    }
}
