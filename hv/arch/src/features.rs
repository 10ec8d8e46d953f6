//! The feature bits of CPUID that a guest may be shown, and what each promises (Intel SDM vol. 2, CPUID; AMD APM vol. 3,
//! appendix E).
//!
//! A bit that is not in [`FEATURES`] is never shown. Left out are those whose state the hypervisor would have to switch (XSAVE and
//! what lives in it), devices that it does not have (MONITOR), virtualization itself, performance counters, and power management.

use crate::{
    CR4_DE, CR4_FSGSBASE, CR4_MCE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_PAE, CR4_PGE, CR4_PSE, CR4_PVI, CR4_SMAP, CR4_SMEP,
    CR4_TSD, CR4_UMIP, CR4_VME, EFER_LME, EFER_NXE, EFER_SCE,
};
use x86::msr;

/// A register of a leaf of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the registers' own names")]
pub enum Register {
    Ebx,
    Ecx,
    Edx,
}

/// Which guests are shown a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Those whose processor has it: the guest uses the processor's.
    AsHost,
    /// All: the hypervisor provides it.
    Always,
}

/// Something that a guest relies on when it sees a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// RDMSR reads this register.
    ReadMsr(u32),
    /// RDMSR reads this register, and WRMSR takes back what was read.
    Msr(u32),
    /// The same for a register that is the guest's own in the processor: no access to it exits.
    OwnMsr(u32),
    /// These bits of CR4 can be set.
    Cr4(u64),
    /// This bit of EFER can be set.
    Efer(u64),
    /// The processor executes this instruction at CPL 0, which is the same in 32-bit and in 64-bit code. It leaves RBX, RSI, RDI
    /// and RBP as they are. Of memory it accesses at most 16 bytes at RSP, where RSP has to be a multiple of 16.
    Instruction(&'static [u8]),
    /// The same of an instruction that 64-bit code alone has.
    Instruction64(&'static [u8]),
}

/// One feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The manuals' name, in lower case.
    pub name: &'static str,
    /// The leaf; its subleaf is 0.
    pub leaf: u32,
    /// The register.
    pub register: Register,
    /// The bit, 0 to 31.
    pub bit: u32,
    /// Which guests are shown it.
    pub shown: Shown,
    /// What it promises. A feature without a promise changes how something works that is promised elsewhere.
    pub promises: &'static [Promise],
}

/// AMD's leaf 8000_0001h repeats these bits of leaf 1, EDX.
pub const REPEATED: u32 = 0x0183_f1ff;

/// Leaves, as the table names them.
const BASIC: u32 = 1;
const STRUCTURED: u32 = 7;
const EXTENDED: u32 = 0x8000_0001;
const POWER: u32 = 0x8000_0007;

/// IA32_MTRRCAP, the default type, and all fixed and variable MTRRs.
const MTRR: [Promise; 2 + FIXED_MTRRS.len() + VARIABLE_MTRRS] = {
    let mut promises = [Promise::ReadMsr(msr::IA32_MTRRCAP); 2 + FIXED_MTRRS.len() + VARIABLE_MTRRS];
    promises[1] = Promise::Msr(msr::IA32_MTRR_DEF_TYPE);
    let mut index = 0;
    while index < FIXED_MTRRS.len() {
        promises[2 + index] = Promise::Msr(FIXED_MTRRS[index]);
        index += 1;
    }
    index = 0;
    while index < VARIABLE_MTRRS {
        promises[2 + FIXED_MTRRS.len() + index] = Promise::Msr(msr::IA32_MTRR_PHYSBASE0 + index as u32);
        index += 1;
    }
    promises
};

/// The MTRRs of the first MiB, from its start on (Intel SDM vol. 3, table 12-9).
pub const FIXED_MTRRS: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// How many registers the variable ranges have: a base and a mask for each of eight.
pub const VARIABLE_MTRRS: usize = 16;

