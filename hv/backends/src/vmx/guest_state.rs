//! What VM entries demand of the guest's state, to say which rule an entry broke (Intel SDM vol. 3, section 27.3.1; the
//! subsections are given below).

use arch::paging::{PDPTE_RESERVED, PRESENT};
use arch::{
    CR0_CD, CR0_NW, CR0_PE, CR0_PG, CR0_WP, CR4_CET, CR4_PAE, CR4_PCIDE, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE,
    RFLAGS_FIXED, RFLAGS_IF, RFLAGS_TF, RFLAGS_VM,
};

/// A segment register as the VMCS has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) selector: u64,
    pub(super) base: u64,
    pub(super) limit: u64,
    pub(super) access_rights: u64,
}

impl Segment {
    const fn usable(&self) -> bool {
        self.access_rights & 1 << 16 == 0
    }
    const fn kind(&self) -> u64 {
        self.access_rights & 15
    }
    /// S: code or data, not system.
    const fn is_code_or_data(&self) -> bool {
        self.access_rights & 1 << 4 != 0
    }
    const fn dpl(&self) -> u64 {
        self.access_rights >> 5 & 3
    }
    const fn rpl(&self) -> u64 {
        self.selector & 3
    }
    const fn present(&self) -> bool {
        self.access_rights & 1 << 7 != 0
    }
    const fn long(&self) -> bool {
        self.access_rights & 1 << 13 != 0
    }
    const fn default_big(&self) -> bool {
        self.access_rights & 1 << 14 != 0
    }
    const fn granularity(&self) -> bool {
        self.access_rights & 1 << 15 != 0
    }
    const fn in_local_table(&self) -> bool {
        self.selector & 1 << 2 != 0
    }
    /// Bits 11:8 and, for usable segments, 31:17.
    const fn reserved_clear(&self) -> bool {
        self.access_rights & 0xfffe_0f00 == 0
    }
    /// G may be 1 only if the limit's low 12 bits are ones, and 0 only if its high 12 are zeroes.
    const fn limit_fits_granularity(&self) -> bool {
        let (low, high) = (self.limit & 0xfff, self.limit >> 20 & 0xfff);
        if self.granularity() { low == 0xfff } else { high == 0 }
    }
}

/// The parts of the guest-state area and of the controls that the rules speak of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GuestState {
    pub(super) cr0: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
    pub(super) dr7: u64,
    pub(super) debug_control: u64,
    pub(super) efer: u64,
    pub(super) pat: u64,
    pub(super) sysenter_esp: u64,
    pub(super) sysenter_eip: u64,
    pub(super) cs: Segment,
    pub(super) ss: Segment,
    pub(super) ds: Segment,
    pub(super) es: Segment,
    pub(super) fs: Segment,
    pub(super) gs: Segment,
    pub(super) ldtr: Segment,
    pub(super) tr: Segment,
    pub(super) gdtr_base: u64,
    pub(super) gdtr_limit: u64,
    pub(super) idtr_base: u64,
    pub(super) idtr_limit: u64,
    pub(super) rip: u64,
    pub(super) rflags: u64,
    pub(super) activity: u64,
    pub(super) interruptibility: u64,
    pub(super) pending_debug: u64,
    pub(super) link_pointer: u64,
    pub(super) pdptes: [u64; 4],
    /// VM-entry interruption information.
    pub(super) event: u64,
    /// "IA-32e mode guest".
    pub(super) long_mode: bool,
    /// "Load IA32_PAT".
    pub(super) loads_pat: bool,
    pub(super) unrestricted: bool,
    /// The bits of CR0 and CR4 that must be 1, and those that may be.
    pub(super) cr0_fixed: (u64, u64),
    pub(super) cr4_fixed: (u64, u64),
    pub(super) physical_bits: u32,
}

/// SCE, LME, LMA and NXE are all that Intel's processors have.
const EFER_BITS: u64 = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
const BTF: u64 = 1 << 1;

