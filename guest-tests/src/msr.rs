//! Model-specific registers.

use core::arch::{asm, naked_asm};

use x86::msr::{
    IA32_APIC_BASE, IA32_EFER, IA32_FS_BASE, IA32_GS_BASE, IA32_KERNEL_GSBASE, IA32_PAT, IA32_TIME_STAMP_COUNTER,
    IA32_TSC_DEADLINE,
};

pub use base::msr::{read_x2apic, write_x2apic};

pub use arch::{EFER_LMA, EFER_LME, EFER_NXE, EFER_SVME};

/// The MSRs that guests use. Writing any of them does no harm to a Rust object: the code uses neither FS nor GS, and
/// EFER's mode bits cannot change while paging is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Msr {
    /// IA32_TIME_STAMP_COUNTER.
    Tsc = IA32_TIME_STAMP_COUNTER,
    /// IA32_APIC_BASE.
    ApicBase = IA32_APIC_BASE,
    /// IA32_PAT.
    Pat = IA32_PAT,
    /// IA32_TSC_DEADLINE.
    TscDeadline = IA32_TSC_DEADLINE,
    /// EFER.
    Efer = IA32_EFER,
    /// FS.base.
    FsBase = IA32_FS_BASE,
    /// GS.base.
    GsBase = IA32_GS_BASE,
    /// What SWAPGS exchanges with GS.base.
    KernelGsBase = IA32_KERNEL_GSBASE,
    /// No MSR of any processor.
    Unknown = 0xdead_beef,
}

impl Msr {
    /// RDMSR, by the instruction at [`Msr::read_rip`].
    pub fn read(self) -> u64 {
        rdmsr(self as u32)
    }

    /// WRMSR, by the instruction at [`Msr::write_rip`].
    pub fn write(self, value: u64) {
        wrmsr(self as u32, value as u32, (value >> 32) as u32);
    }

    /// Where [`Msr::read`] may fault.
    pub fn read_rip() -> u64 {
        rdmsr as *const () as u64 + MOV
    }

    /// Where [`Msr::write`] may fault.
    pub fn write_rip() -> u64 {
        wrmsr as *const () as u64 + 2 * MOV
    }
}

/// Bytes of a MOV between 32-bit registers.
const MOV: u64 = 2;

#[unsafe(naked)]
extern "C" fn rdmsr(index: u32) -> u64 {
    naked_asm!("mov ecx, edi", "rdmsr", "shl rdx, 32", "or rax, rdx", "ret")
}

#[unsafe(naked)]
extern "C" fn wrmsr(index: u32, low: u32, high: u32) {
    // EDX brings `high` itself.
    naked_asm!("mov ecx, edi", "mov eax, esi", "wrmsr", "ret")
}

/// The word at FS:0; FS.base has to be the address of one.
pub fn read_through_fs() -> u64 {
    let value;
    // SAFETY: it reads; a bad base gives an exception.
    unsafe { asm!("mov {}, fs:[0]", out(reg) value, options(readonly, nostack, preserves_flags)) };
    value
}

/// The word at GS:0; GS.base has to be the address of one.
pub fn read_through_gs() -> u64 {
    let value;
    // SAFETY: it reads; a bad base gives an exception.
    unsafe { asm!("mov {}, gs:[0]", out(reg) value, options(readonly, nostack, preserves_flags)) };
    value
}

/// Exchanges GS.base with [`Msr::KernelGsBase`].
pub fn swapgs() {
    // SAFETY: the code does not use GS.
    unsafe { asm!("swapgs", options(nomem, nostack, preserves_flags)) };
}
