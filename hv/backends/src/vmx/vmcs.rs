//! The VMCS: a page that the processor alone reads and writes, by VMREAD and VMWRITE of named fields.

use crate::Physical;
use crate::page::HardwarePage;
use core::arch::asm;
use core::marker::PhantomData;
use x86::bits64::vmx;
use x86::vmx::VmFail;

/// A VMXON region or a VMCS as the processor takes it over (Intel SDM vol. 3, section 24.2): the rest is its own affair.
#[repr(C, align(4096))]
pub(super) struct Region {
    revision: u32,
    abort: u32,
    data: [u32; 1022],
}

impl Region {
    pub(super) const fn new(revision: u32) -> Self {
        Self { revision, abort: 0, data: [0; 1022] }
    }
}

/// A VMCS. Its fields are read and written while it is the current one: from [`load`](Self::load) until another one's.
pub(super) struct Vmcs {
    region: HardwarePage<Region>,
    // Bound to its CPU.
    _not_send: PhantomData<*const ()>,
}

impl Vmcs {
    /// Makes a VMCS.
    ///
    /// # Safety
    /// This CPU is in VMX root operation for as long as the VMCS lives.
    pub(super) unsafe fn new(physical: Physical, revision: u32) -> Result<Self, VmFail> {
        let region = HardwarePage::new(physical, Region::new(revision));
        // SAFETY: the region is a page of its own with the revision in place.
        unsafe { vmx::vmclear(region.address().raw()) }?;
        Ok(Self { region, _not_send: PhantomData })
    }

    /// Makes it the current one of this CPU.
    pub(super) fn load(&mut self) {
        // SAFETY: the region is a VMCS of this CPU (`new`). The one that was current keeps its contents.
        let loaded = unsafe { vmx::vmptrld(self.region.address().raw()) };
        debug_assert!(loaded.is_ok());
    }

    /// Reads a field that this processor has. What is not used is not read.
    #[inline(always)]
    pub(super) fn read(&self, field: u32) -> u64 {
        let value;
        // SAFETY: this VMCS is current (`load`), and VMREAD changes nothing but flags. It depends on the VMCS as on memory:
        // every asm block that changes one or enters the guest clobbers memory.
        unsafe {
            asm!("vmread {}, {}", lateout(reg) value, in(reg) u64::from(field), options(pure, readonly, nostack));
        }
        value
    }

    /// Writes a field that this processor has.
    #[inline(always)]
    pub(super) fn write(&mut self, field: u32, value: u64) {
        // SAFETY: this VMCS is current (`load`). What its fields mean for the host is checked by the code that enters.
        unsafe { asm!("vmwrite {}, {}", in(reg) u64::from(field), in(reg) value, options(nostack)) };
    }
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        // SAFETY: the region is this VMCS, current or not; the processor gives it up, and it is only memory then. If the processor objects, it does not
        // hold it any more.
        let _ = unsafe { vmx::vmclear(self.region.address().raw()) };
    }
}

/// INVEPT's operand (Intel SDM vol. 3, section 30.3).
#[repr(C, align(16))]
struct InveptDescriptor {
    eptp: u64,
    reserved: u64,
}

/// Drops the translations that come from EPT: those of `eptp` alone where the processor can, else all.
///
/// # Safety
/// This CPU is in VMX root operation, and has INVEPT of that type.
pub(super) unsafe fn invept(eptp: u64, single: bool) {
    let descriptor = InveptDescriptor { eptp, reserved: 0 };
    let kind: u64 = if single { 1 } else { 2 };
    // SAFETY: the caller's promise; dropping translations is always allowed.
    unsafe { asm!("invept {}, [{}]", in(reg) kind, in(reg) &raw const descriptor, options(readonly, nostack)) };
}