const EVENT_VALID: u64 = 1 << 31;
const EVENT_TYPE: u64 = 7 << 8;
const EXTERNAL_INTERRUPT: u64 = 0 << 8;
const NMI: u64 = 2 << 8;

const HLT_STATE: u64 = 1;

/// What is checked, and what its being false means.
type Rule = (bool, &'static str);

/// The first of the rules that is broken.
fn first_broken(rules: &[Rule]) -> Result<(), &'static str> {
    match rules.iter().find(|(kept, _)| !kept) {
        Some((_, rule)) => Err(rule),
        None => Ok(()),
    }
}

/// If `premise`, then `conclusion`.
const fn implies(premise: bool, conclusion: bool) -> bool {
    !premise || conclusion
}

/// Bits 63 to 47 are alike.
const fn canonical(address: u64) -> bool {
    let high = address.cast_signed() >> 47;
    high == 0 || high == -1
}

const fn fits_32(value: u64) -> bool {
    value >> 32 == 0
}

/// The first rule of SDM vol. 3, section 27.3.1 that `state` breaks, in its words.
///
/// # Errors
/// That rule. Ok if none is found broken: then it is one that is not known here.
pub(super) fn check(state: &GuestState) -> Result<(), &'static str> {
    control_registers(state)?;
    debug_registers_and_msrs(state)?;
    segments(state)?;
    descriptor_tables(state)?;
    rip_and_rflags(state)?;
    non_register_state(state)?;
    pdptes(state)
}

/// Section 27.3.1.1, control registers.
fn control_registers(state: &GuestState) -> Result<(), &'static str> {
    let (mut cr0_ones, cr0_allowed) = state.cr0_fixed;
    if state.unrestricted {
        cr0_ones &= !(CR0_PE | CR0_PG);
    }
    let (cr4_ones, cr4_allowed) = state.cr4_fixed;
    // NW and CD are not checked.
    let cr0 = state.cr0 & !(CR0_NW | CR0_CD);
    let paging = state.cr0 & CR0_PG != 0;
    let pae = state.cr4 & CR4_PAE != 0;
    first_broken(&[
        (
            state.cr0 & cr0_ones & !(CR0_NW | CR0_CD) == cr0_ones & !(CR0_NW | CR0_CD),
            "CR0: a bit that is fixed to 1 is 0",
        ),
        (cr0 & !cr0_allowed == 0, "CR0: a bit that is fixed to 0 is 1"),
        (implies(paging, state.cr0 & CR0_PE != 0), "CR0: PG without PE"),
        (state.cr4 & cr4_ones == cr4_ones, "CR4: a bit that is fixed to 1 is 0"),
        (state.cr4 & !cr4_allowed == 0, "CR4: a bit that is fixed to 0 is 1"),
        (implies(state.cr4 & CR4_CET != 0, state.cr0 & CR0_WP != 0), "CR4.CET without CR0.WP"),
        (implies(state.long_mode, paging), "IA-32e mode guest: CR0.PG is 0"),
        (implies(state.long_mode, pae), "IA-32e mode guest: CR4.PAE is 0"),
        (implies(!state.long_mode, state.cr4 & CR4_PCIDE == 0), "CR4.PCIDE outside of IA-32e mode"),
        (state.cr3 >> state.physical_bits == 0, "CR3: bits beyond the physical-address width"),
    ])
}

/// Section 27.3.1.1, the rest.
fn debug_registers_and_msrs(state: &GuestState) -> Result<(), &'static str> {
    const DEBUG_CONTROL_BITS: u64 = 0xffc3;
    let lma = state.efer & EFER_LMA != 0;
    let pat_type = |field: u32| matches!(state.pat >> (field * 8) & 0xff, 0 | 1 | 4..=7);
    first_broken(&[
        (state.debug_control & !DEBUG_CONTROL_BITS == 0, "IA32_DEBUGCTL: reserved bits"),
        (fits_32(state.dr7), "DR7: bits 63:32 are not 0"),
        (canonical(state.sysenter_esp), "IA32_SYSENTER_ESP is not canonical"),
        (canonical(state.sysenter_eip), "IA32_SYSENTER_EIP is not canonical"),
        (implies(state.loads_pat, (0..8).all(pat_type)), "IA32_PAT: a field is no memory type"),
        (state.efer & !EFER_BITS == 0, "IA32_EFER: reserved bits"),
        (lma == state.long_mode, "IA32_EFER.LMA is not the IA-32e mode guest control"),
        (
            implies(state.cr0 & CR0_PG != 0, lma == (state.efer & EFER_LME != 0)),
            "IA32_EFER: LMA is not LME, with paging on",
        ),
    ])
}

