//! The host's state, which every exit loads, as it is on this CPU now.

use super::capabilities::Features;
use super::vmcs::Vmcs;
use x86::controlregs::{cr0, cr3, cr4};
use x86::dtables::{DescriptorTablePointer, sgdt, sidt};
use x86::msr::{IA32_EFER, IA32_FS_BASE, IA32_GS_BASE, IA32_PAT, rdmsr};
use x86::segmentation::{cs, ds, es, fs, gs, ss};
use x86::task::tr;
use x86::vmx::vmcs::host;

/// Selectors without RPL and TI, as the host's fields have them.
const SELECTOR: u16 = !7;

/// Writes this CPU's state to the host-state area, but for RSP and RIP. SYSENTER's registers the host does not use.
pub(super) fn write(vmcs: &mut Vmcs, features: &Features) {
    let mut gdt = DescriptorTablePointer::<u64>::default();
    // SAFETY: reading has no effect.
    unsafe { sgdt(&mut gdt) };
    let mut idt = DescriptorTablePointer::<u64>::default();
    // SAFETY: as above.
    unsafe { sidt(&mut idt) };
    // SAFETY: as above.
    let task = unsafe { tr() }.bits();
    // SAFETY: as above.
    let cr0 = unsafe { cr0() }.bits() as u64;
    // SAFETY: as above.
    let cr3 = unsafe { cr3() };
    // SAFETY: as above.
    let cr4 = unsafe { cr4() }.bits() as u64;
    // SAFETY: as above; the registers are there in long mode.
    let [efer, fs_base, gs_base] = [IA32_EFER, IA32_FS_BASE, IA32_GS_BASE].map(|register| unsafe { rdmsr(register) });
    for (field, value) in [
        (host::CR0, cr0),
        (host::CR3, cr3),
        (host::CR4, cr4),
        (host::FS_BASE, fs_base),
        (host::GS_BASE, gs_base),
        (host::TR_BASE, task_base(gdt.base, task)),
        (host::GDTR_BASE, gdt.base as u64),
        (host::IDTR_BASE, idt.base as u64),
        (host::IA32_SYSENTER_CS, 0),
        (host::IA32_SYSENTER_ESP, 0),
        (host::IA32_SYSENTER_EIP, 0),
    ] {
        vmcs.write(field, value);
    }
    for (field, selector) in [
        (host::CS_SELECTOR, cs().bits()),
        (host::SS_SELECTOR, ss().bits()),
        (host::DS_SELECTOR, ds().bits()),
        (host::ES_SELECTOR, es().bits()),
        (host::FS_SELECTOR, fs().bits()),
        (host::GS_SELECTOR, gs().bits()),
        (host::TR_SELECTOR, task),
    ] {
        vmcs.write(field, u64::from(selector & SELECTOR));
    }
    if features.efer {
        vmcs.write(host::IA32_EFER_FULL, efer);
    }
    if features.pat {
        // SAFETY: reading has no effect; the register is there where entries and exits can switch it.
        vmcs.write(host::IA32_PAT_FULL, unsafe { rdmsr(IA32_PAT) });
    }
}

/// The base in the GDT's 16-byte descriptor of the task register.
fn task_base(gdt: *const u64, selector: u16) -> u64 {
    let low = gdt.wrapping_add(usize::from(selector >> 3));
    // SAFETY: the task register was loaded from this descriptor, and the GDT is as it was.
    let [low, high] = unsafe { low.cast::<[u64; 2]>().read() };
    descriptor_base(low, high)
}

/// The base of a system descriptor in long mode (Intel SDM vol. 3, figure 8-4).
const fn descriptor_base(low: u64, high: u64) -> u64 {
    low >> 16 & 0x00ff_ffff | low >> 32 & 0xff00_0000 | high << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptors_base_lies_in_four_pieces() {
        let (low, high) = (0xab00_89cd_ef12_0067, 0xffff_8000);
        assert_eq!(descriptor_base(low, high), 0xffff_8000_abcd_ef12);
    }
}
