//! One virtual CPU under VMX.

use super::backend::Vmx;
use super::capabilities::{Capabilities, Features};
use super::control_registers::MaskedRegister;
use super::events::INTERRUPT_SHADOW;
use super::pat::Pat;
use super::permissions::MsrBitmap;
use super::reason;
use super::switch::{self, Switched};
use super::task_priority::TaskPriority;
use super::tasks::attributes;
use super::unpaged::Unpaged;
use super::vmcs::{self, Vmcs};
use super::{dump, host};
use crate::page::HardwarePage;
use crate::translation::Translation;
use crate::unswitched::{self, GuestStateOwner, SharedState, UnswitchedState};
use addr::Hpa;
use alloc::boxed::Box;
use arch::memory_type::WRITE_BACK;
use arch::{CR0_PG, CR4_PAE, EFER_LMA, reset};
use core::arch::asm;
use core::fmt;
use core::num::NonZeroU16;
use emul::interpreter::{Area, Table, TableRegister, VectorInstruction};
use vm::cpuid::Leaf;
use vm::{
    ControlRegisters, DebugRegisters, DescriptorCache, Events, Exit, Gpr, Known, Registers, Segment, SegmentState,
    Shadow, Start, StateMsr, Stay, Vcpu,
};
use x86::controlregs::{cr2, cr2_write};
use x86::msr;
use x86::vmx::vmcs::control::EntryControls;
use x86::vmx::vmcs::{control, guest, ro};

const MODE_64: u64 = 1 << 13;

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
/// The guest's state that exits don't swap stays in the processor (`UnswitchedState`): vector registers, CR2, the debug registers,
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
    pub(super) tsc_offset: u64,
    pub(super) eptp: u64,
    /// What has to be done before the next entry, or instead: a bit for each [`Detour`].
    detours: u8,
    /// The exit was by an NMI, which `leave` has to hand to the host.
    pub(super) nmi: bool,
    pub(super) cr0: MaskedRegister,
    pub(super) cr4: MaskedRegister,
    /// The bits of CR4 that the guest may set.
    pub(super) offered_cr4: u64,
    /// CR4 when the guest's paging is really on.
    pub(super) paged_cr4: MaskedRegister,
    /// The guest runs unpaged, on the identity map.
    pub(super) unpaged: Option<Unpaged>,
    /// PAT, where it is not in the VMCS.
    pat: Option<Pat>,
    /// CR8, where accesses do not exit.
    pub(super) task_priority: Option<TaskPriority>,
    pub(super) capabilities: Capabilities,
    pub(super) physical_bits: u8,
    pub(super) msr_bitmap: HardwarePage<MsrBitmap>,
    state_owner: GuestStateOwner,
    unswitched: SharedState,
}

impl<T: Translation> VmxVcpu<T> {
    /// `root`: of the nested tables.
    pub(super) fn new(
        vmx: &Vmx,
        translation: T,
        capabilities: Capabilities,
        root: Hpa,
        offered_cr4: u64,
        tag: NonZeroU16,
        start: Start,
    ) -> Self {
        // SAFETY: VMX is on as long as its backend is there, and that ends after its vCPUs.
        let vmcs = unsafe { Vmcs::new(vmx.physical, vmx.capabilities.revision) }
            .expect("the region is a page of its own with its revision in place");
        // SAFETY: reading has no effect.
        let host_cr4 = unsafe { x86::controlregs::cr4() }.bits() as u64;
        let offered_cr4 = offered_cr4 & capabilities.cr4_allowed;
        let paged_cr4 = MaskedRegister::cr4(&capabilities, host_cr4, offered_cr4);
        let features = capabilities.features;
        let (cr0, cr4) = match translation.shadow() {
            Some(_) => (MaskedRegister::cr0(&capabilities).whole(), paged_cr4.whole()),
            None => (MaskedRegister::cr0(&capabilities), paged_cr4),
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
            offered_cr4,
            paged_cr4,
            unpaged: None,
            pat: (!features.pat).then(|| Pat::new(vmx.physical, reset::PAT)),
            task_priority: features.tpr_shadow.then(|| TaskPriority::new(vmx.physical)),
            capabilities,
            physical_bits: vmx.physical_bits,
            msr_bitmap: HardwarePage::new(vmx.physical, MsrBitmap::guest()),
            state_owner: vmx.state_owner.clone(),
            unswitched: UnswitchedState::new(unswitched_msrs(features)),
            vmcs,
        };
        vcpu.load();
        host::write(&mut vcpu.vmcs, &features);
        vcpu.write_controls(tag);
        if let Some(pat) = &vcpu.pat {
            pat.install(&mut vcpu.vmcs);
        }
        if let Some(task_priority) = &vcpu.task_priority {
            task_priority.install(&mut vcpu.vmcs);
        }
        vcpu.write_power_on();
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
        self.restore_events();
        false
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
            let now = crate::tsc();
            self.registers.stay = Stay { entry: now, exit: now };
        }
        !self.is_real()
    }
}

