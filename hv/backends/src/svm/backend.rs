//! SVM, switched on and off.

use super::permissions::{IoPermissions, MsrPermissions};
use super::vcpu::SvmVcpu;
use super::vmcb::{self, Vmcb, misc1};
use crate::page::HardwarePage;
use crate::translation::{Nested, Shadow};
use crate::unswitched::{self, GuestStateOwner};
use crate::{Backend, Missing, Physical, Start};
use abi::reasons;
use addr::{Hpa, PageSize};
use arch::EFER_SVME;
use arch::msr::{VM_CR, VM_CR_SVMDIS, VM_HSAVE_PA};
use core::alloc::Layout;
use core::fmt;
use core::num::NonZeroU16;
use core::ops::Range;
use mmu::Caps;
use raw_cpuid::{CpuId, CpuIdReaderNative, Hypervisor};
use walk::Features;
use x86::irq::PAGE_FAULT_VECTOR;
use x86::msr::{IA32_EFER, rdmsr, wrmsr};

/// SVM, switched on on this CPU.
pub struct Svm {
    _host_save: HardwarePage<Vmcb>,
    pub(super) physical: Physical,
    pub(super) state_owner: GuestStateOwner,
    nested_paging: bool,
    pub(super) next_rip_save: bool,
    pub(super) decode_assists: bool,
    pub(super) flush_by_asid: bool,
    pub(super) pause_filter: bool,
    pub(super) lbr_virtualization: bool,
    /// Interrupts are [posted](super::virtual_interrupt), not injected.
    pub(super) posts_interrupts: bool,
    /// EFER.LME is [held back](super::long_mode) while paging is off.
    pub(super) guards_long_mode: bool,
    /// The processor must not set a guest's [breakpoints](super::breakpoints).
    pub(super) withholds_breakpoints: bool,
    /// Other CPUs can undo a change of the boot CPU's flags, as with QEMU (as of 7.2): FXRSTOR, XRSTOR, FRSTOR and FLDENV clear
    /// IGNNE# in the first CPU's `hflags2`, whichever CPU they run on, by an `and` that is not atomic (`cpu_clear_ignne`). At
    /// the moment of an exit there, that leaves nested paging on for the host, and its next fetch resets the machine.
    spares_boot_cpu: bool,
    /// The highest ASID.
    last_asid: u32,
    pub(super) has_tsc_aux: bool,
    physical_bits: u8,
}

impl Svm {
    /// The ASID for `tag`, and whether other vCPUs have it as well: those that find no ASID left share the last one.
    pub(super) fn asid(&self, tag: NonZeroU16) -> (u32, bool) {
        let tag = u32::from(tag.get());
        (tag.min(self.last_asid), tag >= self.last_asid)
    }
}

impl Backend for Svm {
    type Vcpu = SvmVcpu<Nested>;

    type ShadowVcpu = SvmVcpu<Shadow>;

    type Tables = mmu::Npt;

