//! What CPUID tells the guest: one table, made once for a vCPU from what the processor has and what the hypervisor can keep.

use abi::cpuid::{LEAF as HYPERVISOR_LEAF, SIGNATURE};
use arch::CR4_PCE;
use arch::features::{self, FEATURES, Feature, FeatureSet, Promise, REPEATED, Register, Shown};
use emul::interpreter::{Extension, Extensions};
use walk::Features;

/// EAX, EBX, ECX and EDX of one leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the registers' own names")]
pub struct Leaf {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// The processor's own CPUID, by leaf and subleaf.
pub type HostCpuid = fn(leaf: u32, subleaf: u32) -> Leaf;

const EXTENDED: u32 = 0x8000_0000;
const EXTENDED_END: u32 = EXTENDED + 0x20;
/// Where the extended leaves begin in the table: behind the basic ones.
const EXTENDED_PLACE: u32 = 0x17;
const LEAVES: usize = (EXTENDED_PLACE + EXTENDED_END - EXTENDED) as usize + 1;

/// Leaves whose answer depends on ECX; each has up to this many subleaves here.
const SUBLEAVES: usize = 8;
const WITH_SUBLEAVES: [u32; 3] = [4, 7, 0x8000_001d];
/// One more: the topology, which is the VM's and not the processor's.
const TOPOLOGY: u32 = 0xb;

/// What the guest may see of a feature register: the processor's bits under `keep`, and `add` besides.
struct Mask {
    leaf: u32,
    keep: Leaf,
    add: Leaf,
}

const NONE: Leaf = Leaf { eax: 0, ebx: 0, ecx: 0, edx: 0 };
const ALL: Leaf = Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };

/// The bits of `leaf` that [`FEATURES`] has.
const fn feature_bits(leaf: u32, shown: Shown) -> Leaf {
    Leaf {
        eax: 0,
        ebx: features::bits(leaf, Register::Ebx, shown),
        ecx: features::bits(leaf, Register::Ecx, shown),
        edx: features::bits(leaf, Register::Edx, shown),
    }
}

/// A leaf of feature bits, and what else it has of the processor's.
const fn feature_mask(leaf: u32, besides: Leaf) -> Mask {
    let host = feature_bits(leaf, Shown::AsHost);
    let keep = Leaf {
        eax: besides.eax,
        ebx: host.ebx | besides.ebx,
        ecx: host.ecx | besides.ecx,
        edx: host.edx | besides.edx,
    };
    Mask { leaf, keep, add: feature_bits(leaf, Shown::Always) }
}

/// The leaves (Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E). Their feature bits are those of [`FEATURES`]. A leaf that is
/// not listed reads as zero.
const MASKS: [Mask; 14] = [
    // Largest basic leaf, vendor.
    Mask { leaf: 0, keep: ALL, add: NONE },
    // Family and model; the size of a cache line. APIC IDs and their number are the VM's own.
    feature_mask(1, Leaf { eax: u32::MAX, ebx: 0x0000_ff00, ..NONE }),
    // Caches.
    Mask { leaf: 2, keep: ALL, add: NONE },
    Mask { leaf: 4, keep: Leaf { eax: 0x0000_03ff, ..ALL }, add: NONE },
    feature_mask(7, NONE),
    // TSC and core crystal clock ratio.
    Mask { leaf: 0x15, keep: ALL, add: NONE },
    Mask { leaf: 0x16, keep: ALL, add: NONE },
    // Largest extended leaf, vendor.
    Mask { leaf: 0x8000_0000, keep: ALL, add: NONE },
    feature_mask(0x8000_0001, Leaf { eax: u32::MAX, edx: REPEATED, ..NONE }),
    // The processor's name is copied below. Caches and TLBs.
    Mask { leaf: 0x8000_0005, keep: ALL, add: NONE },
    Mask { leaf: 0x8000_0006, keep: ALL, add: NONE },
    feature_mask(0x8000_0007, NONE),
    // Address widths; one core.
    Mask { leaf: 0x8000_0008, keep: Leaf { eax: 0xffff, ..NONE }, add: NONE },
    Mask { leaf: 0x8000_001d, keep: Leaf { eax: 0x0000_03ff, ..ALL }, add: NONE },
];

