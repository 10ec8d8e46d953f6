//! The metadata of a cached shadow: which guest frames are page tables, and for which addresses; the address space of each root;
//! where guest frames are mapped writable.

use crate::gfn_hash::{Entry, GfnHash};
use crate::registers::Context;
use crate::vtlb::around;
use crate::{NoMemory, Registers};
use addr::{Gfn, Gva, PAGE_SIZE, PageSize};
use alloc::vec::Vec;
use arch::paging::{NO_EXECUTE, USER, WRITABLE};
use core::alloc::Layout;
use core::ops::Range;
use walk::{Mode, WalkStep};

/// How many tables can be out of sync at once. The bound keeps loads of CR3 and INVLPG short, which search them.
const UNSYNC: usize = 16;
/// How many bytes one shadow table of the last level translates.
pub(crate) const REGION: u64 = PageSize::Size2M.bytes();
const REGIONS: usize = (1 << 32) / REGION as usize;

/// How much a shadow knows at once. Where one of these is used up, a part of what is known makes way, the oldest first: see
/// [`Shadow`](crate::Shadow).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// The most shadow tables of the last level, in all roots. From 2048 on, the most that one root can have, no root makes
    /// way for itself.
    pub tables: usize,
    /// How often the guest's frames can be used as tables of the last level, in all roots.
    pub uses: u32,
    /// How many entries the reverse map has, one for each writable mapping.
    pub mappings: u32,
}

impl Capacity {
    /// The least that a shadow has, however little memory the guest has: it may map each page again and again.
    const LEAST: Self = Self { tables: 3072, uses: 4096, mappings: 16_384 };

    /// For a guest with `pages` pages of RAM, in a shadow with `roots` roots. There is room for
    /// - tables that map all of the memory sixteen times over, 3 % of it (KVM gives its shadow pages 2 %),
    /// - the uses of these, and in each root those of tables that map the memory once, which roots share,
    /// - two writable mappings of each page: a kernel's own, and a process's. They take 2 to 4 % of the memory, since the table of notes is a power of two.
    pub fn of(pages: u64, roots: usize) -> Self {
        /// No shadow needs more for one root: all regions, all pages.
        const WHOLE: u64 = REGIONS as u64;
        const PAGES: u64 = (1 << 32) / PAGE_SIZE;
        const ENTRIES: u64 = REGION / PAGE_SIZE;
        let roots = roots as u64;
        let tables = (16 * pages / ENTRIES).min(roots * WHOLE);
        let uses = (tables + roots * (pages / ENTRIES)).min(roots * WHOLE);
        let mappings = (2 * pages).min(roots * PAGES);
        Self {
            tables: Self::LEAST.tables.max(tables as usize),
            uses: Self::LEAST.uses.max(uses as u32),
            mappings: Self::LEAST.mappings.max(mappings as u32),
        }
    }
}

pub(crate) struct State {
    /// By the root's number.
    pub(crate) roots: Vec<Root>,
    /// Guest frames that are directories: tables whose entries refer to tables, or map large pages.
    pub(crate) directories: GfnHash<TableUse>,
    pub(crate) last: LastLevel,
    /// Reverse map: where a guest frame is mapped writable. A large page is found by its first frame. An entry may outlive its
    /// mapping; write protection then finds nothing to clear there.
    pub(crate) rmap: GfnHash<RmapEntry>,
    /// The number of loads so far, for the age of roots.
    pub(crate) clock: u64,
    /// The number of calls of [`Shadow::suspend`](crate::Shadow::suspend) so far.
    pub(crate) suspensions: u64,
    /// How many of these were not followed by a `resume` yet.
    pub(crate) suspended: u32,
    pub(crate) views: usize,
}

/// The guest's tables of the last level, and the regions of each root that shadow them.
pub(crate) struct LastLevel {
    /// Guest frames that are such tables.
    pub(crate) tables: GfnHash<TableUse>,
    /// Frames of the tables that are out of sync, the longest so first.
    pub(crate) unsync: Vec<Gfn>,
    /// The number of shadow tables of the last level, those of parts of large pages included.
    pub(crate) shadow_tables: usize,
    /// By the root's number.
    regions: Vec<Regions>,
}

