//! One virtual CPU under SVM.

use super::backend::Svm;
use super::dump;
use super::events::{Nmi, Step};
use super::permissions::{IoPermissions, MsrPermissions};
use super::setup::write_controls;
use super::switch::{self, Switched};
use super::vmcb::{self, SegmentField, Vmcb, event};
use crate::Start;
use crate::page::HardwarePage;
use crate::translation::Translation;
use crate::unswitched::{self, GuestStateOwner, SharedState, UnswitchedState};
use addr::Hpa;
use arch::EFER_SVME;
use core::fmt;
use core::num::NonZeroU16;
use emul::interpreter::{Area, Table, TableRegister, VectorInstruction};
use vm::{
    ControlRegisters, DescriptorCache, Exit, Gpr, Known, Registers, Segment, SegmentState, Shadow, StateMsr, Stay, Vcpu,
};
use walk::Controls;
use x86::controlregs::cr2_write;
use x86::msr::rdmsr;

/// A virtual CPU under SVM.
pub struct SvmVcpu<T: Translation> {
    pub(super) registers: Switched,
    pub(super) translation: T,
    pub(super) vmcb: HardwarePage<Vmcb>,
    /// What VMSAVE keeps of the host while the guest's FS, GS, TR, LDTR and system-call MSRs are loaded. They stay loaded from
    /// exit to entry: the handlers use none of them, and only `put` swaps them.
    pub(super) host: HardwarePage<Vmcb>,
    pub(super) guest_loaded: bool,
    state_owner: GuestStateOwner,
    unswitched: SharedState,
    next_rip_save: bool,
    pub(super) decode_assists: bool,
    pub(super) lbr_virtualization: bool,
    pub(super) posts_interrupts: bool,
    /// EFER.LME is [held back](super::long_mode) while paging is off.
    pub(super) guards_long_mode: bool,
    /// LME, while it is.
    pub(super) held_lme: u64,
    /// What to ask VMRUN for when translations have to go.
    pub(super) flush: u32,
    /// Other vCPUs leave their translations under this vCPU's ASID.
    pub(super) shares_asid: bool,
    _io_permissions: HardwarePage<IoPermissions>,
    _msr_permissions: HardwarePage<MsrPermissions>,
    pub(super) nmi: Nmi,
    /// TF is the hypervisor's.
    pub(super) step: Option<Step>,
}

impl<T: Translation> SvmVcpu<T> {
    /// A vCPU that has not [begun](Self::begin).
    pub(super) fn new(svm: &Svm, translation: T, tag: NonZeroU16) -> Self {
        let physical = svm.physical;
        let io_permissions = HardwarePage::new(physical, IoPermissions::intercept_all());
        let msr_permissions = HardwarePage::new(physical, MsrPermissions::guest());
        let mut vmcb = HardwarePage::new(physical, Vmcb::zeroed());
        write_controls(&mut vmcb, svm);
        let control = &mut vmcb.control;
        control.iopm_base = io_permissions.address().raw();
        control.msrpm_base = msr_permissions.address().raw();
        let (asid, shares_asid) = svm.asid(tag);
        control.asid = asid;
        control.withdraw();
        Self {
            registers: Switched::default(),
            translation,
            vmcb,
            host: HardwarePage::new(physical, Vmcb::zeroed()),
            nmi: Nmi::None,
            step: None,
            guest_loaded: false,
            state_owner: svm.state_owner.clone(),
            unswitched: UnswitchedState::new(if svm.has_tsc_aux { &[x86::msr::IA32_TSC_AUX] } else { &[] }),
            next_rip_save: svm.next_rip_save,
            decode_assists: svm.decode_assists,
            lbr_virtualization: svm.lbr_virtualization,
            posts_interrupts: svm.posts_interrupts,
            guards_long_mode: svm.guards_long_mode,
            held_lme: 0,
            flush: if svm.flush_by_asid { vmcb::FLUSH_ASID } else { vmcb::FLUSH_ALL },
            shares_asid,
            _io_permissions: io_permissions,
            _msr_permissions: msr_permissions,
        }
    }

    pub(super) fn begin(mut self, start: Start) -> Self {
        self.load();
        self.write_power_on();
        self.reset(start);
        self
    }