/// The processor's name, 48 characters in three leaves.
const NAME: core::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;

/// A guest's CPUID.
///
/// All leaves stand in one array, basic ones first, then extended ones, then this hypervisor's; a leaf with subleaves has in
/// EAX which group of them answers.
pub struct Table {
    leaves: [Leaf; LEAVES],
    has_subleaves: [bool; LEAVES],
    subleaves: [[Leaf; SUBLEAVES]; WITH_SUBLEAVES.len() + 1],
    /// What Intel's processors answer past their last leaf; AMD's answer zero.
    past_the_end: Leaf,
    last_basic: u32,
    last_extended: u32,
    /// The guest is never shown its APIC.
    hides_apic: bool,
}

/// Where a leaf stands in [`Table::leaves`], if the array has a place for it.
#[inline]
const fn place(leaf: u32) -> Option<usize> {
    match leaf {
        0..EXTENDED_PLACE => Some(leaf as usize),
        EXTENDED..EXTENDED_END => Some((leaf - EXTENDED + EXTENDED_PLACE) as usize),
        HYPERVISOR_LEAF => Some(LEAVES - 1),
        _ => None,
    }
}

impl Mask {
    fn apply(&self, host: Leaf) -> Leaf {
        Leaf {
            eax: host.eax & self.keep.eax | self.add.eax,
            ebx: host.ebx & self.keep.ebx | self.add.ebx,
            ecx: host.ecx & self.keep.ecx | self.add.ecx,
            edx: host.edx & self.keep.edx | self.add.edx,
        }
    }
}

fn word(bytes: &[u8; 12], index: usize) -> u32 {
    u32::from_le_bytes([bytes[index * 4], bytes[index * 4 + 1], bytes[index * 4 + 2], bytes[index * 4 + 3]])
}

/// Leaf 1, EDX: the package has several logical processors.
const HYPER_THREADING: u32 = 1 << 28;

/// What a VM's processors have of the host's.
#[derive(Clone, Copy, Debug)]
pub struct CpuModel {
    /// Whether they have long mode.
    pub long_mode: bool,
    /// The features that they lack besides.
    pub hidden: FeatureSet,
}

/// Which of its VM's vCPUs one is. They are cores of one package, one thread each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Its number, and its APIC's.
    pub index: usize,
    /// How many there are.
    pub vcpus: usize,
}

impl Topology {
    /// Bits of an APIC ID that tell cores apart.
    fn width(self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    /// Leaf 1, EBX: initial APIC ID, and how many IDs there are in the package.
    fn initial_apic(self) -> u32 {
        (self.index as u32) << 24 | 1 << (16 + self.width())
    }

    /// Leaf 0Bh: level 0 is the thread, level 1 the core; EDX is the x2APIC ID (Intel SDM vol. 2, table 3-8).
    fn level(self, level: u32) -> Leaf {
        let (eax, ebx, kind) = match level {
            0 => (0, 1, 1),
            1 => (self.width(), self.vcpus as u32, 2),
            _ => (0, 0, 0),
        };
        Leaf { eax, ebx, ecx: kind << 8 | level, edx: self.index as u32 }
    }
}

impl Table {
    /// The table for a vCPU on the processor of `host`.
    pub fn new(host: HostCpuid, topology: Topology) -> Self {
        let vendor = host(0, 0);
        let is_amd = (vendor.ebx, vendor.edx, vendor.ecx) == (0x6874_7541, 0x6974_6e65, 0x444d_4163);
        let mut table = Self {
            leaves: [NONE; LEAVES],
            has_subleaves: [false; LEAVES],
            subleaves: [[NONE; SUBLEAVES]; WITH_SUBLEAVES.len() + 1],
            past_the_end: NONE,
            last_basic: vendor.eax.min(EXTENDED_PLACE - 1),
            last_extended: host(EXTENDED, 0).eax.clamp(EXTENDED, EXTENDED_END - 1),
            hides_apic: false,
        };
        for mask in &MASKS {
            table.set(mask.leaf, mask.apply(host(mask.leaf, 0)));
        }
        for leaf in NAME {
            table.set(leaf, host(leaf, 0));
        }
        for (group, leaf) in WITH_SUBLEAVES.into_iter().enumerate() {
            table.set_subleaves(group, leaf, host);
        }
        table.set_topology(topology);
        table.set(0, Leaf { eax: table.last_basic, ..table.get(0, 0) });
        table.set(EXTENDED, Leaf { eax: table.last_extended, ..table.get(EXTENDED, 0) });
        let [ebx, ecx, edx] = [0, 1, 2].map(|index| word(SIGNATURE, index));
        table.set(HYPERVISOR_LEAF, Leaf { eax: HYPERVISOR_LEAF, ebx, ecx, edx });
        if !is_amd {
            table.past_the_end = table.get(table.last_basic, 0);
            let absent = (table.last_basic + 1..EXTENDED_PLACE).chain(table.last_extended + 1..EXTENDED_END);
            absent.filter_map(place).for_each(|place| table.leaves[place] = table.past_the_end);
        }
        table
    }

