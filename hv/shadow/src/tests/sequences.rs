//! Random guests and their actions.

use super::guest::{Guest, Shadows, ThisCpu};
use super::memory::{GuestMemory, LARGE, PAGES, Words};
use crate::Registers;
use addr::{Gpa, Gva};
use arch::{CR0_PG, CR0_WP};
use proptest::prelude::*;
use std::vec::Vec;
use walk::{Access, AccessKind, Controls, Features, Privilege};

pub(super) const FEATURES: Features =
    Features { maxphyaddr: 40, pages_1g: false, pse36: true, pml4e_bit8_reserved: false };

const CR4: [u64; 5] = [1 << 4, 1 << 5, 1 << 7, 1 << 20, 1 << 21];
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const NXE: u64 = 1 << 11;

/// The linear pages that guests use: a few, in the first entries of tables and in others.
pub(super) fn pages() -> impl Iterator<Item = u64> {
    [0, 1, 2, 0x200, 0x201, 0x400, 0x401, 0x600, 0x4_0000, 0x4_0001, 0xf_fc00].into_iter()
}

/// One action of a vCPU.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Access {
        gva: Gva,
        access: Access,
        value: u32,
    },
    /// An entry of a table is written: the whole entry, or its low (false) or high half (true).
    Entry {
        at: u64,
        value: u64,
        half: Option<bool>,
    },
    LoadCr3(u64),
    ToggleCr0(u64),
    ToggleCr4(u64),
    ToggleNxe,
    Invlpg(Gva),
    Replace(u64),
}

/// The format of the guest's tables at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind32 {
    Two,
    Pae,
}

/// A guest: its memory and registers at the start, and the actions of its vCPUs.
#[derive(Clone, Debug)]
pub(super) struct Story {
    pub(super) words: Words,
    pub(super) controls: Controls,
    pub(super) steps: Vec<(usize, Step)>,
}

fn gva() -> impl Strategy<Value = Gva> {
    let pages: Vec<_> = pages().collect();
    (proptest::sample::select(pages), 0..4u64).prop_map(|(page, word)| Gva::new((page << 12) | (word * 4)))
}

fn access() -> impl Strategy<Value = Access> {
    let kind = prop_oneof![2 => Just(AccessKind::Read), 3 => Just(AccessKind::Write), 1 => Just(AccessKind::Fetch)];
    let privilege = prop_oneof![Just(Privilege::User), any::<bool>().prop_map(|ac| Privilege::Supervisor { ac })];
    (kind, privilege).prop_map(|(kind, privilege)| Access { kind, privilege })
}

/// Bits 11:0 and 63 of an entry, which is mostly present.
fn flags(kind: Kind32) -> impl Strategy<Value = u64> {
    let rights = prop_oneof![8 => Just(7u64), 1 => Just(5), 1 => Just(3), 1 => Just(0), 1 => Just(1)];
    let ad = prop_oneof![2 => Just(0u64), 1 => Just(0x20), 2 => Just(0x60)];
    let odd = match kind {
        Kind32::Two => prop_oneof![8 => Just(0u64), 2 => Just(0x80), 1 => Just(1 << 21)].boxed(),
        Kind32::Pae => {
            prop_oneof![16 => Just(0u64), 3 => Just(0x80), 2 => Just(1 << 63), 1 => Just(1 << 40), 1 => Just(1 << 13)]
                .boxed()
        }
    };
    (rights, ad, odd).prop_map(|(rights, ad, odd)| rights | ad | odd)
}

/// An entry of any level.
fn entry(kind: Kind32) -> impl Strategy<Value = u64> {
    let target = prop_oneof![12 => 0..PAGES, 1 => Just(PAGES), 2 => Just(LARGE >> 12), 1 => Just((LARGE >> 12) + 1)];
    (target, flags(kind)).prop_map(|(page, flags)| page << 12 ^ flags)
}

/// The number of the first page that begins with PDPTEs.
const PDPTES: u64 = PAGES - 3;

/// Memory with tables: the entries that translate [`pages`].
fn words(kind: Kind32) -> impl Strategy<Value = Words> {
    let places = Vec::from_iter((0..PAGES).flat_map(|page| (0..5u64).map(move |n| (page, n))));
    let entries = proptest::collection::vec((entry(kind), entry(kind), any::<bool>()), places.len());
    // For some guests all tables have the same first entries, so that directories have tables in common.
    let common = proptest::option::of((entry(kind), entry(kind)));
    (entries, common).prop_map(move |(entries, common)| {
        let mut words = Words::new();
        for (&(page, n), (low, high, filled)) in places.iter().zip(entries) {
            let (low, high) = common.filter(|_| n == 0).unwrap_or((low, high));
            let (at, word) = match kind {
                Kind32::Two => ([0, 8, 0x800, 0x400, 0xff8][n as usize], low & 0xffff_ffff | high << 32),
                Kind32::Pae if page >= PDPTES => (n * 8, low & 0xf001),
                Kind32::Pae => ([0, 8, 16, 24, 0xff0][n as usize], low),
            };
            if (filled || n < 2) && word != 0 {
                words.insert(page << 12 | at, word);
            }
        }
        words
    })
}

