//! The kinds of pages that there are.

use guest32::paging::{ACCESSED, DIRTY, LARGE, Mode, NO_EXECUTE, PRESENT, USER, WRITABLE};
use guest32::processor;

/// Bits of a page directory's entry and a page table's, as they are numbered in [`Combination`].
const PDE: [Bit; 8] = [Bit::P, Bit::W, Bit::U, Bit::A, Bit::Large, Bit::D, Bit::Nx, Bit::Reserved];
const PTE: [Bit; 7] = [Bit::P, Bit::W, Bit::U, Bit::A, Bit::D, Bit::Nx, Bit::Reserved];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bit {
    P,
    W,
    U,
    A,
    D,
    Large,
    Nx,
    Reserved,
}

/// Which bits the two entries have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Combination {
    pub(crate) pde: Flags,
    /// Of no meaning if the page is large.
    pub(crate) pte: Flags,
}

/// What an entry has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    pub(crate) present: bool,
    pub(crate) writable: bool,
    pub(crate) user: bool,
    pub(crate) accessed: bool,
    pub(crate) dirty: bool,
    pub(crate) large: bool,
    pub(crate) no_execute: bool,
    pub(crate) reserved: bool,
}

/// The two entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries {
    pub(crate) pde: u64,
    pub(crate) pte: u64,
}

impl Flags {
    /// Bit n of `number` is the n-th of `bits`.
    fn new(number: usize, bits: &[Bit]) -> Self {
        let has = |wanted: Bit| bits.iter().position(|&bit| bit == wanted).is_some_and(|n| number >> n & 1 != 0);
        Self {
            present: has(Bit::P),
            writable: has(Bit::W),
            user: has(Bit::U),
            accessed: has(Bit::A),
            dirty: has(Bit::D),
            large: has(Bit::Large),
            no_execute: has(Bit::Nx),
            reserved: has(Bit::Reserved),
        }
    }

    fn bits(self, reserved: u64) -> u64 {
        let bits = [
            (self.present, PRESENT),
            (self.writable, WRITABLE),
            (self.user, USER),
            (self.accessed, ACCESSED),
            (self.dirty, DIRTY),
            (self.large, LARGE),
            (self.no_execute, NO_EXECUTE),
            (self.reserved, reserved),
        ];
        bits.iter().filter(|(has, _)| *has).fold(0, |all, (_, bit)| all | bit)
    }
}

impl Combination {
    /// All that are different in `mode`: a large page has no table, a table's entry no dirty bit, and with two levels there is
    /// no NX, and nothing is reserved but in the entry of a large page.
    pub(crate) fn all(mode: Mode) -> impl Iterator<Item = Self> {
        let all_address = processor::physical_bits() == 52;
        let numbers = (0..1 << PDE.len()).flat_map(|pde| (0..1 << PTE.len()).map(move |pte| (pde, pte)));
        numbers
            .map(|(pde, pte)| Self { pde: Flags::new(pde, &PDE), pte: Flags::new(pte, &PTE) })
            .filter(move |combination| combination.is_different(mode, all_address))
    }

    /// `all_address`: bit 51 is an address bit, and none below NX is reserved.
    fn is_different(&self, mode: Mode, all_address: bool) -> bool {
        let Self { pde, pte } = *self;
        let two_level = mode == Mode::TwoLevel;
        let none_reserved = mode == Mode::Pae && all_address && (pde.reserved || pte.reserved);
        let nothing_reserved = two_level && (pte.reserved || pde.reserved && !pde.large);
        let no_table = pde.large && pte.bits(1 << 51) != 0;
        let table_is_dirty = !pde.large && pde.dirty;
        let no_nx = two_level && (pde.no_execute || pte.no_execute);
        !(none_reserved || nothing_reserved || no_table || table_is_dirty || no_nx)
    }

    pub(crate) fn entries(&self, mode: Mode, frame: u32, table: u32) -> Entries {
        let reserved = match mode {
            // PSE36 has no address bit there.
            Mode::TwoLevel => 1 << 21,
            Mode::Pae => 1 << 51,
        };
        let leads_to = if self.pde.large { frame } else { table };
        Entries { pde: u64::from(leads_to) | self.pde.bits(reserved), pte: u64::from(frame) | self.pte.bits(reserved) }
    }
}