    fn exists(&self, leaf: u32) -> bool {
        leaf <= self.last_basic || (EXTENDED..=self.last_extended).contains(&leaf) || leaf == HYPERVISOR_LEAF
    }

    fn set(&mut self, leaf: u32, answer: Leaf) {
        if let Some(place) = place(leaf).filter(|_| self.exists(leaf)) {
            self.leaves[place] = answer;
        }
    }

    fn set_subleaves(&mut self, group: usize, leaf: u32, host: HostCpuid) {
        let mask = MASKS.iter().find(|mask| mask.leaf == leaf);
        if let (Some(place), Some(mask), true) = (place(leaf), mask, self.exists(leaf)) {
            self.leaves[place] = Leaf { eax: group as u32, ..NONE };
            self.has_subleaves[place] = true;
            for (subleaf, answer) in (0..).zip(&mut self.subleaves[group]) {
                *answer = mask.apply(host(leaf, subleaf));
            }
        }
    }

    /// Without the features that `model` lacks.
    #[must_use]
    pub fn of_model(mut self, model: CpuModel) -> Self {
        if !model.long_mode {
            self.hide_long_mode();
        }
        self.hide(model.hidden);
        self
    }

    fn hide(&mut self, hidden: FeatureSet) {
        for Feature { name, leaf, register, bit, .. } in hidden.iter() {
            self.hides_apic |= *name == "apic";
            let bits = 1u32 << bit;
            self.clear(*leaf, *register, bits);
            if *leaf == 1 && *register == Register::Edx {
                self.clear(0x8000_0001, Register::Edx, bits & REPEATED);
            }
        }
    }

    fn clear(&mut self, leaf: u32, register: Register, bits: u32) {
        let Some(answer) = place(leaf).map(|place| match self.has_subleaves[place] {
            true => &mut self.subleaves[self.leaves[place].eax as usize][0],
            false => &mut self.leaves[place],
        }) else {
            return;
        };
        match register {
            Register::Ebx => answer.ebx &= !bits,
            Register::Ecx => answer.ecx &= !bits,
            Register::Edx => answer.edx &= !bits,
        }
    }

    /// The first feature of `required` that the guest is not shown.
    pub fn missing(&self, required: FeatureSet) -> Option<&'static Feature> {
        required.iter().find(|feature| !self.shows(feature))
    }

    /// An APIC that is off is not there (Intel SDM vol. 3, section 11.4.3).
    pub(crate) fn set_apic(&mut self, on: bool) {
        const APIC: u32 = 1 << 9;
        let features = self.get(1, 0);
        let edx = if on && !self.hides_apic { features.edx | APIC } else { features.edx & !APIC };
        self.set(1, Leaf { edx, ..features });
    }

