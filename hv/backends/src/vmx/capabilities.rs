//! What this processor's VMX can do, read from its capability MSRs (Intel SDM vol. 3, appendix A), and the controls that
//! follow from it. Pure: the MSRs come from a function.

use crate::Missing;
use abi::reasons;
use addr::PageSize;
use arch::memory_type::WRITE_BACK;
use core::fmt;
use x86::msr;
use x86::vmx::vmcs::control::{EntryControls, ExitControls, PinbasedControls, PrimaryControls, SecondaryControls};

/// Control bits that have to be there, and what to say if they are not.
type Required = (u32, &'static str);

/// The control word with all of `required`, as much of `optional` as there is, and what is always on. `capability` has the
/// bits that must be 1 in its lower half and those that may be 1 in its upper one.
///
/// # Errors
/// The first of `required` that the processor does not have.
pub(super) fn adjust(required: &[Required], optional: u32, capability: u64) -> Result<u32, Missing> {
    let (always, allowed) = (capability as u32, (capability >> 32) as u32);
    let mut word = always | optional & allowed;
    for &(bits, name) in required {
        if bits & !allowed != 0 {
            return Err(Missing(name));
        }
        word |= bits;
    }
    Ok(word)
}

/// The five control words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Controls {
    pub(super) pin: u32,
    pub(super) primary: u32,
    pub(super) secondary: u32,
    pub(super) exit: u32,
    pub(super) entry: u32,
}

/// What a processor's VMX has of what this backend can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Guests can have nested paging; else the first thing missing for it.
    pub nested: Result<(), Missing>,
    /// Translations are kept from entry to entry, told apart by a VPID.
    pub vpid: bool,
    /// Real mode and unpaged protected mode run as they are.
    pub unrestricted_guest: bool,
    /// The largest leaf that EPT has; any where only software walks the nested tables.
    pub largest_page: PageSize,
    /// EPT has accessed and dirty bits.
    pub accessed_dirty: bool,
    /// INVEPT can flush one guest's translations alone.
    pub invept_single: bool,
    /// EFER is switched by entries and exits: else they switch its LME and LMA alone.
    pub efer: bool,
    /// PAT is switched by entries and exits: else they load it from lists of MSRs.
    pub pat: bool,
    /// The preemption timer counts once in 2^n ticks of the TSC.
    pub preemption_timer: Option<u8>,
    /// RDTSCP runs in the guest.
    pub rdtscp: bool,
    /// The guest's CR8 is in a page of memory, and accesses do not exit.
    pub tpr_shadow: bool,
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let largest = match self.largest_page {
            PageSize::Size1G => "1G",
            PageSize::Size2M | PageSize::Size4M => "2M",
            PageSize::Size4K => "4K",
        };
        match self.nested {
            Ok(()) => write!(f, "with EPT: pages up to {largest}")?,
            Err(_) => write!(f, "without EPT: {}EFER controls", if self.efer { "" } else { "no " })?,
        }
        let optional = [
            (self.unrestricted_guest, "unrestricted guest"),
            (self.vpid, "VPID"),
            (self.accessed_dirty, "EPT accessed and dirty bits"),
            (self.invept_single, "single-context INVEPT"),
            (self.pat, "PAT controls"),
            (self.preemption_timer.is_some(), "preemption timer"),
            (self.rdtscp, "RDTSCP"),
            (self.tpr_shadow, "TPR shadow"),
        ];
        for (present, name) in optional {
            write!(f, ", {}{name}", if present { "" } else { "no " })?;
        }
        Ok(())
    }
}

/// What entries need and use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Identifies the layout of VMXON regions and VMCSs.
    pub(super) revision: u32,
    pub(super) controls: Controls,
    pub(super) features: Features,
    /// The bits of CR0 that have to be 1 in VMX operation.
    pub(super) cr0_ones: u64,
    /// The bits of CR0 that may be 1.
    pub(super) cr0_allowed: u64,
    pub(super) cr4_ones: u64,
    pub(super) cr4_allowed: u64,
}

// IA32_VMX_BASIC (SDM appendix A.1).
const BASIC_MEMORY_TYPE_SHIFT: u32 = 50;
const BASIC_TRUE_CONTROLS: u64 = 1 << 55;

