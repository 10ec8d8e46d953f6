//! One virtual CPU under VMX.

use super::backend::Vmx;
use super::capabilities::{Capabilities, Features};
use super::control_registers::{CR0_PE, Shadowed};
use super::pat::Pat;
use super::permissions::MsrBitmap;
use super::reason::{self, CrAccess};
use super::switch::{self, Switched};
use super::unpaged::{EFER_LME, Unpaged};
use super::vmcs::{self, Vmcs};
use super::{dump, host};
use crate::page::HardwarePage;
use crate::resident::{self, Occupant, Resident, Tenant};
use crate::translation::Translation;
use addr::{Gpa, Gva, Hpa};
use alloc::boxed::Box;
use core::arch::asm;
use core::fmt;
use core::num::NonZeroU16;
use emul::real::Memory;
use vm::cpuid::Leaf;
use vm::{
    ControlRegisters, Cr8, Emulated, Event, Exception, Exit, Gpr, INTERRUPT_FLAG, Instruction, Io, Known, PageFault,
    Registers, Segment, SegmentState, Start, StateMsr, Stay, Vcpu,
};
use walk::Controls;
use x86::controlregs::cr2_write;
use x86::msr;
use x86::time::rdtsc;
use x86::vmx::vmcs::control::{EntryControls, PrimaryControls};
use x86::vmx::vmcs::{control, guest, ro};

const DEBUG: u64 = 1;
pub(super) const PAGE_FAULT: u64 = 14;

// Interruption information of entries and exits, and IDT-vectoring information (SDM tables 25-17, 25-18, 25-20).
const EVENT_VALID: u64 = 1 << 31;
const EVENT_VECTOR: u64 = 0xff;
const EVENT_TYPE: u64 = 7 << 8;
const TYPE_INTERRUPT: u64 = 0 << 8;
const TYPE_NMI: u64 = 2 << 8;
const NMI_VECTOR: u64 = 2;
const TYPE_EXCEPTION: u64 = 3 << 8;
/// Software interrupts and exceptions: their instruction runs again.
const TYPE_BY_INSTRUCTION: u64 = 4 << 8;
const EVENT_ERROR_CODE: u64 = 1 << 11;

/// Interruptibility: the shadows of STI and MOV SS.
const SHADOW: u64 = 3;
/// Interruptibility: an NMI is being handled.
const NMI_BLOCKED: u64 = 1 << 3;
/// Exit qualification, and interruption information of exits: the IRET that ended an NMI's handling is what exits, and will run again.
const NMI_UNBLOCKED: u64 = 1 << 12;

const MODE_64: u64 = 1 << 13;

/// What PAT holds after reset (Intel SDM vol. 3, section 12.12.4).
pub(super) const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

/// What comes before an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Detour {
    /// Translations have to be dropped.
    Flush = 1 << 0,
    /// There is none: the guest is in real mode, which this processor does not have for guests.
    RealMode = 1 << 1,
}

/// A virtual CPU under VMX.
///
/// The guest's state that exits don't swap stays in the processor ([`Resident`]): vector registers, CR2, the debug registers,
/// and the MSRs that SYSCALL and SWAPGS use.
pub struct VmxVcpu<T: Translation> {
    pub(super) translation: T,
    /// The host's RSP in the VMCS points to it.
    pub(super) registers: Box<Switched>,
    pub(super) vmcs: Vmcs,
    /// The exit's reason.
    pub(super) reason: u64,
    /// The primary controls as they are in the VMCS.
    primary: u32,
    tsc_offset: u64,
    pub(super) eptp: u64,
    /// What has to be done before the next entry, or instead: a bit for each [`Detour`].
    detours: u8,
    /// The exit was by an NMI, which `leave` has to hand to the host.
    nmi: bool,
    pub(super) cr0: Shadowed,
    pub(super) cr4: Shadowed,
    /// CR4 when the guest's paging is really on.
    pub(super) paged_cr4: Shadowed,
    /// The guest runs unpaged, on the identity map.
    pub(super) unpaged: Option<Unpaged>,
    /// The exit was by a MOV to CR0 that turns PAE paging on: the top entries have to be read first.
    pub(super) needs_pdptes: bool,
    /// PAT, where it is not in the VMCS.
    pat: Option<Pat>,
    pub(super) capabilities: Capabilities,
    pub(super) physical_bits: u8,
    pub(super) msr_bitmap: HardwarePage<MsrBitmap>,
    occupant: Occupant,
    resident: Tenant,
}