/// Section 27.3.1.2.
fn segments(state: &GuestState) -> Result<(), &'static str> {
    system_segments(state)?;
    if state.rflags & RFLAGS_VM != 0 { virtual_8086_segments(state) } else { code_and_data_segments(state) }
}

fn system_segments(state: &GuestState) -> Result<(), &'static str> {
    let (tr, ldtr) = (&state.tr, &state.ldtr);
    let tr_kind = tr.kind() == 11 || tr.kind() == 3 && !state.long_mode;
    first_broken(&[
        (!tr.in_local_table(), "TR: TI is not 0"),
        (canonical(tr.base), "TR: the base is not canonical"),
        (tr_kind, "TR: not a busy TSS of the mode"),
        (!tr.is_code_or_data(), "TR: S is not 0"),
        (tr.present(), "TR: not present"),
        (tr.reserved_clear(), "TR: reserved access rights"),
        (tr.limit_fits_granularity(), "TR: the limit does not fit G"),
        (tr.usable(), "TR: unusable"),
        (!ldtr.usable() || !ldtr.in_local_table(), "LDTR: TI is not 0"),
        (!ldtr.usable() || canonical(ldtr.base), "LDTR: the base is not canonical"),
        (!ldtr.usable() || ldtr.kind() == 2, "LDTR: not an LDT"),
        (!ldtr.usable() || !ldtr.is_code_or_data(), "LDTR: S is not 0"),
        (!ldtr.usable() || ldtr.present(), "LDTR: not present"),
        (!ldtr.usable() || ldtr.reserved_clear(), "LDTR: reserved access rights"),
        (!ldtr.usable() || ldtr.limit_fits_granularity(), "LDTR: the limit does not fit G"),
    ])
}

fn virtual_8086_segments(state: &GuestState) -> Result<(), &'static str> {
    let all = [state.cs, state.ss, state.ds, state.es, state.fs, state.gs];
    first_broken(&[
        (all.iter().all(|s| s.base == s.selector << 4), "virtual-8086 mode: a base is not 16 times the selector"),
        (all.iter().all(|s| s.limit == 0xffff), "virtual-8086 mode: a limit is not FFFFh"),
        (all.iter().all(|s| s.access_rights == 0xf3), "virtual-8086 mode: access rights are not F3h"),
    ])
}

fn code_and_data_segments(state: &GuestState) -> Result<(), &'static str> {
    code_segment(state)?;
    stack_segment(state)?;
    for (segment, rules) in [
        (&state.ds, ["DS: not accessed", "DS: code that can't be read", "DS: DPL below RPL"]),
        (&state.es, ["ES: not accessed", "ES: code that can't be read", "ES: DPL below RPL"]),
        (&state.fs, ["FS: not accessed", "FS: code that can't be read", "FS: DPL below RPL"]),
        (&state.gs, ["GS: not accessed", "GS: code that can't be read", "GS: DPL below RPL"]),
    ] {
        data_segment(state, segment, rules)?;
    }
    first_broken(&[
        (canonical(state.fs.base), "FS: the base is not canonical"),
        (canonical(state.gs.base), "GS: the base is not canonical"),
        (!state.ds.usable() || fits_32(state.ds.base), "DS: bits 63:32 of the base are not 0"),
        (!state.es.usable() || fits_32(state.es.base), "ES: bits 63:32 of the base are not 0"),
    ])
}