// IA32_VMX_EPT_VPID_CAP (SDM appendix A.10).
const EPT_FOUR_LEVELS: u64 = 1 << 6;
const EPT_WRITE_BACK: u64 = 1 << 14;
const EPT_2M: u64 = 1 << 16;
const EPT_1G: u64 = 1 << 17;
const INVEPT: u64 = 1 << 20;
const EPT_ACCESSED_DIRTY: u64 = 1 << 21;
const INVEPT_SINGLE: u64 = 1 << 25;
const INVEPT_ALL: u64 = 1 << 26;

// IA32_VMX_MISC (SDM appendix A.6): the preemption timer's rate.
const MISC_TIMER_RATE: u64 = 0x1f;

const PIN_REQUIRED: [Required; 3] = [
    (
        PinbasedControls::EXTERNAL_INTERRUPT_EXITING.bits(),
        "external-interrupt exiting: IA32_VMX_PINBASED_CTLS (481h) bit 32",
    ),
    (PinbasedControls::NMI_EXITING.bits(), "NMI exiting: IA32_VMX_PINBASED_CTLS (481h) bit 35"),
    (PinbasedControls::VIRTUAL_NMIS.bits(), "virtual NMIs: IA32_VMX_PINBASED_CTLS (481h) bit 37"),
];

const PRIMARY_REQUIRED: [Required; 8] = [
    (
        PrimaryControls::SECONDARY_CONTROLS.bits(),
        "secondary processor-based controls: IA32_VMX_PROCBASED_CTLS (482h) bit 63",
    ),
    (PrimaryControls::HLT_EXITING.bits(), "HLT exiting: IA32_VMX_PROCBASED_CTLS (482h) bit 39"),
    (PrimaryControls::UNCOND_IO_EXITING.bits(), "unconditional I/O exiting: IA32_VMX_PROCBASED_CTLS (482h) bit 56"),
    (PrimaryControls::USE_MSR_BITMAPS.bits(), "MSR bitmaps: IA32_VMX_PROCBASED_CTLS (482h) bit 60"),
    (PrimaryControls::USE_TSC_OFFSETTING.bits(), "TSC offsetting: IA32_VMX_PROCBASED_CTLS (482h) bit 35"),
    (PrimaryControls::MWAIT_EXITING.bits(), "MWAIT exiting: IA32_VMX_PROCBASED_CTLS (482h) bit 42"),
    (PrimaryControls::RDPMC_EXITING.bits(), "RDPMC exiting: IA32_VMX_PROCBASED_CTLS (482h) bit 43"),
    (PrimaryControls::MONITOR_EXITING.bits(), "MONITOR exiting: IA32_VMX_PROCBASED_CTLS (482h) bit 61"),
];

/// Required of processors without TPR shadow.
const CR8_EXITS: [Required; 2] = [
    (PrimaryControls::CR8_LOAD_EXITING.bits(), "CR8-load exiting: IA32_VMX_PROCBASED_CTLS (482h) bit 51"),
    (PrimaryControls::CR8_STORE_EXITING.bits(), "CR8-store exiting: IA32_VMX_PROCBASED_CTLS (482h) bit 52"),
];

const EXIT_REQUIRED: [Required; 2] = [
    (ExitControls::HOST_ADDRESS_SPACE_SIZE.bits(), "64-bit hosts: IA32_VMX_EXIT_CTLS (483h) bit 41"),
    (ExitControls::SAVE_DEBUG_CONTROLS.bits(), "saving debug controls: IA32_VMX_EXIT_CTLS (483h) bit 34"),
];

const ENTRY_REQUIRED: [Required; 2] = [
    (EntryControls::LOAD_DEBUG_CONTROLS.bits(), "loading debug controls: IA32_VMX_ENTRY_CTLS (484h) bit 34"),
    (EntryControls::IA32E_MODE_GUEST.bits(), "64-bit guests: IA32_VMX_ENTRY_CTLS (484h) bit 41"),
];

// What guests with nested paging need besides.
const SECONDARY_NESTED: [Required; 1] = [(SecondaryControls::ENABLE_EPT.bits(), reasons::EPT)];

