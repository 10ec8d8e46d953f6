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
/// PATCH_LEVEL: the microcode's version.
pub const PATCH_LEVEL: u32 = 0x8b;

/// IA32_FEATURE_CONTROL: the register is locked until the next reset (Intel SDM vol. 3, section 24.7).
pub const FEATURE_CONTROL_LOCKED: u64 = 1 << 0;
/// IA32_FEATURE_CONTROL: VMXON is allowed outside of SMX operation.
pub const FEATURE_CONTROL_VMX: u64 = 1 << 2;
