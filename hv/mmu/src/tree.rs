//! The tree: its creation and end, lockless walks, and flushes.

use crate::entry::{Caps, Entry, Leaf, Pte};
use crate::env::Env;
use crate::fault_injection::{After, InjectedFault};
use crate::format::{Format, FormatExt, span};
use crate::level::{Address, Level};
use crate::map::{EntryRef, Input, PteMap, PteMapLocked, Table};
use crate::rules::Rule;
use addr::{Hpa, PageSize, Pfn};
use core::fmt;
use model::kept;
use model::sync::{Ordering, relax};
use rcu::{Backlog, Cpu, Gather, Generation, Guard, Space};

/// Page tables of one guest (or of one of its address spaces), shared by all CPUs.
///
/// [`free_pgtables`](Self::free_pgtables) frees its frames; dropping it leaks them.
pub struct Tree<E: Env> {
    pub(crate) env: E,
    pub(crate) caps: Caps,
    root: Pfn,
    pub(crate) injected: InjectedFault,
}

/// No frame could be allocated for a table. The tree is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no frame for a table")
    }
}

impl core::error::Error for NoMemory {}

/// The translation of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address of the byte, not of its page.
    pub hpa: Hpa,
    /// The page's size.
    pub size: PageSize,
    /// The page.
    pub leaf: Leaf,
}

impl<E: Env> Tree<E> {
    /// An empty tree.
    ///
    /// # Errors
    /// [`NoMemory`], also if the allocated frame is not below [`Format::ROOT_END`].
    pub fn new(env: E, caps: Caps) -> Result<Self, NoMemory> {
        let root = env.alloc_root().ok_or(NoMemory)?;
        let tree = Self { env, caps: caps.at_most(E::Format::LARGEST), root, injected: InjectedFault::default() };
        let reachable = root.start().raw() < E::Format::ROOT_END;
        if !reachable || tree.start_table(root, E::Format::TOP, 0, |_| Pte::NONE).is_none() {
            tree.env.free_table(root);
            return Err(NoMemory);
        }
        Ok(tree)
    }

    /// The frame of the root table, for CR3, nCR3 or EPTP.
    pub fn root(&self) -> Pfn {
        self.root
    }

    /// The environment.
    pub fn env(&self) -> &E {
        &self.env
    }

    /// The space that CPUs enter to have their hardware walk this tree.
    pub fn space(&self) -> &Space {
        self.env.space()
    }

    /// The features of the format that it uses.
    pub fn caps(&self) -> Caps {
        self.caps
    }

    /// The translation of `at`, without locks.
    #[inline(always)]
    pub fn translate(&self, guard: Guard<'_>, at: Input<E>) -> Option<Translation> {
        let offset = at.to_offset(E::Format::INPUT_BITS)?;
        let (table, pte) = self.walk(guard, offset, Level::PTE)?;
        self.translation(table.level, pte, offset)
    }

    // A call would return the translation through memory, which costs more than the walk.
    #[inline(always)]
    pub(crate) fn translation(&self, level: Level, pte: Pte, offset: u64) -> Option<Translation> {
        let Entry::Leaf(leaf) = E::Format::decode(pte, level, self.caps) else { return None };
        let within = offset & (span::<E::Format>(level) - 1);
        Some(Translation { hpa: Hpa::new(leaf.pfn.start().raw() + within), size: level.page_size()?, leaf })
    }

