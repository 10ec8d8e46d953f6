//! The contents of a vCPU's VMCS when it is created, after INIT, and where it starts.

use super::guest_state::Segment;
use super::switch;
use super::unpaged::Unpaged;
use super::vcpu::{Detour, VmxVcpu};
use crate::INTERCEPTED_EXCEPTIONS;
use crate::translation::Translation;
use arch::entry::{Controls, Entry, Mode, TSS_LIMIT};
use arch::segment::FlatSegment;
use arch::{CR0_CD, CR0_ET, CR0_NW, reset, segment};
use core::num::NonZeroU16;
use vm::{Gpr, StateMsr, Vcpu};
use x86::irq::PAGE_FAULT_VECTOR;
use x86::vmx::vmcs::{control, guest, host};

/// A flat segment as the VMCS has it (Intel SDM vol. 3, table 25-2): access rights are bits 40 to 55 of a descriptor.
fn flat((selector, segment): (u16, FlatSegment)) -> Segment {
    let access_rights = u64::from(segment.flags) << 12 | u64::from(segment.access);
    Segment { selector: selector.into(), base: 0, limit: u32::MAX.into(), access_rights }
}

impl<T: Translation> VmxVcpu<T> {
    pub(super) fn write_controls(&mut self, tag: NonZeroU16) {
        let controls = self.capabilities.controls;
        let page_faults = if self.translation.shadow().is_some() { 1 << PAGE_FAULT_VECTOR } else { 0 };
        for (field, value) in [
            (control::PINBASED_EXEC_CONTROLS, u64::from(controls.pin)),
            (control::PRIMARY_PROCBASED_EXEC_CONTROLS, u64::from(controls.primary)),
            (control::SECONDARY_PROCBASED_EXEC_CONTROLS, u64::from(controls.secondary)),
            (control::VMEXIT_CONTROLS, u64::from(controls.exit)),
            (control::VMENTRY_CONTROLS, u64::from(controls.entry)),
            (control::EXCEPTION_BITMAP, u64::from(INTERCEPTED_EXCEPTIONS | page_faults)),
            (control::PAGE_FAULT_ERR_CODE_MASK, 0),
            (control::PAGE_FAULT_ERR_CODE_MATCH, 0),
            (control::CR3_TARGET_COUNT, 0),
            (control::VMEXIT_MSR_STORE_COUNT, 0),
            (control::VMEXIT_MSR_LOAD_COUNT, 0),
            (control::VMENTRY_MSR_LOAD_COUNT, 0),
            (control::VMENTRY_INTERRUPTION_INFO_FIELD, 0),
            (control::MSR_BITMAPS_ADDR_FULL, self.msr_bitmap.address().raw()),
            (control::CR0_GUEST_HOST_MASK, self.cr0.mask),
            (guest::CR0, self.cr0.real(0)),
            (control::CR0_READ_SHADOW, 0),
            (control::CR4_GUEST_HOST_MASK, self.cr4.mask),
            (guest::LINK_PTR_FULL, u64::MAX),
            (guest::PDPTE0_FULL, 0),
            (guest::PDPTE1_FULL, 0),
            (guest::PDPTE2_FULL, 0),
            (guest::PDPTE3_FULL, 0),
            (host::RSP, &raw const *self.registers as u64),
            (host::RIP, switch::exited as *const () as u64),
        ] {
            self.vmcs.write(field, value);
        }
        if self.translation.shadow().is_none() {
            self.vmcs.write(control::EPTP_FULL, self.eptp);
        }
        if self.capabilities.features.vpid {
            // What an earlier vCPU has left under this number goes with the flush of the first entry, or comes from other
            // nested tables.
            self.vmcs.write(control::VPID, u64::from(tag.get()));
        }
        self.limit_stay(u32::MAX.into());
    }

    /// What RESET does to the registers that INIT keeps.
    pub(super) fn write_power_on(&mut self) {
        self.adjust_tsc(self.tsc_offset.wrapping_neg());
        self.set_state_msr(StateMsr::Pat, reset::PAT);
        self.write_cr0(0);
        for field in [guest::IA32_SYSENTER_CS, guest::IA32_SYSENTER_ESP, guest::IA32_SYSENTER_EIP] {
            self.vmcs.write(field, 0);
        }
    }

