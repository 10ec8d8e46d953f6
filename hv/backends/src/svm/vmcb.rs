//! The virtual machine control block (AMD64 APM vol. 2, appendix B).

use core::mem::offset_of;

/// A segment register as the VMCB holds it (APM table B-2): attributes are the descriptor's bits 40–47 and 52–55, packed.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct SegmentField {
    pub(super) selector: u16,
    pub(super) attributes: u16,
    pub(super) limit: u32,
    pub(super) base: u64,
}

/// What is intercepted, injected and translated (APM table B-1).
#[repr(C)]
pub(super) struct Control {
    pub(super) intercept_cr: u32,
    pub(super) intercept_dr: u32,
    pub(super) intercept_exceptions: u32,
    pub(super) intercept_misc1: u32,
    pub(super) intercept_misc2: u32,
    pub(super) intercept_misc3: u32,
    _reserved1: [u8; 0x24],
    pub(super) pause_filter_threshold: u16,
    pub(super) pause_filter_count: u16,
    pub(super) iopm_base: u64,
    pub(super) msrpm_base: u64,
    pub(super) tsc_offset: u64,
    pub(super) asid: u32,
    pub(super) tlb_control: u32,
    pub(super) virtual_interrupt: u64,
    pub(super) interrupt_state: u64,
    pub(super) exit_code: u64,
    pub(super) exit_info1: u64,
    pub(super) exit_info2: u64,
    pub(super) exit_interrupt_info: u64,
    pub(super) nested_control: u64,
    _avic_bar: u64,
    _ghcb: u64,
    pub(super) event_injection: u64,
    pub(super) nested_cr3: u64,
    pub(super) lbr_control: u64,
    pub(super) clean_bits: u32,
    _reserved2: u32,
    pub(super) next_rip: u64,
    pub(super) fetched: u8,
    pub(super) instruction_bytes: [u8; 15],
    _reserved3: [u8; 0x320],
}

/// The guest's state that VMRUN loads and an exit saves (APM table B-2), with VMLOAD's and VMSAVE's part.
#[repr(C)]
pub(super) struct Save {
    pub(super) es: SegmentField,
    pub(super) cs: SegmentField,
    pub(super) ss: SegmentField,
    pub(super) ds: SegmentField,
    pub(super) fs: SegmentField,
    pub(super) gs: SegmentField,
    pub(super) gdtr: SegmentField,
    pub(super) ldtr: SegmentField,
    pub(super) idtr: SegmentField,
    pub(super) tr: SegmentField,
    _reserved1: [u8; 0x2b],
    pub(super) cpl: u8,
    _reserved2: u32,
    pub(super) efer: u64,
    _reserved3: [u8; 0x70],
    pub(super) cr4: u64,
    pub(super) cr3: u64,
    pub(super) cr0: u64,
    pub(super) dr7: u64,
    pub(super) dr6: u64,
    pub(super) rflags: u64,
    pub(super) rip: u64,
    _reserved4: [u8; 0x58],
    pub(super) rsp: u64,
    _shadow_stack: [u64; 3],
    pub(super) rax: u64,
    pub(super) star: u64,
    pub(super) lstar: u64,
    pub(super) cstar: u64,
    pub(super) sfmask: u64,
    pub(super) kernel_gs_base: u64,
    pub(super) sysenter_cs: u64,
    pub(super) sysenter_esp: u64,
    pub(super) sysenter_eip: u64,
    pub(super) cr2: u64,
    _reserved5: [u8; 0x20],
    pub(super) pat: u64,
    pub(super) debug_control: u64,
    _last_branches: [u64; 4],
    _reserved6: [u8; 0x968],
}

/// The whole block: one page.
#[repr(C, align(4096))]
pub(super) struct Vmcb {
    pub(super) control: Control,
    pub(super) save: Save,
}