const EPT_NESTED: [(u64, &str); 4] = [
    (EPT_FOUR_LEVELS, "EPT of four levels: IA32_VMX_EPT_VPID_CAP (48Ch) bit 6"),
    (EPT_WRITE_BACK, "write-back EPT: IA32_VMX_EPT_VPID_CAP (48Ch) bit 14"),
    (INVEPT, "INVEPT: IA32_VMX_EPT_VPID_CAP (48Ch) bit 20"),
    (INVEPT_SINGLE | INVEPT_ALL, "a type of INVEPT: IA32_VMX_EPT_VPID_CAP (48Ch) bit 25 or 26"),
];

const EXIT_NESTED: [Required; 2] = [
    (ExitControls::SAVE_IA32_EFER.bits(), "saving IA32_EFER at exits: IA32_VMX_EXIT_CTLS (483h) bit 52"),
    (ExitControls::LOAD_IA32_EFER.bits(), "loading IA32_EFER at exits: IA32_VMX_EXIT_CTLS (483h) bit 53"),
];

const ENTRY_NESTED: [Required; 1] =
    [(EntryControls::LOAD_IA32_EFER.bits(), "loading IA32_EFER at entries: IA32_VMX_ENTRY_CTLS (484h) bit 47")];

const EXIT_EFER: u32 = ExitControls::SAVE_IA32_EFER.bits() | ExitControls::LOAD_IA32_EFER.bits();
const EXIT_PAT: u32 = ExitControls::SAVE_IA32_PAT.bits() | ExitControls::LOAD_IA32_PAT.bits();

impl Controls {
    fn new(msr: &impl Fn(u32) -> u64, true_controls: bool) -> Result<Self, Missing> {
        let (pin, primary, exit, entry) = if true_controls {
            (
                msr::IA32_VMX_TRUE_PINBASED_CTLS,
                msr::IA32_VMX_TRUE_PROCBASED_CTLS,
                msr::IA32_VMX_TRUE_EXIT_CTLS,
                msr::IA32_VMX_TRUE_ENTRY_CTLS,
            )
        } else {
            (
                msr::IA32_VMX_PINBASED_CTLS,
                msr::IA32_VMX_PROCBASED_CTLS,
                msr::IA32_VMX_EXIT_CTLS,
                msr::IA32_VMX_ENTRY_CTLS,
            )
        };
        let tpr_shadow = PrimaryControls::USE_TPR_SHADOW.bits();
        let mut primary_controls = adjust(&PRIMARY_REQUIRED, tpr_shadow, msr(primary))?;
        if primary_controls & tpr_shadow == 0 {
            primary_controls |= adjust(&CR8_EXITS, 0, msr(primary))?;
        }
        let optional = SecondaryControls::ENABLE_EPT
            | SecondaryControls::ENABLE_VPID
            | SecondaryControls::UNRESTRICTED_GUEST
            | SecondaryControls::ENABLE_RDTSCP;
        let entry_optional = EntryControls::LOAD_IA32_EFER | EntryControls::LOAD_IA32_PAT;
        Ok(Self {
            pin: adjust(&PIN_REQUIRED, PinbasedControls::VMX_PREEMPTION_TIMER.bits(), msr(pin))?,
            primary: primary_controls,
            // There, as the primary controls have shown.
            secondary: adjust(&[], optional.bits(), msr(msr::IA32_VMX_PROCBASED_CTLS2))?,
            exit: adjust(&EXIT_REQUIRED, EXIT_EFER | EXIT_PAT, msr(exit))?,
            // A guest starts outside of long mode.
            entry: adjust(&ENTRY_REQUIRED, entry_optional.bits(), msr(entry))?
                & !EntryControls::IA32E_MODE_GUEST.bits(),
        })
    }

    /// The same for a guest whose page tables have a shadow: what changes those exits. Without VPID, each entry and exit drops
    /// all translations.
    fn without_ept(mut self) -> Self {
        let (ept, unrestricted) = (SecondaryControls::ENABLE_EPT, SecondaryControls::UNRESTRICTED_GUEST);
        self.secondary &= !(ept | unrestricted).bits();
        self.do_without_vpid();
        let cr3 = PrimaryControls::CR3_LOAD_EXITING | PrimaryControls::CR3_STORE_EXITING;
        self.primary |= (cr3 | PrimaryControls::INVLPG_EXITING).bits();
        self
    }

    fn has_secondary(&self, control: SecondaryControls) -> bool {
        self.secondary & control.bits() != 0
    }