fn code_segment(state: &GuestState) -> Result<(), &'static str> {
    let (cs, ss) = (&state.cs, &state.ss);
    let kind = matches!(cs.kind(), 9 | 11 | 13 | 15) || cs.kind() == 3 && state.unrestricted;
    let dpl = match cs.kind() {
        3 => cs.dpl() == 0,
        9 | 11 => cs.dpl() == ss.dpl(),
        _ => cs.dpl() <= ss.dpl(),
    };
    first_broken(&[
        (fits_32(cs.base), "CS: bits 63:32 of the base are not 0"),
        (kind, "CS: not accessed code"),
        (cs.is_code_or_data(), "CS: S is not 1"),
        (dpl, "CS: the DPL does not fit that of SS"),
        (cs.present(), "CS: not present"),
        (cs.reserved_clear(), "CS: reserved access rights"),
        (!(state.long_mode && cs.long() && cs.default_big()), "CS: L and D/B are both 1 in IA-32e mode"),
        (cs.limit_fits_granularity(), "CS: the limit does not fit G"),
    ])
}

fn stack_segment(state: &GuestState) -> Result<(), &'static str> {
    let (cs, ss) = (&state.cs, &state.ss);
    let real = cs.kind() == 3 || state.cr0 & CR0_PE == 0;
    first_broken(&[
        (implies(!state.unrestricted, ss.rpl() == cs.rpl()), "SS: the RPL is not that of CS"),
        (implies(!state.unrestricted, ss.dpl() == ss.rpl()), "SS: the DPL is not the RPL"),
        (implies(real, ss.dpl() == 0), "SS: the DPL is not 0 in real mode"),
        (!ss.usable() || matches!(ss.kind(), 3 | 7), "SS: not accessed writable data"),
        (!ss.usable() || ss.is_code_or_data(), "SS: S is not 1"),
        (!ss.usable() || ss.present(), "SS: not present"),
        (!ss.usable() || ss.reserved_clear(), "SS: reserved access rights"),
        (!ss.usable() || ss.limit_fits_granularity(), "SS: the limit does not fit G"),
        (!ss.usable() || fits_32(ss.base), "SS: bits 63:32 of the base are not 0"),
    ])
}

fn data_segment(state: &GuestState, segment: &Segment, names: [&'static str; 3]) -> Result<(), &'static str> {
    if !segment.usable() {
        return Ok(());
    }
    let kind = segment.kind();
    let [accessed, readable, privilege] = names;
    let data_or_nonconforming = kind <= 11;
    first_broken(&[
        (kind & 1 != 0, accessed),
        (implies(kind & 8 != 0, kind & 2 != 0), readable),
        (implies(!state.unrestricted && data_or_nonconforming, segment.dpl() >= segment.rpl()), privilege),
        (segment.is_code_or_data(), "a data segment: S is not 1"),
        (segment.present(), "a data segment: not present"),
        (segment.reserved_clear(), "a data segment: reserved access rights"),
        (segment.limit_fits_granularity(), "a data segment: the limit does not fit G"),
    ])
}

/// Section 27.3.1.3.
fn descriptor_tables(state: &GuestState) -> Result<(), &'static str> {
    first_broken(&[
        (canonical(state.gdtr_base), "GDTR: the base is not canonical"),
        (canonical(state.idtr_base), "IDTR: the base is not canonical"),
        (state.gdtr_limit >> 16 == 0, "GDTR: bits 31:16 of the limit are not 0"),
        (state.idtr_limit >> 16 == 0, "IDTR: bits 31:16 of the limit are not 0"),
    ])
}

/// Section 27.3.1.4.
fn rip_and_rflags(state: &GuestState) -> Result<(), &'static str> {
    const RESERVED: u64 = 0xffff_ffff_ffc0_8028;
    let code_64 = state.long_mode && state.cs.long();
    let interrupt = state.event & (EVENT_VALID | EVENT_TYPE) == EVENT_VALID | EXTERNAL_INTERRUPT;
    let virtual_8086 = state.rflags & RFLAGS_VM != 0;
    first_broken(&[
        (code_64 || fits_32(state.rip), "RIP: bits 63:32 are not 0 outside of 64-bit mode"),
        (!code_64 || canonical(state.rip), "RIP is not canonical"),
        (state.rflags & RESERVED == 0, "RFLAGS: reserved bits are not 0"),
        (state.rflags & RFLAGS_FIXED != 0, "RFLAGS: bit 1 is not 1"),
        (implies(virtual_8086, !state.long_mode), "RFLAGS.VM in IA-32e mode"),
        (implies(virtual_8086, state.cr0 & CR0_PE != 0), "RFLAGS.VM with CR0.PE 0"),
        (implies(interrupt, state.rflags & RFLAGS_IF != 0), "an external interrupt is injected, but RFLAGS.IF is 0"),
    ])
}

