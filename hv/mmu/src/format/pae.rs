//! PAE tables: AMD APM vol. 2 section 5.2.3 (PAE Paging), Intel SDM vol. 3 section 4.4 and tables 4-8 to 4-11.

use super::long_mode::{self as bits, FROZEN};
use super::{Format, misaligned};
use crate::entry::{Leaf, Pte};
use crate::level::{Address, Level};
use addr::{Gva, PageSize, Pfn};
use arch::paging::{ACCESSED, DIRTY, PDPTE_RESERVED, PRESENT, USER, WRITABLE};
use core::marker::PhantomData;
use model::sync::AtomicU64;

/// PAE tables: three levels for 32-bit addresses, with a root of four entries.
///
/// The root's entries (PDPTEs) have no rights: bits 2:1, 8:5, 63:52 and those above MAXPHYADDR are reserved. The
/// processor copies all four when CR3 is loaded, so a flush has to load CR3 again.
pub struct Pae<A = Gva>(PhantomData<A>);

const TABLE: u64 = PRESENT | WRITABLE | USER;
const PDPTE: u64 = PRESENT;

const _: () = assert!(PDPTE & PDPTE_RESERVED == 0);
// A frozen PDPTE may keep bits that are reserved in present ones: a load of CR3 checks reserved bits only if P is set.
const _: () = assert!(FROZEN & PDPTE == 0);

impl<A: Address + 'static> Format for Pae<A> {
    type Input = A;
    type Table = [AtomicU64; 512];

    const INDEX_BITS: u32 = 9;
    const ROOT_BITS: u32 = 2;
    const TOP: Level = Level::PUD;
    /// CR3 has 32 bits.
    const ROOT_END: u64 = 1 << 32;
    /// PDPTEs have no PS bit.
    const LARGEST: PageSize = PageSize::Size2M;
    const PRESENT: u64 = PRESENT;
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const FROZEN: u64 = FROZEN;

    fn table(table: Pfn, level: Level) -> Pte {
        let flags = if level == Level::PUD { PDPTE } else { TABLE | ACCESSED };
        Pte::new(table.start().raw() | flags)
    }

    #[inline]
    fn is_table(pte: Pte, level: Level, address: u64) -> bool {
        match level {
            // QEMU's walk sets an accessed bit in PDPTEs, though bit 5 is reserved there.
            Level::PUD => pte.raw() & !(address | ACCESSED) == PDPTE,
            Level::PMD => pte.raw() & !(address | ACCESSED) == TABLE,
            _ => false,
        }
    }

    #[inline]
    fn leaf(leaf: &Leaf, level: Level) -> Pte {
        bits::encode(leaf, level)
    }

    /// A PDPTE is never a leaf.
    #[inline]
    fn as_leaf(pte: Pte, level: Level, address: u64) -> Option<Leaf> {
        if level > Level::PMD { None } else { bits::decode(pte, level, address, misaligned::<Self>(level)) }
    }
}