    /// Walks down as far as there are tables, at most to the table whose entries are of level `stop`. Returns that
    /// table and its entry for `offset`, which is read by one load.
    #[inline(always)]
    pub(crate) fn walk<'g>(&'g self, guard: Guard<'g>, offset: u64, stop: Level) -> Option<(Table<'g, E>, Pte)> {
        let mut table = self.root_table(guard)?;
        loop {
            let pte = table.get(offset);
            if table.level <= stop {
                return Some((table, pte));
            }
            match table.below(pte, offset) {
                Some(below) => table = below,
                None => return Some((table, pte)),
            }
        }
    }

    pub(crate) fn root_table<'g>(&'g self, guard: Guard<'g>) -> Option<Table<'g, E>> {
        Table::root(self, guard, self.root)
    }

    /// Maps the root table, which exists as long as the tree.
    pub fn pgd_offset<'g>(&'g self, guard: Guard<'g>) -> Option<PteMap<'g, E>> {
        self.root_table(guard).map(|table| PteMap { table })
    }

    /// Maps and locks the root table.
    pub fn pgd_offset_lock<'g>(&'g self, guard: Guard<'g>) -> Option<PteMapLocked<'g, E>> {
        self.root_table(guard)?.lock().ok()
    }

    /// The last entry of a walk to `at`, and its level: Linux's `lookup_address`.
    #[inline(always)]
    pub fn lookup(&self, guard: Guard<'_>, at: Input<E>) -> Option<(Level, Pte)> {
        let offset = at.to_offset(E::Format::INPUT_BITS)?;
        self.walk(guard, offset, Level::PTE).map(|(table, pte)| (table.level, pte))
    }

    /// A reference to the entry of `level` for `at`, if there are tables down to that level: Linux's `mm_find_pmd`.
    #[inline]
    pub fn find<'g>(&'g self, guard: Guard<'g>, at: Input<E>, level: Level) -> Option<EntryRef<'g, E>> {
        let offset = at.to_offset(E::Format::INPUT_BITS)?;
        let (table, _) = self.walk(guard, offset, level)?;
        (table.level == level).then(|| table.entry_ref(offset))
    }

    /// Calls `look` for the entry of each level of a walk to `at`, from the root, for a report of a misconfigured
    /// entry.
    pub fn path(&self, guard: Guard<'_>, at: Input<E>, mut look: impl FnMut(Level, Pte, Entry)) {
        let Some(offset) = at.to_offset(E::Format::INPUT_BITS) else { return };
        let mut next = self.root_table(guard);
        while let Some(table) = next {
            let pte = table.get(offset);
            look(table.level, pte, table.decode(pte));
            next = table.below(pte, offset);
        }
    }

    /// Ends the tree: calls `page` for every page still mapped, with its first address, and frees all tables at once. A
    /// [`Teardown`](crate::Teardown) does the same in steps.
    ///
    /// The last tree that refers to a [shared](Self::share) table frees it and reports its pages.
    ///
    /// Software can't walk the tree, because this takes it by value. The caller must make sure that no processor walks
    /// it: none may enter the guest again, and each must have flushed since it last left the guest.
    pub fn free_pgtables(self, page: impl FnMut(Input<E>, PageSize, Leaf)) {
        self.tear_down().free_until(|| false, page);
    }

    /// Flushes: returns when no CPU can use a translation of this tree that is older than the call. It kicks CPUs in
    /// guest mode; those in the hypervisor flush at their next entry.
    pub fn flush(&self, cpu: &Cpu<'_, E::Platform>) {
        let mut gather = cpu.gather(self.space());
        gather.changed();
        self.await_flush(cpu, gather.finish().generation);
    }

    /// Waits until the flush with this number has reached every CPU.
    pub(crate) fn await_flush(&self, cpu: &Cpu<'_, E::Platform>, generation: Generation) {
        while !cpu.domain().is_flushed(self.space(), generation) {
            relax();
        }
    }

    /// Whether the flush after this operation is made, which faults that are injected leave out.
    pub(crate) fn flushes(&self, after: After) -> bool {
        kept(Rule::Flush) && !self.skips(after)
    }

    /// The [`flush`](Self::flush) after operation `after`.
    pub(crate) fn flush_after(&self, cpu: &Cpu<'_, E::Platform>, after: After) {
        if self.flushes(after) {
            self.flush(cpu);
        }
    }

    /// Frees an unlinked table after every CPU has passed a quiescent state and has flushed.
    pub(crate) fn defer_table(&self, cpu: &Cpu<'_, E::Platform>, table: Pfn) {
        let mut gather = cpu.gather(self.space());
        self.retire(table, &mut gather);
        self.finish_gather(cpu, gather, None);
    }

    /// Adds an unlinked table to those that `gather` defers.
    pub(crate) fn retire(&self, table: Pfn, gather: &mut Gather<'_, E::Platform>) {
        if kept(Rule::FreeLate) {
            self.env.retire(table);
            gather.add(table);
        } else {
            self.env.free_table(table);
            gather.changed();
        }
    }

    /// Flushes what `gather` has gathered, and waits for that if an operation is given whose flush is not left out.
    pub(crate) fn finish_gather(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        gather: Gather<'_, E::Platform>,
        after: Option<After>,
    ) {
        let retired = gather.finish();
        if after.is_some_and(|after| self.flushes(after)) {
            self.await_flush(cpu, retired.generation);
        }
        if retired.backlog == Backlog::Over {
            cpu.hurry();
        }
    }

    /// Whether an entry of `level` can refer to a table in `pfn`.
    pub(crate) fn holds_table(&self, pfn: Pfn, level: Level) -> bool {
        self.env.table(pfn).is_some() && self.env.desc(pfn).is_some_and(|desc| Some(desc.level()) == level.below())
    }

    /// Fills a table that no other CPU can see yet.
    pub(crate) fn start_table(
        &self,
        pfn: Pfn,
        level: Level,
        children: u16,
        entry: impl Fn(usize) -> Pte,
    ) -> Option<()> {
        self.env.desc(pfn)?.start(level, children);
        for (index, place) in self.env.table(pfn)?.as_ref().iter().enumerate() {
            place.store(entry(index).raw(), Ordering::Relaxed);
        }
        Some(())
    }

    /// The entry for `leaf`. None if it would not be valid: its frame is above the physical addresses of the processor
    /// or not aligned, or the page is too large.
    pub(crate) fn encode(&self, leaf: &Leaf, level: Level) -> Option<Pte> {
        let mut leaf = *leaf;
        if !self.caps.accessed_dirty() {
            leaf.accessed = true;
            leaf.dirty |= leaf.rights.write;
        }
        let reach = self.caps.address_mask() & !(span::<E::Format>(level) - 1);
        let fits = leaf.pfn.raw() >> (64 - addr::PAGE_SHIFT) == 0 && leaf.pfn.start().raw() & !reach == 0;
        (fits && level <= Level::of(self.caps.largest())).then(|| E::Format::leaf(&leaf, level))
    }
}