impl<T: Translation> VmxVcpu<T> {
    /// `root`: of the nested tables.
    pub(super) fn new(
        vmx: &Vmx,
        translation: T,
        capabilities: Capabilities,
        root: Hpa,
        tag: NonZeroU16,
        start: Start,
    ) -> Self {
        // SAFETY: VMX is on as long as its backend is there, and that ends after its vCPUs.
        let vmcs = unsafe { Vmcs::new(vmx.physical, vmx.capabilities.revision) }
            .expect("the region is a page of its own with its revision in place");
        // SAFETY: reading has no effect.
        let host_cr4 = unsafe { x86::controlregs::cr4() }.bits() as u64;
        let paged_cr4 = Shadowed::cr4(&capabilities, host_cr4);
        let features = capabilities.features;
        let (cr0, cr4) = match translation.shadow() {
            Some(_) => (Shadowed::cr0(&capabilities).whole(), paged_cr4.whole()),
            None => (Shadowed::cr0(&capabilities), paged_cr4),
        };
        let mut vcpu = Self {
            translation,
            registers: Box::default(),
            reason: 0,
            primary: capabilities.controls.primary,
            tsc_offset: 0,
            eptp: eptp(root, features),
            detours: 0,
            nmi: false,
            cr0,
            cr4,
            paged_cr4,
            unpaged: None,
            needs_pdptes: false,
            pat: (!features.pat).then(|| Pat::new(vmx.physical, PAT_AT_RESET)),
            capabilities,
            physical_bits: vmx.physical_bits,
            msr_bitmap: HardwarePage::new(vmx.physical, MsrBitmap::guest()),
            occupant: vmx.occupant.clone(),
            resident: Resident::new(unswitched_msrs(features)),
            vmcs,
        };
        vcpu.load();
        host::write(&mut vcpu.vmcs, &features);
        vcpu.write_controls(tag);
        if let Some(pat) = &vcpu.pat {
            pat.install(&mut vcpu.vmcs);
        }
        vcpu.reset(start);
        vcpu
    }

    #[inline]
    fn cpl(&self) -> u8 {
        (self.vmcs.read(guest::SS_ACCESS_RIGHTS) >> 5 & 3) as u8
    }

    #[inline]
    pub(super) fn qualification(&self) -> u64 {
        self.vmcs.read(ro::EXIT_QUALIFICATION)
    }

    /// What an exit may need besides being reported. Whether the guest goes on at once.
    #[cold]
    fn rare(&mut self) -> bool {
        if self.reason == reason::CONTROL_REGISTER && self.translation.shadow().is_none() {
            return self.control_register(reason::cr_access(self.qualification()));
        }
        if self.reason == reason::EXCEPTION_OR_NMI {
            self.exception();
        }
        let interrupted = self.vmcs.read(ro::IDT_VECTORING_INFO);
        if interrupted & EVENT_VALID != 0 {
            // An NMI that comes again must not find itself in its own way (SDM section 27.3.1.5).
            if interrupted & EVENT_TYPE == TYPE_NMI {
                self.block_nmis(false);
            }
            self.redeliver(interrupted);
        } else if self.unblocked_nmis() {
            self.block_nmis(true);
        }
        false
    }

    /// Whether the exit was by an IRET that had ended an NMI's handling, and will run again.
    fn unblocked_nmis(&self) -> bool {
        match self.reason {
            reason::EPT_VIOLATION => self.qualification() & NMI_UNBLOCKED != 0,
            reason::EXCEPTION_OR_NMI => {
                let info = self.vmcs.read(ro::VMEXIT_INTERRUPTION_INFO);
                info & EVENT_TYPE != TYPE_NMI && info & NMI_UNBLOCKED != 0
            }
            _ => false,
        }
    }