    /// Without long mode there are neither its instructions nor its pages: LAHF64, SYSCALL as Intel has it, 1 GiB pages, LM.
    fn hide_long_mode(&mut self) {
        let features = self.get(0x8000_0001, 0);
        let keep_syscall = if self.is_amd() { 1 << 11 } else { 0 };
        let hidden = (1 << 11 | 1 << 26 | 1 << 29) & !keep_syscall;
        self.set(0x8000_0001, Leaf { ecx: features.ecx & !1, edx: features.edx & !hidden, ..features });
    }

    fn is_amd(&self) -> bool {
        self.get(0, 0).ebx == u32::from_le_bytes(*b"Auth")
    }

    fn set_topology(&mut self, topology: Topology) {
        let features = self.get(1, 0);
        let several = if topology.vcpus > 1 { HYPER_THREADING } else { 0 };
        let edx = features.edx | several;
        self.set(1, Leaf { ebx: features.ebx | topology.initial_apic(), edx, ..features });
        if let Some(place) = place(TOPOLOGY).filter(|_| self.exists(TOPOLOGY)) {
            let group = WITH_SUBLEAVES.len();
            self.leaves[place] = Leaf { eax: group as u32, ..NONE };
            self.has_subleaves[place] = true;
            for (level, answer) in (0..).zip(&mut self.subleaves[group]) {
                *answer = topology.level(level);
            }
        }
    }

    /// The answers that walks of the guest's tables depend on.
    pub(crate) fn walk_features(&self) -> Features {
        let basic = self.get(1, 0);
        let extended = self.get(0x8000_0001, 0);
        let widths = self.get(0x8000_0008, 0);
        Features {
            maxphyaddr: (widths.eax as u8).clamp(36, 52),
            pages_1g: extended.edx & 1 << 26 != 0,
            pse36: basic.edx & 1 << 17 != 0,
            pml4e_bit8_reserved: self.is_amd(),
        }
    }

    /// The instructions that the guest is shown, of those that are other ones elsewhere.
    pub(crate) fn extensions(&self) -> Extensions {
        let leaf = |leaf| if self.exists(leaf) { self.get(leaf, 0) } else { NONE };
        let (basic, structured, extended) = (leaf(1), leaf(7), leaf(0x8000_0001));
        let all = [
            (Extension::Movbe, basic.ecx, 22),
            (Extension::Popcnt, basic.ecx, 23),
            (Extension::Bmi1, structured.ebx, 3),
            (Extension::Lzcnt, extended.ecx, 5),
        ];
        Extensions::of(all.into_iter().filter(|(_, word, bit)| word >> bit & 1 != 0).map(|(extension, ..)| extension))
    }

    /// Whether the guest is shown the feature.
    fn shows(&self, feature: &Feature) -> bool {
        let leaf = self.get(feature.leaf, 0);
        let word = match feature.register {
            Register::Ebx => leaf.ebx,
            Register::Ecx => leaf.ecx,
            Register::Edx => leaf.edx,
        };
        word & 1 << feature.bit != 0
    }

    /// What the features promise that the guest is shown.
    pub(crate) fn promises(&self) -> impl Iterator<Item = Promise> {
        FEATURES.iter().filter(|feature| self.shows(feature)).flat_map(|feature| feature.promises.iter().copied())
    }

    /// CR4's bits that go with what CPUID offers (Intel SDM vol. 3, section 2.5). PCE is always there, as RDPMC is.
    pub(crate) fn cr4_bits(&self) -> u64 {
        let bits = self.promises().filter_map(|promise| match promise {
            Promise::Cr4(bits) => Some(bits),
            _ => None,
        });
        bits.fold(CR4_PCE, |all, bits| all | bits)
    }

    /// EFER's bits that go with what CPUID offers.
    pub(crate) fn efer_bits(&self) -> u64 {
        let bits = self.promises().filter_map(|promise| match promise {
            Promise::Efer(bit) => Some(bit),
            _ => None,
        });
        bits.fold(0, |all, bit| all | bit)
    }

