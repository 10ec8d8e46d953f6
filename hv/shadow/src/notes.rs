//! What a kept shadow knows: which frames of the guest's are tables, and where; whose its trees are; who may write what.

use crate::chains::Chains;
use crate::registers::Context;
use crate::vtlb::around;
use crate::{NoMemory, Registers};
use addr::{Gfn, Gva, PAGE_SIZE, PageSize};
use alloc::vec::Vec;
use core::alloc::Layout;
use core::ops::Range;
use walk::{Mode, Step};

/// As many tables are out of sync at most: each load of CR3 and each INVLPG looks at them.
const UNSYNC: usize = 16;
/// What one table of a tree's last level translates.
pub(crate) const REGION: u64 = PageSize::Size2M.bytes();
const REGIONS: usize = (1 << 32) / REGION as usize;

pub(crate) struct State {
    /// By tree.
    pub(crate) owners: Vec<Owner>,
    /// By frame, what it is as a directory: a table of which entries refer to tables, or map large pages.
    pub(crate) directories: Chains<Use>,
    pub(crate) last: LastLevel,
    /// By frame, where it may be mapped writable: the first of the frames, if they are many. A page that has gone since does
    /// no harm.
    pub(crate) writable: Chains<Place>,
    /// Counts loads.
    pub(crate) clock: u64,
    /// How often somebody began to change the frames of guest memory.
    pub(crate) suspensions: u64,
    /// Who is at it.
    pub(crate) suspended: u32,
    pub(crate) views: usize,
}

/// The guest's tables of the last level, and the trees' that stand for them.
pub(crate) struct LastLevel {
    /// By frame.
    pub(crate) tables: Chains<Use>,
    /// Those that are out of sync, the one that has been for longest first.
    pub(crate) unsync: Vec<Gfn>,
    /// By tree.
    regions: Vec<Regions>,
}

/// By region, the frame of the guest's table that it is by.
struct Regions(Vec<Gfn>);

/// Whose a tree is.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) context: Option<Context>,
    pub(crate) vcpus: usize,
    /// The clock when it was last loaded.
    pub(crate) loaded: u64,
    /// Something was cleared in its tree that it has yet to flush, before the lock is let go of.
    pub(crate) stale: bool,
}

/// A guest frame, used as a table for a part of an address space.
#[derive(Clone, Copy)]
pub(crate) struct Use {
    pub(crate) tree: usize,
    pub(crate) start: Gva,
    pub(crate) shape: Shape,
    pub(crate) role: Role,
    /// How often it was written since a fault last went through it.
    pub(crate) writes: u8,
    /// The guest may write it without an exit. Of all uses of a frame, or of none; never of a directory's.
    pub(crate) unsync: bool,
}

/// What a table's entries mean, besides what is in them: the bits of CR0, CR4 and EFER that paging depends on, and for a
/// last level the rights that the directory's entry gives. No two of these have the same bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Role(u64);

/// What a table's entries look like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The size of an entry.
    pub(crate) bytes: u64,
    /// What an entry translates.
    span: u64,
}

/// A page of all trees that have what the table in frame `table` says: how far into what that translates.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) table: Gfn,
    pub(crate) shape: Shape,
    pub(crate) offset: u64,
}

/// The frame of the directory that an address space without paging has none of.
pub(crate) const UNPAGED: Gfn = Gfn::new(u64::MAX);
/// In the place of a frame: none.
const UNBOUND: Gfn = Gfn::new(u64::MAX - 1);

impl Role {
    /// R/W, U/S and NX.
    const RIGHTS: u64 = 1 << 63 | 0b110;

    pub(crate) const fn of_directory(registers: &Registers) -> Self {
        Self(registers.meaning())
    }

    /// Of a table by this entry of a directory.
    pub(crate) const fn below(self, entry: u64) -> Self {
        Self(self.0 | entry & Self::RIGHTS)
    }
}

