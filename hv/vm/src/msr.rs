//! The intercepted model-specific registers.

use crate::vcpu::{StateMsr, Vcpu};
use arch::msr::{HWCR, PATCH_LEVEL, SYSCFG};
use arch::{CR0_PG, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE};
use x86::msr;

/// The access is answered with #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// IA32_MTRRCAP: no variable ranges, no fixed ranges, write-combining known. Memory types come from the nested tables.
const MTRR_CAP: u64 = 1 << 10;
/// IA32_MTRR_DEF_TYPE after firmware: on, write-back.
const MTRR_DEFAULT: u64 = 1 << 11 | 6;

const EFER_WRITABLE: u64 = EFER_SCE | EFER_LME | EFER_NXE;

/// RDMSR.
///
/// # Errors
/// [`Refused`] for a register that the guest does not have.
#[inline]
pub fn read(vcpu: &impl Vcpu, register: u32) -> Result<u64, Refused> {
    Ok(match register {
        msr::IA32_EFER => vcpu.state_msr(StateMsr::Efer),
        msr::IA32_PAT => vcpu.state_msr(StateMsr::Pat),
        msr::TSC => vcpu.state_msr(StateMsr::Tsc),
        msr::IA32_MTRRCAP => MTRR_CAP,
        msr::IA32_MTRR_DEF_TYPE => MTRR_DEFAULT,
        // Kernels read these without asking CPUID first.
        msr::IA32_MISC_ENABLE | SYSCFG | HWCR | PATCH_LEVEL | msr::IA32_DEBUGCTL => 0,
        _ => return Err(Refused),
    })
}

/// WRMSR.
///
/// # Errors
/// [`Refused`] for a register that the guest does not have or a value that it can't hold.
#[inline]
pub fn write(vcpu: &mut impl Vcpu, register: u32, value: u64) -> Result<(), Refused> {
    match register {
        msr::IA32_EFER => write_efer(vcpu, value)?,
        msr::IA32_PAT if pat_is_valid(value) => vcpu.set_state_msr(StateMsr::Pat, value),
        msr::TSC => vcpu.set_state_msr(StateMsr::Tsc, value),
        // Told once, and kept.
        msr::IA32_MTRR_DEF_TYPE if value == MTRR_DEFAULT => {}
        msr::IA32_MISC_ENABLE | SYSCFG | HWCR | PATCH_LEVEL | msr::IA32_DEBUGCTL if value == 0 => {}
        _ => return Err(Refused),
    }
    Ok(())
}

/// EFER takes the bits that the guest's CPUID offers; LME may not change while paging is on (AMD APM vol. 2, section 3.1.7).
fn write_efer(vcpu: &mut impl Vcpu, value: u64) -> Result<(), Refused> {
    let old = vcpu.state_msr(StateMsr::Efer);
    let paging = vcpu.control().cr0 & CR0_PG != 0;
    if value & !(EFER_WRITABLE | EFER_LMA) != 0 || (paging && (old ^ value) & EFER_LME != 0) {
        return Err(Refused);
    }
    vcpu.set_state_msr(StateMsr::Efer, value & EFER_WRITABLE | old & EFER_LMA);
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