    /// Whether the APIC has x2APIC mode.
    pub(crate) fn has_x2apic(&self) -> bool {
        self.get(1, 0).ecx & 1 << 21 != 0
    }

    /// The answer to CPUID with `leaf` in EAX and `subleaf` in ECX.
    #[inline]
    pub fn get(&self, leaf: u32, subleaf: u32) -> Leaf {
        let Some(place) = place(leaf) else { return self.past_the_end };
        let answer = self.leaves[place];
        if self.has_subleaves[place] {
            let group = self.subleaves.get(answer.eax as usize);
            return group.and_then(|group| group.get(subleaf as usize)).copied().unwrap_or_default();
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor that has everything: every bit set, as many leaves as there can be.
    fn generous(leaf: u32, _subleaf: u32) -> Leaf {
        match leaf {
            0 => Leaf { eax: 0x20, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69 },
            EXTENDED => Leaf { eax: EXTENDED + 0x1f, ..NONE },
            _ => ALL,
        }
    }

    const ONE: Topology = Topology { index: 0, vcpus: 1 };

    fn amd(leaf: u32, subleaf: u32) -> Leaf {
        match leaf {
            0 => Leaf { eax: 0xd, ebx: 0x6874_7541, ecx: 0x444d_4163, edx: 0x6974_6e65 },
            _ => generous(leaf, subleaf),
        }
    }

    #[test]
    fn the_hypervisor_names_itself() {
        let table = Table::new(generous, ONE);
        assert_ne!(table.get(1, 0).ecx & 1 << 31, 0);
        let leaf = table.get(HYPERVISOR_LEAF, 0);
        assert_eq!(abi::cpuid::signature([leaf.ebx, leaf.ecx, leaf.edx]), *SIGNATURE);
    }

    #[test]
    fn what_the_hypervisor_cannot_keep_is_hidden() {
        let table = Table::new(generous, ONE);
        // VMX, MONITOR, XSAVE, OSXSAVE, AVX.
        let bits = |list: &[u32]| list.iter().fold(0, |word, bit| word | 1 << bit);
        assert_eq!(table.get(1, 0).ecx & bits(&[3, 5, 26, 27, 28]), 0);
        // SVM, and 5-level paging, AVX2, AVX-512.
        assert_eq!(table.get(0x8000_0001, 0).ecx & bits(&[2]), 0);
        assert_eq!(table.get(7, 0).ebx & bits(&[5, 16]), 0);
        assert_eq!(table.get(7, 0).ecx & bits(&[16]), 0);
        assert_eq!(table.get(0xd, 0), NONE);
        assert_eq!(table.get(0x8000_000a, 0), NONE);
    }

    #[test]
    fn each_vcpu_is_a_core_of_one_package() {
        for index in 0..4 {
            let table = Table::new(generous, Topology { index, vcpus: 4 });
            assert_eq!(table.get(1, 0).ebx >> 24, index as u32);
            assert_eq!(table.get(1, 0).ebx >> 16 & 0xff, 4);
            let core = table.get(0xb, 1);
            assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 4, 0x201, index as u32));
            assert_eq!(table.get(0xb, 2).ebx, 0);
        }
    }

    #[test]
    fn past_the_last_leaf_each_vendor_answers_in_its_way() {
        assert_eq!(Table::new(amd, ONE).get(0x1000, 0), NONE);
        let intel = Table::new(generous, ONE);
        assert_eq!(intel.get(0x1000, 0), intel.get(0x16, 0));
        assert_eq!(intel.get(0x9000_0000, 0), intel.get(0x16, 0));
    }

    #[test]
    fn subleaves_past_the_last_read_as_zero() {
        let table = Table::new(generous, ONE);
        assert_ne!(table.get(7, 0), NONE);
        assert_eq!(table.get(7, 99), NONE);
    }
}
