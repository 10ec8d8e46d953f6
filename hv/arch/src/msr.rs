//! Model-specific registers that the `x86` crate does not name.

/// VM_CR: SVM's switches (APM section 15.30.1).
pub const VM_CR: u32 = 0xc001_0114;
/// VM_CR.SVMDIS: firmware has disabled SVM.
pub const VM_CR_SVMDIS: u64 = 1 << 4;
/// VM_HSAVE_PA: the page where VMRUN saves the host's state (APM section 15.30.4).
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
/// SYSCFG (APM section 7.9.1).
pub const SYSCFG: u32 = 0xc001_0010;
/// HWCR (APM section 3.2.10).
pub const HWCR: u32 = 0xc001_0015;
/// HWCR.TscFreqSel: the TSC counts at the frequency of P-state 0.
pub const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// HWCR's switches of the TLB cache, the flush filter and IGNNE: workarounds for processors of the past (AMD's BIOS and Kernel
/// Developer's Guide for family 0Fh, HWCR).
pub const HWCR_WORKAROUNDS: u64 = 1 << 3 | 1 << 6 | 1 << 8;
/// NB_CFG: the northbridge's configuration (AMD's BIOS and Kernel Developer's Guide for family 10h).
pub const NB_CFG: u32 = 0xc001_001f;
/// The first of four event selects, behind which are four counters (APM section 13.2.1).
pub const PERF_EVT_SEL0: u32 = 0xc001_0000;
/// The last of the counters.
pub const PERF_CTR3: u32 = 0xc001_0007;
/// PATCH_LEVEL: the microcode's version.
pub const PATCH_LEVEL: u32 = 0x8b;

/// IA32_FEATURE_CONTROL: the register is locked until the next reset (Intel SDM vol. 3, section 24.7).
pub const FEATURE_CONTROL_LOCKED: u64 = 1 << 0;
/// IA32_FEATURE_CONTROL: VMXON is allowed outside of SMX operation.
pub const FEATURE_CONTROL_VMX: u64 = 1 << 2;

/// IA32_MISC_ENABLE: REP MOVS and REP STOS are fast (Intel SDM vol. 4, table 2-2).
pub const MISC_ENABLE_FAST_STRINGS: u64 = 1 << 0;
/// IA32_MISC_ENABLE: there is no branch trace storage.
pub const MISC_ENABLE_NO_BTS: u64 = 1 << 11;
/// IA32_MISC_ENABLE: there is no processor event-based sampling.
pub const MISC_ENABLE_NO_PEBS: u64 = 1 << 12;
/// IA32_DEBUGCTL.LBR: the last branches are recorded (Intel SDM vol. 3, section 18.4.1).
pub const DEBUGCTL_LBR: u64 = 1 << 0;
/// IA32_DEBUGCTL.BTF: single steps go from branch to branch.
pub const DEBUGCTL_BTF: u64 = 1 << 1;
