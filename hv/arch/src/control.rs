//! Bits of CR0, CR4, EFER, RFLAGS, DR6 and DR7 (Intel SDM vol. 3, sections 2.2.1, 2.3, 2.5 and 18.2; AMD64 APM vol. 2, chapter 3).

use x86::bits64::rflags::RFlags;
use x86::controlregs::{Cr0, Cr4};

/// CR0.PE: protected mode.
pub const CR0_PE: u64 = Cr0::CR0_PROTECTED_MODE.bits() as u64;
/// CR0.MP: WAIT traps if TS is set.
pub const CR0_MP: u64 = Cr0::CR0_MONITOR_COPROCESSOR.bits() as u64;
/// CR0.EM: there is no x87.
pub const CR0_EM: u64 = Cr0::CR0_EMULATE_COPROCESSOR.bits() as u64;
/// CR0.TS: the task was switched: x87 and SSE instructions trap.
pub const CR0_TS: u64 = Cr0::CR0_TASK_SWITCHED.bits() as u64;
/// CR0.ET: always 1 since the 486.
pub const CR0_ET: u64 = Cr0::CR0_EXTENSION_TYPE.bits() as u64;
/// CR0.NE: x87 errors are exceptions.
pub const CR0_NE: u64 = Cr0::CR0_NUMERIC_ERROR.bits() as u64;
/// CR0.WP: supervisor writes respect read-only pages.
pub const CR0_WP: u64 = Cr0::CR0_WRITE_PROTECT.bits() as u64;
/// CR0.AM: RFLAGS.AC has an effect at CPL 3.
pub const CR0_AM: u64 = Cr0::CR0_ALIGNMENT_MASK.bits() as u64;
/// CR0.NW: not write-through.
pub const CR0_NW: u64 = Cr0::CR0_NOT_WRITE_THROUGH.bits() as u64;
/// CR0.CD: caches are off.
pub const CR0_CD: u64 = Cr0::CR0_CACHE_DISABLE.bits() as u64;
/// CR0.PG: paging.
pub const CR0_PG: u64 = Cr0::CR0_ENABLE_PAGING.bits() as u64;
/// The defined bits of CR0. Writes of the others have no effect (Intel SDM vol. 3, section 2.5).
pub const CR0_DEFINED: u64 = Cr0::all().bits() as u64;
/// CR4.VME: virtual-8086 mode extensions.
pub const CR4_VME: u64 = Cr4::CR4_ENABLE_VME.bits() as u64;
/// CR4.PVI: virtual interrupts in protected mode.
pub const CR4_PVI: u64 = Cr4::CR4_VIRTUAL_INTERRUPTS.bits() as u64;
/// CR4.TSD: RDTSC is privileged.
pub const CR4_TSD: u64 = Cr4::CR4_TIME_STAMP_DISABLE.bits() as u64;
/// CR4.DE: debugging extensions.
pub const CR4_DE: u64 = Cr4::CR4_DEBUGGING_EXTENSIONS.bits() as u64;
/// CR4.PSE: 4 MiB pages without PAE.
pub const CR4_PSE: u64 = Cr4::CR4_ENABLE_PSE.bits() as u64;
/// CR4.PAE: 64-bit page-table entries.
pub const CR4_PAE: u64 = Cr4::CR4_ENABLE_PAE.bits() as u64;
/// CR4.MCE: machine checks are exceptions.
pub const CR4_MCE: u64 = Cr4::CR4_ENABLE_MACHINE_CHECK.bits() as u64;
/// CR4.PGE: global pages.
pub const CR4_PGE: u64 = Cr4::CR4_ENABLE_GLOBAL_PAGES.bits() as u64;
/// CR4.PCE: RDPMC at every privilege level.
pub const CR4_PCE: u64 = Cr4::CR4_ENABLE_PPMC.bits() as u64;
/// CR4.OSFXSR: FXSAVE, and SSE instructions.
pub const CR4_OSFXSR: u64 = Cr4::CR4_ENABLE_SSE.bits() as u64;
/// CR4.OSXMMEXCPT: SSE exceptions are #XM.
pub const CR4_OSXMMEXCPT: u64 = Cr4::CR4_UNMASKED_SSE.bits() as u64;
/// CR4.UMIP: SGDT and its like are privileged.
pub const CR4_UMIP: u64 = Cr4::CR4_ENABLE_UMIP.bits() as u64;
/// CR4.LA57: five levels of tables.
pub const CR4_LA57: u64 = Cr4::CR4_ENABLE_LA57.bits() as u64;
/// CR4.VMXE: VMX.
pub const CR4_VMXE: u64 = Cr4::CR4_ENABLE_VMX.bits() as u64;
/// CR4.FSGSBASE: RDFSBASE and its like.
pub const CR4_FSGSBASE: u64 = Cr4::CR4_ENABLE_FSGSBASE.bits() as u64;
/// CR4.PCIDE: process-context identifiers.
pub const CR4_PCIDE: u64 = Cr4::CR4_ENABLE_PCID.bits() as u64;
/// CR4.OSXSAVE: XSAVE, and XSETBV.
pub const CR4_OSXSAVE: u64 = Cr4::CR4_ENABLE_OS_XSAVE.bits() as u64;
/// CR4.SMEP: supervisor code is not fetched from user pages.
pub const CR4_SMEP: u64 = Cr4::CR4_ENABLE_SMEP.bits() as u64;
/// CR4.SMAP: supervisor data accesses to user pages need RFLAGS.AC.
pub const CR4_SMAP: u64 = Cr4::CR4_ENABLE_SMAP.bits() as u64;
/// CR4.CET: control-flow enforcement.
pub const CR4_CET: u64 = 1 << 23;
/// EFER.SCE: SYSCALL and SYSRET.
pub const EFER_SCE: u64 = 1 << 0;
/// EFER.LME: long mode is enabled, and active once paging is on.
pub const EFER_LME: u64 = 1 << 8;
/// EFER.LMA: long mode is active.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER.NXE: no-execute pages.
pub const EFER_NXE: u64 = 1 << 11;
/// EFER.SVME: SVM.
pub const EFER_SVME: u64 = 1 << 12;
/// Bit 1 of RFLAGS, which is always 1.
pub const RFLAGS_FIXED: u64 = RFlags::FLAGS_A1.bits();
/// RFLAGS.TF: a debug trap behind each instruction.
pub const RFLAGS_TF: u64 = RFlags::FLAGS_TF.bits();
/// RFLAGS.IF: external interrupts are taken.
pub const RFLAGS_IF: u64 = RFlags::FLAGS_IF.bits();
/// RFLAGS.DF: string instructions go downwards.
pub const RFLAGS_DF: u64 = RFlags::FLAGS_DF.bits();
/// RFLAGS.IOPL: the CPL up to which I/O instructions, CLI and STI are allowed.
pub const RFLAGS_IOPL: u64 = RFlags::FLAGS_IOPL3.bits();
/// RFLAGS.NT: IRET returns to the task that the TSS names.
pub const RFLAGS_NT: u64 = RFlags::FLAGS_NT.bits();
/// RFLAGS.RF: no breakpoint traps at the next instruction.
pub const RFLAGS_RF: u64 = RFlags::FLAGS_RF.bits();
/// RFLAGS.VM: virtual-8086 mode.
pub const RFLAGS_VM: u64 = RFlags::FLAGS_VM.bits();
/// RFLAGS.AC: alignment checks, and supervisor accesses to user pages under SMAP.
pub const RFLAGS_AC: u64 = RFlags::FLAGS_AC.bits();
/// RFLAGS.CF: carry.
pub const RFLAGS_CF: u64 = RFlags::FLAGS_CF.bits();
/// RFLAGS.PF: parity of the low byte.
pub const RFLAGS_PF: u64 = RFlags::FLAGS_PF.bits();
/// RFLAGS.AF: carry out of bit 3.
pub const RFLAGS_AF: u64 = RFlags::FLAGS_AF.bits();
/// RFLAGS.ZF: zero.
pub const RFLAGS_ZF: u64 = RFlags::FLAGS_ZF.bits();
/// RFLAGS.SF: sign.
pub const RFLAGS_SF: u64 = RFlags::FLAGS_SF.bits();
/// RFLAGS.OF: signed overflow.
pub const RFLAGS_OF: u64 = RFlags::FLAGS_OF.bits();
/// DR6.B0 to B3: the breakpoints whose conditions were met.
pub const DR6_BREAKPOINTS: u64 = 0xf;
/// DR6.BD: the next instruction accesses a debug register while DR7.GD is set.
pub const DR6_BD: u64 = 1 << 13;
/// DR6.BS: a single step.
pub const DR6_BS: u64 = 1 << 14;
/// DR6.BT: a task was entered whose TSS has T set.
pub const DR6_BT: u64 = 1 << 15;
/// What of DR6 can be written; the rest is as after reset (Intel SDM vol. 3, figure 18-1).
pub const DR6_DEFINED: u64 = DR6_BREAKPOINTS | DR6_BD | DR6_BS | DR6_BT;
/// What of DR7 can be written; the rest is as after reset.
pub const DR7_DEFINED: u64 = 0xffff_23ff;
/// DR7.L0 to L3 and G0 to G3: one of them is set where there is a breakpoint.
pub const DR7_ENABLED: u64 = 0xff;
/// DR7.L0 to L3 and LE: breakpoints of one task.
pub const DR7_LOCAL: u64 = 0x155;
/// DR7.GD: accesses to debug registers trap.
pub const DR7_GD: u64 = 1 << 13;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_the_manual_draws_them() {
        assert_eq!(CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE, 0x3f);
        assert_eq!(CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG, 0xe005_0000);
        assert_eq!(CR0_DEFINED, 0xe005_003f);
        assert_eq!(CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE, 0x1ff);
        assert_eq!(CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_UMIP | CR4_LA57 | CR4_VMXE, 0x3e00);
        assert_eq!(CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE | CR4_SMEP | CR4_SMAP, 0x37_0000);
        assert_eq!(RFLAGS_FIXED | RFLAGS_TF | RFLAGS_IF | RFLAGS_DF | RFLAGS_IOPL | RFLAGS_VM | RFLAGS_AC, 0x6_3702);
        assert_eq!(RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF, 0x8d5);
    }
}