    fn block_nmis(&mut self, blocked: bool) {
        let state = self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & !NMI_BLOCKED;
        self.vmcs.write(guest::INTERRUPTIBILITY_STATE, state | if blocked { NMI_BLOCKED } else { 0 });
    }

    /// An NMI is the host's. A #DB exits before the debug registers tell of it (SDM section 28.1).
    fn exception(&mut self) {
        const DR6_STATUS: u64 = 0x600f;
        const DR6_BREAKPOINTS: u64 = 15;
        const DR6_BD: u64 = 1 << 13;
        const DR7_GD: u64 = 1 << 13;
        let info = self.vmcs.read(ro::VMEXIT_INTERRUPTION_INFO);
        if info & EVENT_TYPE == TYPE_NMI {
            self.nmi = true;
        } else if info & EVENT_VECTOR == DEBUG {
            let status = self.qualification() & DR6_STATUS;
            resident::set_dr6(resident::dr6() & !DR6_BREAKPOINTS | status);
            if status & DR6_BD != 0 {
                let dr7 = self.vmcs.read(guest::DR7);
                self.vmcs.write(guest::DR7, dr7 & !DR7_GD);
            }
        }
    }

    /// An event whose delivery the exit cut short is delivered again, but for software interrupts and exceptions: RIP is at
    /// their instruction, which runs again (SDM section 28.2.4).
    fn redeliver(&mut self, info: u64) {
        if info & EVENT_TYPE >= TYPE_BY_INSTRUCTION {
            return;
        }
        if info & EVENT_ERROR_CODE != 0 {
            let error_code = self.vmcs.read(ro::IDT_VECTORING_ERR_CODE);
            self.vmcs.write(control::VMENTRY_EXCEPTION_ERR_CODE, error_code);
        }
        // Bit 12 is undefined there and reserved here.
        self.vmcs.write(control::VMENTRY_INTERRUPTION_INFO_FIELD, info & !(1 << 12));
    }

    /// The registers of a guest whose tables have a shadow: the VMCS has others.
    #[inline]
    fn own_controls(&self) -> Option<&Controls> {
        self.translation.shadow().map(|shadow| &shadow.own.paging().controls)
    }

    /// Changes them, if it is such a guest; it is not paged.
    pub(super) fn change_own_controls(&mut self, change: impl FnOnce(&mut Controls)) -> bool {
        let Some(shadow) = self.translation.shadow_mut() else { return false };
        shadow.own.write_unpaged(change);
        self.apply_paging(None);
        true
    }

    #[inline]
    pub(super) fn guest_cr0(&self) -> u64 {
        if let Some(own) = self.own_controls() {
            return own.cr0;
        }
        self.cr0.guest(self.vmcs.read(guest::CR0), self.vmcs.read(control::CR0_READ_SHADOW))
    }

    #[inline]
    pub(super) fn guest_cr3(&self) -> u64 {
        if let Some(own) = self.own_controls() {
            return own.cr3;
        }
        match self.unpaged {
            Some(unpaged) => unpaged.cr3,
            None => self.vmcs.read(guest::CR3),
        }
    }

    #[inline]
    pub(super) fn guest_cr4(&self) -> u64 {
        if let Some(own) = self.own_controls() {
            return own.cr4;
        }
        self.cr4.guest(self.vmcs.read(guest::CR4), self.vmcs.read(control::CR4_READ_SHADOW))
    }

    #[inline]
    fn efer(&self) -> u64 {
        if let Some(own) = self.own_controls() {
            return own.efer;
        }
        match self.unpaged {
            Some(unpaged) => unpaged.efer,
            None => self.vmcs.read(guest::IA32_EFER_FULL),
        }
    }

    fn set_efer(&mut self, value: u64) {
        match &mut self.unpaged {
            Some(unpaged) => {
                unpaged.efer = value;
                self.vmcs.write(guest::IA32_EFER_FULL, value & !EFER_LME);
            }
            None => self.vmcs.write(guest::IA32_EFER_FULL, value),
        }
    }