    fn segment_field(&self, register: Segment) -> SegmentField {
        let save = &self.vmcb.save;
        match register {
            Segment::Es => save.es,
            Segment::Cs => save.cs,
            Segment::Ss => save.ss,
            Segment::Ds => save.ds,
            // The guest's own are in the processor: `segment` sees to it that the VMCB has them.
            Segment::Fs => save.fs,
            Segment::Gs => save.gs,
        }
    }
}

impl<T: Translation> Registers for SvmVcpu<T> {
    #[inline]
    fn gpr(&self, register: Gpr) -> u64 {
        match register {
            Gpr::RAX => self.vmcb.save.rax,
            Gpr::RSP => self.vmcb.save.rsp,
            _ => self.registers.gprs[register.index()],
        }
    }

    #[inline]
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        match register {
            Gpr::RAX => self.vmcb.save.rax = value,
            Gpr::RSP => self.vmcb.save.rsp = value,
            _ => self.registers.gprs[register.index()] = value,
        }
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.vmcb.save.rip
    }

    #[inline]
    fn rflags(&self) -> u64 {
        self.vmcb.save.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.vmcb.save.rflags = rflags;
    }

    fn segment_base(&self, segment: Segment) -> u64 {
        self.segment(segment).base
    }
}

impl<T: Translation> Vcpu for SvmVcpu<T> {
    const HYPERCALL: Known = Known::Vmmcall;

    fn load(&mut self) {
        if self.state_owner.acquire(&self.unswitched) && self.shares_asid {
            self.flush();
        }
    }

    fn reset(&mut self, start: Start) {
        // What VMLOAD and VMSAVE move is in the processor: the reset is of the VMCB's.
        self.put_guest();
        unswitched::init();
        self.write_init();
        match start {
            Start::Boot(entry) => self.start_boot(&entry),
            Start::Sipi(page) => self.start_real(page),
        }
        if let Some(shadow) = self.translation.shadow_mut() {
            shadow.own.reset(self.vmcb.save.cr0);
            self.apply_paging(None);
        }
        self.flush();
    }

    fn power_on(&mut self, start: Start) {
        self.put_guest();
        self.unswitched.borrow_mut().power_on();
        self.write_power_on();
        self.reset(start);
    }

    #[inline]
    fn enter(&mut self) {
        if !self.guest_loaded {
            self.load_guest();
        }
        // SAFETY: the VMCB is valid and this vCPU's own; `load_guest` has set GIF to 0; the guest's memory is what its nested
        // tables map.
        unsafe { switch::vmrun(self.vmcb.address(), &mut self.registers) };
        let control = &mut self.vmcb.control;
        control.tlb_control = 0;
        let injected = core::mem::take(&mut control.event_injection);
        if control.exit_interrupt_info & event::VALID != 0 {
            self.redeliver(injected);
        }
    }

    #[inline(always)]
    fn exit(&self) -> Exit {
        self.decode_exit()
    }

    fn flush(&mut self) {
        self.vmcb.control.tlb_control = self.flush;
    }

    fn put(&mut self) {
        self.put_guest();
    }

    #[inline]
    fn stay(&self) -> Stay {
        self.registers.stay
    }

    #[inline]
    fn resume_at(&mut self, rip: u64) {
        self.vmcb.save.rip = rip;
        self.vmcb.control.interrupt_state = 0;
    }

    fn faulted_in_walk(&self) -> bool {
        const GUEST_TABLE: u64 = 1 << 33;
        self.vmcb.control.exit_info1 & GUEST_TABLE != 0
    }

    fn begin_interrupt_shadow(&mut self, _: Shadow) {
        self.vmcb.control.interrupt_state = vmcb::INTERRUPT_SHADOW;
    }

    fn load_table(&mut self, table: Table, register: TableRegister) {
        let save = &mut self.vmcb.save;
        let field = match table {
            Table::Global => &mut save.gdtr,
            Table::Interrupts => &mut save.idtr,
        };
        (field.base, field.limit) = (register.base, register.limit.into());
    }

    fn execute_vector(&mut self, instruction: VectorInstruction, area: &mut Area) -> u64 {
        unswitched::vector::execute(instruction, area, self.rflags())
    }

    #[inline]
    fn next_rip(&self) -> Option<u64> {
        self.next_rip_save.then_some(self.vmcb.control.next_rip)
    }