/// For each region of 2 MiB, the frame of the guest's table that it shadows, or [`UNBOUND`].
struct Regions(Vec<Gfn>);

/// A cached root: the tree of one address space.
#[derive(Clone, Copy)]
pub(crate) struct Root {
    pub(crate) context: Option<Context>,
    pub(crate) vcpus: usize,
    /// [`State::clock`] when it was last loaded.
    pub(crate) loaded: u64,
    /// An entry was cleared and not flushed yet: the flush must come before the lock is released.
    pub(crate) stale: bool,
    /// A fault was handled since it was zapped as a whole: there may be something to zap.
    pub(crate) used: bool,
}

/// The use of a guest frame as a table for a part of an address space: the metadata of a shadow page.
#[derive(Clone, Copy)]
pub(crate) struct TableUse {
    pub(crate) root: usize,
    pub(crate) start: Gva,
    pub(crate) shape: Shape,
    pub(crate) role: Role,
    /// How often it was written since a fault last went through it.
    pub(crate) write_flooding: u8,
    /// Out of sync: the guest may write it without an exit. All uses of a frame agree on this; a directory is never out of sync.
    pub(crate) unsync: bool,
}

/// What the meaning of a table's entries depends on besides their content: the bits of CR0, CR4 and EFER that paging depends on,
/// and for the last level the rights in the directory's entry. All of these are different bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Role(u64);

/// The format of a table's entries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// PAE's entries, of 8 bytes.
    pub(crate) pae: bool,
    /// A table of the last level.
    last: bool,
}

/// A writable mapping, in all roots that shadow the table in frame `table`: `offset` bytes into the part that it translates.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RmapEntry {
    pub(crate) table: Gfn,
    shape: Shape,
    /// Below 4 GiB.
    offset: u32,
}

// There are two for each page of the guest's memory.
const _: () = assert!(size_of::<Entry<RmapEntry>>() == 32);

/// Stands for the directory's frame where the guest has no paging.
pub(crate) const UNPAGED: Gfn = Gfn::new(u64::MAX);
/// The region shadows no table.
const UNBOUND: Gfn = Gfn::new(u64::MAX - 1);

impl Role {
    /// R/W, U/S and NX.
    const RIGHTS: u64 = NO_EXECUTE | USER | WRITABLE;

    pub(crate) const fn of_directory(registers: &Registers) -> Self {
        Self(registers.meaning())
    }

    /// The role of a table that this entry of a directory refers to.
    pub(crate) const fn below(self, entry: u64) -> Self {
        Self(self.0 | entry & Self::RIGHTS)
    }
}

impl Shape {
    pub(crate) fn of(mode: Mode, level: u32) -> Self {
        Self { pae: mode == Mode::Pae, last: level == 1 }
    }

    /// The size of an entry, in bytes.
    const fn bytes(self) -> u64 {
        if self.pae { 8 } else { 4 }
    }

    /// How many bytes an entry translates.
    const fn span(self) -> u64 {
        match (self.last, self.pae) {
            (true, _) => PAGE_SIZE,
            (false, true) => PageSize::Size2M.bytes(),
            (false, false) => PageSize::Size4M.bytes(),
        }
    }

    const fn whole(self) -> u64 {
        PAGE_SIZE / self.bytes() * self.span()
    }

    pub(crate) const fn is_last_level(self) -> bool {
        self.last
    }
}

impl TableUse {
    /// The table that this step of a walk for `gva` has read.
    pub(crate) fn by(root: usize, gva: Gva, mode: Mode, step: &WalkStep, role: Role) -> Self {
        Self::new(root, gva, Shape::of(mode, step.level), role)
    }

    /// The use of [`UNPAGED`].
    pub(crate) fn unpaged(root: usize, role: Role) -> Self {
        Self::new(root, Gva::new(0), Shape::of(Mode::Bits32, 2), role)
    }