    /// Sets or clears bits of the primary controls.
    #[inline]
    pub(super) fn set_primary(&mut self, bits: u32, wanted: bool) {
        let primary = if wanted { self.primary | bits } else { self.primary & !bits };
        if primary != self.primary {
            self.primary = primary;
            self.vmcs.write(control::PRIMARY_PROCBASED_EXEC_CONTROLS, u64::from(primary));
        }
    }

    /// Where the exiting instruction ends.
    #[inline]
    pub(super) fn behind(&self) -> u64 {
        let (rip, length) = (self.rip(), self.vmcs.read(ro::VMEXIT_INSTRUCTION_LEN));
        let next = rip.wrapping_add(length);
        let (_, carried) = (rip as u32).overflowing_add(length as u32);
        if carried { self.behind_4g(next) } else { next }
    }

    /// The instruction reaches a multiple of 4 GiB: outside of 64-bit mode that is 0.
    #[cold]
    fn behind_4g(&self, next: u64) -> u64 {
        if self.code_is_64_bit() { next } else { next & 0xffff_ffff }
    }

    pub(super) fn code_is_64_bit(&self) -> bool {
        let entry = self.vmcs.read(control::VMENTRY_CONTROLS);
        entry & u64::from(EntryControls::IA32E_MODE_GUEST.bits()) != 0 && self.segment(Segment::Cs).long
    }

    pub(super) fn set_detour(&mut self, detour: Detour, wanted: bool) {
        let bit = detour as u8;
        self.detours = if wanted { self.detours | bit } else { self.detours & !bit };
    }

    pub(super) const fn is_real(&self) -> bool {
        self.detours & Detour::RealMode as u8 != 0
    }

    /// Whether the processor may enter the guest now.
    #[cold]
    fn before_entry(&mut self) -> bool {
        if self.detours & Detour::Flush as u8 != 0 {
            self.set_detour(Detour::Flush, false);
            // SAFETY: VMX is on while a vCPU exists; the backend has checked which types of INVEPT there are.
            unsafe { vmcs::invept(self.eptp, self.capabilities.features.invept_single) };
        }
        if self.is_real() {
            self.reason = reason::NOT_ENTERED;
            let now = tsc();
            self.registers.stay = Stay { entry: now, exit: now };
        }
        !self.is_real()
    }

    #[cold]
    fn rare_exit(&self) -> Exit {
        match self.reason {
            reason::EXCEPTION_OR_NMI => self.exception_exit(),
            reason::EPT_MISCONFIGURATION => {
                Exit::Misconfiguration(Gpa::new(self.vmcs.read(ro::GUEST_PHYSICAL_ADDR_FULL)))
            }
            reason::CONTROL_REGISTER => self.control_register_exit(),
            reason::NOT_ENTERED => Exit::Emulate,
            reason::INVLPG => Exit::Invlpg,
            reason::TASK_SWITCH => Exit::TaskSwitch,
            reason::NMI_WINDOW => Exit::InterruptWindow,
            // The host has a look at its interrupts, which is what the timer is for.
            reason::PREEMPTION_TIMER => Exit::ExternalInterrupt,
            reason::INVD => Exit::Instruction(Instruction::Invd),
            reason::XSETBV => Exit::Instruction(Instruction::Xsetbv),
            reason::GETSEC
            | reason::VMCLEAR..=reason::VMXON
            | reason::MWAIT
            | reason::MONITOR
            | reason::INVEPT
            | reason::INVVPID => Exit::Instruction(Instruction::Undefined),
            reason::TRIPLE_FAULT => Exit::Shutdown,
            switch::ENTRY_REFUSED => Exit::InvalidState,
            failed if failed & reason::ENTRY_FAILED != 0 => Exit::InvalidState,
            _ => Exit::Unknown,
        }
    }