macro_rules! features {
    ($($leaf:ident $register:ident: $($bit:literal $name:literal $shown:ident $promises:expr;)+)+) => {
        /// All features.
        pub const FEATURES: &[Feature] = {
            use Promise::{Cr4, Efer, Instruction, Instruction64, Msr, OwnMsr, ReadMsr};
            &[$($(Feature {
                name: $name,
                leaf: $leaf,
                register: Register::$register,
                bit: $bit,
                shown: Shown::$shown,
                promises: &$promises,
            },)+)+]
        };
    };
}

features! {
    BASIC Edx:
        0 "fpu" AsHost [Instruction(&[0xdb, 0xe3])];
        1 "vme" AsHost [Cr4(CR4_VME | CR4_PVI)];
        2 "de" AsHost [Cr4(CR4_DE)];
        3 "pse" AsHost [Cr4(CR4_PSE)];
        4 "tsc" AsHost [Cr4(CR4_TSD), Msr(msr::TSC), Instruction(&[0x0f, 0x31])];
        5 "msr" AsHost [Msr(msr::IA32_EFER)];
        6 "pae" AsHost [Cr4(CR4_PAE)];
        7 "mce" AsHost [Cr4(CR4_MCE)];
        8 "cx8" AsHost [Instruction(&[0x0f, 0xc7, 0x0c, 0x24])];
        9 "apic" Always [Msr(msr::IA32_APIC_BASE)];
        11 "sep" AsHost [OwnMsr(msr::IA32_SYSENTER_CS), OwnMsr(msr::IA32_SYSENTER_ESP), OwnMsr(msr::IA32_SYSENTER_EIP)];
        12 "mtrr" Always MTRR;
        13 "pge" AsHost [Cr4(CR4_PGE)];
        14 "mca" AsHost [ReadMsr(msr::IA32_MCG_CAP), Msr(msr::IA32_MCG_STATUS)];
        15 "cmov" AsHost [Instruction(&[0x0f, 0x44, 0xc0])];
        16 "pat" AsHost [Msr(msr::IA32_PAT)];
        17 "pse36" AsHost [];
        19 "clfsh" AsHost [Instruction(&[0x0f, 0xae, 0x3c, 0x24])];
        23 "mmx" AsHost [Instruction(&[0x0f, 0x77])];
        24 "fxsr" AsHost [Cr4(CR4_OSFXSR)];
        25 "sse" AsHost [Cr4(CR4_OSXMMEXCPT), Instruction(&[0x0f, 0x57, 0xc0])];
        26 "sse2" AsHost [Instruction(&[0x66, 0x0f, 0x57, 0xc0])];
    BASIC Ecx:
        0 "sse3" AsHost [Instruction(&[0xf2, 0x0f, 0x7c, 0xc0])];
        1 "pclmulqdq" AsHost [Instruction(&[0x66, 0x0f, 0x3a, 0x44, 0xc0, 0])];
        9 "ssse3" AsHost [Instruction(&[0x66, 0x0f, 0x38, 0x1c, 0xc0])];
        13 "cx16" AsHost [Instruction64(&[0x48, 0x0f, 0xc7, 0x0c, 0x24])];
        19 "sse4_1" AsHost [Instruction(&[0x66, 0x0f, 0x38, 0x17, 0xc0])];
        20 "sse4_2" AsHost [Instruction(&[0x66, 0x0f, 0x38, 0x37, 0xc0])];
        21 "x2apic" Always [Msr(msr::IA32_APIC_BASE)];
        22 "movbe" AsHost [Instruction(&[0x0f, 0x38, 0xf0, 0x04, 0x24])];
        23 "popcnt" AsHost [Instruction(&[0xf3, 0x0f, 0xb8, 0xc0])];
        24 "tsc_deadline" Always [Msr(msr::IA32_TSC_DEADLINE)];
        25 "aes" AsHost [Instruction(&[0x66, 0x0f, 0x38, 0xdc, 0xc0])];
        30 "rdrand" AsHost [Instruction(&[0x0f, 0xc7, 0xf0])];
        31 "hypervisor" Always [];
    STRUCTURED Ebx:
        0 "fsgsbase" AsHost [Cr4(CR4_FSGSBASE)];
        1 "tsc_adjust" Always [Msr(msr::IA32_TSC_ADJUST)];
        3 "bmi1" AsHost [Instruction(&[0xf3, 0x0f, 0xbc, 0xc0])];
        7 "smep" AsHost [Cr4(CR4_SMEP)];
        8 "bmi2" AsHost [Instruction(&[0xc4, 0xe3, 0x7b, 0xf0, 0xc0, 1])];
        9 "erms" AsHost [];
        18 "rdseed" AsHost [Instruction(&[0x0f, 0xc7, 0xf8])];
        19 "adx" AsHost [Instruction(&[0x66, 0x0f, 0x38, 0xf6, 0xc0])];
        20 "smap" AsHost [Cr4(CR4_SMAP), Instruction(&[0x0f, 0x01, 0xca])];
        23 "clflushopt" AsHost [Instruction(&[0x66, 0x0f, 0xae, 0x3c, 0x24])];
        24 "clwb" AsHost [Instruction(&[0x66, 0x0f, 0xae, 0x34, 0x24])];
        29 "sha" AsHost [Instruction(&[0x0f, 0x38, 0xc8, 0xc0])];
    STRUCTURED Ecx:
        2 "umip" AsHost [Cr4(CR4_UMIP)];
    EXTENDED Ecx:
        0 "lahf64" AsHost [Instruction(&[0x9f])];
        4 "altmovcr8" AsHost [];
        5 "lzcnt" AsHost [Instruction(&[0xf3, 0x0f, 0xbd, 0xc0])];
        6 "sse4a" AsHost [Instruction(&[0x66, 0x0f, 0x78, 0xc0, 1, 1])];
        7 "misalignsse" AsHost [];
        8 "prefetchw" AsHost [Instruction(&[0x0f, 0x0d, 0x0c, 0x24])];
    EXTENDED Edx:
        11 "syscall" AsHost [
            Efer(EFER_SCE), OwnMsr(msr::IA32_STAR), OwnMsr(msr::IA32_LSTAR), OwnMsr(msr::IA32_CSTAR), OwnMsr(msr::IA32_FMASK)
        ];
        20 "nx" AsHost [Efer(EFER_NXE)];
        22 "mmxext" AsHost [];
        26 "page1gb" AsHost [];
        27 "rdtscp" AsHost [OwnMsr(msr::IA32_TSC_AUX), Instruction(&[0x0f, 0x01, 0xf9])];
        29 "lm" AsHost [
            Efer(EFER_LME), OwnMsr(msr::IA32_FS_BASE), OwnMsr(msr::IA32_GS_BASE), OwnMsr(msr::IA32_KERNEL_GSBASE)
        ];
    POWER Edx:
        8 "invariant_tsc" AsHost [];
}

