//! What the machine's boot loader leaves: this image in memory, and a description of the machine.

use crate::paging;
use abi::multiboot::{HEADER_MAGIC, OUR_FLAGS};
use addr::Hpa;
use arch::paging::{LARGE, PRESENT, WRITABLE};
use arch::{CR0_ET, CR0_MP, CR0_NE, CR0_PE, CR0_PG, CR0_WP, CR4_PAE, EFER_LME, EFER_NXE};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};
use direct_map::{DIRECT_MAP, HIGH_HALF};
use loader::{BootInfo, BootModule, PhysRead, Unreadable};
use x86::controlregs::cr3;
use x86::msr::IA32_EFER;

global_asm!(
    include_str!("entry.s"),
    include_str!("ap.s"),
    multiboot_magic = const HEADER_MAGIC,
    multiboot_flags = const OUR_FLAGS,
    cr0 = const CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG,
    cr4 = const CR4_PAE,
    efer = const IA32_EFER,
    efer_bits = const EFER_LME | EFER_NXE,
    pe = const CR0_PE,
    high_half = const HIGH_HALF.cast_signed(),
    table = const PRESENT | WRITABLE,
    leaf = const PRESENT | WRITABLE | LARGE,
    direct_map_entry = const top_entry(DIRECT_MAP),
    high_half_entry = const top_entry(HIGH_HALF),
    high_half_gib = const HIGH_HALF >> 30 & 511,
    options(att_syntax)
);

/// The top table's entry for `address`.
const fn top_entry(address: u64) -> u64 {
    address >> 39 & 511
}

unsafe extern "C" {
    static boot_tsc: u64;
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_cr3: AtomicU64;
    static ap_stack_top: AtomicU64;
    static ap_index: AtomicU64;
}

/// The TSC at the hypervisor's first instruction.
pub(crate) fn start_tsc() -> u64 {
    // SAFETY: written by `entry.s` before Rust runs, and never after.
    unsafe { boot_tsc }
}

/// Physical memory below 4 GiB, as the boot tables map it.
struct BootMemory;

impl PhysRead for BootMemory {
    fn read(&self, at: Hpa, bytes: &mut [u8]) -> Result<(), Unreadable> {
        if !direct_map::is_boot_mapped(at, bytes.len() as u64) {
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

/// EndReason there is no boot information.
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

/// Copies the code that APs begin with to the page at `at`.
///
/// # Safety
/// The page is unused RAM below 1 MiB, mapped writable in the direct map.
pub(crate) unsafe fn put_trampoline(at: Hpa) {
    // The code runs before paging, so it is linked where it was loaded: at its physical address.
    let start = Hpa::new(&raw const ap_trampoline as u64);
    let length = &raw const ap_trampoline_end as u64 - start.raw();
    // SAFETY: the image is in the direct map, and the caller speaks for the page.
    unsafe { paging::direct(at).copy_from_nonoverlapping(paging::direct(start), length as usize) };
}

/// Tells the next AP that starts its number and the top of its stack.
///
/// # Safety
/// No other AP is about to start, and the stack is that AP's alone.
pub(crate) unsafe fn prepare_ap(index: usize, stack_top: u64) {
    // SAFETY: reading CR3 has no effect.
    let root = unsafe { cr3() };
    // SAFETY: `ap.s` defines the three words, and only reads them, on an AP that is started after this.
    let words = unsafe { [&ap_cr3, &ap_stack_top, &ap_index] };
    for (word, value) in words.into_iter().zip([root, stack_top, index as u64]) {
        word.store(value, Ordering::Release);
    }
}

/// A module's contents.
pub(crate) fn contents(module: &BootModule) -> &'static [u8] {
    let length = (module.range.end.raw() - module.range.start.raw()) as usize;
    // SAFETY: modules lie in RAM, which the direct map covers; their frames are never given to the frame allocator, and
    // are never written.
    unsafe { core::slice::from_raw_parts(paging::direct(module.range.start), length) }
}