const _: () = {
    assert!(offset_of!(Control, intercept_exceptions) == 0x008);
    assert!(offset_of!(Control, intercept_misc1) == 0x00c);
    assert!(offset_of!(Control, pause_filter_count) == 0x03e);
    assert!(offset_of!(Control, iopm_base) == 0x040);
    assert!(offset_of!(Control, msrpm_base) == 0x048);
    assert!(offset_of!(Control, asid) == 0x058);
    assert!(offset_of!(Control, virtual_interrupt) == 0x060);
    assert!(offset_of!(Control, interrupt_state) == 0x068);
    assert!(offset_of!(Control, exit_code) == 0x070);
    assert!(offset_of!(Control, exit_interrupt_info) == 0x088);
    assert!(offset_of!(Control, nested_control) == 0x090);
    assert!(offset_of!(Control, event_injection) == 0x0a8);
    assert!(offset_of!(Control, nested_cr3) == 0x0b0);
    assert!(offset_of!(Control, clean_bits) == 0x0c0);
    assert!(offset_of!(Control, next_rip) == 0x0c8);
    assert!(offset_of!(Control, fetched) == 0x0d0);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Save, tr) == 0x090);
    assert!(offset_of!(Save, cpl) == 0x0cb);
    assert!(offset_of!(Save, efer) == 0x0d0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, cr0) == 0x158);
    assert!(offset_of!(Save, rflags) == 0x170);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, star) == 0x200);
    assert!(offset_of!(Save, kernel_gs_base) == 0x220);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, pat) == 0x268);
    assert!(size_of::<Vmcb>() == 0x1000);
};

/// `intercept_cr` (APM table B-1, offset 000h): reads in the lower half, writes in the upper.
pub(super) const INTERCEPT_CR8_WRITE: u32 = 1 << 24;

/// `intercept_dr`, alike: writes of DR0 to DR3 and DR7, and of DR5, which stands for DR7.
pub(super) const INTERCEPT_BREAKPOINTS: u32 = 0xaf << 16;

/// `intercept_cr`: writes of CR4. (The processor checks them by its own features, not by the guest's.)
pub(super) const INTERCEPT_CR4_WRITE: u32 = 1 << 20;

/// `intercept_cr`: CR0, CR3 and CR4.
pub(super) const INTERCEPT_PAGING: u32 = 0x19 | 0x19 << 16;

/// `intercept_misc1` (APM table B-1, offset 00Ch).
pub(super) mod misc1 {
    pub(in crate::svm) const INTR: u32 = 1 << 0;
    pub(in crate::svm) const NMI: u32 = 1 << 1;
    pub(in crate::svm) const SMI: u32 = 1 << 2;
    pub(in crate::svm) const INIT: u32 = 1 << 3;
    pub(in crate::svm) const VINTR: u32 = 1 << 4;
    pub(in crate::svm) const CR0_SELECTIVE: u32 = 1 << 5;
    pub(in crate::svm) const RDPMC: u32 = 1 << 15;
    pub(in crate::svm) const IRET: u32 = 1 << 20;
    pub(in crate::svm) const CPUID: u32 = 1 << 18;
    pub(in crate::svm) const INVD: u32 = 1 << 22;
    pub(in crate::svm) const PAUSE: u32 = 1 << 23;
    pub(in crate::svm) const HLT: u32 = 1 << 24;
    pub(in crate::svm) const INVLPG: u32 = 1 << 25;
    pub(in crate::svm) const INVLPGA: u32 = 1 << 26;
    pub(in crate::svm) const IOIO: u32 = 1 << 27;
    pub(in crate::svm) const MSR: u32 = 1 << 28;
    pub(in crate::svm) const TASK_SWITCH: u32 = 1 << 29;
    pub(in crate::svm) const SHUTDOWN: u32 = 1 << 31;
}