fn step(kind: Kind32) -> impl Strategy<Value = Step> {
    let place = match kind {
        Kind32::Two => proptest::sample::select(&[0u64, 4, 8, 0x400, 0x800, 0xffc][..]).boxed(),
        Kind32::Pae => proptest::sample::select(&[0u64, 8, 16, 0xff0][..]).boxed(),
    };
    let half = match kind {
        Kind32::Two => Just(Some(false)).boxed(),
        Kind32::Pae => any::<Option<bool>>().boxed(),
    };
    let entry_value = (0..PAGES, place, entry(kind), half).prop_map(|(page, at, value, half)| Step::Entry {
        at: page << 12 | at,
        value,
        half,
    });
    // The value is a plausible entry, because the access may write one of the tables.
    let access = (gva(), access(), entry(kind)).prop_map(|(gva, access, value)| Step::Access {
        gva,
        access,
        value: value as u32,
    });
    prop_oneof![
        24 => access,
        8 => entry_value,
        2 => (0..PAGES).prop_map(|page| Step::LoadCr3(page << 12)),
        2 => (PDPTES..PAGES).prop_map(|page| Step::LoadCr3(page << 12)),
        1 => proptest::sample::select(&[CR0_WP, CR0_PG][..]).prop_map(Step::ToggleCr0),
        1 => proptest::sample::select(&CR4[..]).prop_map(Step::ToggleCr4),
        1 => Just(Step::ToggleNxe),
        6 => gva().prop_map(Step::Invlpg),
        1 => (0..PAGES).prop_map(Step::Replace),
    ]
}

pub(super) fn story(vcpus: usize) -> impl Strategy<Value = Story> {
    let kind = prop_oneof![Just(Kind32::Two), Just(Kind32::Pae)];
    kind.prop_flat_map(move |kind| {
        let controls = (0..PAGES, any::<[bool; 5]>()).prop_map(move |(page, [wp, smep, smap, nxe, pse])| {
            let bit = |set, bit| if set { bit } else { 0 };
            let (root, pae) = match kind {
                Kind32::Two => (page % PDPTES, 0),
                Kind32::Pae => (PDPTES + page % 2, PAE),
            };
            let cr4 = pae | bit(pse, PSE) | bit(smep, CR4[3]) | bit(smap, CR4[4]);
            Controls { cr0: CR0_PG | 1 | bit(wp, CR0_WP), cr3: root << 12, cr4, efer: bit(nxe, NXE) }
        });
        (words(kind), controls, proptest::collection::vec((0..vcpus, step(kind)), 1..80))
            .prop_map(|(words, controls, steps)| Story { words, controls, steps })
    })
}

/// The vCPUs' registers at the start: `controls`, or no paging if the PDPTEs can't be loaded.
pub(super) fn registers(memory: &GuestMemory, controls: Controls) -> Registers {
    let mut registers = Registers::new(FEATURES);
    let _ = registers.write(memory, controls);
    registers
}

impl<S: Shadows> Guest<'_, S> {
    pub(super) fn step(&mut self, cpu: &mut ThisCpu<'_>, n: usize, step: &Step) {
        let controls = self.vcpus[n].registers.paging().controls;
        let write = |controls| move |registers: &mut Registers, memory: &GuestMemory| registers.write(memory, controls);
        match *step {
            Step::Access { gva, access, value } => self.access(cpu, n, gva, access, value),
            Step::Entry { at, value, half } => match half {
                None => self.write(cpu, Gpa::new(at), &value.to_le_bytes()),
                Some(high) => {
                    let half = (value >> if high { 32 } else { 0 }) as u32;
                    self.write(cpu, Gpa::new(at + if high { 4 } else { 0 }), &half.to_le_bytes());
                }
            },
            Step::LoadCr3(cr3) => self.control(cpu, n, |registers, memory| registers.write_cr3(memory, cr3)),
            Step::ToggleCr0(bit) => self.control(cpu, n, write(Controls { cr0: controls.cr0 ^ bit, ..controls })),
            Step::ToggleCr4(bit) => self.control(cpu, n, write(Controls { cr4: controls.cr4 ^ bit, ..controls })),
            Step::ToggleNxe => self.control(cpu, n, write(Controls { efer: controls.efer ^ NXE, ..controls })),
            Step::Invlpg(gva) => self.invlpg(cpu, n, gva),
            Step::Replace(page) => self.replace(cpu, page),
        }
    }
}

/// Plays a story. `reload`: after each step each vCPU drops all its translations, so that no access uses an older one.
pub(super) fn play<S: Shadows>(guest: &mut Guest<'_, S>, cpu: &mut ThisCpu<'_>, steps: &[(usize, Step)], reload: bool) {
    for (n, step) in steps {
        guest.step(cpu, *n, step);
        for n in 0..guest.vcpus.len() * usize::from(reload) {
            guest.load(cpu, n);
        }
        cpu.quiescent();
        let tables = guest.tables;
        cpu.poll(usize::MAX, |table| tables.free(table));
    }
}
