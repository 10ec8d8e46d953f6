//! What a new vCPU's VMCS and processor hold.

use super::Vmx;
use super::control_registers::{CR0_ET, CR0_PE};
use super::switch;
use super::vcpu::{PAT_AT_RESET, VmxVcpu, write_dr6};
use crate::Start;
use core::arch::asm;
use vm::Gpr;
use x86::controlregs::cr2_write;
use x86::msr;
use x86::vmx::vmcs::{control, guest, host};

/// Exceptions that exit. #UD: VMMCALL is a hypercall too. #DB and #AC: delivering one can raise it again for ever, which
/// only an exit ends (CVE-2015-5307, CVE-2015-8104). #MC is the host's.
const INTERCEPTED_EXCEPTIONS: u64 = 1 << 1 | 1 << 6 | 1 << 17 | 1 << 18;

/// How long the guest runs at most until the host has a look at its interrupts, in ticks of the TSC: 2^22, a millisecond or
/// two. A processor lets the host's interrupts through whatever the guest does; Bochs may not while the guest has its own off.
const PATIENCE_SHIFT: u8 = 22;

impl VmxVcpu {
    pub(super) fn write_controls(&mut self, vmx: &Vmx) {
        let controls = &vmx.capabilities.controls;
        for (field, value) in [
            (control::PINBASED_EXEC_CONTROLS, u64::from(controls.pin)),
            (control::PRIMARY_PROCBASED_EXEC_CONTROLS, u64::from(controls.primary)),
            (control::SECONDARY_PROCBASED_EXEC_CONTROLS, u64::from(controls.secondary)),
            (control::VMEXIT_CONTROLS, u64::from(controls.exit)),
            (control::VMENTRY_CONTROLS, u64::from(controls.entry)),
            (control::EXCEPTION_BITMAP, INTERCEPTED_EXCEPTIONS),
            (control::PAGE_FAULT_ERR_CODE_MASK, 0),
            (control::PAGE_FAULT_ERR_CODE_MATCH, 0),
            (control::CR3_TARGET_COUNT, 0),
            (control::VMEXIT_MSR_STORE_COUNT, 0),
            (control::VMEXIT_MSR_LOAD_COUNT, 0),
            (control::VMENTRY_MSR_LOAD_COUNT, 0),
            (control::VMENTRY_INTERRUPTION_INFO_FIELD, 0),
            (control::TSC_OFFSET_FULL, 0),
            (control::MSR_BITMAPS_ADDR_FULL, self.msr_bitmap.address().raw()),
            (control::EPTP_FULL, self.eptp),
            (control::CR0_GUEST_HOST_MASK, self.cr0.mask),
            (control::CR4_GUEST_HOST_MASK, self.cr4.mask),
            (host::RSP, &raw const *self.registers as u64),
            (host::RIP, switch::exited as *const () as u64),
        ] {
            self.vmcs.write(field, value);
        }
        if self.capabilities.features.vpid {
            // Translations of an earlier vCPU with this number were made by tables that the first entry flushes.
            self.vmcs.write(control::VPID, 1);
        }
        if let Some(rate) = self.capabilities.features.preemption_timer {
            let ticks = 1 << PATIENCE_SHIFT.saturating_sub(rate);
            self.vmcs.write(guest::VMX_PREEMPTION_TIMER_VALUE, ticks);
        }
    }

    /// Flat 32-bit protected mode, as a multiboot loader leaves it.
    pub(super) fn write_start(&mut self, start: Start) {
        const CODE: u64 = 0xc09b;
        const DATA: u64 = 0xc093;
        const BUSY_TSS: u64 = 0x8b;
        const UNUSABLE: u64 = 1 << 16;
        let flat = u64::from(u32::MAX);
        // In the order of encodings, which is that of the fields.
        let segments = [
            (0x10, flat, DATA),
            (0x08, flat, CODE),
            (0x10, flat, DATA),
            (0x10, flat, DATA),
            (0x10, flat, DATA),
            (0x10, flat, DATA),
            (0, 0, UNUSABLE),
            (0, 0xffff, BUSY_TSS),
        ];
        for (number, (selector, limit, access_rights)) in (0..).zip(segments) {
            self.vmcs.write(guest::ES_SELECTOR + 2 * number, selector);
            self.vmcs.write(guest::ES_BASE + 2 * number, 0);
            self.vmcs.write(guest::ES_LIMIT + 2 * number, limit);
            self.vmcs.write(guest::ES_ACCESS_RIGHTS + 2 * number, access_rights);
        }
        let cr0 = CR0_PE | CR0_ET;
        for (field, value) in [
            (guest::CR0, self.cr0.real(cr0)),
            (control::CR0_READ_SHADOW, cr0),
            (guest::CR3, 0),
            (guest::CR4, self.cr4.real(0)),
            (control::CR4_READ_SHADOW, 0),
            (guest::IA32_EFER_FULL, 0),
            (guest::DR7, 0x400),
            (guest::IA32_DEBUGCTL_FULL, 0),
            (guest::GDTR_BASE, 0),
            (guest::GDTR_LIMIT, 0),
            (guest::IDTR_BASE, 0),
            (guest::IDTR_LIMIT, 0),
            (guest::IA32_SYSENTER_CS, 0),
            (guest::IA32_SYSENTER_ESP, 0),
            (guest::IA32_SYSENTER_EIP, 0),
            (guest::RIP, u64::from(start.eip)),
            (guest::RSP, 0),
            (guest::RFLAGS, 2),
            (guest::INTERRUPTIBILITY_STATE, 0),
            (guest::ACTIVITY_STATE, 0),
            (guest::PENDING_DBG_EXCEPTIONS, 0),
            (guest::LINK_PTR_FULL, u64::MAX),
            (guest::PDPTE0_FULL, 0),
            (guest::PDPTE1_FULL, 0),
            (guest::PDPTE2_FULL, 0),
            (guest::PDPTE3_FULL, 0),
        ] {
            self.vmcs.write(field, value);
        }
        if self.capabilities.features.pat {
            self.vmcs.write(guest::IA32_PAT_FULL, PAT_AT_RESET);
        }
        self.registers.gprs[Gpr::RAX.index()] = u64::from(start.eax);
        self.registers.gprs[Gpr::RBX.index()] = u64::from(start.ebx);
    }

    /// Gives what entries and exits leave in the processor the values that it has after reset.
    pub(super) fn clear_unswitched(&mut self) {
        for register in [msr::IA32_STAR, msr::IA32_LSTAR, msr::IA32_CSTAR, msr::IA32_FMASK, msr::IA32_KERNEL_GSBASE] {
            // SAFETY: the registers are there in long mode, and the hypervisor uses none of them.
            unsafe { msr::wrmsr(register, 0) };
        }
        if self.capabilities.features.rdtscp {
            // SAFETY: the register is there where RDTSCP is, and the hypervisor does not use it.
            unsafe { msr::wrmsr(msr::IA32_TSC_AUX, 0) };
        }
        // SAFETY: the hypervisor takes no page fault that it would survive.
        unsafe { cr2_write(0) };
        // SAFETY: without breakpoints in DR7 (exits clear them) the addresses mean nothing.
        unsafe { asm!("mov dr0, {0}", "mov dr1, {0}", "mov dr2, {0}", "mov dr3, {0}", in(reg) 0u64) };
        write_dr6(0xffff_0ff0);
    }
}