/// The bits of one register of a leaf that are shown so.
#[must_use]
pub const fn bits(leaf: u32, register: Register, shown: Shown) -> u32 {
    let (mut bits, mut index) = (0, 0);
    while index < FEATURES.len() {
        let feature = &FEATURES[index];
        // Comparison by `==` is no const function.
        if feature.leaf == leaf && feature.register as u8 == register as u8 && feature.shown as u8 == shown as u8 {
            bits |= 1 << feature.bit;
        }
        index += 1;
    }
    bits
}

/// Some of [`FEATURES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet(u128);

const _: () = assert!(FEATURES.len() <= 128, "each has a bit");

impl FeatureSet {
    /// None of them.
    pub const EMPTY: Self = Self(0);

    /// Adds the feature of this name. False if there is none.
    pub fn insert(&mut self, name: &str) -> bool {
        let index = FEATURES.iter().position(|feature| feature.name == name);
        index.inspect(|index| self.0 |= 1 << index).is_some()
    }

    /// Each feature of the set.
    pub fn iter(self) -> impl Iterator<Item = &'static Feature> {
        FEATURES.iter().enumerate().filter(move |(index, _)| self.0 & 1 << index != 0).map(|(_, feature)| feature)
    }
}

/// What a VM's processor has to be: `-x2apic-smep+rdrand` is one without x2APIC and SMEP, and with RDRAND.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureChoice {
    /// The guest is not shown these.
    pub hidden: FeatureSet,
    /// The guest is shown these, or does not start.
    pub required: FeatureSet,
}

