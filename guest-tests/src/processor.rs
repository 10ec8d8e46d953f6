//! Control registers, flags and the instructions that concern the processor as a whole.

use core::arch::asm;

use addr::Gva;
use arch::{CR0_CD, CR0_EM, CR0_MP, CR0_WP, CR4_DE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE, CR4_PGE};

pub use base::exit::{halt_for_ever, hang};

/// Bits of CR4 that a guest may switch without harm to what it runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Cr4 {
    /// Debugging extensions.
    De = CR4_DE,
    /// Global pages.
    Pge = CR4_PGE,
    /// FXSAVE, FXRSTOR and the SSE instructions.
    OsFxsr = CR4_OSFXSR,
    /// #XM for SSE exceptions.
    OsXmmExcpt = CR4_OSXMMEXCPT,
    /// XSAVE and what it manages.
    OsXsave = CR4_OSXSAVE,
}

/// CR0.
pub fn cr0() -> u64 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR2.
pub fn cr2() -> u64 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR3.
pub fn cr3() -> u64 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR4.
pub fn cr4() -> u64 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR8: the task priority class.
pub fn cr8() -> u64 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mov {}, cr8", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes CR8.
pub fn set_cr8(value: u64) {
    // SAFETY: it holds interrupts back, no more.
    unsafe { asm!("mov cr8, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Sets RFLAGS.TF: from the instruction after the next one on, each traps.
pub fn single_step() {
    // SAFETY: the traps go to the handler of #DB, or end the guest.
    unsafe { asm!("pushfq", "or dword ptr [rsp], 0x100", "popfq") };
}

/// Halts until an NMI (or INIT) comes: interrupts have to be off. One that comes before is lost on it.
pub fn halt() {
    // SAFETY: halting does nothing to memory that the handler does not do.
    unsafe { asm!("hlt", options(nostack, preserves_flags)) };
}

/// Writes CR3 with what it holds, which flushes the translations that are not global.
pub fn reload_cr3() {
    // SAFETY: the page tables stay the same.
    unsafe { asm!("mov cr3, {}", in(reg) cr3(), options(nostack, preserves_flags)) };
}

/// Whether read-only pages bind ring 0 too.
pub fn set_write_protect(on: bool) {
    write_cr0(if on { cr0() | CR0_WP } else { cr0() & !CR0_WP });
}

/// Whether memory is cached, by CR0.CD.
pub fn set_caching(on: bool) {
    write_cr0(if on { cr0() & !CR0_CD } else { cr0() | CR0_CD });
}

/// Switches a bit of CR4.
pub fn set_cr4(bit: Cr4, on: bool) {
    let value = if on { cr4() | bit as u64 } else { cr4() & !(bit as u64) };
    // SAFETY: by `Cr4`'s definition.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Lets SSE instructions work.
pub fn enable_sse() {
    write_cr0(cr0() & !CR0_EM | CR0_MP);
    set_cr4(Cr4::OsFxsr, true);
    set_cr4(Cr4::OsXmmExcpt, true);
}

/// Forgets the translation of one page.
pub fn invlpg(page: Gva) {
    // SAFETY: a translation forgotten is read from the tables again.
    unsafe { asm!("invlpg [{}]", in(reg) page.raw(), options(nostack, preserves_flags)) };
}

/// Writes back and empties the caches.
pub fn wbinvd() {
    // SAFETY: memory keeps its contents.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
}

/// CR0 with CD, WP, MP or EM changed.
fn write_cr0(value: u64) {
    // SAFETY: the callers change only bits on which no Rust code depends: it writes to no read-only page and uses no
    // vector registers.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) };
}
