//! The addresses of a hypervisor's instructions that an emulator carried out.

use anyhow::{Context, Result};
use object::{Object, ObjectSection};
use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What emulators noted of one image's instructions. Copies share it, so that each machine may have one.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    /// Where the image is entered: until then Bochs need not note anything.
    entry: u64,
    /// The addresses of the image's instructions, which no guest of ours uses.
    pub(crate) text: Range<u64>,
    seen: Arc<Mutex<BTreeSet<u64>>>,
}

impl Trace {
    /// An empty one.
    pub(crate) fn of(image: &Path) -> Result<Self> {
        let bytes = fs::read(image).with_context(|| format!("can't read {}", image.display()))?;
        let file = object::File::parse(&*bytes)?;
        let text = file.section_by_name(".text").with_context(|| format!("{} has no .text", image.display()))?;
        Ok(Self { entry: file.entry(), text: text.address()..text.address() + text.size(), seen: Arc::default() })
    }

    /// All addresses that were noted.
    pub(crate) fn addresses(&self) -> BTreeSet<u64> {
        self.seen().clone()
    }

    /// QEMU's options: `-d in_asm` logs each block of instructions, to its standard error, when it is first translated.
    pub(super) fn qemu_arguments(&self) -> [String; 4] {
        let filter = format!("{:#x}..{:#x}", self.text.start, self.text.end - 1);
        ["-d".into(), "in_asm".into(), "-dfilter".into(), filter]
    }

    /// Commands for Bochs's debugger: from the image's entry on, it prints each instruction to its standard output.
    pub(super) fn bochs_commands(&self) -> String {
        format!("pb {:#x}\nc\ntrace on\n", self.entry)
    }

    /// Takes a line of the log; false: it is none.
    pub(super) fn take(&self, line: &str) -> bool {
        if let Some(address) = qemu_address(line).or_else(|| bochs_address(line)) {
            if self.text.contains(&address) {
                self.seen().insert(address);
            }
            return true;
        }
        line.starts_with("----------------") || line.starts_with("IN:")
    }

    fn seen(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `0xffffffff80102047:  b8 10 00 00 00           movl     $0x10, %eax`
fn qemu_address(line: &str) -> Option<u64> {
    let (address, _) = line.strip_prefix("0x")?.split_once(": ")?;
    u64::from_str_radix(address, 16).ok()
}

/// `(0).[79239734] [0x000000102047] 0008:ffffffff80102047 (unk. ctxt): mov eax, 0x00000010       ; b810000000`
fn bochs_address(line: &str) -> Option<u64> {
    let (_, rest) = line.strip_prefix('(')?.split_once("] [")?;
    let (_, address) = rest.split_once("] ")?.1.split_once(':')?;
    u64::from_str_radix(address.split(' ').next()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_emulators_lines_are_read() {
        let trace =
            Trace { entry: 0x10_0020, text: 0xffff_ffff_8010_1000..0xffff_ffff_8010_3000, seen: Arc::default() };
        for line in [
            "----------------",
            "IN: ",
            "0xffffffff80102047:  b8 10 00 00 00           movl     $0x10, %eax",
            "0x001000ca:  48 b8 47 20 10 80 ff ff  movabsq  $0xffffffff80102047, %rax",
            "(0).[79239735] [0x00000010204c] 0008:ffffffff8010204c (unk. ctxt): mov ds, ax      ; 8ed8",
            "(1).[79239732] [0x0000001000ca] 0008:00000000001000ca (unk. ctxt): mov rax, 0xffffffff80102047 ; 48b8",
        ] {
            assert!(trace.take(line), "{line}");
        }
        for line in ["qemu: could not load kernel", "0x10 is odd", "(0) Breakpoint 1, 0x0000000000100020 in ?? ()"] {
            assert!(!trace.take(line), "{line}");
        }
        assert_eq!(trace.addresses(), BTreeSet::from([0xffff_ffff_8010_2047, 0xffff_ffff_8010_204c]));
    }
}
