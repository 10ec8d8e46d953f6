//! Bits of page-table entries, for the processor's own paging in all its modes (Intel SDM vol. 3, tables 4-4 to 4-20; AMD APM
//! vol. 2, section 5.3). EPT's entries differ.

/// P: the entry maps a page, or leads to a table.
pub const PRESENT: u64 = 1 << 0;
/// R/W: writes are allowed.
pub const WRITABLE: u64 = 1 << 1;
/// U/S: accesses at CPL 3 are allowed.
pub const USER: u64 = 1 << 2;
/// PWT: write-through.
pub const WRITE_THROUGH: u64 = 1 << 3;
/// PCD: not cached.
pub const CACHE_DISABLE: u64 = 1 << 4;
/// A: the processor has used the entry.
pub const ACCESSED: u64 = 1 << 5;
/// D: the processor has written to the page.
pub const DIRTY: u64 = 1 << 6;
/// PS: the entry above the last level maps a page. In an entry of the last level this bit is the PAT's.
pub const LARGE: u64 = 1 << 7;
/// G: the translation outlives a load of CR3.
pub const GLOBAL: u64 = 1 << 8;
/// NX, XD: no instruction is fetched from the page. Reserved without EFER.NXE.
pub const NO_EXECUTE: u64 = 1 << 63;

/// The address of a table or page in an entry of 64 bits, of which MAXPHYADDR may leave fewer: bits 51:12.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits that are reserved in PAE's four top entries (PDPTEs), without those above MAXPHYADDR (SDM table 4-8).
pub const PDPTE_RESERVED: u64 = 0xfff0_0000_0000_01e6;
