//! Control registers and the instructions that concern paging.

use core::arch::asm;

use base::cpuid::cpuid;
use base::msr;

use crate::control::{CR0_CD, CR4_DE, EFER, EFER_LME, EFER_NXE};
use x86::msr::IA32_DEBUGCTL;

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

/// Whether memory is cached, by CR0.CD.
pub fn set_caching(on: bool) {
    let value = if on { cr0() & !CR0_CD } else { cr0() | CR0_CD };
    // SAFETY: paging stays as it is.
    unsafe { set_cr0(value) };
}

/// Forgets the translation of one page.
pub fn invlpg(page: u32) {
    // SAFETY: a translation forgotten is read from the tables again.
    unsafe { asm!("invlpg [{0:e}]", in(reg) page, options(nostack, preserves_flags)) };
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
    msr::read(EFER) as u32
}

/// IA32_DEBUGCTL's low half.
pub fn debugctl() -> u32 {
    msr::read(IA32_DEBUGCTL) as u32
}

/// Sets it. Bits that it can't hold come to #GP.
pub fn set_debugctl(value: u32) {
    // SAFETY: it is about steps and records of branches.
    unsafe { msr::write(IA32_DEBUGCTL, value.into()) };
}

/// Whether bit 63 of PAE's entries forbids fetches, or is reserved. For a processor that [has it](has_nx).
pub fn set_nx(on: bool) {
    set_efer(EFER_NXE, on);
}

/// Whether paging would be long mode's from when it is turned on; which is not to be done then.
pub fn set_long_mode_enable(on: bool) {
    set_efer(EFER_LME, on);
}

/// Writes to EFER what it can't hold.
pub fn write_wrong_efer() {
    // SAFETY: it comes to nothing but #GP.
    unsafe { msr::write(EFER, u64::MAX) };
}

/// CR4.DE: breakpoints at ports.
pub fn set_debugging_extensions(on: bool) {
    let value = if on { cr4() | CR4_DE } else { cr4() & !CR4_DE };
    // SAFETY: paging stays as it is.
    unsafe { set_cr4(value) };
}

fn set_efer(bit: u32, on: bool) {
    let value = if on { efer() | bit } else { efer() & !bit };
    // SAFETY: no entry that maps the image has NX, and without a change of CR0 the other bit has no effect.
    unsafe { msr::write(EFER, value.into()) };
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
    if cpuid(0x8000_0000, 0).eax >= 0x8000_0001 { cpuid(0x8000_0001, 0).edx } else { 0 }
}

/// CPUID's SMEP.
pub fn has_smep() -> bool {
    cpuid(0, 0).eax >= 7 && cpuid(7, 0).ebx & 1 << 7 != 0
}

/// The width of physical addresses.
pub fn physical_bits() -> u32 {
    if cpuid(0x8000_0000, 0).eax >= 0x8000_0008 { cpuid(0x8000_0008, 0).eax & 0xff } else { 36 }
}
