//! Every rule, broken by itself.

use super::*;

/// Flat 64-bit code at ring 0.
fn long_mode() -> GuestState {
    let data = Segment { selector: 0x10, base: 0, limit: 0xffff_ffff, access_rights: 0xc093 };
    GuestState {
        cr0: 0x8001_0031,
        cr3: 0x1000,
        cr4: 0x2020,
        dr7: 0x400,
        efer: EFER_LMA | EFER_LME,
        pat: 0x0007_0406_0007_0406,
        cs: Segment { selector: 0x08, access_rights: 0xa09b, ..data },
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ldtr: Segment { access_rights: 1 << 16, ..Segment::default() },
        tr: Segment { selector: 0x18, base: 0, limit: 0x67, access_rights: 0x8b },
        rip: 0x10_0000,
        rflags: 2,
        link_pointer: u64::MAX,
        long_mode: true,
        loads_pat: true,
        unrestricted: true,
        cr0_fixed: (0x8000_0021, 0xffff_ffff),
        cr4_fixed: (0x2000, 0x0037_27ff),
        physical_bits: 40,
        ..GuestState::default()
    }
}

/// 32-bit code with PAE paging.
fn pae() -> GuestState {
    let mut state = GuestState { efer: 0, long_mode: false, ..long_mode() };
    state.cs.access_rights = 0xc09b;
    state.pdptes = [0x2001, 0x3001, 0, 0x4001];
    state
}

/// As a multiboot loader leaves a guest.
fn unpaged() -> GuestState {
    GuestState { cr0: 0x31, cr4: 0x2000, ..pae() }
}

fn virtual_8086() -> GuestState {
    let segment = Segment { selector: 0x1234, base: 0x1_2340, limit: 0xffff, access_rights: 0xf3 };
    GuestState {
        rflags: RFLAGS_VM | 2,
        cs: segment,
        ss: segment,
        ds: segment,
        es: segment,
        fs: segment,
        gs: segment,
        ..pae()
    }
}

#[test]
fn states_that_run_break_no_rule() {
    for state in [long_mode(), pae(), unpaged(), virtual_8086()] {
        assert_eq!(check(&state), Ok(()));
    }
    let restricted = GuestState { unrestricted: false, ..long_mode() };
    assert_eq!(check(&restricted), Ok(()));
}

#[test]
fn what_only_an_unrestricted_guest_may_do() {
    let state = GuestState { unrestricted: false, ..unpaged() };
    assert_eq!(check(&state), Err("CR0: a bit that is fixed to 1 is 0"));
    let mut state = long_mode();
    state.ss.selector = 0x13;
    assert_eq!(check(&state), Ok(()));
    state.unrestricted = false;
    assert_eq!(check(&state), Err("SS: the RPL is not that of CS"));
}

