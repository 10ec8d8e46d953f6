//! One virtual CPU under SVM.

use super::permissions::{IoPermissions, MsrPermissions};
use super::switch::{self, Switched};
use super::vmcb::{self, SegmentField, Vmcb, event, exit_code, misc1, misc2};
use crate::page::HardwarePage;
use crate::resident::{self, DR6_AT_RESET, Occupant, Resident, Tenant};
use crate::translation::{Nested, Shadow, Translation};
use crate::{Backend, Missing, Physical, Start};
use addr::{Gpa, Gva, Hpa, PageSize};
use core::alloc::Layout;
use core::arch::asm;
use core::fmt;
use core::num::NonZeroU16;
use mmu::Caps;
use raw_cpuid::{CpuId, CpuIdReaderNative, Hypervisor};
use vm::{
    ControlRegisters, Cr8, Event, Exception, Exit, Gpr, INTERRUPT_FLAG, Instruction, Io, Known, NestedFault, PageFault,
    Registers, Segment, SegmentState, StateMsr, Stay, Vcpu,
};
use walk::{Controls, Features};
use x86::controlregs::cr2_write;
use x86::msr::{IA32_EFER, rdmsr, wrmsr};
use x86::time::rdtsc;

/// VM_CR, and its bit by which firmware forbids SVM (APM section 15.30.1).
const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
/// VM_HSAVE_PA: where VMRUN keeps the host's state (APM section 15.30.4).
const VM_HSAVE_PA: u32 = 0xc001_0117;
pub(super) const EFER_SVME: u64 = 1 << 12;

/// What PAT holds after reset (APM section 7.8.2).
const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

const CR0_ET: u64 = 1 << 4;
/// CR0.NW and CR0.CD, which INIT keeps.
const CR0_CACHE: u64 = 3 << 29;

/// Exceptions that exit. #UD: VMCALL is a hypercall too. #DB and #AC: delivering one can raise it again for ever, which
/// only an exit ends (CVE-2015-5307, CVE-2015-8104). #MC is the host's.
const INTERCEPTED_EXCEPTIONS: u32 = 1 << 1 | 1 << 6 | 1 << 17 | 1 << 18;

/// After so many PAUSEs the host has a look at its interrupts (KVM lets as many pass): the guest waits for something, and
/// Bochs keeps the host's interrupts back while the guest has its own off.
const PATIENCE: u16 = 3000;

/// SVM, switched on on this CPU.
pub struct Svm {
    _host_save: HardwarePage<Vmcb>,
    physical: Physical,
    occupant: Occupant,
    nested_paging: bool,
    next_rip_save: bool,
    decode_assists: bool,
    flush_by_asid: bool,
    pause_filter: bool,
    /// Interrupts are [posted](virtual_interrupt), not injected.
    posts_interrupts: bool,
    /// EFER.LME is [held back](long_mode) while paging is off.
    guards_long_mode: bool,
    /// The highest ASID.
    last_asid: u32,
    has_tsc_aux: bool,
    physical_bits: u8,
}