    /// What INIT leaves, but for the segments (Intel SDM vol. 3, table 10-1).
    pub(super) fn write_init(&mut self) {
        let cr0 = self.guest_cr0() & (CR0_CD | CR0_NW) | CR0_ET;
        self.unpaged = None;
        self.set_detour(Detour::RealMode, false);
        self.cr4 = self.paged_cr4;
        self.set_long_mode(false, 0);
        self.write_cr0(cr0);
        self.write_cr4(0);
        for (field, value) in [
            (guest::CR3, 0),
            (guest::DR7, reset::DR7),
            (guest::IA32_DEBUGCTL_FULL, 0),
            (guest::GDTR_BASE, 0),
            (guest::GDTR_LIMIT, reset::LIMIT.into()),
            (guest::IDTR_BASE, 0),
            (guest::IDTR_LIMIT, reset::LIMIT.into()),
            (guest::RSP, 0),
            (guest::RFLAGS, reset::RFLAGS),
            (guest::INTERRUPTIBILITY_STATE, 0),
            (guest::ACTIVITY_STATE, 0),
            (guest::PENDING_DBG_EXCEPTIONS, 0),
            (control::VMENTRY_INTERRUPTION_INFO_FIELD, 0),
        ] {
            self.vmcs.write(field, value);
        }
        self.registers.gprs = [0; 16];
        if let Some(shadow) = self.translation.shadow_mut() {
            shadow.own.reset(cr0);
            self.apply_paging(None);
        }
    }

    /// As a boot protocol enters it.
    pub(super) fn start_boot(&mut self, entry: &Entry) {
        let mode = entry.mode;
        self.write_segments(flat(mode.code()), flat(mode.data()));
        let (gdt, limit) = mode.gdtr();
        for (field, value) in [
            (guest::GDTR_BASE, gdt.into()),
            (guest::GDTR_LIMIT, limit.into()),
            (guest::TR_LIMIT, TSS_LIMIT.into()),
            (guest::RIP, entry.eip.into()),
            (guest::RSP, entry.esp.into()),
        ] {
            self.vmcs.write(field, value);
        }
        self.registers.gprs[..8].copy_from_slice(&entry.general_registers());
        match mode {
            Mode::Protected { .. } => {
                self.write_cr0(self.guest_cr0() | mode.controls().cr0);
                self.start_unpaged(false);
            }
            Mode::Long { .. } => self.start_paged(mode.controls()),
        }
    }

    /// In long mode. Paging is on, so no processor needs the identity map.
    fn start_paged(&mut self, controls: Controls) {
        assert!(self.translation.shadow().is_none(), "shadow paging has no long mode");
        let Controls { cr0, cr3, cr4, efer } = controls;
        self.set_long_mode(true, efer);
        self.write_cr4(cr4);
        self.vmcs.write(guest::CR3, cr3);
        self.write_cr0(self.guest_cr0() | cr0);
    }

    /// With EPT and without unrestricted guest, on the identity map.
    fn start_unpaged(&mut self, real: bool) {
        if !self.capabilities.features.unrestricted_guest && self.translation.shadow().is_none() {
            self.enter_identity_map(Unpaged { cr3: 0, efer: 0 }, 0);
            self.set_detour(Detour::RealMode, real);
        }
    }

    /// Real mode, at the start of a page.
    pub(super) fn start_real(&mut self, page: u8) {
        let data = Segment { selector: 0, base: 0, limit: reset::LIMIT.into(), access_rights: segment::DATA.into() };
        let (selector, base) = (u64::from(page) << 8, u64::from(page) << 12);
        self.write_segments(Segment { selector, base, access_rights: segment::CODE.into(), ..data }, data);
        self.vmcs.write(guest::RIP, 0);
        self.start_unpaged(true);
        self.registers.gprs[Gpr::RDX.index()] = raw_cpuid::cpuid!(1).eax.into();
    }

    /// LDTR is unusable, and TR has what entries demand of it.
    fn write_segments(&mut self, code: Segment, data: Segment) {
        const UNUSABLE: u64 = 1 << 16;
        let ldtr = Segment { selector: 0, base: 0, limit: 0, access_rights: UNUSABLE };
        let tr = Segment { selector: 0, base: 0, limit: reset::LIMIT.into(), access_rights: segment::BUSY_TSS.into() };
        // In the order of encodings, which is that of the fields.
        for (number, segment) in (0..).zip([data, code, data, data, data, data, ldtr, tr]) {
            self.vmcs.write(guest::ES_SELECTOR + 2 * number, segment.selector);
            self.vmcs.write(guest::ES_BASE + 2 * number, segment.base);
            self.vmcs.write(guest::ES_LIMIT + 2 * number, segment.limit);
            self.vmcs.write(guest::ES_ACCESS_RIGHTS + 2 * number, segment.access_rights);
        }
    }
}