/// What is done to a state, and the rule that breaks.
type Case = (fn(&mut GuestState), &'static str);

fn each_breaks(of: fn() -> GuestState, cases: &[Case]) {
    for (change, rule) in cases {
        let mut state = of();
        change(&mut state);
        assert_eq!(check(&state), Err(*rule));
    }
}

#[test]
fn control_registers_and_msrs() {
    each_breaks(
        long_mode,
        &[
            (|s| s.cr0 &= !(1 << 5), "CR0: a bit that is fixed to 1 is 0"),
            (|s| s.cr0 |= 1 << 32, "CR0: a bit that is fixed to 0 is 1"),
            (|s| s.cr0 &= !CR0_PE, "CR0: PG without PE"),
            (|s| s.cr4 &= !(1 << 13), "CR4: a bit that is fixed to 1 is 0"),
            (|s| s.cr4 |= 1 << 15, "CR4: a bit that is fixed to 0 is 1"),
            (
                |s| {
                    s.cr4_fixed.1 |= CR4_CET;
                    s.cr4 |= CR4_CET;
                    s.cr0 &= !CR0_WP;
                },
                "CR4.CET without CR0.WP",
            ),
            (|s| s.cr0 &= !CR0_PG, "IA-32e mode guest: CR0.PG is 0"),
            (|s| s.cr4 &= !CR4_PAE, "IA-32e mode guest: CR4.PAE is 0"),
            (|s| s.cr3 = 1 << 40, "CR3: bits beyond the physical-address width"),
            (|s| s.debug_control = 1 << 2, "IA32_DEBUGCTL: reserved bits"),
            (|s| s.dr7 |= 1 << 32, "DR7: bits 63:32 are not 0"),
            (|s| s.sysenter_esp = 1 << 47, "IA32_SYSENTER_ESP is not canonical"),
            (|s| s.sysenter_eip = 1 << 63, "IA32_SYSENTER_EIP is not canonical"),
            (|s| s.pat |= 2 << 56, "IA32_PAT: a field is no memory type"),
            // FFXSR is AMD's.
            (|s| s.efer |= 1 << 14, "IA32_EFER: reserved bits"),
            (|s| s.efer &= !EFER_LMA, "IA32_EFER.LMA is not the IA-32e mode guest control"),
            (|s| s.efer &= !EFER_LME, "IA32_EFER: LMA is not LME, with paging on"),
        ],
    );
    each_breaks(
        pae,
        &[
            (
                |s| {
                    s.cr4_fixed.1 |= CR4_PCIDE;
                    s.cr4 |= CR4_PCIDE;
                },
                "CR4.PCIDE outside of IA-32e mode",
            ),
            (|s| s.pdptes[2] = 0x2003, "PDPTE: reserved bits of a present one"),
        ],
    );
}

#[test]
fn system_segments() {
    const LDT: Segment = Segment { selector: 0x20, base: 0, limit: 0xfff, access_rights: 0x82 };
    each_breaks(
        long_mode,
        &[
            (|s| s.tr.selector |= 4, "TR: TI is not 0"),
            (|s| s.tr.base = 1 << 47, "TR: the base is not canonical"),
            (|s| s.tr.access_rights = 0x89, "TR: not a busy TSS of the mode"),
            // A 16-bit TSS is only for outside of long mode.
            (|s| s.tr.access_rights = 0x83, "TR: not a busy TSS of the mode"),
            (|s| s.tr.access_rights |= 1 << 4, "TR: S is not 0"),
            (|s| s.tr.access_rights &= !(1 << 7), "TR: not present"),
            (|s| s.tr.access_rights |= 1 << 8, "TR: reserved access rights"),
            (|s| s.tr.limit = 1 << 20, "TR: the limit does not fit G"),
            (|s| s.tr.access_rights |= 1 << 16, "TR: unusable"),
            (|s| s.ldtr = Segment { selector: 0x24, ..LDT }, "LDTR: TI is not 0"),
            (|s| s.ldtr = Segment { base: 1 << 47, ..LDT }, "LDTR: the base is not canonical"),
            (|s| s.ldtr = Segment { access_rights: 0x81, ..LDT }, "LDTR: not an LDT"),
            (|s| s.ldtr = Segment { access_rights: 0x92, ..LDT }, "LDTR: S is not 0"),
            (|s| s.ldtr = Segment { access_rights: 0x02, ..LDT }, "LDTR: not present"),
            (|s| s.ldtr = Segment { access_rights: 0x182, ..LDT }, "LDTR: reserved access rights"),
            (|s| s.ldtr = Segment { access_rights: 0x8082, limit: 0, ..LDT }, "LDTR: the limit does not fit G"),
        ],
    );
}

#[test]
fn code_and_stack() {
    each_breaks(
        long_mode,
        &[
            (|s| s.cs.base = 1 << 32, "CS: bits 63:32 of the base are not 0"),
            (|s| s.cs.access_rights &= !1, "CS: not accessed code"),
            (|s| s.cs.access_rights &= !(1 << 4), "CS: S is not 1"),
            (|s| s.cs.access_rights |= 3 << 5, "CS: the DPL does not fit that of SS"),
            (|s| s.cs.access_rights &= !(1 << 7), "CS: not present"),
            (|s| s.cs.access_rights |= 1 << 17, "CS: reserved access rights"),
            (|s| s.cs.access_rights |= 1 << 14, "CS: L and D/B are both 1 in IA-32e mode"),
            (|s| s.cs.limit = 0xffff_f000, "CS: the limit does not fit G"),
            (|s| s.ss.access_rights &= !2, "SS: not accessed writable data"),
            (|s| s.ss.access_rights &= !(1 << 4), "SS: S is not 1"),
            (|s| s.ss.access_rights &= !(1 << 7), "SS: not present"),
            (|s| s.ss.access_rights |= 1 << 11, "SS: reserved access rights"),
            (|s| s.ss.access_rights &= !(1 << 15), "SS: the limit does not fit G"),
            (|s| s.ss.base = 1 << 32, "SS: bits 63:32 of the base are not 0"),
        ],
    );
    each_breaks(
        unpaged,
        &[(
            |s| {
                s.cr0 &= !CR0_PE;
                s.ss.access_rights |= 3 << 5;
                s.cs.access_rights |= 3 << 5;
            },
            "SS: the DPL is not 0 in real mode",
        )],
    );
    each_breaks(
        || GuestState { unrestricted: false, ..long_mode() },
        &[
            (
                |s| {
                    s.cs.access_rights |= 3 << 5;
                    s.ss.access_rights |= 3 << 5;
                },
                "SS: the DPL is not the RPL",
            ),
            (|s| s.ds.selector |= 3, "DS: DPL below RPL"),
            (|s| s.gs.selector |= 1, "GS: DPL below RPL"),
        ],
    );
}

#[test]
fn data_segments() {
    each_breaks(
        long_mode,
        &[
            (|s| s.ds.access_rights &= !1, "DS: not accessed"),
            (|s| s.es.access_rights = 0xc099, "ES: code that can't be read"),
            (|s| s.fs.access_rights &= !(1 << 4), "a data segment: S is not 1"),
            (|s| s.gs.access_rights &= !(1 << 7), "a data segment: not present"),
            (|s| s.ds.access_rights |= 1 << 9, "a data segment: reserved access rights"),
            (|s| s.es.limit = 0x1234_5678, "a data segment: the limit does not fit G"),
            (|s| s.fs.base = 1 << 47, "FS: the base is not canonical"),
            (|s| s.gs.base = 1 << 62, "GS: the base is not canonical"),
            (|s| s.ds.base = 1 << 32, "DS: bits 63:32 of the base are not 0"),
            (|s| s.es.base = 1 << 32, "ES: bits 63:32 of the base are not 0"),
        ],
    );
    let mut state = long_mode();
    state.ds = Segment { access_rights: 1 << 16, base: u64::MAX, ..Segment::default() };
    assert_eq!(check(&state), Ok(()), "an unusable segment may hold anything");
}

#[test]
fn virtual_8086_mode() {
    each_breaks(
        virtual_8086,
        &[
            (|s| s.gs.base = 0, "virtual-8086 mode: a base is not 16 times the selector"),
            (|s| s.ss.limit = 0xf_ffff, "virtual-8086 mode: a limit is not FFFFh"),
            (|s| s.cs.access_rights = 0x9b, "virtual-8086 mode: access rights are not F3h"),
            (|s| s.cr0 &= !(CR0_PE | CR0_PG), "RFLAGS.VM with CR0.PE 0"),
        ],
    );
    let segments = virtual_8086();
    let mut state = GuestState { rflags: RFLAGS_VM | 2, ..long_mode() };
    (state.cs, state.ss, state.ds) = (segments.cs, segments.ss, segments.ds);
    (state.es, state.fs, state.gs) = (segments.es, segments.fs, segments.gs);
    assert_eq!(check(&state), Err("RFLAGS.VM in IA-32e mode"));
}

#[test]
fn tables_rip_and_flags() {
    each_breaks(
        long_mode,
        &[
            (|s| s.gdtr_base = 1 << 47, "GDTR: the base is not canonical"),
            (|s| s.idtr_base = 1 << 47, "IDTR: the base is not canonical"),
            (|s| s.gdtr_limit = 0x1_0000, "GDTR: bits 31:16 of the limit are not 0"),
            (|s| s.idtr_limit = 0x1_0000, "IDTR: bits 31:16 of the limit are not 0"),
            (|s| s.rip = 1 << 47, "RIP is not canonical"),
            (|s| s.rflags |= 1 << 3, "RFLAGS: reserved bits are not 0"),
            (|s| s.rflags = 0, "RFLAGS: bit 1 is not 1"),
            (|s| s.event = EVENT_VALID | 0x20, "an external interrupt is injected, but RFLAGS.IF is 0"),
        ],
    );
    each_breaks(pae, &[(|s| s.rip = 1 << 32, "RIP: bits 63:32 are not 0 outside of 64-bit mode")]);
}

#[test]
fn what_is_no_register() {
    const STI: u64 = 1;
    const MOV_SS: u64 = 2;
    const STEP: u64 = 1 << 14;
    each_breaks(
        long_mode,
        &[
            (|s| s.activity = 4, "activity state: not one that there is"),
            (
                |s| {
                    s.activity = HLT_STATE;
                    s.cs.access_rights |= 3 << 5;
                    s.ss.access_rights |= 3 << 5;
                },
                "activity state HLT: the DPL of SS is not 0",
            ),
            (
                |s| {
                    s.activity = HLT_STATE;
                    s.interruptibility = MOV_SS;
                },
                "activity state: not active in an interrupt shadow",
            ),
            (|s| s.interruptibility = 1 << 5, "interruptibility: reserved bits"),
            (|s| s.interruptibility = STI | MOV_SS, "interruptibility: blocked by STI and by MOV SS at once"),
            (|s| s.interruptibility = STI, "interruptibility: blocked by STI with RFLAGS.IF 0"),
            (
                |s| {
                    s.rflags |= RFLAGS_IF;
                    s.interruptibility = STI;
                    s.event = EVENT_VALID | 0x20;
                },
                "interruptibility: an interrupt is injected into an interrupt shadow",
            ),
            (
                |s| {
                    s.interruptibility = MOV_SS;
                    s.event = EVENT_VALID | NMI | 2;
                },
                "interruptibility: an NMI is injected behind MOV SS",
            ),
            (|s| s.interruptibility = 1 << 2, "interruptibility: blocked by SMI outside of SMM"),
            (|s| s.pending_debug = 1 << 4, "pending debug exceptions: reserved bits"),
            (
                |s| {
                    s.rflags |= RFLAGS_TF;
                    s.interruptibility = MOV_SS;
                },
                "pending debug exceptions: BS is 0 after a step with RFLAGS.TF",
            ),
            (
                |s| {
                    s.pending_debug = STEP;
                    s.activity = HLT_STATE;
                },
                "pending debug exceptions: BS is 1 without RFLAGS.TF",
            ),
            (|s| s.link_pointer = 0, "VMCS link pointer: not FFFFFFFF_FFFFFFFFh"),
        ],
    );
}