    const VCPU_ALLOCATIONS: &'static [Layout] = &[
        Layout::new::<Vmcb>(),
        Layout::new::<Vmcb>(),
        Layout::new::<IoPermissions>(),
        Layout::new::<MsrPermissions>(),
    ];

    fn caps(&self, largest: PageSize) -> Caps {
        Caps::new(self.physical_bits, largest, true)
    }

    fn nested(&self) -> Result<(), Missing> {
        match self.nested_paging {
            true => Ok(()),
            false => Err(Missing("nested paging: CPUID 8000_000Ah, EDX bit 0 (NP)")),
        }
    }

    fn shadow_caps(&self, largest: PageSize) -> Caps {
        Caps::new(self.physical_bits, largest, true)
    }

    fn guest_cpus(&self, online: usize) -> Range<usize> {
        abi::cpus::spared_cpus(self.spares_boot_cpu, online)..online
    }

    unsafe fn enable(physical: Physical) -> Result<Self, Missing> {
        let cpuid = CpuId::with_cpuid_reader(CpuIdReaderNative);
        if !cpuid.get_extended_processor_and_feature_identifiers().is_some_and(|features| features.has_svm()) {
            return Err(Missing(reasons::SVM));
        }
        // SAFETY: VM_CR is there where SVM is.
        if unsafe { rdmsr(VM_CR) } & VM_CR_SVMDIS != 0 {
            return Err(Missing("SVM is disabled by the firmware: MSR VM_CR (C001_0114h) bit 4 (SVMDIS) is set"));
        }
        let Some(features) = cpuid.get_svm_info() else {
            return Err(Missing("SVM's features: CPUID 8000_000Ah"));
        };
        let host_save = HardwarePage::new(physical, Vmcb::zeroed());
        // SAFETY: SVM is there and allowed.
        let efer = unsafe { rdmsr(IA32_EFER) };
        // SAFETY: as above.
        unsafe { wrmsr(IA32_EFER, efer | EFER_SVME) };
        // SAFETY: the page is this CPU's for as long as the backend lives.
        unsafe { wrmsr(VM_HSAVE_PA, host_save.address().raw()) };
        unswitched::enable_fxsave();
        let widths = cpuid.get_processor_capacity_feature_info();
        let physical_bits = widths.map_or(36, |widths| widths.physical_address_bits());
        let extended = cpuid.get_extended_processor_and_feature_identifiers();
        let is_qemu = cpuid.get_hypervisor_info().is_some_and(|host| host.identify() == Hypervisor::QEMU);
        Ok(Self {
            _host_save: host_save,
            physical,
            state_owner: GuestStateOwner::default(),
            nested_paging: features.has_nested_paging(),
            next_rip_save: features.has_nrip(),
            decode_assists: features.has_decode_assists(),
            flush_by_asid: features.has_flush_by_asid(),
            pause_filter: features.has_pause_filter(),
            lbr_virtualization: features.has_lbr_virtualization(),
            posts_interrupts: is_qemu,
            guards_long_mode: is_qemu,
            withholds_breakpoints: is_qemu,
            spares_boot_cpu: is_qemu,
            last_asid: features.supported_asids().max(2) - 1,
            has_tsc_aux: extended.is_some_and(|features| features.has_rdtscp()),
            physical_bits,
        })
    }

    /// Writes of CR4 exit: the handlers check them.
    fn vcpu(&self, root: Hpa, _offered_cr4: u64, tag: NonZeroU16, start: Start) -> SvmVcpu<Nested> {
        let mut vcpu = SvmVcpu::new(self, Nested, tag);
        let control = &mut vcpu.vmcb.control;
        control.nested_control = vmcb::NESTED_PAGING;
        control.nested_cr3 = root.raw();
        control.intercept_cr |= vmcb::INTERCEPT_CR4_WRITE;
        vcpu.begin(start)
    }

    fn shadow_vcpu(
        &self,
        root: Hpa,
        features: Features,
        _offered_cr4: u64,
        tag: NonZeroU16,
        start: Start,
    ) -> SvmVcpu<Shadow> {
        let mut vcpu = SvmVcpu::new(self, Shadow::new(root, features), tag);
        let control = &mut vcpu.vmcb.control;
        control.intercept_cr |= vmcb::INTERCEPT_PAGING;
        control.intercept_exceptions |= 1 << PAGE_FAULT_VECTOR;
        control.intercept_misc1 |= misc1::INVLPG | misc1::TASK_SWITCH;
        vcpu.begin(start)
    }
}

impl fmt::Display for Svm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let no = |present| if present { "" } else { "no " };
        let (next_rip, by_asid, pause) = (no(self.next_rip_save), no(self.flush_by_asid), no(self.pause_filter));
        let nested = if self.nested_paging { "with" } else { "without" };
        let posted = if self.posts_interrupts { ", interrupts posted" } else { "" };
        write!(
            f,
            "SVM {nested} nested paging: {next_rip}next-RIP save, {by_asid}flush by ASID, {pause}PAUSE filter, {} ASIDs{posted}",
            self.last_asid + 1
        )
    }
}

impl Drop for Svm {
    fn drop(&mut self) {
        // SAFETY: SVM is on (`enable`), and no vCPU runs: off it goes before its page does.
        let efer = unsafe { rdmsr(IA32_EFER) };
        // SAFETY: as above.
        unsafe { wrmsr(IA32_EFER, efer & !EFER_SVME) };
    }
}
