//! The size of the hypervisor's image, held against the one kept in the repository.

use crate::output::outln;
use crate::project;
use anyhow::{Context, Result};
use object::{Object, ObjectSegment};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// How much larger than before is a regression, in percent.
const TOLERANCE: u64 = 2;
/// Where the size is kept.
const KEPT: &str = "xtask/baseline/image.json";

/// What a boot loader reads of the image: code and data, without symbols and without what it zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ImageSize {
    bytes: u64,
}

impl ImageSize {
    fn of(image: &[u8]) -> Result<Self> {
        let file = object::File::parse(image).context("the image is no ELF")?;
        Ok(Self { bytes: file.segments().map(|segment| segment.file_range().1).sum() })
    }

    fn is_regression(self, kept: Self) -> bool {
        self.bytes * 100 > kept.bytes * (100 + TOLERANCE)
    }
}

/// Compares the size of `image` with the kept one, or keeps it; the exit status.
pub(crate) fn check(image: &Path, save: bool) -> Result<u8> {
    let size = ImageSize::of(&fs::read(image).with_context(|| format!("can't read {}", image.display()))?)?;
    let kept_file = project::root().join(KEPT);
    if save {
        let text = serde_json::to_string_pretty(&size)? + "\n";
        fs::write(&kept_file, text).with_context(|| format!("can't write {KEPT}"))?;
        outln!("bench: image: {} bytes, kept in {KEPT}\n", size.bytes);
        return Ok(0);
    }
    let text = fs::read_to_string(&kept_file).with_context(|| format!("can't read {KEPT}"))?;
    let kept: ImageSize = serde_json::from_str(&text).with_context(|| format!("{KEPT} is broken"))?;
    let failed = size.is_regression(kept);
    let judged = if failed { "FAILED: more than" } else { "not more than" };
    outln!("bench: image: {} bytes, {judged} {TOLERANCE} % above the {} kept\n", size.bytes, kept.bytes);
    Ok(u8::from(failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_percent_more_are_a_regression_and_less_is_none() {
        let kept = ImageSize { bytes: 1_000_000 };
        for (bytes, is_regression) in [(500_000, false), (1_020_000, false), (1_020_001, true)] {
            assert_eq!(ImageSize { bytes }.is_regression(kept), is_regression, "{bytes}");
        }
    }

    #[test]
    fn symbols_and_zeroed_memory_do_not_count() {
        let file = fs::read(std::env::current_exe().unwrap()).unwrap();
        let size = ImageSize::of(&file).unwrap();
        assert!(size.bytes > 100_000 && size.bytes < file.len() as u64, "{size:?}");
        assert!(ImageSize::of(b"a text").is_err());
    }
}