/// `intercept_misc2` (APM table B-1, offset 010h).
pub(super) mod misc2 {
    pub(in crate::svm) const VMRUN: u32 = 1 << 0;
    pub(in crate::svm) const VMMCALL: u32 = 1 << 1;
    pub(in crate::svm) const VMLOAD: u32 = 1 << 2;
    pub(in crate::svm) const VMSAVE: u32 = 1 << 3;
    pub(in crate::svm) const STGI: u32 = 1 << 4;
    pub(in crate::svm) const CLGI: u32 = 1 << 5;
    pub(in crate::svm) const SKINIT: u32 = 1 << 6;
    pub(in crate::svm) const INT1: u32 = 1 << 8;
    pub(in crate::svm) const MONITOR: u32 = 1 << 10;
    pub(in crate::svm) const MWAIT: u32 = 1 << 11;
    pub(in crate::svm) const XSETBV: u32 = 1 << 13;
}

/// Exit codes (APM vol. 2, appendix C).
pub(super) mod exit_code {
    pub(in crate::svm) const READ_CR0: u64 = 0x00;
    pub(in crate::svm) const READ_CR3: u64 = 0x03;
    pub(in crate::svm) const READ_CR4: u64 = 0x04;
    pub(in crate::svm) const WRITE_CR0: u64 = 0x10;
    pub(in crate::svm) const WRITE_CR3: u64 = 0x13;
    pub(in crate::svm) const WRITE_CR4: u64 = 0x14;
    pub(in crate::svm) const CR0_SELECTIVE: u64 = 0x65;
    pub(in crate::svm) const WRITE_CR8: u64 = 0x18;
    pub(in crate::svm) const WRITE_DR0: u64 = 0x30;
    pub(in crate::svm) const WRITE_DR7: u64 = 0x37;
    pub(in crate::svm) const EXCEPTION_0: u64 = 0x40;
    pub(in crate::svm) const EXCEPTION_31: u64 = 0x5f;
    pub(in crate::svm) const INTR: u64 = 0x60;
    pub(in crate::svm) const NMI: u64 = 0x61;
    pub(in crate::svm) const VINTR: u64 = 0x64;
    pub(in crate::svm) const RDPMC: u64 = 0x6f;
    pub(in crate::svm) const IRET: u64 = 0x74;
    pub(in crate::svm) const CPUID: u64 = 0x72;
    pub(in crate::svm) const INVD: u64 = 0x76;
    pub(in crate::svm) const PAUSE: u64 = 0x77;
    pub(in crate::svm) const HLT: u64 = 0x78;
    pub(in crate::svm) const INVLPG: u64 = 0x79;
    pub(in crate::svm) const INVLPGA: u64 = 0x7a;
    pub(in crate::svm) const IOIO: u64 = 0x7b;
    pub(in crate::svm) const MSR: u64 = 0x7c;
    pub(in crate::svm) const TASK_SWITCH: u64 = 0x7d;
    pub(in crate::svm) const SHUTDOWN: u64 = 0x7f;
    pub(in crate::svm) const VMRUN: u64 = 0x80;
    pub(in crate::svm) const VMMCALL: u64 = 0x81;
    pub(in crate::svm) const VMLOAD: u64 = 0x82;
    pub(in crate::svm) const SKINIT: u64 = 0x86;
    pub(in crate::svm) const INT1: u64 = 0x88;
    pub(in crate::svm) const MONITOR: u64 = 0x8a;
    pub(in crate::svm) const MWAIT_CONDITIONAL: u64 = 0x8c;
    pub(in crate::svm) const XSETBV: u64 = 0x8d;
    pub(in crate::svm) const NPF: u64 = 0x400;
    /// The whole code is -1; QEMU writes it as 32 bits.
    pub(in crate::svm) const INVALID: u32 = u32::MAX;
}

/// `event_injection` (APM section 15.20).
pub(super) mod event {
    pub(in crate::svm) const TYPE_INTERRUPT: u64 = 0 << 8;
    pub(in crate::svm) const TYPE_NMI: u64 = 2 << 8;
    pub(in crate::svm) const TYPE_EXCEPTION: u64 = 3 << 8;
    pub(in crate::svm) const TYPE_SOFTWARE: u64 = 4 << 8;
    pub(in crate::svm) const TYPE: u64 = 7 << 8;
    pub(in crate::svm) const ERROR_CODE_VALID: u64 = 1 << 11;
    pub(in crate::svm) const VALID: u64 = 1 << 31;