    fn new(root: usize, gva: Gva, shape: Shape, role: Role) -> Self {
        Self { root, start: gva.align_down(shape.whole()), shape, role, write_flooding: 0, unsync: false }
    }

    /// Of two uses as a directory, or as a table of the last level. All tables of a root have one format.
    pub(crate) fn is_at_same(&self, other: &Self) -> bool {
        (self.root, self.start) == (other.root, other.start)
    }

    pub(crate) fn whole(&self) -> Range<Gva> {
        around(self.start, self.shape.whole())
    }

    /// The range that the entry for `gva` translates.
    pub(crate) fn entry(&self, gva: Gva) -> Range<Gva> {
        around(gva, self.shape.span())
    }

    /// The range that these bytes of the table translate: that of all entries that contain one of them.
    pub(crate) fn of_bytes(&self, bytes: &Range<u64>) -> Range<Gva> {
        let (size, span) = (self.shape.bytes(), self.shape.span());
        let end = bytes.end.div_ceil(size) * span;
        self.start.wrapping_add(bytes.start / size * span)..self.start.wrapping_add(end)
    }

    /// The mapping at `gva`, by the table in frame `table`.
    pub(crate) fn rmap_entry(&self, table: Gfn, gva: Gva) -> RmapEntry {
        RmapEntry { table, shape: self.shape, offset: (gva.raw() - self.start.raw()) as u32 }
    }
}

impl RmapEntry {
    /// Where the mapping is in a root that uses the table so.
    pub(crate) fn at(&self, usage: &TableUse) -> Gva {
        usage.start.wrapping_add(self.offset.into())
    }

    /// The uses of the table in the format that the mapping was by: it is in each one's root, `offset` bytes behind its start. In another
    /// format a table may translate less, and another table's mapping is there; so it is where a directory's entry refers to a table
    /// by now.
    pub(crate) fn uses<'s>(
        &self,
        directories: &'s GfnHash<TableUse>,
        last: &'s LastLevel,
    ) -> impl Iterator<Item = &'s TableUse> + use<'s> {
        let entry = *self;
        let uses = if entry.shape.last { &last.tables } else { directories };
        let is_there = move |usage: &&TableUse| {
            usage.shape == entry.shape && (entry.shape.last || last.bound(usage.root, entry.at(usage)).is_none())
        };
        uses.iter(entry.table).filter(is_there)
    }
}

impl State {
    pub(crate) fn new(roots: usize, capacity: Capacity, seed: u64) -> Result<Self, NoMemory> {
        Ok(Self {
            roots: with_capacity(roots)?,
            directories: GfnHash::new(directories(roots), seed)?,
            last: LastLevel {
                tables: GfnHash::new(capacity.uses, seed)?,
                unsync: with_capacity(UNSYNC)?,
                shadow_tables: 0,
                regions: with_capacity(roots)?,
            },
            rmap: GfnHash::new(capacity.mappings, seed)?,
            clock: 0,
            suspensions: 0,
            suspended: 0,
            views: 0,
        })
    }

    /// The allocations of [`new`](Self::new), followed by [`add_root`](Self::add_root) for each root.
    pub(crate) fn allocations(roots: usize, capacity: Capacity) -> impl Iterator<Item = Layout> {
        let lists = [Layout::array::<Root>(roots), Layout::array::<Gfn>(UNSYNC), Layout::array::<Regions>(roots)];
        let tables = [directories(roots), capacity.uses].map(GfnHash::<TableUse>::allocations);
        let rmap = GfnHash::<RmapEntry>::allocations(capacity.mappings);
        let regions = core::iter::repeat_n(Layout::array::<Gfn>(REGIONS), roots);
        let hashes = tables.into_iter().flatten().chain(rmap);
        lists.into_iter().chain(regions).map(Result::ok).chain(hashes).flatten()
    }

    /// Adds a root, which has no address space yet.
    pub(crate) fn add_root(&mut self) -> Result<(), NoMemory> {
        self.last.regions.push(Regions::new()?);
        self.roots.push(Root { context: None, vcpus: 0, loaded: 0, stale: false, used: false });
        Ok(())
    }