impl Shape {
    pub(crate) fn of(mode: Mode, level: u32) -> Self {
        let (bytes, upper) = if mode == Mode::Pae { (8, PageSize::Size2M) } else { (4, PageSize::Size4M) };
        Self { bytes, span: if level == 1 { PAGE_SIZE } else { upper.bytes() } }
    }

    const fn whole(self) -> u64 {
        PAGE_SIZE / self.bytes * self.span
    }

    pub(crate) const fn is_last_level(self) -> bool {
        self.span == PAGE_SIZE
    }
}

impl Use {
    /// By this step of a walk for `gva`.
    pub(crate) fn by(tree: usize, gva: Gva, mode: Mode, step: &Step, role: Role) -> Self {
        Self::new(tree, gva, Shape::of(mode, step.level), role)
    }

    /// Of [`UNPAGED`].
    pub(crate) fn unpaged(tree: usize, role: Role) -> Self {
        Self::new(tree, Gva::new(0), Shape::of(Mode::Bits32, 2), role)
    }

    fn new(tree: usize, gva: Gva, shape: Shape, role: Role) -> Self {
        Self { tree, start: gva.align_down(shape.whole()), shape, role, writes: 0, unsync: false }
    }

    pub(crate) fn is_at_same(&self, other: &Self) -> bool {
        (self.tree, self.start) == (other.tree, other.start) && self.shape == other.shape
    }

    pub(crate) fn whole(&self) -> Range<Gva> {
        around(self.start, self.shape.whole())
    }

    /// What the entry for `gva` translates.
    pub(crate) fn entry(&self, gva: Gva) -> Range<Gva> {
        around(gva, self.shape.span)
    }

    /// What the entries translate that have any of these bytes of the table.
    pub(crate) fn of_bytes(&self, bytes: &Range<u64>) -> Range<Gva> {
        let Shape { bytes: size, span } = self.shape;
        let end = bytes.end.div_ceil(size) * span;
        self.start.wrapping_add(bytes.start / size * span)..self.start.wrapping_add(end)
    }

    /// The page at `gva`, by the table in frame `table`.
    pub(crate) fn place(&self, table: Gfn, gva: Gva) -> Place {
        Place { table, shape: self.shape, offset: gva.raw() - self.start.raw() }
    }
}

impl Place {
    /// Where the page is.
    pub(crate) fn uses<'s>(
        &self,
        directories: &'s Chains<Use>,
        last: &'s LastLevel,
    ) -> impl Iterator<Item = &'s Use> + use<'s> {
        let (uses, shape) = (if self.shape.is_last_level() { &last.tables } else { directories }, self.shape);
        uses.iter(self.table).filter(move |user| user.shape == shape)
    }
}

impl State {
    /// Room for `trees` trees, for `notes` tables and for four times as many writable pages.
    pub(crate) fn new(trees: usize, notes: u32) -> Result<Self, NoMemory> {
        Ok(Self {
            owners: room(trees)?,
            directories: Chains::new(notes)?,
            last: LastLevel { tables: Chains::new(notes)?, unsync: room(UNSYNC)?, regions: room(trees)? },
            writable: Chains::new(notes.saturating_mul(4))?,
            clock: 0,
            suspensions: 0,
            suspended: 0,
            views: 0,
        })
    }

    /// What [`new`](Self::new) allocates, and then [`add_tree`](Self::add_tree) for each tree.
    pub(crate) fn allocations(trees: usize, notes: u32) -> impl Iterator<Item = Layout> {
        let lists = [Layout::array::<Owner>(trees), Layout::array::<Gfn>(UNSYNC), Layout::array::<Regions>(trees)];
        let tables = [Chains::<Use>::allocations(notes), Chains::<Use>::allocations(notes)];
        let places = Chains::<Place>::allocations(notes.saturating_mul(4));
        let regions = core::iter::repeat_n(Layout::array::<Gfn>(REGIONS), trees);
        let chains = tables.into_iter().flatten().chain(places);
        lists.into_iter().chain(regions).map(Result::ok).chain(chains).flatten()
    }

