//! The intercepted model-specific registers.

use crate::mtrr::Mtrrs;
use crate::vcpu::{StateMsr, Vcpu};
use arch::msr::{
    DEBUGCTL_BTF, DEBUGCTL_LBR, HWCR, HWCR_TSC_FREQ_SEL, HWCR_WORKAROUNDS, MISC_ENABLE_FAST_STRINGS,
    MISC_ENABLE_NO_BTS, MISC_ENABLE_NO_PEBS, NB_CFG, PATCH_LEVEL, PERF_CTR3, PERF_EVT_SEL0, SYSCFG,
};
use arch::{CR0_PG, EFER_LMA, EFER_LME};
use core::fmt;
use x86::msr;

/// Why an access is answered with #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrError {
    /// The guest does not have the register.
    Unknown,
    /// The register can't hold the value, or can't be accessed so now.
    Value,
}

impl fmt::Display for MsrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "the guest has no such register",
            Self::Value => "the register can't hold the value, or can't be accessed so now",
        })
    }
}

impl core::error::Error for MsrError {}

/// IA32_MCG_CAP: no banks, and no registers beyond IA32_MCG_STATUS. The guest has no machine checks.
const MCG_CAP: u64 = 0;
/// IA32_MCG_STATUS: RIPV, EIPV and MCIP (Intel SDM vol. 3, section 16.3.1.2).
const MCG_STATUS: u64 = 7;
/// IA32_DEBUGCTL: there is no trace of branches, nor a counter to be frozen. No last branch is shown either, but kernels set LBR and BTF
/// without asking.
const DEBUGCTL: u64 = DEBUGCTL_LBR | DEBUGCTL_BTF;
const MISC_ENABLE: u64 = MISC_ENABLE_FAST_STRINGS | MISC_ENABLE_NO_BTS | MISC_ENABLE_NO_PEBS;
/// AMD's K7 performance counters and their event selects, which no bit of CPUID announces.
const PERFORMANCE: core::ops::RangeInclusive<u32> = PERF_EVT_SEL0..=PERF_CTR3;

/// RDMSR of a common register. None for any other.
#[inline]
pub fn read(vcpu: &impl Vcpu, register: u32) -> Option<u64> {
    match register {
        msr::IA32_EFER => Some(vcpu.state_msr(StateMsr::Efer)),
        msr::IA32_PAT => Some(vcpu.state_msr(StateMsr::Pat)),
        msr::TSC => Some(vcpu.tsc()),
        _ => None,
    }
}

/// WRMSR of a common register. The guest may set the bits `offered_efer` of EFER.
///
/// # Errors
/// [`MsrError::Unknown`] for any other, [`MsrError::Value`] for a value that the register can't hold.
#[inline]
pub fn write(vcpu: &mut impl Vcpu, register: u32, value: u64, offered_efer: u64) -> Result<(), MsrError> {
    match register {
        msr::IA32_EFER => write_efer(vcpu, value, offered_efer),
        msr::IA32_PAT if pat_is_valid(value) => {
            vcpu.set_state_msr(StateMsr::Pat, value);
            Ok(())
        }
        msr::IA32_PAT => Err(MsrError::Value),
        _ => Err(MsrError::Unknown),
    }
}

/// The registers that kernels seldom access, many of them without asking CPUID first. They have no effect on the guest, but for
/// the TSC's and IA32_DEBUGCTL.
#[derive(Clone, Debug)]
pub(crate) struct Msrs {
    /// IA32_TSC_ADJUST: what the guest has added to the TSC.
    tsc_adjust: u64,
    mcg_status: u64,
    mtrrs: Mtrrs,
}

impl Msrs {
    /// As firmware leaves them. `maxphyaddr` is CPUID's, 36 to 52.
    pub(crate) fn new(maxphyaddr: u8) -> Self {
        Self { tsc_adjust: 0, mcg_status: 0, mtrrs: Mtrrs::new(maxphyaddr) }
    }

    /// RDMSR.
    pub(crate) fn read(&self, vcpu: &impl Vcpu, register: u32) -> Result<u64, MsrError> {
        Ok(match register {
            msr::IA32_DEBUGCTL => vcpu.debugctl(),
            msr::IA32_TSC_ADJUST => self.tsc_adjust,
            msr::IA32_MCG_STATUS => self.mcg_status,
            _ => match constant(register) {
                Some(value) => value,
                None => self.mtrrs.read(register).ok_or(MsrError::Unknown)?,
            },
        })
    }