impl FeatureChoice {
    /// Reads names of features, each with its sign before it.
    ///
    /// # Errors
    /// The name that is not one of a feature, or has no sign.
    pub fn parse(text: &str) -> Result<Self, &str> {
        let mut choice = Self::default();
        let mut rest = text;
        while !rest.is_empty() {
            let signs = rest.match_indices(['+', '-']);
            let end = signs.map(|(at, _)| at).find(|&at| at > 0).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let known = match (word.strip_prefix('-'), word.strip_prefix('+')) {
                (Some(name), _) => choice.hidden.insert(name),
                (_, Some(name)) => choice.required.insert(name),
                _ => false,
            };
            if !known {
                return Err(word);
            }
            rest = after;
        }
        Ok(choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_of_features_is_read() {
        let choice = FeatureChoice::parse("-x2apic+sse2-smep").unwrap();
        let names = |set: FeatureSet| set.iter().map(|feature| feature.name).collect::<std::vec::Vec<_>>();
        assert_eq!((names(choice.hidden), names(choice.required)), (std::vec!["x2apic", "smep"], std::vec!["sse2"]));
        assert_eq!(FeatureChoice::parse(""), Ok(FeatureChoice::default()));
        for (text, wrong) in [("x2apic", "x2apic"), ("-x2apic-none", "-none"), ("+", "+"), ("-é", "-é"), ("é", "é")]
        {
            assert_eq!(FeatureChoice::parse(text), Err(wrong), "{text}");
        }
    }

    #[test]
    fn no_bit_and_no_name_is_there_twice() {
        for (index, feature) in FEATURES.iter().enumerate() {
            assert!(feature.bit < 32, "{feature:?}");
            for other in &FEATURES[..index] {
                assert_ne!(feature.name, other.name);
                let place = |feature: &Feature| (feature.leaf, feature.register, feature.bit);
                assert_ne!(place(feature), place(other), "{} and {}", feature.name, other.name);
            }
        }
    }

    #[test]
    fn bits_are_those_of_the_register_and_kind() {
        assert_eq!(bits(POWER, Register::Edx, Shown::AsHost), 1 << 8);
        assert_eq!(bits(BASIC, Register::Edx, Shown::Always), 1 << 9 | 1 << 12);
        assert_eq!(bits(STRUCTURED, Register::Ebx, Shown::Always), 1 << 1);
        assert_eq!(bits(POWER, Register::Ebx, Shown::AsHost), 0);
    }

    /// The names of `iced-x86`, where they are others.
    fn decoders_name(name: &str) -> &str {
        match name {
            "cx16" => "cmpxchg16b",
            // Of the first 8086; in 64-bit mode only with this bit.
            "lahf64" => "intel8086",
            name => name,
        }
    }

    #[test]
    fn each_instruction_is_one_that_its_feature_brings() {
        use iced_x86::{Decoder, DecoderOptions};
        for feature in FEATURES {
            for promise in feature.promises {
                let (Promise::Instruction(bytes) | Promise::Instruction64(bytes)) = promise else { continue };
                let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
                assert_eq!((instruction.is_invalid(), instruction.len()), (false, bytes.len()), "{}", feature.name);
                let needs: std::vec::Vec<_> = instruction
                    .cpuid_features()
                    .iter()
                    .map(|needed| std::format!("{needed:?}").to_ascii_lowercase())
                    .collect();
                let name = decoders_name(feature.name);
                assert!(needs.iter().any(|needed| needed == name), "{}: {bytes:02x?} needs {needs:?}", feature.name);
                let in_32_bits = Decoder::new(32, bytes, DecoderOptions::NONE).decode();
                let is_same = (in_32_bits.mnemonic(), in_32_bits.len()) == (instruction.mnemonic(), instruction.len());
                assert_eq!(is_same, matches!(promise, Promise::Instruction(_)), "{}: {in_32_bits:?}", feature.name);
            }
        }
    }
}