    /// There is another tree, nobody's yet.
    pub(crate) fn add_tree(&mut self) -> Result<(), NoMemory> {
        self.last.regions.push(Regions::new()?);
        self.owners.push(Owner { context: None, vcpus: 0, loaded: 0, stale: false });
        Ok(())
    }

    /// Whether the guest must not write the frame without an exit.
    pub(crate) fn is_protected(&self, gfn: Gfn) -> bool {
        self.directories.any(gfn, |_| true) || self.last.tables.any(gfn, |user| !user.unsync)
    }

    /// Nothing is known but whose the trees are.
    pub(crate) fn clear(&mut self) {
        self.directories.clear();
        self.writable.clear();
        self.last.tables.clear();
        self.last.unsync.clear();
        self.last.regions.iter_mut().for_each(|regions| regions.0.fill(UNBOUND));
    }
}

impl LastLevel {
    /// Whether the table is out of sync.
    pub(crate) fn is_unsync(&self, gfn: Gfn) -> bool {
        self.unsync.contains(&gfn)
    }

    /// A table that is out of sync and of use in that tree.
    pub(crate) fn unsync_in(&self, tree: usize) -> Option<Gfn> {
        self.unsync.iter().copied().find(|&gfn| self.tables.any(gfn, |user| user.tree == tree))
    }

    /// The table that has been out of sync for longest, if there may be no more of them.
    pub(crate) fn oldest_unsync(&self) -> Option<Gfn> {
        self.unsync.first().copied().filter(|_| self.unsync.len() == UNSYNC)
    }

    pub(crate) fn set_unsync(&mut self, gfn: Gfn, unsync: bool) {
        self.unsync.retain(|&other| other != gfn);
        if unsync {
            self.unsync.push(gfn);
        }
        self.tables.retain(gfn, |user| {
            user.unsync = unsync;
            true
        });
    }

    /// The region of `gva` is by the table in `gfn` from now on.
    pub(crate) fn bind(&mut self, tree: usize, gva: Gva, gfn: Gfn) {
        self.regions[tree].0[region(gva)] = gfn;
    }

    /// The frame of the table that the region of `gva` is by.
    pub(crate) fn bound(&self, tree: usize, gva: Gva) -> Option<Gfn> {
        let gfn = self.regions[tree].0[region(gva)];
        (gfn != UNBOUND).then_some(gfn)
    }

    pub(crate) fn is_bound(&self, tree: usize, range: &Range<Gva>) -> bool {
        regions(range).any(|at| self.bound(tree, at).is_some())
    }

    /// The region of `gva` is by no table, and what was noted of that is forgotten. Whether it was by one.
    pub(crate) fn unbind(&mut self, tree: usize, gva: Gva) -> bool {
        let gfn = core::mem::replace(&mut self.regions[tree].0[region(gva)], UNBOUND);
        if gfn == UNBOUND {
            return false;
        }
        self.tables.retain(gfn, |user| user.tree != tree || !user.whole().contains(&gva));
        if !self.tables.any(gfn, |_| true) {
            self.unsync.retain(|&other| other != gfn);
        }
        true
    }
}

/// An empty list with room for so many.
pub(crate) fn room<T>(capacity: usize) -> Result<Vec<T>, NoMemory> {
    let mut list = Vec::new();
    list.try_reserve_exact(capacity).map_err(|_| NoMemory)?;
    Ok(list)
}

impl Regions {
    fn new() -> Result<Self, NoMemory> {
        let mut frames = room(REGIONS)?;
        frames.resize(REGIONS, UNBOUND);
        Ok(Self(frames))
    }
}

const fn region(gva: Gva) -> usize {
    (gva.raw() / REGION) as usize
}

/// The first address of each region in the range, whose edges are those of regions.
pub(crate) fn regions(range: &Range<Gva>) -> impl Iterator<Item = Gva> {
    (range.start.raw()..range.end.raw()).step_by(REGION as usize).map(Gva::new)
}
