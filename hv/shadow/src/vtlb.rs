//! A virtual TLB: the pages that one vCPU has used since it last loaded CR3.

use crate::counters::{Counter, Counters, Counts};
use crate::resolve::{Resolved, resolve};
use crate::rules::Rule;
use crate::{FaultOutcome, Memory, NoMemory, Registers};
use addr::{Gva, PageSize, Pfn};
use core::ops::Range;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64 as Regions};
use mmu::{Caps, Env, Fault, Leaf, MapError, Pae, Room, Tree, ZappedTables};
use model::kept;
use model::sync::{AtomicU64, Ordering, fence};
use rcu::{Cpu, Space};
use walk::{Access, AccessKind};

pub(crate) const WHOLE: Range<Gva> = Gva::new(0)..Gva::new(1 << 32);
/// The largest page of a 32-bit guest: INVLPG zaps at most that much.
const REGION: u64 = PageSize::Size4M.bytes();
const REGIONS: usize = (1 << 32) / REGION as usize;
/// How many bytes of the address space are zapped at once to make room for another table: 32 tables' worth.
const DROPPED: u64 = 64 << 20;
/// One call of [`Vtlb::suspend`] in the upper half of [`Vtlb::suspended`].
const BEGUN: u64 = 1 << 32;

/// One vCPU's shadow: the pages that it has used since its last load of CR3, in a tree of its own.
///
/// Only its vCPU calls it, except for [`suspend`](Self::suspend), [`resume`](Self::resume) and [`make_way`](Self::make_way). It has to be
/// ended by [`into_tree`](Self::into_tree).
pub struct Vtlb<E: Env<Format = Pae<Gva>>> {
    tree: Tree<E>,
    /// A bit for each region of 4 MiB: an entry there maps a large page of the guest, or a part of one.
    large: [Regions; REGIONS / 64],
    /// Bits 31:0: how many calls of `suspend` were not followed by a `resume` yet. Bits 63:32: how many there were in total.
    suspended: AtomicU64,
    /// The number of tables of the last level. (Another CPU's `suspend` may have subtracted a table that `install` is yet to
    /// add.)
    tables: AtomicI32,
    max_tables: i32,
    /// The bytes that were [dropped](Self::drop_tables) so far, modulo 4 GiB: the next ones are behind them.
    dropped: AtomicU32,
    counters: Counters,
}

impl<E: Env<Format = Pae<Gva>>> Vtlb<E> {
    /// An empty shadow of at most `max_tables` tables of the last level, which bounds what it costs to zap them all. Where there is
    /// no room for one more, a part of them is zapped.
    ///
    /// # Errors
    /// [`NoMemory`]: no frame for the root.
    pub fn new(env: E, caps: Caps, max_tables: u32) -> Result<Self, NoMemory> {
        let counters = Counters::new();
        counters.most(Counter::TableRoom, max_tables as usize);
        Ok(Self {
            tree: Tree::new(env, caps)?,
            large: core::array::from_fn(|_| Regions::new(0)),
            suspended: AtomicU64::new(0),
            tables: AtomicI32::new(0),
            max_tables: max_tables as i32,
            dropped: AtomicU32::new(0),
            counters,
        })
    }

    /// The frame of the four PDPTEs, below 4 GiB: CR3 while the guest runs.
    pub fn root(&self) -> Pfn {
        self.tree.root()
    }

    /// The space to enter the guest with.
    pub fn space(&self) -> &Space {
        self.tree.space()
    }

    /// The counters' values.
    pub fn counts(&self) -> Counts {
        self.counters.read()
    }

    /// The vCPU has a new [context](crate::Change::Context), by a load of CR3, say: zaps everything.
    pub fn load(&self, cpu: &Cpu<'_, E::Platform>) {
        self.counters.count(Counter::Loads);
        self.large.iter().for_each(|regions| regions.store(0, Ordering::Relaxed));
        self.zap_all(cpu);
    }