    /// Those of other control registers are not reported, but for one that needs the guest's memory.
    fn control_register_exit(&self) -> Exit {
        if self.needs_pdptes {
            return Exit::Emulate;
        }
        match reason::cr_access(self.qualification()) {
            CrAccess::Write { cr: 8, gpr } => Exit::Cr8(Cr8::new(true, Some(Gpr::new(gpr)))),
            CrAccess::Read { cr: 8, gpr } => Exit::Cr8(Cr8::new(false, Some(Gpr::new(gpr)))),
            _ if self.translation.shadow().is_some() => Exit::ControlRegister,
            _ => Exit::Unknown,
        }
    }

    fn exception_exit(&self) -> Exit {
        let info = self.vmcs.read(ro::VMEXIT_INTERRUPTION_INFO);
        if info & EVENT_TYPE == TYPE_NMI {
            return Exit::Nmi;
        }
        let error_code = self.vmcs.read(ro::VMEXIT_INTERRUPTION_ERR_CODE) as u32;
        if info & EVENT_VECTOR == PAGE_FAULT && self.translation.shadow().is_some() {
            return Exit::PageFault(PageFault::new(Gva::new(self.qualification()), error_code));
        }
        let error_code = (info & EVENT_ERROR_CODE != 0).then_some(error_code);
        Exit::Exception(Exception::new((info & EVENT_VECTOR) as u8, error_code))
    }
}

/// The EPT pointer: write-back tables of four levels at `root`, with accessed and dirty bits where there (SDM table 25-9).
const fn eptp(root: Hpa, features: Features) -> u64 {
    const WRITE_BACK: u64 = 6;
    const LEVELS: u64 = 4;
    let accessed_dirty = if features.accessed_dirty { 1 << 6 } else { 0 };
    root.raw() | accessed_dirty | (LEVELS - 1) << 3 | WRITE_BACK
}

/// MSRs of the guest that entries and exits leave alone.
const fn unswitched_msrs(features: Features) -> &'static [u32] {
    const ALL: &[u32] = &[
        msr::IA32_STAR,
        msr::IA32_LSTAR,
        msr::IA32_CSTAR,
        msr::IA32_FMASK,
        msr::IA32_KERNEL_GSBASE,
        msr::IA32_TSC_AUX,
    ];
    let (without_aux, _) = ALL.split_at(ALL.len() - 1);
    if features.rdtscp { ALL } else { without_aux }
}

/// The host's TSC.
fn tsc() -> u64 {
    // SAFETY: reading it has no effect.
    unsafe { rdtsc() }
}

impl<T: Translation> Registers for VmxVcpu<T> {
    #[inline]
    fn gpr(&self, register: Gpr) -> u64 {
        match register {
            Gpr::RSP => self.vmcs.read(guest::RSP),
            _ => self.registers.gprs[register.index()],
        }
    }

    #[inline]
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        match register {
            Gpr::RSP => self.vmcs.write(guest::RSP, value),
            _ => self.registers.gprs[register.index()] = value,
        }
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.vmcs.read(guest::RIP)
    }

    #[inline]
    fn rflags(&self) -> u64 {
        self.vmcs.read(guest::RFLAGS)
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.vmcs.write(guest::RFLAGS, rflags);
    }

    fn segment_base(&self, segment: Segment) -> u64 {
        self.vmcs.read(guest::ES_BASE + 2 * segment as u32)
    }
}

impl<T: Translation> Vcpu for VmxVcpu<T> {
    const HYPERCALL: Known = Known::Vmcall;

    fn load(&mut self) {
        if self.occupant.admit(&self.resident) {
            self.vmcs.load();
        }
    }

    fn reset(&mut self, start: Start) {
        resident::init();
        self.write_init();
        match start {
            Start::Multiboot { eip, eax, ebx } => self.start_protected(eip, eax, ebx),
            Start::Sipi(page) => self.start_real(page),
        }
        self.request_window(false);
        self.flush();
    }