impl Svm {
    /// The ASID for `tag`, and whether other vCPUs have it as well: those that find no ASID left share the last one.
    fn asid(&self, tag: NonZeroU16) -> (u32, bool) {
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

    unsafe fn enable(physical: Physical) -> Result<Self, Missing> {
        let cpuid = CpuId::with_cpuid_reader(CpuIdReaderNative);
        if !cpuid.get_extended_processor_and_feature_identifiers().is_some_and(|features| features.has_svm()) {
            return Err(Missing("SVM: CPUID 8000_0001h, ECX bit 2"));
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
        resident::enable_fxsave();
        let widths = cpuid.get_processor_capacity_feature_info();
        let physical_bits = widths.map_or(36, |widths| widths.physical_address_bits());
        let extended = cpuid.get_extended_processor_and_feature_identifiers();
        let is_qemu = cpuid.get_hypervisor_info().is_some_and(|host| host.identify() == Hypervisor::QEMU);
        Ok(Self {
            _host_save: host_save,
            physical,
            occupant: Occupant::default(),
            nested_paging: features.has_nested_paging(),
            next_rip_save: features.has_nrip(),
            decode_assists: features.has_decode_assists(),
            flush_by_asid: features.has_flush_by_asid(),
            pause_filter: features.has_pause_filter(),
            posts_interrupts: is_qemu,
            guards_long_mode: is_qemu,
            last_asid: features.supported_asids().max(2) - 1,
            has_tsc_aux: extended.is_some_and(|features| features.has_rdtscp()),
            physical_bits,
        })
    }

    fn vcpu(&self, root: Hpa, tag: NonZeroU16, start: Start) -> SvmVcpu<Nested> {
        let mut vcpu = SvmVcpu::new(self, Nested, tag);
        let control = &mut vcpu.vmcb.control;
        control.nested_control = vmcb::NESTED_PAGING;
        control.nested_cr3 = root.raw();
        vcpu.begin(start)
    }

    fn shadow_vcpu(&self, root: Hpa, features: Features, tag: NonZeroU16, start: Start) -> SvmVcpu<Shadow> {
        let mut vcpu = SvmVcpu::new(self, Shadow::new(root, features), tag);
        let control = &mut vcpu.vmcb.control;
        control.intercept_cr |= vmcb::INTERCEPT_PAGING;
        control.intercept_exceptions |= 1 << PAGE_FAULT;
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

/// Where the guest is with its last NMI. The processor does not tell: IRET is intercepted while it matters (as KVM does
/// without virtual NMIs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nmi {
    /// There is none.
    None,
    /// Its handler runs, up to the next IRET.
    Handled,
    /// That IRET, at this address, is about to be executed, or was.
    Returns { from: u64 },
}

const NMI_VECTOR: u64 = 2;
const PAGE_FAULT: u64 = 14;
const PAGE_FAULT_EXIT: u64 = exit_code::EXCEPTION_0 + PAGE_FAULT;

/// A virtual CPU under SVM.
pub struct SvmVcpu<T: Translation> {
    pub(super) registers: Switched,
    pub(super) translation: T,
    pub(super) vmcb: HardwarePage<Vmcb>,
    /// What VMSAVE keeps of the host while the guest's FS, GS, TR, LDTR and system-call MSRs are loaded. They stay loaded from
    /// exit to entry: the handlers use none of them, and only `leave` swaps them.
    pub(super) host: HardwarePage<Vmcb>,
    pub(super) guest_loaded: bool,
    occupant: Occupant,
    resident: Tenant,
    next_rip_save: bool,
    pub(super) decode_assists: bool,
    pub(super) posts_interrupts: bool,
    /// EFER.LME is [held back](long_mode) while paging is off.
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
}

impl<T: Translation> SvmVcpu<T> {
    /// A vCPU that has not [begun](Self::begin).
    fn new(svm: &Svm, translation: T, tag: NonZeroU16) -> Self {
        let physical = svm.physical;
        let io_permissions = HardwarePage::new(physical, IoPermissions::intercept_all());
        let msr_permissions = HardwarePage::new(physical, MsrPermissions::guest());
        let mut vmcb = HardwarePage::new(physical, Vmcb::zeroed());
        let control = &mut vmcb.control;
        control.intercept_cr = vmcb::INTERCEPT_CR8;
        control.intercept_exceptions = INTERCEPTED_EXCEPTIONS;
        control.intercept_misc1 = misc1::INTR
            | misc1::NMI
            | misc1::SMI
            | misc1::INIT
            | misc1::CPUID
            | misc1::INVD
            | misc1::HLT
            | misc1::INVLPGA
            | misc1::IOIO
            | misc1::MSR
            | misc1::SHUTDOWN;
        control.intercept_misc2 = misc2::VMRUN
            | misc2::VMMCALL
            | misc2::VMLOAD
            | misc2::VMSAVE
            | misc2::STGI
            | misc2::CLGI
            | misc2::SKINIT
            | misc2::MONITOR
            | misc2::MWAIT
            | misc2::XSETBV;
        if svm.pause_filter {
            control.intercept_misc1 |= misc1::PAUSE;
            control.pause_filter_count = PATIENCE;
        }
        control.iopm_base = io_permissions.address().raw();
        control.msrpm_base = msr_permissions.address().raw();
        let (asid, shares_asid) = svm.asid(tag);
        control.asid = asid;
        control.withdraw();
        vmcb.save.pat = PAT_AT_RESET;
        Self {
            registers: Switched::default(),
            translation,
            vmcb,
            host: HardwarePage::new(physical, Vmcb::zeroed()),
            nmi: Nmi::None,
            guest_loaded: false,
            occupant: svm.occupant.clone(),
            resident: Resident::new(if svm.has_tsc_aux { &[x86::msr::IA32_TSC_AUX] } else { &[] }),
            next_rip_save: svm.next_rip_save,
            decode_assists: svm.decode_assists,
            posts_interrupts: svm.posts_interrupts,
            guards_long_mode: svm.guards_long_mode,
            held_lme: 0,
            flush: if svm.flush_by_asid { vmcb::FLUSH_ASID } else { vmcb::FLUSH_ALL },
            shares_asid,
            _io_permissions: io_permissions,
            _msr_permissions: msr_permissions,
        }
    }

    fn begin(mut self, start: Start) -> Self {
        self.load();
        self.reset(start);
        self
    }

    /// Flat 32-bit protected mode, as a multiboot loader leaves it.
    fn start_protected(&mut self, eip: u32, eax: u32, ebx: u32) {
        // Attributes: G, D/B, P, S and the type of APM table 4-5 (accessed).
        let data = SegmentField { selector: 0x10, attributes: 0xc93, limit: u32::MAX, base: 0 };
        let code = SegmentField { selector: 0x08, attributes: 0xc9b, ..data };
        self.set_segments(code, data);
        let save = &mut self.vmcb.save;
        save.cr0 |= 1; // PE
        save.rip = u64::from(eip);
        save.rax = u64::from(eax);
        self.registers.gprs[Gpr::RBX.index()] = u64::from(ebx);
    }

    /// Real mode, at the start of a page.
    fn start_real(&mut self, page: u8) {
        let data = SegmentField { selector: 0, attributes: 0x93, limit: 0xffff, base: 0 };
        let (selector, base) = (u16::from(page) << 8, u64::from(page) << 12);
        self.set_segments(SegmentField { selector, attributes: 0x9b, base, ..data }, data);
        self.vmcb.save.rip = 0;
        self.registers.gprs[Gpr::RDX.index()] = raw_cpuid::cpuid!(1).eax.into();
    }

    fn set_segments(&mut self, code: SegmentField, data: SegmentField) {
        let save = &mut self.vmcb.save;
        save.cs = code;
        [save.ds, save.es, save.ss, save.fs, save.gs] = [data; 5];
        let table = SegmentField { selector: 0, attributes: 0, limit: 0xffff, base: 0 };
        [save.gdtr, save.idtr] = [table; 2];
        save.tr = SegmentField { attributes: 0x8b, ..table };
        save.ldtr = SegmentField { attributes: 0x82, ..table };
    }

    /// Loads the guest's part of what VMRUN leaves alone; from here on interrupts wait (GIF is 0) but in the guest.
    #[cold]
    fn load_guest(&mut self) {
        // SAFETY: SVM is on while a vCPU exists; with GIF = 0 nothing can use the host's TR until `unload_guest`. IF is set
        // so that the host's interrupts make the guest exit (V_INTR_MASKING).
        unsafe {
            asm!("clgi", "sti", options(nostack));
        }
        // SAFETY: both are VMCBs of this vCPU; what VMSAVE and VMLOAD move is not used by the hypervisor meanwhile.
        unsafe {
            asm!("vmsave rax", in("rax") self.host.address().raw(), options(nostack));
        }
        // SAFETY: as above.
        unsafe {
            asm!("vmload rax", in("rax") self.vmcb.address().raw(), options(nostack));
        }
        self.guest_loaded = true;
    }

    /// The host's part again; its interrupts are taken as soon as GIF is 1, before this returns.
    #[cold]
    fn unload_guest(&mut self) {
        if !core::mem::take(&mut self.guest_loaded) {
            return;
        }
        // SAFETY: as in `load_guest`.
        unsafe {
            asm!("vmsave rax", in("rax") self.vmcb.address().raw(), options(nostack));
        }
        // SAFETY: as in `load_guest`: brings back what was saved there.
        unsafe {
            asm!("vmload rax", in("rax") self.host.address().raw(), options(nostack));
        }
        // SAFETY: the host's tables are loaded again, so its interrupts can be served.
        unsafe {
            asm!("stgi", "nop", "cli");
        }
    }

    #[cold]
    fn rare_exit(&self) -> Exit {
        let control = &self.vmcb.control;
        match control.exit_code {
            exit_code::NPF => Exit::Misconfiguration(Gpa::new(control.exit_info2)),
            exit_code::READ_CR0
            | exit_code::READ_CR3
            | exit_code::READ_CR4
            | exit_code::WRITE_CR0
            | exit_code::WRITE_CR3
            | exit_code::WRITE_CR4
            | exit_code::CR0_SELECTIVE => Exit::ControlRegister,
            exit_code::INVLPG => Exit::Invlpg,
            exit_code::TASK_SWITCH => Exit::TaskSwitch,
            exit_code::READ_CR8 => Exit::Cr8(Cr8::new(false, self.cr8_operand())),
            exit_code::WRITE_CR8 => Exit::Cr8(Cr8::new(true, self.cr8_operand())),
            code @ exit_code::EXCEPTION_0..=exit_code::EXCEPTION_31 => {
                let vector = (code - exit_code::EXCEPTION_0) as u8;
                let has_error_code = matches!(vector, 8 | 10..=14 | 17 | 21);
                Exit::Exception(Exception::new(vector, has_error_code.then_some(control.exit_info1 as u32)))
            }
            exit_code::NMI => Exit::Nmi,
            exit_code::PAUSE => Exit::ExternalInterrupt,
            exit_code::INVD => Exit::Instruction(Instruction::Invd),
            exit_code::XSETBV => Exit::Instruction(Instruction::Xsetbv),
            exit_code::INVLPGA
            | exit_code::VMRUN
            | exit_code::VMLOAD..=exit_code::SKINIT
            | exit_code::MONITOR..=exit_code::MWAIT_CONDITIONAL => Exit::Instruction(Instruction::Undefined),
            exit_code::SHUTDOWN => Exit::Shutdown,
            code if code as u32 == exit_code::INVALID => Exit::InvalidState,
            _ => Exit::Unknown,
        }
    }

    /// What decode assists tell of a MOV to or from a control register (APM section 15.8.1).
    fn cr8_operand(&self) -> Option<Gpr> {
        let info = self.vmcb.control.exit_info1;
        (self.decode_assists && info & vmcb::MOV_CR != 0).then(|| Gpr::new(info as u8))
    }

    /// An event whose delivery the exit cut short is delivered again, but for software interrupts and exceptions: their
    /// instruction runs again (APM section 15.20).
    #[cold]
    fn redeliver(&mut self) {
        let info = self.vmcb.control.exit_interrupt_info;
        match (info & event::TYPE, info as u8) {
            (event::TYPE_SOFTWARE, _) | (event::TYPE_EXCEPTION, 3 | 4) => {}
            // No exception: QEMU's word for an interrupt that was posted, and is pending still.
            (event::TYPE_EXCEPTION, vector @ 32..) => {
                self.vmcb.control.withdraw();
                self.vmcb.control.event_injection = event::VALID | event::TYPE_INTERRUPT | u64::from(vector);
            }
            _ => self.vmcb.control.event_injection = info,
        }
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

/// The host's TSC.
fn tsc() -> u64 {
    // SAFETY: reading it has no effect.
    unsafe { rdtsc() }
}

/// EXITINFO1 and EXITINFO2 of a nested page fault (APM section 15.25.6): a page fault's error code, and where.
#[inline]
fn decode_nested_fault(error: u64, address: u64) -> NestedFault {
    NestedFault::new(Gpa::new(address), error & 2 != 0, error & 0x10 != 0, error & 1 != 0)
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
        if self.occupant.admit(&self.resident) && self.shares_asid {
            self.flush();
        }
    }

    fn reset(&mut self, start: Start) {
        // What VMLOAD and VMSAVE move is in the processor: the reset is of the VMCB's.
        self.unload_guest();
        resident::init();
        self.registers.gprs = [0; 16];
        let control = &mut self.vmcb.control;
        control.event_injection = 0;
        control.withdraw();
        control.interrupt_state = 0;
        control.intercept_misc1 &= !misc1::IRET;
        self.nmi = Nmi::None;
        let save = &mut self.vmcb.save;
        save.cpl = 0;
        save.cr0 = save.cr0 & CR0_CACHE | CR0_ET;
        [save.cr2, save.cr3, save.cr4] = [0; 3];
        save.dr6 = DR6_AT_RESET;
        save.dr7 = 0x400;
        save.debug_control = 0;
        save.rflags = 2;
        [save.rax, save.rsp] = [0; 2];
        self.load_efer(0);
        match start {
            Start::Multiboot { eip, eax, ebx } => self.start_protected(eip, eax, ebx),
            Start::Sipi(page) => self.start_real(page),
        }
        if let Some(shadow) = self.translation.shadow_mut() {
            shadow.own.reset(self.vmcb.save.cr0);
            self.apply_paging(None);
        }
        self.flush();
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
        control.event_injection = 0;
        if control.exit_interrupt_info & event::VALID != 0 {
            self.redeliver();
        }
    }

    #[inline]
    fn exit(&self) -> Exit {
        let control = &self.vmcb.control;
        match control.exit_code {
            exit_code::CPUID => Exit::Cpuid,
            exit_code::VMMCALL => Exit::Hypercall,
            exit_code::IOIO => Exit::Io(Io::from_svm(control.exit_info1)),
            exit_code::MSR if control.exit_info1 == 0 => Exit::ReadMsr,
            exit_code::MSR => Exit::WriteMsr,
            exit_code::NPF if control.exit_info1 & vmcb::RESERVED_BIT == 0 => {
                Exit::NestedFault(decode_nested_fault(control.exit_info1, control.exit_info2))
            }
            PAGE_FAULT_EXIT if self.translation.shadow().is_some() => {
                Exit::PageFault(PageFault::new(Gva::new(control.exit_info2), control.exit_info1 as u32))
            }
            exit_code::HLT => Exit::Halt,
            exit_code::INTR => Exit::ExternalInterrupt,
            exit_code::VINTR | exit_code::IRET => Exit::InterruptWindow,
            _ => self.rare_exit(),
        }
    }

    fn flush(&mut self) {
        self.vmcb.control.tlb_control = self.flush;
    }

    fn leave(&mut self) {
        self.unload_guest();
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

    fn set_cr0(&mut self, cr0: u64) {
        self.load_cr0(cr0);
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
            StateMsr::Tsc => tsc().wrapping_add(self.vmcb.control.tsc_offset),
        }
    }

    fn set_state_msr(&mut self, msr: StateMsr, value: u64) {
        match msr {
            StateMsr::Efer => self.load_efer(value),
            StateMsr::Pat => self.vmcb.save.pat = value,
            StateMsr::Tsc => self.vmcb.control.tsc_offset = value.wrapping_sub(tsc()),
        }
    }

    #[inline]
    fn interruptible(&self) -> bool {
        self.vmcb.save.rflags & INTERRUPT_FLAG != 0 && !self.shadowed() && !self.injecting()
    }

    #[inline]
    fn shadowed(&self) -> bool {
        self.vmcb.control.interrupt_state & vmcb::INTERRUPT_SHADOW != 0
    }

    fn inject(&mut self, event: Event) {
        if event == Event::Nmi {
            self.nmi = Nmi::Handled;
            self.vmcb.control.intercept_misc1 |= misc1::IRET;
        }
        self.vmcb.control.event_injection = event::VALID
            | match event {
                Event::Interrupt(vector) if self.posts_interrupts => return self.vmcb.control.post(vector),
                Event::Interrupt(vector) => event::TYPE_INTERRUPT | u64::from(vector),
                Event::Nmi => event::TYPE_NMI | NMI_VECTOR,
                Event::Exception(exception) => {
                    let error =
                        exception.error_code().map_or(0, |code| event::ERROR_CODE_VALID | u64::from(code) << 32);
                    event::TYPE_EXCEPTION | u64::from(exception.vector()) | error
                }
            };
    }

    #[inline]
    fn injecting(&self) -> bool {
        self.redelivering() || self.vmcb.control.is_posted()
    }

    #[inline]
    fn redelivering(&self) -> bool {
        self.vmcb.control.event_injection & event::VALID != 0
    }

    fn injected_exception(&self) -> Option<u8> {
        const KIND: u64 = event::VALID | event::TYPE;
        let event = self.vmcb.control.event_injection;
        (event & KIND == event::VALID | event::TYPE_EXCEPTION).then_some(event as u8)
    }

    #[inline]
    fn request_window(&mut self, wanted: bool) {
        self.vmcb.control.request_window(wanted);
    }

    fn takes_nmi(&self) -> bool {
        let over = match self.nmi {
            Nmi::None => true,
            Nmi::Handled => false,
            Nmi::Returns { from } => self.rip() != from,
        };
        over && !self.shadowed() && !self.injecting()
    }

    /// There is no such window: IRET exits while an NMI is handled, and behind it an interrupt's window opens if anything does.
    fn request_nmi_window(&mut self, wanted: bool) {
        if wanted {
            self.request_window(true);
        } else if self.vmcb.control.exit_code == exit_code::IRET {
            if self.nmi == Nmi::Handled {
                self.nmi = Nmi::Returns { from: self.rip() };
            }
            self.vmcb.control.intercept_misc1 &= !misc1::IRET;
        }
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let (control, save) = (&self.vmcb.control, &self.vmcb.save);
        writeln!(
            out,
            "exit code {:#x} info1 {:#x} info2 {:#x} interrupted {:#x} shadow {:#x}",
            control.exit_code,
            control.exit_info1,
            control.exit_info2,
            control.exit_interrupt_info,
            control.interrupt_state
        )?;
        writeln!(out, "rip {:016x} cs {:04x} rflags {:08x} cpl {}", save.rip, save.cs.selector, save.rflags, save.cpl)?;
        let ControlRegisters { cr0, cr3, cr4, efer, .. } = self.control();
        writeln!(out, "cr0 {cr0:08x} cr2 {:016x} cr3 {cr3:016x} cr4 {cr4:08x}", save.cr2)?;
        writeln!(out, "efer {efer:04x} dr6 {:08x} dr7 {:08x} pat {:016x}", save.dr6, save.dr7, save.pat)?;
        if let Some(shadow) = self.translation.shadow() {
            writeln!(
                out,
                "shadow at {} by cr0 {:08x} cr4 {:08x} efer {:04x}",
                shadow.root, save.cr0, save.cr4, save.efer
            )?;
        }
        for (number, name) in (0..).zip(NAMES) {
            let end = if number % 4 == 3 { '\n' } else { ' ' };
            write!(out, "{name:>3} {:016x}{end}", self.gpr(Gpr::new(number)))?;
        }
        Ok(())
    }
}

const NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

impl<T: Translation> Drop for SvmVcpu<T> {
    fn drop(&mut self) {
        self.unload_guest();
        self.occupant.dismiss(&self.resident);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm::Size;

    #[test]
    fn io_exits_are_decoded_as_the_manual_draws_them() {
        // IN AL, DX at port 3F8h; REP OUTSW at port 70h, with the address size and segment that it has besides.
        let io = Io::from_svm(0x03f8_0011);
        assert_eq!((io.port(), io.size(), io.is_input(), io.is_string()), (0x3f8, Size::Byte, true, false));
        let io = Io::from_svm(0x0070_0e2c);
        assert_eq!((io.port(), io.size(), io.is_input(), io.is_string()), (0x70, Size::Word, false, true));
    }

    #[test]
    fn nested_faults_are_decoded_as_page_faults() {
        let fault = decode_nested_fault(0x1_0000_0006, 0x1234_5678);
        assert_eq!(fault, NestedFault::new(Gpa::new(0x1234_5678), true, false, false));
    }
}