    /// Whether it is of an instruction: INT n, or INT3 and INTO, which Bochs gives VMX's type.
    pub(in crate::svm) const fn is_by_instruction(info: u64) -> bool {
        info & TYPE >= TYPE_SOFTWARE || info & TYPE == TYPE_EXCEPTION && matches!(info as u8, 3 | 4)
    }
}

/// EXITINFO1 of a nested page fault: an entry has a reserved bit set.
pub(super) const RESERVED_BIT: u64 = 1 << 3;
/// EXITINFO1 of an access to a control register: it was a MOV, and bits 3:0 are the number of its general register.
pub(super) const MOV_CR: u64 = 1 << 63;
/// `nested_control`: nested paging on.
pub(super) const NESTED_PAGING: u64 = 1 << 0;
/// `lbr_control`: VMRUN and exits switch IA32_DEBUGCTL and the last branches.
pub(super) const LBR_VIRTUALIZATION: u64 = 1 << 0;
/// `tlb_control`: flush the whole TLB at entry.
pub(super) const FLUSH_ALL: u32 = 1;
/// `tlb_control`: flush what is under the guest's ASID.
pub(super) const FLUSH_ASID: u32 = 3;
/// `interrupt_state`: the guest is in an interrupt shadow.
pub(super) const INTERRUPT_SHADOW: u64 = 1 << 0;

impl Vmcb {
    /// A block of zeroes: nothing intercepted, no state.
    pub(super) const fn zeroed() -> Self {
        const NO_SEGMENT: SegmentField = SegmentField { selector: 0, attributes: 0, limit: 0, base: 0 };
        Self {
            control: Control {
                intercept_cr: 0,
                intercept_dr: 0,
                intercept_exceptions: 0,
                intercept_misc1: 0,
                intercept_misc2: 0,
                intercept_misc3: 0,
                _reserved1: [0; 0x24],
                pause_filter_threshold: 0,
                pause_filter_count: 0,
                iopm_base: 0,
                msrpm_base: 0,
                tsc_offset: 0,
                asid: 0,
                tlb_control: 0,
                virtual_interrupt: 0,
                interrupt_state: 0,
                exit_code: 0,
                exit_info1: 0,
                exit_info2: 0,
                exit_interrupt_info: 0,
                nested_control: 0,
                _avic_bar: 0,
                _ghcb: 0,
                event_injection: 0,
                nested_cr3: 0,
                lbr_control: 0,
                clean_bits: 0,
                _reserved2: 0,
                next_rip: 0,
                fetched: 0,
                instruction_bytes: [0; 15],
                _reserved3: [0; 0x320],
            },
            save: Save {
                es: NO_SEGMENT,
                cs: NO_SEGMENT,
                ss: NO_SEGMENT,
                ds: NO_SEGMENT,
                fs: NO_SEGMENT,
                gs: NO_SEGMENT,
                gdtr: NO_SEGMENT,
                ldtr: NO_SEGMENT,
                idtr: NO_SEGMENT,
                tr: NO_SEGMENT,
                _reserved1: [0; 0x2b],
                cpl: 0,
                _reserved2: 0,
                efer: 0,
                _reserved3: [0; 0x70],
                cr4: 0,
                cr3: 0,
                cr0: 0,
                dr7: 0,
                dr6: 0,
                rflags: 0,
                rip: 0,
                _reserved4: [0; 0x58],
                rsp: 0,
                _shadow_stack: [0; 3],
                rax: 0,
                star: 0,
                lstar: 0,
                cstar: 0,
                sfmask: 0,
                kernel_gs_base: 0,
                sysenter_cs: 0,
                sysenter_esp: 0,
                sysenter_eip: 0,
                cr2: 0,
                _reserved5: [0; 0x20],
                pat: 0,
                debug_control: 0,
                _last_branches: [0; 4],
                _reserved6: [0; 0x968],
            },
        }
    }
}