    #[inline]
    fn io_next_rip(&self) -> Option<u64> {
        Some(self.vmcb.control.exit_info2)
    }

    #[inline]
    fn control(&self) -> ControlRegisters {
        let save = &self.vmcb.save;
        let Controls { cr0, cr3, cr4, efer } = match self.translation.shadow() {
            Some(shadow) => shadow.own.paging().controls,
            None => {
                Controls { cr0: save.cr0, cr3: save.cr3, cr4: save.cr4, efer: save.efer & !EFER_SVME | self.held_lme }
            }
        };
        ControlRegisters { cr0, cr3, cr4, efer, cpl: save.cpl }
    }

    #[inline]
    fn own_paging(&self) -> Option<&shadow::Registers> {
        self.translation.shadow().map(|shadow| &shadow.own)
    }

    #[inline]
    fn own_paging_mut(&mut self) -> Option<&mut shadow::Registers> {
        self.translation.shadow_mut().map(|shadow| &mut shadow.own)
    }

    fn set_cr0(&mut self, cr0: u64, _: Option<[u64; 4]>) {
        self.load_cr0(cr0);
    }

    fn set_cr4(&mut self, cr4: u64) {
        self.load_cr4(cr4);
    }

    fn set_debug_register(&mut self, register: u8, value: u64) {
        self.load_debug_register(register, value);
    }

    fn apply_paging(&mut self, root: Option<Hpa>) {
        let Some(shadow) = self.translation.shadow_mut() else { return };
        shadow.root = root.unwrap_or(shadow.root);
        let Controls { cr0, cr3, cr4, efer } = shadow.host();
        let save = &mut self.vmcb.save;
        (save.cr0, save.cr3, save.cr4, save.efer) = (cr0, cr3, cr4, efer | EFER_SVME);
    }

    fn segment(&self, register: Segment) -> SegmentState {
        let mut segment = self.segment_field(register);
        if self.guest_loaded {
            match register {
                // SAFETY: the register exists in long mode; the guest's value is loaded.
                Segment::Fs => segment.base = unsafe { rdmsr(x86::msr::IA32_FS_BASE) },
                // SAFETY: as above.
                Segment::Gs => segment.base = unsafe { rdmsr(x86::msr::IA32_GS_BASE) },
                _ => {}
            }
        }
        SegmentState {
            selector: segment.selector,
            base: segment.base,
            limit: segment.limit,
            default_big: segment.attributes & 1 << 10 != 0,
            long: segment.attributes & 1 << 9 != 0,
        }
    }

    fn descriptor_cache(&mut self, register: Segment) -> DescriptorCache {
        if matches!(register, Segment::Fs | Segment::Gs) {
            self.save_guest();
        }
        let SegmentField { base, limit, attributes, .. } = self.segment_field(register);
        DescriptorCache { base, limit, attributes }
    }

    fn cr2(&self) -> u64 {
        self.vmcb.save.cr2
    }

    fn set_cr2(&mut self, address: u64) {
        self.vmcb.save.cr2 = address;
        // SAFETY: the hypervisor takes no page faults that it goes on from, so CR2 is the guest's. VMRUN loads it from the VMCB
        // (APM section 15.5.1), but for Bochs's.
        unsafe { cr2_write(address) };
    }

    fn state_msr(&self, msr: StateMsr) -> u64 {
        match msr {
            StateMsr::Efer => self.control().efer,
            StateMsr::Pat => self.vmcb.save.pat,
        }
    }

    fn set_state_msr(&mut self, msr: StateMsr, value: u64) {
        match msr {
            StateMsr::Efer => self.load_efer(value),
            StateMsr::Pat => self.vmcb.save.pat = value,
        }
    }

    #[inline]
    fn tsc(&self) -> u64 {
        crate::tsc().wrapping_add(self.vmcb.control.tsc_offset)
    }

    fn adjust_tsc(&mut self, ticks: u64) {
        let offset = &mut self.vmcb.control.tsc_offset;
        *offset = offset.wrapping_add(ticks);
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        dump::write(self, out)
    }
}

impl<T: Translation> Drop for SvmVcpu<T> {
    fn drop(&mut self) {
        self.put_guest();
        self.state_owner.release(&self.unswitched);
    }
}
