//! The meaning of entries, independent of their format.

use addr::{PAGE_SIZE, PageSize, Pfn};
use core::fmt;

/// The value of one entry: Linux's `pte_t`, `pmd_t` and so on, the same type at every level.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pte(u64);

impl Pte {
    /// Nothing is mapped.
    pub const NONE: Self = Self(0);

    /// The entry with these 64 bits.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    /// Its 64 bits.
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// Whether nothing is mapped.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Pte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pte({:#x})", self.0)
    }
}

/// The decoded meaning of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing is mapped.
    None,
    /// It refers to the table in this frame.
    Table(Pfn),
    /// It maps a page.
    Leaf(Leaf),
    /// Its table is being unlinked, collapsed or copied. Only the CPU that froze it may change it.
    Frozen,
    /// The tree writes no such entry, or the processor treats it as misconfigured.
    Bad,
}

/// A mapped page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The page's first 4 KiB frame, aligned to the page.
    pub pfn: Pfn,
    /// The allowed accesses besides reading.
    pub rights: Rights,
    /// Its memory type.
    pub memory: MemoryType,
    /// The page was accessed since this bit was last cleared.
    pub accessed: bool,
    /// The page was written since this bit was last cleared.
    pub dirty: bool,
    /// The page is write-protected for the dirty log, which has to see the next write.
    /// [`Tree::unprotect`](crate::Tree::unprotect) makes it writable again.
    pub logged: bool,
    /// Two bits for the tree's owner.
    pub soft: Soft,
}

impl Leaf {
    /// A page of ordinary memory, neither accessed nor dirty.
    pub const fn new(pfn: Pfn, rights: Rights) -> Self {
        Self {
            pfn,
            rights,
            memory: MemoryType::WriteBack,
            accessed: false,
            dirty: false,
            logged: false,
            soft: Soft::new(0),
        }
    }

    /// Whether the page is writable, or would be but for the dirty log.
    pub const fn may_write(&self) -> bool {
        self.rights.write || self.logged
    }
}

/// The accesses that a page allows. Every mapped page is readable by those that may access it at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rights {
    /// It can be written.
    pub write: bool,
    /// Instructions can be fetched from it.
    pub execute: bool,
    /// User accesses are allowed. In nested tables all accesses of the guest are such: NPT treats them so, and with EPT a page
    /// without this right is none to the processor.
    pub user: bool,
}

impl Rights {
    /// All rights.
    pub const ALL: Self = Self { write: true, execute: true, user: true };
    /// All rights but writing.
    pub const READ_ONLY: Self = Self { write: false, ..Self::ALL };

    /// In nested tables: the page is there for software alone, and each access of the guest to it exits.
    pub const HIDDEN: Self = Self { user: false, ..Self::ALL };

    /// Whether these rights are a superset of `other`.
    pub const fn include(self, other: Self) -> bool {
        (self.write || !other.write) && (self.execute || !other.execute) && (self.user || !other.user)
    }
}

/// The memory type of a page: the types that every format can encode with the reset value of the PAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryType {
    /// Ordinary memory.
    WriteBack,
    /// Reads are cached, writes go through.
    WriteThrough,
    /// Device registers.
    Uncached,
}

/// Two bits of a leaf that the processor ignores and the tree keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct Soft(u8);

impl Soft {
    /// The lower two bits of `bits`.
    pub const fn new(bits: u8) -> Self {
        Self(bits & 3)
    }
    /// The two bits.
    pub const fn bits(self) -> u8 {
        self.0
    }
}

/// The features of a format that the processor has and the tree's owner allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    address: u64,
    largest: PageSize,
    accessed_dirty: bool,
}

impl Caps {
    /// `physical_bits` is MAXPHYADDR (CPUID 0x8000_0008 EAX 7:0), `largest` the largest leaf that may be used, and
    /// `accessed_dirty` whether the processor sets accessed and dirty bits (EPT: by EPTP bit 6). If it does not, every
    /// writable page counts as dirty.
    pub const fn new(physical_bits: u8, largest: PageSize, accessed_dirty: bool) -> Self {
        let physical_bits = if physical_bits > 52 { 52 } else { physical_bits };
        let address = ((1 << physical_bits) - 1) & !(PAGE_SIZE - 1);
        Self { address, largest, accessed_dirty }
    }
    /// The bits of a frame's address within an entry.
    pub const fn address_mask(self) -> u64 {
        self.address
    }
    /// The same, with leaves of at most `size`.
    pub(crate) fn at_most(self, size: PageSize) -> Self {
        Self { largest: self.largest.min(size), ..self }
    }
    /// The largest leaf.
    pub const fn largest(self) -> PageSize {
        self.largest
    }
    /// Whether the processor sets accessed and dirty bits.
    pub const fn accessed_dirty(self) -> bool {
        self.accessed_dirty
    }
}
