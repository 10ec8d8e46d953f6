//! What the machine's boot loader leaves: this image in memory, and a description of the machine.

use crate::paging;
use addr::Hpa;
use core::arch::global_asm;
use loader::{BootInfo, BootModule, PhysRead, Unreadable};

global_asm!(include_str!("entry.s"), ".set HIGH_HALF, 0xffffffff80000000", options(att_syntax));

unsafe extern "C" {
    static boot_tsc: u64;
}

/// The TSC at the hypervisor's first instruction.
pub(crate) fn start_tsc() -> u64 {
    // SAFETY: written by `entry.s` before Rust runs, and by nobody after.
    unsafe { boot_tsc }
}

/// Physical memory below 4 GiB, as the boot tables map it.
struct BootMemory;

impl PhysRead for BootMemory {
    fn read(&self, at: Hpa, bytes: &mut [u8]) -> Result<(), Unreadable> {
        let end = at.checked_add(bytes.len() as u64).ok_or(Unreadable)?;
        if end > paging::BOOT_MAP {
            return Err(Unreadable);
        }
        // SAFETY: the boot tables map all of it; what the loader wrote changes no more, and reading what is not memory gives
        // some bytes.
        unsafe { paging::direct(at).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }
}

/// Copies what the loader left at `info`.
///
/// # Errors
/// A text that says what makes no sense.
pub(crate) fn read(magic: u32, info: u32) -> Result<BootInfo, BootError> {
    if !BootInfo::is_magic(magic) {
        return Err(BootError::Magic(magic));
    }
    BootInfo::parse(Hpa::new(info.into()), &BootMemory).map_err(BootError::Info)
}

/// Why there is no boot information.
#[derive(Debug)]
pub(crate) enum BootError {
    /// EAX at entry.
    Magic(u32),
    /// What is wrong with it.
    Info(loader::BootInfoError),
}

impl core::fmt::Display for BootError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic(eax) => write!(f, "not loaded by a multiboot loader: EAX was {eax:#x} at entry"),
            Self::Info(error) => write!(f, "the boot loader's information: {error}"),
        }
    }
}

/// A module's contents.
pub(crate) fn contents(module: &BootModule) -> &'static [u8] {
    let length = (module.range.end.raw() - module.range.start.raw()) as usize;
    // SAFETY: modules lie in RAM, which the direct map covers; their frames are never given to the frame allocator, and
    // nobody writes them.
    unsafe { core::slice::from_raw_parts(paging::direct(module.range.start), length) }
}