/// Section 27.3.1.5.
fn non_register_state(state: &GuestState) -> Result<(), &'static str> {
    const BY_STI: u64 = 1 << 0;
    const BY_MOV_SS: u64 = 1 << 1;
    const BY_SMI: u64 = 1 << 2;
    const SINGLE_STEP: u64 = 1 << 14;
    const PENDING_RESERVED: u64 = !0x1_500f;
    let (sti, mov_ss) = (state.interruptibility & BY_STI != 0, state.interruptibility & BY_MOV_SS != 0);
    let injected = state.event & EVENT_VALID != 0;
    let kind = state.event & EVENT_TYPE;
    let interrupt = injected && kind == EXTERNAL_INTERRUPT;
    let nmi = injected && kind == NMI;
    let stepping = state.rflags & RFLAGS_TF != 0 && state.debug_control & BTF == 0;
    let pending_step = state.pending_debug & SINGLE_STEP != 0;
    let settled = sti || mov_ss || state.activity == HLT_STATE;
    first_broken(&[
        (state.activity <= 3, "activity state: not one that there is"),
        (implies(state.activity == HLT_STATE, state.ss.dpl() == 0), "activity state HLT: the DPL of SS is not 0"),
        (implies(state.activity != 0, !sti && !mov_ss), "activity state: not active in an interrupt shadow"),
        (state.interruptibility & !0x1f == 0, "interruptibility: reserved bits"),
        (!(sti && mov_ss), "interruptibility: blocked by STI and by MOV SS at once"),
        (implies(sti, state.rflags & RFLAGS_IF != 0), "interruptibility: blocked by STI with RFLAGS.IF 0"),
        (implies(interrupt, !sti && !mov_ss), "interruptibility: an interrupt is injected into an interrupt shadow"),
        (implies(nmi, !mov_ss), "interruptibility: an NMI is injected behind MOV SS"),
        (state.interruptibility & BY_SMI == 0, "interruptibility: blocked by SMI outside of SMM"),
        (state.pending_debug & PENDING_RESERVED == 0, "pending debug exceptions: reserved bits"),
        (implies(settled && stepping, pending_step), "pending debug exceptions: BS is 0 after a step with RFLAGS.TF"),
        (implies(settled && !stepping, !pending_step), "pending debug exceptions: BS is 1 without RFLAGS.TF"),
        (state.link_pointer == u64::MAX, "VMCS link pointer: not FFFFFFFF_FFFFFFFFh"),
    ])
}

/// Section 27.3.1.6: with PAE paging under EPT, PDPTEs come from the VMCS.
fn pdptes(state: &GuestState) -> Result<(), &'static str> {
    let pae_paging = state.cr0 & CR0_PG != 0 && state.cr4 & CR4_PAE != 0 && !state.long_mode;
    let reserved = !0 << state.physical_bits | PDPTE_RESERVED;
    let valid = |pdpte: &u64| pdpte & PRESENT == 0 || pdpte & reserved == 0;
    first_broken(&[(!pae_paging || state.pdptes.iter().all(valid), "PDPTE: reserved bits of a present one")])
}

#[cfg(test)]
mod tests;