    /// Unpaged code runs on an identity map that the hypervisor puts in place of the guest's tables, and takes away. Without
    /// VPID each entry and exit drops the translations of the one or the other.
    fn do_without_vpid(&mut self) {
        self.secondary &= !SecondaryControls::ENABLE_VPID.bits();
    }

    /// A register is switched in both directions, by all these controls, or in none.
    fn settle(&mut self, exit: u32, entry: EntryControls) -> bool {
        let whole = self.exit & exit == exit && self.entry & entry.bits() != 0;
        if !whole {
            self.exit &= !exit;
            self.entry &= !entry.bits();
        }
        whole
    }

    /// Whether guests can have nested paging, with `ept` in IA32_VMX_EPT_VPID_CAP.
    ///
    /// # Errors
    /// The first thing missing.
    fn nested(&self, ept: u64) -> Result<(), Missing> {
        let lacks = |word: u32, required: &[Required]| required.iter().find(|(bits, _)| bits & !word != 0).map(|r| r.1);
        let lacks_ept = || EPT_NESTED.iter().find(|(bits, _)| ept & bits == 0).map(|r| r.1);
        lacks(self.secondary, &SECONDARY_NESTED)
            .or_else(lacks_ept)
            .or_else(|| lacks(self.exit, &EXIT_NESTED))
            .or_else(|| lacks(self.entry, &ENTRY_NESTED))
            .map_or(Ok(()), |name| Err(Missing(name)))
    }
}

impl Capabilities {
    /// What is used under shadow paging.
    pub(super) fn without_ept(self) -> Self {
        let features = Features { unrestricted_guest: false, vpid: false, ..self.features };
        Self { controls: self.controls.without_ept(), features, ..self }
    }