/// The EPT pointer: write-back tables of four levels at `root`, with accessed and dirty bits where there (SDM table 25-9).
const fn eptp(root: Hpa, features: Features) -> u64 {
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
        if self.state_owner.acquire(&self.unswitched) {
            self.vmcs.load();
        }
    }

    fn reset(&mut self, start: Start) {
        unswitched::init();
        self.write_init();
        match start {
            Start::Boot(entry) => self.start_boot(&entry),
            Start::Sipi(page) => self.start_real(page),
        }
        self.request_window(false);
        self.set_cr8(0);
        self.flush();
    }

    fn power_on(&mut self, start: Start) {
        self.unswitched.borrow_mut().power_on();
        self.write_power_on();
        self.reset(start);
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
        self.decode_exit()
    }

    fn is_emulated(&self) -> bool {
        self.is_real()
    }

    /// Without EPT there is no VPID either, and each entry flushes.
    fn flush(&mut self) {
        if self.translation.shadow().is_none() {
            self.set_detour(Detour::Flush, true);
        }
    }

    fn put(&mut self) {
        if core::mem::take(&mut self.nmi) {
            // SAFETY: the exit has consumed the NMI. This calls the host's handler; its IRET unblocks the next NMI.
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
        if interruptibility & INTERRUPT_SHADOW != 0 {
            self.vmcs.write(guest::INTERRUPTIBILITY_STATE, interruptibility & !INTERRUPT_SHADOW);
        }
    }

    fn faulted_in_walk(&self) -> bool {
        reason::is_walk(self.vmcs.read(ro::EXIT_QUALIFICATION))
    }

    /// Entries want no blocking by STI while RFLAGS.IF is clear, and none of both kinds; and with either a step has to be pending if TF makes
    /// one behind each instruction, and none otherwise (Intel SDM vol. 3, section 27.3.1.5).
    fn begin_interrupt_shadow(&mut self, shadow: Shadow) {
        const BLOCKING_BY_STI: u64 = 1 << 0;
        const BLOCKING_BY_MOV_SS: u64 = 1 << 1;
        let blocking = match shadow {
            Shadow::Sti => BLOCKING_BY_STI,
            Shadow::MovSs => BLOCKING_BY_MOV_SS,
        };
        let others = self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & !INTERRUPT_SHADOW;
        self.vmcs.write(guest::INTERRUPTIBILITY_STATE, others | blocking);
        self.hold_step();
    }

    fn load_table(&mut self, table: Table, register: TableRegister) {
        let (base, limit) = match table {
            Table::Global => (guest::GDTR_BASE, guest::GDTR_LIMIT),
            Table::Interrupts => (guest::IDTR_BASE, guest::IDTR_LIMIT),
        };
        self.vmcs.write(base, register.base);
        self.vmcs.write(limit, register.limit.into());
    }

    fn execute_vector(&mut self, instruction: VectorInstruction, area: &mut Area) -> u64 {
        unswitched::vector::execute(instruction, area, self.rflags())
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
    fn holds_pdptes(&self, control: &ControlRegisters) -> bool {
        control.efer & EFER_LMA == 0 && control.cr0 & CR0_PG != 0 && control.cr4 & CR4_PAE != 0
    }

    /// Exits save them (Intel SDM vol. 3, section 28.3.1).
    fn held_pdptes(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|number| self.vmcs.read(guest::PDPTE0_FULL + 2 * number))
    }

    #[inline]
    fn own_paging(&self) -> Option<&shadow::Registers> {
        self.translation.shadow().map(|shadow| &shadow.own)
    }

    #[inline]
    fn own_paging_mut(&mut self) -> Option<&mut shadow::Registers> {
        self.translation.shadow_mut().map(|shadow| &mut shadow.own)
    }

    fn set_cr0(&mut self, cr0: u64, pdptes: Option<[u64; 4]>) {
        self.load_cr0(cr0, pdptes);
    }

    fn set_cr4(&mut self, cr4: u64) {
        self.write_cr4(cr4);
    }

    fn set_debug_register(&mut self, register: u8, value: u64) {
        match register {
            7 => self.set_dr7(value),
            _ => unswitched::set_breakpoint(register.into(), value),
        }
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

    fn descriptor_cache(&mut self, register: Segment) -> DescriptorCache {
        let number = 2 * register as u32;
        DescriptorCache {
            base: self.vmcs.read(guest::ES_BASE + number),
            limit: self.vmcs.read(guest::ES_LIMIT + number) as u32,
            attributes: attributes(self.vmcs.read(guest::ES_ACCESS_RIGHTS + number)),
        }
    }

    fn cr2(&self) -> u64 {
        // SAFETY: reading has no effect; the guest's is in the processor.
        unsafe { cr2() as u64 }
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
        }
    }

    #[inline]
    fn tsc(&self) -> u64 {
        crate::tsc().wrapping_add(self.tsc_offset)
    }

    fn adjust_tsc(&mut self, ticks: u64) {
        self.tsc_offset = self.tsc_offset.wrapping_add(ticks);
        self.vmcs.write(control::TSC_OFFSET_FULL, self.tsc_offset);
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        dump::write(self, out)
    }
}

impl<T: Translation> Drop for VmxVcpu<T> {
    fn drop(&mut self) {
        self.state_owner.release(&self.unswitched);
    }
}
