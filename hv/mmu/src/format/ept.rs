//! Extended page tables: Intel SDM vol. 3 section 28.3.2 (EPT Translation Mechanism), tables 28-1 to 28-7, and section
//! 28.3.3.1 for what is misconfigured.

use super::{Format, bit, misaligned};
use crate::entry::{Leaf, MemoryType, Pte, Rights, Soft};
use crate::level::Level;
use addr::{Gpa, PAGE_SHIFT, Pfn};
use arch::memory_type;
use model::sync::AtomicU64;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const MEMORY_SHIFT: u32 = 3;
const MEMORY: u64 = 7 << MEMORY_SHIFT;
/// Ignore PAT. It is set for uncached pages, so that the guest's PAT can't make device registers cached.
const IGNORE_PAT: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
// Processors ignore bits 56:52 with all settings of the VM-execution controls, but not bit 10 (mode-based execute
// control).
const LOGGED: u64 = 1 << 52;
const SOFT_SHIFT: u32 = 53;
const SOFT: u64 = 3 << SOFT_SHIFT;
const FROZEN: u64 = 1 << 55;
/// A page that the guest may not access has its bits 2:0 here: to the processor there is no page.
const HIDDEN_SHIFT: u32 = 56;
const HIDDEN: u64 = PRESENT << HIDDEN_SHIFT;

const PRESENT: u64 = READ | WRITE | EXECUTE;
const TABLE: u64 = PRESENT;
const LEAF: u64 = TABLE | MEMORY | IGNORE_PAT | ACCESSED | DIRTY | LOGGED | SOFT;

const UNCACHED: u64 = memory_type::UNCACHED << MEMORY_SHIFT | IGNORE_PAT;
const WRITE_THROUGH: u64 = memory_type::WRITE_THROUGH << MEMORY_SHIFT;
const WRITE_BACK: u64 = memory_type::WRITE_BACK << MEMORY_SHIFT;

const _: () = assert!(LEAF & LARGE == 0 && (LEAF | LARGE) & arch::paging::ADDRESS == 0);
const _: () = assert!(FROZEN & (LEAF | HIDDEN | 1 << 10) == 0 && HIDDEN & LEAF == 0);

/// Extended page tables of `LEVELS` levels, 4 or 5.
pub struct Ept<const LEVELS: u8 = 4>;

impl<const LEVELS: u8> Format for Ept<LEVELS> {
    type Input = Gpa;
    type Table = [AtomicU64; 512];

    const INDEX_BITS: u32 = 9;
    const TOP: Level = {
        assert!(LEVELS == 4 || LEVELS == 5);
        Level::from_number(LEVELS - 1)
    };
    const PRESENT: u64 = PRESENT | HIDDEN;
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const FROZEN: u64 = FROZEN;

    /// The accessed bit is set from the start, so that the processor never changes the entry, which would make
    /// `pmd_same` fail. Processors ignore the bit if EPTP does not enable accessed and dirty flags.
    fn table(table: Pfn, _level: Level) -> Pte {
        Pte::new(table.start().raw() | TABLE | ACCESSED)
    }

    #[inline]
    fn is_table(pte: Pte, level: Level, address: u64) -> bool {
        level != Level::PTE && pte.raw() & !(address | ACCESSED) == TABLE
    }

    #[inline]
    fn leaf(leaf: &Leaf, level: Level) -> Pte {
        let memory = match leaf.memory {
            MemoryType::WriteBack => WRITE_BACK,
            MemoryType::WriteThrough => WRITE_THROUGH,
            MemoryType::Uncached => UNCACHED,
        };
        let state = bit(leaf.accessed, ACCESSED) | bit(leaf.dirty, DIRTY) | bit(leaf.logged, LOGGED);
        let soft = u64::from(leaf.soft.bits()) << SOFT_SHIFT;
        let large = bit(level != Level::PTE, LARGE);
        let access = READ | bit(leaf.rights.write, WRITE) | bit(leaf.rights.execute, EXECUTE);
        let access = if leaf.rights.user { access } else { access << HIDDEN_SHIFT };
        Pte::new((leaf.pfn.raw() << PAGE_SHIFT) | access | memory | state | soft | large)
    }

    #[inline]
    fn as_leaf(pte: Pte, level: Level, address: u64) -> Option<Leaf> {
        let user = pte.raw() & PRESENT != 0;
        let raw = if user { pte.raw() } else { pte.raw() & !HIDDEN | pte.raw() >> HIDDEN_SHIFT & PRESENT };
        let has = |bits: u64| raw & bits != 0;
        let large = bit(level != Level::PTE, LARGE);
        if raw & !(LEAF | address & !misaligned::<Self>(level)) != large || !has(READ) {
            return None;
        }
        let memory = match raw & (MEMORY | IGNORE_PAT) {
            WRITE_BACK => MemoryType::WriteBack,
            WRITE_THROUGH => MemoryType::WriteThrough,
            UNCACHED => MemoryType::Uncached,
            _ => return None,
        };
        Some(Leaf {
            pfn: Pfn::new((raw & address) >> PAGE_SHIFT),
            rights: Rights { write: has(WRITE), execute: has(EXECUTE), user },
            memory,
            accessed: has(ACCESSED),
            dirty: has(DIRTY),
            logged: has(LOGGED),
            soft: Soft::new((raw >> SOFT_SHIFT) as u8),
        })
    }
}