    #[inline]
    fn enter(&mut self) {
        loop {
            if self.detours != 0 && !self.before_entry() {
                break;
            }
            // SAFETY: the VMCS is current and this vCPU's own; it has this CPU's state as the host's, with RIP and RSP as
            // the switch wants them; the guest's memory is what its EPT maps.
            self.reason = unsafe { switch::enter(&mut self.registers) };
            if !reason::is_rare(self.reason) || !self.rare() {
                break;
            }
        }
    }

    #[inline(always)]
    fn exit(&self) -> Exit {
        match self.reason {
            reason::CPUID => Exit::Cpuid,
            reason::VMCALL => Exit::Hypercall,
            reason::IO => Exit::Io(Io::from_vmx(self.qualification())),
            reason::RDMSR => Exit::ReadMsr,
            reason::WRMSR => Exit::WriteMsr,
            reason::EPT_VIOLATION => {
                let address = self.vmcs.read(ro::GUEST_PHYSICAL_ADDR_FULL);
                Exit::NestedFault(reason::nested_fault(self.qualification(), address))
            }
            reason::HLT => Exit::Halt,
            reason::EXTERNAL_INTERRUPT => Exit::ExternalInterrupt,
            reason::INTERRUPT_WINDOW => Exit::InterruptWindow,
            _ => self.rare_exit(),
        }
    }

    fn emulate<M: Memory>(&mut self, memory: &mut M) -> Result<Emulated, M::Error> {
        self.emulate_next(memory)
    }

    /// Without EPT there is no VPID either, and each entry flushes.
    fn flush(&mut self) {
        if self.translation.shadow().is_none() {
            self.set_detour(Detour::Flush, true);
        }
    }

    fn leave(&mut self) {
        if core::mem::take(&mut self.nmi) {
            // SAFETY: the exit has consumed the NMI; this calls the host's handler, whose IRET lets the next one come.
            unsafe { asm!("int 2") };
        }
        // SAFETY: exits load the host's tables, so its interrupts can be served.
        unsafe { asm!("sti", "nop", "cli") };
    }

    /// By the preemption timer: each entry loads it (Intel SDM vol. 3, section 25.5.1).
    fn limit_stay(&mut self, ticks: u64) {
        if let Some(rate) = self.capabilities.features.preemption_timer {
            self.vmcs.write(guest::VMX_PREEMPTION_TIMER_VALUE, (ticks >> rate).min(u32::MAX.into()));
        }
    }

    #[inline]
    fn stay(&self) -> Stay {
        self.registers.stay
    }

    /// All four through one pointer.
    #[inline]
    fn set_cpuid(&mut self, leaf: Leaf) {
        let gprs = &mut self.registers.gprs;
        gprs[Gpr::RAX.index()] = leaf.eax.into();
        gprs[Gpr::RBX.index()] = leaf.ebx.into();
        gprs[Gpr::RCX.index()] = leaf.ecx.into();
        gprs[Gpr::RDX.index()] = leaf.edx.into();
    }

    #[inline]
    fn resume_at(&mut self, rip: u64) {
        self.vmcs.write(guest::RIP, rip);
        let interruptibility = self.vmcs.read(guest::INTERRUPTIBILITY_STATE);
        if interruptibility & SHADOW != 0 {
            self.vmcs.write(guest::INTERRUPTIBILITY_STATE, interruptibility & !SHADOW);
        }
    }

    #[inline]
    fn next_rip(&self) -> Option<u64> {
        Some(self.behind())
    }

    #[inline]
    fn control(&self) -> ControlRegisters {
        ControlRegisters {
            cr0: self.guest_cr0(),
            cr3: self.guest_cr3(),
            cr4: self.guest_cr4(),
            efer: self.efer(),
            cpl: self.cpl(),
        }
    }

    #[inline]
    fn own_paging(&self) -> Option<&shadow::Registers> {
        self.translation.shadow().map(|shadow| &shadow.own)
    }

    #[inline]
    fn own_paging_mut(&mut self) -> Option<&mut shadow::Registers> {
        self.translation.shadow_mut().map(|shadow| &mut shadow.own)
    }

    fn apply_paging(&mut self, root: Option<Hpa>) {
        self.write_shadow_paging(root);
    }