    /// Whether the guest must not write the frame without an exit.
    pub(crate) fn is_protected(&self, gfn: Gfn) -> bool {
        self.directories.any(gfn, |_| true) || self.last.tables.any(gfn, |usage| !usage.unsync)
    }

    /// Forgets all tables and mappings, but not the address spaces of the roots. No shadow table is left, and no region is bound.
    pub(crate) fn clear(&mut self) {
        self.directories.clear();
        self.rmap.clear();
        self.last.tables.clear();
        self.last.unsync.clear();
        debug_assert_eq!(self.last.shadow_tables, 0, "each of them was in a root");
    }
}

impl LastLevel {
    /// Whether the table in this frame is out of sync.
    pub(crate) fn is_unsync(&self, gfn: Gfn) -> bool {
        self.unsync.contains(&gfn)
    }

    /// A table that is out of sync and used in that root.
    pub(crate) fn unsync_in(&self, root: usize) -> Option<Gfn> {
        self.unsync.iter().copied().find(|&gfn| self.tables.any(gfn, |usage| usage.root == root))
    }

    /// The table that has been out of sync for longest, if no other table can go out of sync beside them.
    pub(crate) fn oldest_unsync(&self) -> Option<Gfn> {
        self.unsync.first().copied().filter(|_| self.unsync.len() == UNSYNC)
    }

    pub(crate) fn set_unsync(&mut self, gfn: Gfn, unsync: bool) {
        self.unsync.retain(|&other| other != gfn);
        if unsync {
            self.unsync.push(gfn);
        }
        self.tables.retain(gfn, |usage| {
            usage.unsync = unsync;
            true
        });
    }

    /// The region of `gva` shadows the table in `gfn` from now on.
    pub(crate) fn bind(&mut self, root: usize, gva: Gva, gfn: Gfn) {
        self.regions[root].0[region(gva)] = gfn;
    }

    /// The frame of the table that the region of `gva` shadows.
    pub(crate) fn bound(&self, root: usize, gva: Gva) -> Option<Gfn> {
        let gfn = self.regions[root].0[region(gva)];
        (gfn != UNBOUND).then_some(gfn)
    }

    pub(crate) fn is_bound(&self, root: usize, range: &Range<Gva>) -> bool {
        regions(range).any(|at| self.bound(root, at).is_some())
    }

    /// No region of the root shadows a table any more. The caller forgets the tables.
    pub(crate) fn unbind_all(&mut self, root: usize) {
        self.regions[root].0.fill(UNBOUND);
    }

    /// The region of `gva` shadows no table any more; if it did, this use of the table is removed.
    pub(crate) fn unbind(&mut self, root: usize, gva: Gva) {
        let gfn = core::mem::replace(&mut self.regions[root].0[region(gva)], UNBOUND);
        if gfn == UNBOUND {
            return;
        }
        self.tables.retain(gfn, |usage| usage.root != root || !usage.whole().contains(&gva));
        if !self.tables.any(gfn, |_| true) {
            self.unsync.retain(|&other| other != gfn);
        }
    }
}

/// The most directories that roots have: PAE's four each. So these never have to make way for each other.
const fn directories(roots: usize) -> u32 {
    4 * roots as u32
}

/// An empty list with room for `capacity` elements.
pub(crate) fn with_capacity<T>(capacity: usize) -> Result<Vec<T>, NoMemory> {
    let mut list = Vec::new();
    list.try_reserve_exact(capacity).map_err(|_| NoMemory)?;
    Ok(list)
}

impl Regions {
    fn new() -> Result<Self, NoMemory> {
        let mut frames = with_capacity(REGIONS)?;
        frames.resize(REGIONS, UNBOUND);
        Ok(Self(frames))
    }
}

const fn region(gva: Gva) -> usize {
    (gva.raw() / REGION) as usize
}

/// The first address of each region in `range`, which is aligned to regions.
pub(crate) fn regions(range: &Range<Gva>) -> impl Iterator<Item = Gva> {
    (range.start.raw()..range.end.raw()).step_by(REGION as usize).map(Gva::new)
}