    /// The vCPU executes INVLPG: zaps the page at `gva`, of whatever size.
    pub fn invlpg(&self, cpu: &Cpu<'_, E::Platform>, gva: Gva) {
        self.counters.count(Counter::Invlpgs);
        let gva = linear(gva);
        let (word, bit) = region(gva);
        if self.large[word].load(Ordering::Relaxed) & bit != 0 {
            self.zap(cpu, around(gva, REGION));
        } else {
            self.zap_page(cpu, gva);
        }
    }

    /// To be called before guest memory gets other frames or other rights. When this returns, the processor has no translation to
    /// guest memory, nor gets one until [`resume`](Self::resume). Software may still read the old frames until a grace period
    /// has passed.
    pub fn suspend(&self, cpu: &Cpu<'_, E::Platform>) {
        self.suspended.fetch_add(BEGUN | 1, Ordering::Relaxed);
        // Pairs with the fence in `install`.
        if kept(Rule::FenceAtSuspend) {
            fence(Ordering::SeqCst);
        }
        self.zap_all(cpu);
    }

    /// Ends one [`suspend`](Self::suspend): faults map pages again when all are ended.
    pub fn resume(&self) {
        self.suspended.fetch_sub(1, Ordering::Release);
    }

    /// Handles a page fault of the vCPU at `gva`.
    ///
    /// # Errors
    /// [`NoMemory`]: there is no frame for a shadow table, or none for the page. [`make_way`](Self::make_way) may help.
    pub fn fault<M: Memory>(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        mem: &M,
        registers: &Registers,
        gva: Gva,
        access: Access,
    ) -> Result<FaultOutcome, NoMemory> {
        self.counters.count(Counter::Faults);
        let outcome = match resolve(mem, registers, gva, access) {
            Ok(page) => self.map(cpu, mem, linear(gva), page, access)?,
            Err(outcome) => outcome,
        };
        self.counters.count_outcome(outcome);
        Ok(outcome)
    }

    fn map<M: Memory>(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        mem: &M,
        gva: Gva,
        page: Resolved,
        access: Access,
    ) -> Result<FaultOutcome, NoMemory> {
        let Resolved { gpa, size, .. } = page;
        let write = access.kind == AccessKind::Write;
        let suspended = self.suspended.load(Ordering::Acquire);
        if suspended as u32 != 0 {
            return Ok(FaultOutcome::Retry);
        }
        let (backing, rights) = match page.entry(mem.backing(gpa, write)?, write) {
            Ok(entry) => entry,
            Err(outcome) => return Ok(outcome),
        };
        if size > PageSize::Size4K {
            let (word, bit) = region(gva);
            self.large[word].fetch_or(bit, Ordering::Relaxed);
        }
        loop {
            match self.tree.fault(cpu.read(), gva, size.min(backing.size)) {
                Ok(Fault::Room(room)) => return self.install(cpu, room, Leaf::new(backing.pfn, rights), suspended),
                Ok(Fault::Present(found)) if found.hpa.frame() == backing.pfn && found.leaf.rights == rights => {
                    return Ok(FaultOutcome::Mapped);
                }
                Ok(Fault::Present(_)) => self.zap_page(cpu, gva),
                // A 32-bit address is never out of range.
                Err(mmu::OutOfRange) => return Ok(FaultOutcome::Retry),
            }
        }
    }

    /// Maps the page with the room's size. If [`suspend`](Self::suspend) was called since the caller read the backing, then either
    /// `suspend` finds the entry, or this function finds `suspended` changed: each side writes, fences, and reads what the other
    /// side has written.
    fn install(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        room: Room<'_, E>,
        leaf: Leaf,
        suspended: u64,
    ) -> Result<FaultOutcome, NoMemory> {
        let (start, size) = (room.start(), room.size());
        let needs_table = !room.is_in_table() && size == PageSize::Size4K;
        if needs_table && self.tables.load(Ordering::Relaxed) >= self.max_tables {
            self.drop_tables(cpu);
            return Ok(FaultOutcome::Retry);
        }
        let pfn = Pfn::new(leaf.pfn.raw() & !(size.frames() - 1));
        // Accessed and dirty are set from the start: the guest's own bits are in its tables, and `resolve` has set them.
        match room.install(Leaf { pfn, accessed: true, dirty: leaf.rights.write, ..leaf }) {
            Ok(()) if needs_table => {
                let before = self.tables.fetch_add(1, Ordering::Relaxed);
                self.counters.most(Counter::ShadowTables, (before + 1).max(0) as usize);
            }
            Ok(()) => {}
            Err(MapError::Raced | MapError::Present) => return Ok(FaultOutcome::Retry),
            Err(MapError::NoMemory | MapError::Invalid) => return Err(NoMemory),
        }
        if kept(Rule::FenceAtSuspend) {
            fence(Ordering::SeqCst);
        }
        if !kept(Rule::LookAgain) || self.suspended.load(Ordering::Relaxed) == suspended {
            return Ok(FaultOutcome::Mapped);
        }
        self.zap_page(cpu, start);
        Ok(FaultOutcome::Retry)
    }

