//! VMX, switched on and off.

use super::capabilities::Capabilities;
use super::capabilities::Features;
use super::pat::Pat;
use super::permissions::MsrBitmap;
use super::switch::Switched;
use super::task_priority::TaskPriority;
use super::unpaged;
use super::vcpu::VmxVcpu;
use super::vmcs::Region;
use crate::page::HardwarePage;
use crate::translation::{Nested, Shadow};
use crate::unswitched::{self, GuestStateOwner};
use crate::{Backend, FixedPage, Missing, Physical, Start};
use addr::{Hpa, PageSize};
use arch::msr::{FEATURE_CONTROL_LOCKED, FEATURE_CONTROL_VMX};
use core::alloc::Layout;
use core::fmt;
use core::num::NonZeroU16;
use mmu::Caps;
use raw_cpuid::{CpuId, CpuIdReaderNative};
use x86::bits64::vmx::{vmxoff, vmxon};
use x86::controlregs::{Cr0, Cr4, cr0, cr0_write, cr4, cr4_write};
use x86::msr::{IA32_FEATURE_CONTROL, rdmsr, wrmsr};

/// VMX, switched on on this CPU.
pub struct Vmx {
    _region: HardwarePage<Region>,
    pub(super) physical: Physical,
    pub(super) capabilities: Capabilities,
    pub(super) physical_bits: u8,
    pub(super) state_owner: GuestStateOwner,
}

impl Vmx {
    /// What this processor has.
    pub fn features(&self) -> &Features {
        &self.capabilities.features
    }
}

impl fmt::Display for Vmx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VMX {}", self.features())
    }
}

impl Backend for Vmx {
    type Vcpu = VmxVcpu<Nested>;

    type ShadowVcpu = VmxVcpu<Shadow>;

    type Tables = mmu::Ept;

    const VCPU_ALLOCATIONS: &'static [Layout] = &[
        Layout::new::<Region>(),
        Layout::new::<MsrBitmap>(),
        Layout::new::<Switched>(),
        Pat::ALLOCATION,
        TaskPriority::ALLOCATION,
    ];

    fn caps(&self, largest: PageSize) -> Caps {
        let features = self.features();
        Caps::new(self.physical_bits, largest.min(features.largest_page), features.accessed_dirty)
    }

    fn nested(&self) -> Result<(), Missing> {
        self.features().nested
    }

    fn shadow_caps(&self, largest: PageSize) -> Caps {
        Caps::new(self.physical_bits, largest, true)
    }

    unsafe fn enable(physical: Physical) -> Result<Self, Missing> {
        let cpuid = CpuId::with_cpuid_reader(CpuIdReaderNative);
        if !cpuid.get_feature_info().is_some_and(|features| features.has_vmx()) {
            return Err(Missing("VMX: CPUID 1, ECX bit 5"));
        }
        // SAFETY: the capability MSRs are there where VMX is; `read` asks for no others.
        let capabilities = Capabilities::read(|register| unsafe { rdmsr(register) })?;
        allow()?;
        unswitched::enable_fxsave();
        let region = HardwarePage::new(physical, Region::new(capabilities.revision));
        // SAFETY: the caller's promise, and VMX is there and allowed.
        unsafe { switch_on(&capabilities, region.address())? };
        let widths = cpuid.get_processor_capacity_feature_info();
        let physical_bits = widths.map_or(36, |widths| widths.physical_address_bits());
        Ok(Self { _region: region, physical, capabilities, physical_bits, state_owner: GuestStateOwner::default() })
    }

    fn fixed_page(&self) -> Option<FixedPage> {
        (!self.features().unrestricted_guest).then(unpaged::identity_map)
    }

    fn vcpu(&self, root: Hpa, offered_cr4: u64, tag: NonZeroU16, start: Start) -> VmxVcpu<Nested> {
        VmxVcpu::new(self, Nested, self.capabilities, root, offered_cr4, tag, start)
    }

    fn shadow_vcpu(
        &self,
        root: Hpa,
        features: walk::Features,
        offered_cr4: u64,
        tag: NonZeroU16,
        start: Start,
    ) -> VmxVcpu<Shadow> {
        let capabilities = self.capabilities.without_ept();
        VmxVcpu::new(self, Shadow::new(root, features), capabilities, root, offered_cr4, tag, start)
    }
}

/// Sees to it that the firmware's lock allows VMX; a lock left open is closed that way.
fn allow() -> Result<(), Missing> {
    // SAFETY: the register is there where VMX is.
    let control = unsafe { rdmsr(IA32_FEATURE_CONTROL) };
    match (control & FEATURE_CONTROL_LOCKED != 0, control & FEATURE_CONTROL_VMX != 0) {
        (true, true) => Ok(()),
        (true, false) => {
            Err(Missing("VMX is disabled by the firmware: IA32_FEATURE_CONTROL (3Ah) is locked with bit 2 0"))
        }
        (false, _) => {
            // SAFETY: as above, and it is not locked.
            unsafe { wrmsr(IA32_FEATURE_CONTROL, control | FEATURE_CONTROL_VMX | FEATURE_CONTROL_LOCKED) };
            Ok(())
        }
    }
}

/// Sets the bits of CR0 and CR4 that VMX fixes, and enters VMX operation.
///
/// # Safety
/// At ring 0; VMX is there, allowed, and off. `region` is VMX's own until it is off again.
unsafe fn switch_on(capabilities: &Capabilities, region: Hpa) -> Result<(), Missing> {
    // SAFETY: reading has no effect.
    let old_cr0 = unsafe { cr0() };
    // SAFETY: as above.
    let old_cr4 = unsafe { cr4() };
    let ones = Cr0::from_bits_truncate(capabilities.cr0_ones as usize);
    // SAFETY: of PE, NE and PG only NE may be new: x87 errors become exceptions, and the hypervisor uses no x87.
    unsafe { cr0_write(old_cr0 | ones) };
    let ones = Cr4::from_bits_truncate(capabilities.cr4_ones as usize);
    // SAFETY: VMXE, which the processor has.
    unsafe { cr4_write(old_cr4 | ones) };
    // SAFETY: the caller's promise.
    unsafe { vmxon(region.raw()) }.map_err(|_| {
        // SAFETY: as it was before.
        unsafe { cr4_write(old_cr4) };
        Missing("VMX operation: VMXON fails with the CR0 and CR4 that the hypervisor needs")
    })
}

impl Drop for Vmx {
    fn drop(&mut self) {
        assert!(self.state_owner.is_alone(), "vCPUs end before their backend");
        // SAFETY: VMX is on (`enable`), and no vCPU is left.
        let off = unsafe { vmxoff() };
        debug_assert!(off.is_ok());
        // SAFETY: reading has no effect.
        let cr4 = unsafe { cr4() };
        // SAFETY: VMX is off, so VMXE may be cleared.
        unsafe { cr4_write(cr4 - Cr4::CR4_ENABLE_VMX) };
    }
}
