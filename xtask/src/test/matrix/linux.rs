//! Debian's kernels, which run the stress program and power off. Where their packages can't be had the rows are skipped.

use super::{Expected, PASS, Row, Source, USUAL};
use crate::linux::{Arch, NO_MORE_WARNINGS};
use crate::size::Size;
use crate::trial::Paging;
use std::time::Duration;

const QEMU: &str = "qemu-svm";
const BOCHS: &str = "bochs-vmx";

/// A kernel with so many processors.
const fn linux(name: &'static str, arch: Arch, vcpus: u32, paging: Paging) -> Row {
    Row {
        name,
        source: Source::Linux(arch),
        words: "seed=1 ops=200",
        bochs_words: Some("seed=1 ops=10"),
        vcpus,
        paging,
        memory: Size::mib(512),
        except: Some("bochs-svm"),
        timeout: Duration::from_secs(900),
        hypervised: Expected { line: NO_MORE_WARNINGS, ..PASS },
        alone: None,
        ..USUAL
    }
}

/// On one host alone, and there with `--all`.
const fn rare(host: &'static str, row: Row) -> Row {
    Row { only: Some(host), except: None, rare_on: &[QEMU, BOCHS], ..row }
}

const NESTED: Paging = Paging::Nested;
const SHADOW: Paging = Paging::Shadow;
/// Takes minutes on each host.
const RARE: &[&str] = &[QEMU, BOCHS];

pub(super) const ROWS: &[Row] = &[
    Row { rare_on: &[QEMU], ..linux("linux-amd64", Arch::Amd64, 1, NESTED) },
    rare(BOCHS, linux("linux-amd64-2", Arch::Amd64, 2, NESTED)),
    Row { only: Some(QEMU), except: None, ..linux("linux-amd64-4", Arch::Amd64, 4, NESTED) },
    Row { rare_on: RARE, ..linux("linux-686-pae", Arch::Pae, 1, NESTED) },
    rare(QEMU, linux("linux-686-pae-4", Arch::Pae, 4, NESTED)),
    Row { rare_on: &[BOCHS], ..linux("linux-686-pae-shadow", Arch::Pae, 1, SHADOW) },
    rare(QEMU, linux("linux-686-pae-shadow-4", Arch::Pae, 4, SHADOW)),
    Row { rare_on: RARE, ..linux("linux-686", Arch::I686, 1, NESTED) },
    rare(QEMU, linux("linux-686-4", Arch::I686, 4, NESTED)),
    Row { rare_on: RARE, ..linux("linux-686-shadow", Arch::I686, 1, SHADOW) },
    rare(QEMU, linux("linux-686-shadow-4", Arch::I686, 4, SHADOW)),
];