    /// WRMSR.
    pub(crate) fn write(&mut self, vcpu: &mut impl Vcpu, register: u32, value: u64) -> Result<(), MsrError> {
        match register {
            msr::TSC => self.adjust_tsc(vcpu, value.wrapping_sub(vcpu.tsc())),
            msr::IA32_TSC_ADJUST => self.adjust_tsc(vcpu, value.wrapping_sub(self.tsc_adjust)),
            msr::IA32_DEBUGCTL if value & !DEBUGCTL == 0 => vcpu.set_debugctl(value),
            msr::IA32_DEBUGCTL => return Err(MsrError::Value),
            msr::IA32_MCG_STATUS if value & !MCG_STATUS == 0 => self.mcg_status = value,
            msr::IA32_MCG_STATUS => return Err(MsrError::Value),
            _ if is_ignored(register) => {}
            _ => match constant(register) {
                Some(constant) if is_writable(register) && (value ^ constant) & !ignored_bits(register) == 0 => {}
                Some(_) => return Err(MsrError::Value),
                None => self.mtrrs.write(register, value)?,
            },
        }
        Ok(())
    }

    /// A write to either register changes both (Intel SDM vol. 3, section 18.17.3).
    fn adjust_tsc(&mut self, vcpu: &mut impl Vcpu, ticks: u64) {
        self.tsc_adjust = self.tsc_adjust.wrapping_add(ticks);
        vcpu.adjust_tsc(ticks);
    }
}

/// What a register reads as that always reads alike.
fn constant(register: u32) -> Option<u64> {
    Some(match register {
        msr::IA32_MCG_CAP => MCG_CAP,
        msr::IA32_MISC_ENABLE => MISC_ENABLE,
        HWCR => HWCR_TSC_FREQ_SEL,
        msr::MSR_PLATFORM_INFO | SYSCFG | NB_CFG | PATCH_LEVEL => 0,
        // Where CPUID offers machine checks (MCE), a processor without banks has the Pentium's registers.
        msr::IA32_P5_MC_ADDR | msr::IA32_P5_MC_TYPE => 0,
        _ if PERFORMANCE.contains(&register) => 0,
        _ => return None,
    })
}

/// Whether a write has no effect, whatever its value.
fn is_ignored(register: u32) -> bool {
    register == NB_CFG || PERFORMANCE.contains(&register)
}

/// Whether a constant register takes its own value back.
const fn is_writable(register: u32) -> bool {
    !matches!(register, msr::IA32_MCG_CAP | msr::MSR_PLATFORM_INFO | msr::IA32_P5_MC_ADDR | msr::IA32_P5_MC_TYPE)
}

/// Bits of a constant register that a write may change, without an effect.
const fn ignored_bits(register: u32) -> u64 {
    match register {
        HWCR => HWCR_WORKAROUNDS,
        msr::IA32_MISC_ENABLE => MISC_ENABLE_FAST_STRINGS,
        _ => 0,
    }
}

/// EFER takes the bits `offered`, and LMA as it is; LME may not change while paging is on (AMD APM vol. 2, section 3.1.7).
fn write_efer(vcpu: &mut impl Vcpu, value: u64, offered: u64) -> Result<(), MsrError> {
    let old = vcpu.state_msr(StateMsr::Efer);
    let paging = vcpu.control().cr0 & CR0_PG != 0;
    if value & !(offered | EFER_LMA) != 0 || (paging && (old ^ value) & EFER_LME != 0) {
        return Err(MsrError::Value);
    }
    vcpu.set_state_msr(StateMsr::Efer, value & offered | old & EFER_LMA);
    Ok(())
}

/// Each of PAT's eight fields is one of the types 0, 1, 4, 5, 6 and 7 (Intel SDM vol. 3, table 12-10): three bits, of which
/// the middle one comes only with the highest.
const fn pat_is_valid(value: u64) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let (middle, highest) = (value >> 1 & EACH, value >> 2 & EACH);
    value & !(7 * EACH) == 0 && middle & !highest == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pat_fields_are_checked_one_by_one() {
        assert!(pat_is_valid(arch::reset::PAT));
        for field in 0..8 {
            for wrong in [2u64, 3, 8, 0xff] {
                assert!(!pat_is_valid(wrong << (field * 8)), "field {field} = {wrong}");
            }
        }
    }
}
