//! Long-mode tables: AMD APM vol. 2 section 5.3 (Long-Mode Page Translation), section 15.25.5 for their use as nested
//! tables; Intel SDM vol. 3 tables 4-14 to 4-20 call the same 4-level and 5-level paging.

use super::{Format, bit, misaligned};
use crate::entry::{Leaf, MemoryType, Pte, Rights, Soft};
use crate::level::{Address, Level};
use addr::{Gpa, PAGE_SHIFT, Pfn};
use arch::paging::{
    ACCESSED, ADDRESS, CACHE_DISABLE, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE, WRITE_THROUGH,
};
use core::marker::PhantomData;
use model::sync::AtomicU64;

// Bits 11:9 are available to software in all formats of this family; PAE has no others.
pub(super) const LOGGED: u64 = 1 << 9;
pub(super) const SOFT_SHIFT: u32 = 10;
pub(super) const SOFT: u64 = 3 << SOFT_SHIFT;
/// Bit 9 is [`LOGGED`] in present entries only, and a frozen entry is not present.
pub(super) const FROZEN: u64 = 1 << 9;

const TABLE: u64 = PRESENT | WRITABLE | USER;
const LEAF: u64 =
    PRESENT | WRITABLE | USER | WRITE_THROUGH | CACHE_DISABLE | ACCESSED | DIRTY | LOGGED | SOFT | NO_EXECUTE;

const _: () = assert!(LEAF & LARGE == 0 && (LEAF | LARGE) & ADDRESS == 0);
const _: () = assert!(FROZEN & (PRESENT | ACCESSED | DIRTY) == 0);

/// Long-mode tables of `LEVELS` levels, 4 or 5. The host needs EFER.NXE.
pub struct LongMode<const LEVELS: u8, A = Gpa>(PhantomData<A>);

/// Nested tables of four levels.
pub type Npt = LongMode<4>;

impl<const LEVELS: u8, A: Address + 'static> Format for LongMode<LEVELS, A> {
    type Input = A;
    type Table = [AtomicU64; 512];

    const INDEX_BITS: u32 = 9;
    const TOP: Level = {
        assert!(LEVELS == 4 || LEVELS == 5);
        Level::from_number(LEVELS - 1)
    };
    const PRESENT: u64 = PRESENT;
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const FROZEN: u64 = FROZEN;

    /// The accessed bit is set from the start, so that the processor never changes the entry, which would make
    /// `pmd_same` fail.
    fn table(table: Pfn, _level: Level) -> Pte {
        Pte::new(table.start().raw() | TABLE | ACCESSED)
    }

    #[inline]
    fn is_table(pte: Pte, level: Level, address: u64) -> bool {
        level != Level::PTE && pte.raw() & !(address | ACCESSED) == TABLE
    }

    #[inline]
    fn leaf(leaf: &Leaf, level: Level) -> Pte {
        encode(leaf, level)
    }

    #[inline]
    fn as_leaf(pte: Pte, level: Level, address: u64) -> Option<Leaf> {
        decode(pte, level, address, misaligned::<Self>(level))
    }
}

const fn rights_bits(rights: Rights) -> u64 {
    bit(rights.write, WRITABLE) | bit(rights.user, USER) | bit(!rights.execute, NO_EXECUTE)
}

#[inline]
pub(super) fn encode(leaf: &Leaf, level: Level) -> Pte {
    let memory = match leaf.memory {
        MemoryType::WriteBack => 0,
        MemoryType::WriteThrough => WRITE_THROUGH,
        MemoryType::Uncached => CACHE_DISABLE | WRITE_THROUGH,
    };
    let state = bit(leaf.accessed, ACCESSED) | bit(leaf.dirty, DIRTY) | bit(leaf.logged, LOGGED);
    let soft = u64::from(leaf.soft.bits()) << SOFT_SHIFT;
    let large = bit(level != Level::PTE, LARGE);
    Pte::new((leaf.pfn.raw() << PAGE_SHIFT) | PRESENT | rights_bits(leaf.rights) | memory | state | soft | large)
}

#[inline]
pub(super) fn decode(pte: Pte, level: Level, address: u64, misaligned: u64) -> Option<Leaf> {
    let raw = pte.raw();
    let has = |bits: u64| raw & bits != 0;
    let large = bit(level != Level::PTE, LARGE);
    if raw & !(LEAF | address & !misaligned) != large || !has(PRESENT) {
        return None;
    }
    let memory = match (has(CACHE_DISABLE), has(WRITE_THROUGH)) {
        (false, false) => MemoryType::WriteBack,
        (false, true) => MemoryType::WriteThrough,
        (true, true) => MemoryType::Uncached,
        (true, false) => return None,
    };
    Some(Leaf {
        pfn: Pfn::new((raw & address) >> PAGE_SHIFT),
        rights: Rights { write: has(WRITABLE), execute: !has(NO_EXECUTE), user: has(USER) },
        memory,
        accessed: has(ACCESSED),
        dirty: has(DIRTY),
        logged: has(LOGGED),
        soft: Soft::new((raw >> SOFT_SHIFT) as u8),
    })
}
