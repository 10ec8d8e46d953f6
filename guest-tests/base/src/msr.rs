//! Model-specific registers, those of the local APIC above all.

use core::arch::asm;

use crate::apic::Register;

/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1b;
/// EFER.
const EFER: u32 = x86::msr::IA32_EFER;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// The first of the x2APIC's 256 MSRs.
const X2APIC: u32 = arch::apic::X2APIC_MSRS.start;

/// RDMSR.
pub fn read(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: it reads, or faults.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR.
///
/// # Safety
/// No Rust code depends on what the value changes.
pub unsafe fn write(index: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

/// RDMSR, and WRMSR of what it read.
pub fn write_back(index: u32) {
    // SAFETY: the register has what it had. (Counters lose what they count in between.)
    unsafe { write(index, read(index)) };
}

/// What EFER holds after `bits` were set in it. They are cleared again, but for those that were set before.
///
/// No bit that is clear in a guest changes what its code does, while CR0.PG stays as it is.
pub fn try_efer(bits: u64) -> u64 {
    let before = read(EFER);
    // SAFETY: see above.
    unsafe { write(EFER, before | bits) };
    let after = read(EFER);
    // SAFETY: as it was.
    unsafe { write(EFER, before) };
    after
}

/// RDMSR of an x2APIC register, the `index`th from this one on.
pub fn read_x2apic(register: Register, index: u8) -> u64 {
    read(X2APIC + u32::from(register.number()) + u32::from(index))
}

/// WRMSR of an x2APIC register.
pub fn write_x2apic(register: Register, value: u64) {
    // SAFETY: the APIC interrupts, no more.
    unsafe { write(X2APIC + u32::from(register.number()), value) };
}