    /// Reads the capability MSRs by `msr`; only those that are there are read.
    ///
    /// # Errors
    /// The first thing missing.
    pub(super) fn read(msr: impl Fn(u32) -> u64) -> Result<Self, Missing> {
        let basic = msr(msr::IA32_VMX_BASIC);
        if basic >> BASIC_MEMORY_TYPE_SHIFT & 0xf != WRITE_BACK {
            return Err(Missing("write-back memory for VMCSs: IA32_VMX_BASIC (480h) bits 53:50 are not 6"));
        }
        let mut controls = Controls::new(&msr, basic & BASIC_TRUE_CONTROLS != 0)?;
        let has_ept = controls.has_secondary(SecondaryControls::ENABLE_EPT);
        let ept = if has_ept { msr(msr::IA32_VMX_EPT_VPID_CAP) } else { 0 };
        let nested = controls.nested(ept);
        let efer = controls.settle(EXIT_EFER, EntryControls::LOAD_IA32_EFER);
        let pat = controls.settle(EXIT_PAT, EntryControls::LOAD_IA32_PAT);
        let unrestricted_guest = controls.has_secondary(SecondaryControls::UNRESTRICTED_GUEST);
        if !unrestricted_guest {
            controls.do_without_vpid();
        }
        let timer = controls.pin & PinbasedControls::VMX_PREEMPTION_TIMER.bits() != 0;
        let features = Features {
            nested,
            vpid: controls.has_secondary(SecondaryControls::ENABLE_VPID),
            unrestricted_guest,
            largest_page: match ept & (EPT_1G | EPT_2M) {
                _ if nested.is_err() => PageSize::Size1G,
                0 => PageSize::Size4K,
                EPT_2M => PageSize::Size2M,
                _ => PageSize::Size1G,
            },
            accessed_dirty: ept & EPT_ACCESSED_DIRTY != 0,
            invept_single: ept & INVEPT_SINGLE != 0,
            efer,
            pat,
            preemption_timer: timer.then(|| (msr(msr::IA32_VMX_MISC) & MISC_TIMER_RATE) as u8),
            rdtscp: controls.has_secondary(SecondaryControls::ENABLE_RDTSCP),
            tpr_shadow: controls.primary & PrimaryControls::USE_TPR_SHADOW.bits() != 0,
        };
        Ok(Self {
            revision: basic as u32 & 0x7fff_ffff,
            controls,
            features,
            cr0_ones: msr(msr::IA32_VMX_CR0_FIXED0),
            cr0_allowed: msr(msr::IA32_VMX_CR0_FIXED1),
            cr4_ones: msr(msr::IA32_VMX_CR4_FIXED0),
            cr4_allowed: msr(msr::IA32_VMX_CR4_FIXED1),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::string::ToString;

    /// The MSRs of Bochs 2.7's `corei7_skylake_x`.
    pub(in crate::vmx) fn skylake(register: u32) -> u64 {
        match register {
            msr::IA32_VMX_BASIC => 0x00d8_1000_0000_002b,
            msr::IA32_VMX_TRUE_PINBASED_CTLS => 0x0000_007f_0000_0016,
            msr::IA32_VMX_TRUE_PROCBASED_CTLS => 0xf7f9_fffe_0400_6172,
            msr::IA32_VMX_TRUE_EXIT_CTLS => 0x007f_ffff_0003_6dfb,
            msr::IA32_VMX_TRUE_ENTRY_CTLS => 0x0000_ffff_0000_11fb,
            msr::IA32_VMX_MISC => 0x6004_01e0,
            msr::IA32_VMX_CR0_FIXED0 => 0x8000_0021,
            msr::IA32_VMX_CR0_FIXED1 => 0xffff_ffff,
            msr::IA32_VMX_CR4_FIXED0 => 0x2000,
            msr::IA32_VMX_CR4_FIXED1 => 0x0037_27ff,
            msr::IA32_VMX_PROCBASED_CTLS2 => 0x0217_7fff_0000_0000,
            msr::IA32_VMX_EPT_VPID_CAP => 0x0000_0f01_0633_4141,
            // The words without "true" must not be read where there are true ones.
            _ => panic!("MSR {register:#x} was read"),
        }
    }

    #[test]
    fn a_control_word_has_what_is_required_what_is_there_and_what_is_always_on() {
        let capability = 0x0000_00f6_0000_0016;
        assert_eq!(adjust(&[(1 << 5, "five")], 1 << 6 | 1 << 3, capability), Ok(0x76));
        assert_eq!(adjust(&[(1 << 5, "five"), (1 << 3, "three")], 0, capability), Err(Missing("three")));
        assert_eq!(adjust(&[], 0, capability), Ok(0x16));
    }

    #[test]
    fn a_processor_with_everything_gets_everything() {
        let found = Capabilities::read(skylake).expect("nothing is missing");
        assert_eq!(found.revision, 0x2b);
        let everything = Features {
            nested: Ok(()),
            vpid: true,
            unrestricted_guest: true,
            largest_page: PageSize::Size1G,
            accessed_dirty: true,
            invept_single: true,
            efer: true,
            pat: true,
            preemption_timer: Some(0),
            rdtscp: true,
            tpr_shadow: true,
        };
        assert_eq!(found.features, everything);
        // Neither CR3 exits, which the true controls spare, nor an interrupt window without a request.
        assert_eq!(found.controls.primary, 0xb520_6dfa);
        assert_eq!(found.controls.pin, 0x7f);
        assert_eq!(found.controls.entry & 1 << 9, 0);
    }

    #[test]
    fn without_true_controls_the_older_words_are_read() {
        let found = Capabilities::read(|register| match register {
            msr::IA32_VMX_BASIC => skylake(register) & !BASIC_TRUE_CONTROLS,
            msr::IA32_VMX_PROCBASED_CTLS => 0xf7f9_fffe_0401_e172,
            msr::IA32_VMX_PINBASED_CTLS => 0x0000_007f_0000_0016,
            msr::IA32_VMX_EXIT_CTLS => 0x007f_ffff_0003_6dff,
            msr::IA32_VMX_ENTRY_CTLS => 0x0000_ffff_0000_11ff,
            msr::IA32_VMX_TRUE_PROCBASED_CTLS => panic!("there are no true controls"),
            _ => skylake(register),
        });
        assert_eq!(found.expect("nothing is missing").controls.primary, 0xb521_edfa);
    }

    #[test]
    fn what_is_missing_is_named() {
        let without = |register: u32, bits: u64| {
            Capabilities::read(move |msr| if msr == register { skylake(msr) & !bits } else { skylake(msr) })
        };
        let hlt = without(msr::IA32_VMX_TRUE_PROCBASED_CTLS, 1 << 39);
        assert_eq!(hlt, Err(Missing("HLT exiting: IA32_VMX_PROCBASED_CTLS (482h) bit 39")));
        let name = |found: Result<Capabilities, Missing>| {
            found.expect("guests without nested paging can do without").features.nested.map_err(|missing| missing.0)
        };
        let no_cr8 = without(msr::IA32_VMX_TRUE_PROCBASED_CTLS, 1 << 53 | 1 << 52);
        assert_eq!(no_cr8, Err(Missing("CR8-store exiting: IA32_VMX_PROCBASED_CTLS (482h) bit 52")));
        let ept = name(without(msr::IA32_VMX_PROCBASED_CTLS2, 1 << 33));
        assert_eq!(ept, Err(reasons::EPT));
        let invept = name(without(msr::IA32_VMX_EPT_VPID_CAP, INVEPT_SINGLE | INVEPT_ALL));
        assert!(invept.is_err_and(|name| name.contains("bit 25 or 26")));
        let levels = name(without(msr::IA32_VMX_EPT_VPID_CAP, EPT_FOUR_LEVELS));
        assert!(levels.is_err_and(|name| name.contains("48Ch) bit 6")));
        let efer = name(without(msr::IA32_VMX_TRUE_ENTRY_CTLS, 1 << 47));
        assert!(efer.is_err_and(|name| name.contains("484h) bit 47")));
    }

    /// As Bochs's `core2_penryn_t9600` has it.
    #[test]
    fn a_processor_without_ept_has_guests_without_nested_paging() {
        let found = Capabilities::read(|register| match register {
            msr::IA32_VMX_PROCBASED_CTLS2 => 0,
            msr::IA32_VMX_TRUE_EXIT_CTLS => skylake(register) & !(0x3c << 48),
            msr::IA32_VMX_TRUE_ENTRY_CTLS => skylake(register) & !(3 << 46),
            msr::IA32_VMX_EPT_VPID_CAP => panic!("a processor without EPT and VPID does not have it"),
            _ => skylake(register),
        });
        let found = found.expect("shadow tables suffice");
        assert!(found.features.nested.is_err() && !found.features.efer && !found.features.pat);
        assert_eq!((found.controls.exit & (EXIT_EFER | EXIT_PAT), found.controls.entry & 3 << 14), (0, 0));
        assert_eq!(found.without_ept().controls.secondary, 0);
        assert!(found.features.to_string().starts_with("without EPT: no EFER controls, no unrestricted guest"));
    }

    #[test]
    fn an_identity_map_excludes_vpid() {
        let found = Capabilities::read(|register| match register {
            msr::IA32_VMX_PROCBASED_CTLS2 => skylake(register) & !(1 << 39),
            _ => skylake(register),
        });
        let found = found.expect("unrestricted guest is optional");
        assert!(!found.features.vpid);
        assert_eq!(found.controls.secondary & SecondaryControls::ENABLE_VPID.bits(), 0);
    }

    #[test]
    fn what_is_optional_is_done_without() {
        let found = Capabilities::read(|register| match register {
            msr::IA32_VMX_PROCBASED_CTLS2 => 1 << 33,
            msr::IA32_VMX_EPT_VPID_CAP => EPT_FOUR_LEVELS | EPT_WRITE_BACK | INVEPT | INVEPT_ALL,
            // Loads PAT at entries, but can't at exits.
            msr::IA32_VMX_TRUE_EXIT_CTLS => skylake(register) & !(1 << 51),
            msr::IA32_VMX_TRUE_PINBASED_CTLS => skylake(register) & !(1 << 38),
            msr::IA32_VMX_TRUE_PROCBASED_CTLS => skylake(register) & !(1 << 53),
            _ => skylake(register),
        });
        let found = found.expect("the rest suffices");
        assert_eq!((found.controls.exit & EXIT_PAT, found.controls.entry & 1 << 14), (0, 0));
        let report = found.features.to_string();
        assert_eq!(found.controls.secondary, 1 << 1);
        let nothing = "with EPT: pages up to 4K, no unrestricted guest, no VPID, no EPT accessed and dirty bits, \
                       no single-context INVEPT, no PAT controls, no preemption timer, no RDTSCP, no TPR shadow";
        assert_eq!(report, nothing);
        let cr8 = PrimaryControls::CR8_LOAD_EXITING | PrimaryControls::CR8_STORE_EXITING;
        assert_eq!(found.controls.primary & cr8.bits(), cr8.bits());
    }
}