    fn segment(&self, register: Segment) -> SegmentState {
        const DEFAULT_BIG: u64 = 1 << 14;
        let number = 2 * register as u32;
        let access_rights = self.vmcs.read(guest::ES_ACCESS_RIGHTS + number);
        SegmentState {
            selector: self.vmcs.read(guest::ES_SELECTOR + number) as u16,
            base: self.vmcs.read(guest::ES_BASE + number),
            limit: self.vmcs.read(guest::ES_LIMIT + number) as u32,
            default_big: access_rights & DEFAULT_BIG != 0,
            long: access_rights & MODE_64 != 0,
        }
    }

    fn set_cr2(&mut self, address: u64) {
        // SAFETY: CR2 is the guest's while the vCPU lives.
        unsafe { cr2_write(address) };
    }

    #[inline]
    fn state_msr(&self, msr: StateMsr) -> u64 {
        match msr {
            StateMsr::Efer => self.efer(),
            StateMsr::Pat => match &self.pat {
                Some(pat) => pat.get(),
                None => self.vmcs.read(guest::IA32_PAT_FULL),
            },
            StateMsr::Tsc => tsc().wrapping_add(self.tsc_offset),
        }
    }

    #[inline]
    fn set_state_msr(&mut self, msr: StateMsr, value: u64) {
        match msr {
            StateMsr::Efer => self.set_efer(value),
            StateMsr::Pat => match &mut self.pat {
                Some(pat) => pat.set(value),
                None => self.vmcs.write(guest::IA32_PAT_FULL, value),
            },
            StateMsr::Tsc => {
                self.tsc_offset = value.wrapping_sub(tsc());
                self.vmcs.write(control::TSC_OFFSET_FULL, self.tsc_offset);
            }
        }
    }

    #[inline]
    fn interruptible(&self) -> bool {
        self.rflags() & INTERRUPT_FLAG != 0 && !self.shadowed() && !self.injecting()
    }

    #[inline]
    fn shadowed(&self) -> bool {
        self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & SHADOW != 0
    }

    fn inject(&mut self, event: Event) {
        let info = match event {
            Event::Interrupt(vector) => TYPE_INTERRUPT | u64::from(vector),
            Event::Nmi => TYPE_NMI | NMI_VECTOR,
            Event::Exception(exception) => {
                let mut info = TYPE_EXCEPTION | u64::from(exception.vector());
                // In real mode none is pushed, and an entry with one is refused.
                if let Some(code) = exception.error_code()
                    && self.vmcs.read(guest::CR0) & CR0_PE != 0
                {
                    self.vmcs.write(control::VMENTRY_EXCEPTION_ERR_CODE, u64::from(code));
                    info |= EVENT_ERROR_CODE;
                }
                info
            }
        };
        self.vmcs.write(control::VMENTRY_INTERRUPTION_INFO_FIELD, EVENT_VALID | info);
    }

    #[inline]
    fn injecting(&self) -> bool {
        self.vmcs.read(control::VMENTRY_INTERRUPTION_INFO_FIELD) & EVENT_VALID != 0
    }

    fn injected_exception(&self) -> Option<u8> {
        let info = self.vmcs.read(control::VMENTRY_INTERRUPTION_INFO_FIELD);
        (info & (EVENT_VALID | EVENT_TYPE) == EVENT_VALID | TYPE_EXCEPTION).then_some(info as u8)
    }

    #[inline]
    fn request_window(&mut self, wanted: bool) {
        self.set_primary(PrimaryControls::INTERRUPT_WINDOW_EXITING.bits(), wanted);
    }

    fn takes_nmi(&self) -> bool {
        self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & (SHADOW | NMI_BLOCKED) == 0 && !self.injecting()
    }

    fn request_nmi_window(&mut self, wanted: bool) {
        self.set_primary(PrimaryControls::NMI_WINDOW_EXITING.bits(), wanted);
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        dump::write(self, out)
    }
}

impl<T: Translation> Drop for VmxVcpu<T> {
    fn drop(&mut self) {
        self.occupant.dismiss(&self.resident);
    }
}