    fn zap_page(&self, cpu: &Cpu<'_, E::Platform>, gva: Gva) {
        if self.tree.zap_page(cpu, gva) {
            self.counters.count(Counter::Zapped);
        }
    }

    fn zap(&self, cpu: &Cpu<'_, E::Platform>, range: Range<Gva>) {
        let zapped = self.tree.zap(cpu, range, |_| self.counters.count(Counter::Zapped));
        debug_assert_eq!(zapped, Ok(()), "no page lies across an edge of the range");
    }

    /// Zaps all pages, by their tables: a guest may have filled hundreds of these before it loads CR3.
    fn zap_all(&self, cpu: &Cpu<'_, E::Platform>) {
        self.zap_tables(cpu, WHOLE);
    }

    /// There is no room for one more table: zaps the next part of the address space that has any. A guest that walks through its
    /// memory loses the part that it was in longest ago.
    #[cold]
    fn drop_tables(&self, cpu: &Cpu<'_, E::Platform>) {
        self.counters.count(Counter::Dropped);
        for _ in 0..WHOLE.end.raw() / DROPPED {
            let start = self.dropped.fetch_add(DROPPED as u32, Ordering::Relaxed);
            if self.zap_tables(cpu, around(Gva::new(start.into()), DROPPED)).tables > 0 {
                break;
            }
        }
    }

    /// The host has no frame for what the vCPU needs: zaps a part of the tables, as where there is no room for one more. Their
    /// frames come back after a grace period. False if no table is left.
    #[cold]
    pub fn make_way(&self, cpu: &Cpu<'_, E::Platform>) -> bool {
        let has_tables = self.tables.load(Ordering::Relaxed) > 0;
        if has_tables {
            self.drop_tables(cpu);
        }
        has_tables
    }

    fn zap_tables(&self, cpu: &Cpu<'_, E::Platform>, range: Range<Gva>) -> ZappedTables {
        let zapped = self.tree.zap_tables(cpu, range).unwrap_or_default();
        self.tables.fetch_sub(zapped.tables as i32, Ordering::Relaxed);
        self.counters.add(Counter::Zapped, zapped.pages);
        zapped
    }

    /// Ends it: the tree, for the caller to [free](Tree::free_pgtables). The vCPU may not run any more, and must have flushed since
    /// it ran. Tables that were unlinked before are freed by [`Cpu::poll`].
    pub fn into_tree(self) -> Tree<E> {
        self.tree
    }

    #[cfg(test)]
    pub(crate) fn tree(&self) -> &Tree<E> {
        &self.tree
    }
}

/// The linear address outside of long mode: bits 31:0.
pub(crate) const fn linear(gva: Gva) -> Gva {
    Gva::new(gva.raw() & 0xffff_ffff)
}

/// The word and the bit in [`Vtlb::large`] for the region of `gva`.
const fn region(gva: Gva) -> (usize, u64) {
    let region = (gva.raw() / REGION) as usize;
    (region / 64, 1 << (region % 64))
}

/// The block of `size` bytes, a power of two, that contains `gva` and is aligned to its size.
pub(crate) const fn around(gva: Gva, size: u64) -> Range<Gva> {
    let start = gva.align_down(size);
    start..start.wrapping_add(size)
}
