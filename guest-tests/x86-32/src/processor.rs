//! Control registers and the instructions that concern paging.

use crate::control::{EFER, EFER_LME, EFER_NXE};
use core::arch::asm;

macro_rules! control_register {
    ($(#[$doc:meta])* $read:ident, $write:ident, $name:literal) => {
        $(#[$doc])*
        pub fn $read() -> u32 {
            let value;
            // SAFETY: reading it has no effect.
            unsafe { asm!(concat!("mov {0:e}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        /// Writes it.
        ///
        /// # Safety
        /// The image stays mapped one to one, by whatever paging there then is.
        pub unsafe fn $write(value: u32) {
            // SAFETY: the caller's promise.
            unsafe { asm!(concat!("mov ", $name, ", {0:e}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}

control_register!(
    /// CR0.
    cr0, set_cr0, "cr0"
);
control_register!(
    /// CR3.
    cr3, set_cr3, "cr3"
);
control_register!(
    /// CR4.
    cr4, set_cr4, "cr4"
);

/// CR2.
pub fn cr2() -> u32 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mov {0:e}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Forgets the translation of one page.
pub fn invlpg(page: u32) {
    // SAFETY: a translation forgotten is read from the tables again.
    unsafe { asm!("invlpg [{0:e}]", in(reg) page, options(nostack, preserves_flags)) };
}

/// EAX, EBX, ECX and EDX of CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx);
    // SAFETY: it has no effect but on these registers; EBX may be the compiler's own.
    unsafe {
        asm!("mov {ebx:e}, ebx", "cpuid", "xchg {ebx:e}, ebx", ebx = out(reg) ebx, inout("eax") leaf => eax,
            inout("ecx") subleaf => ecx, out("edx") edx, options(nostack, preserves_flags));
    }
    [eax, ebx, ecx, edx]
}

/// Writes DR0 to DR3 and DR7.
pub fn set_breakpoints([dr0, dr1, dr2, dr3]: [u32; 4], dr7: u32) {
    // SAFETY: a breakpoint that is met raises #DB, which ends the guest with a dump; it changes nothing else.
    unsafe {
        asm!(
            "mov dr0, {:e}", "mov dr1, {:e}", "mov dr2, {:e}", "mov dr3, {:e}", "mov dr7, {:e}",
            in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3, in(reg) dr7,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// EFER's low half.
pub fn efer() -> u32 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("rdmsr", in("ecx") EFER, out("eax") value, out("edx") _, options(nomem, nostack, preserves_flags)) };
    value
}

/// Whether bit 63 of PAE's entries forbids fetches, or is reserved. For a processor that [has it](has_nx).
pub fn set_nx(on: bool) {
    set_efer(EFER_NXE, on);
}

/// Whether paging would be long mode's from when it is turned on; which is not to be done then.
pub fn set_long_mode_enable(on: bool) {
    set_efer(EFER_LME, on);
}

fn set_efer(bit: u32, on: bool) {
    let value = if on { efer() | bit } else { efer() & !bit };
    // SAFETY: no entry that maps the image has NX, and without a change of CR0 the other bit has no effect.
    unsafe { asm!("wrmsr", in("ecx") EFER, in("eax") value, in("edx") 0, options(nostack, preserves_flags)) };
}

/// CPUID's NX, in the leaves that say so.
pub fn has_nx() -> bool {
    extended_features() & 1 << 20 != 0
}

/// CPUID's LM: long mode.
pub fn has_long_mode() -> bool {
    extended_features() & 1 << 29 != 0
}

fn extended_features() -> u32 {
    if cpuid(0x8000_0000, 0)[0] >= 0x8000_0001 { cpuid(0x8000_0001, 0)[3] } else { 0 }
}

/// CPUID's SMEP.
pub fn has_smep() -> bool {
    cpuid(0, 0)[0] >= 7 && cpuid(7, 0)[1] & 1 << 7 != 0
}

/// The width of physical addresses.
pub fn physical_bits() -> u32 {
    if cpuid(0x8000_0000, 0)[0] >= 0x8000_0008 { cpuid(0x8000_0008, 0)[0] & 0xff } else { 36 }
}
