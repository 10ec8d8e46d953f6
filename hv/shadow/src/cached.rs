//! A shadow that outlives loads of CR3: it caches a root for each address space, and follows the guest's writes of its tables.
//!
//! A root is a tree of shadow tables. The guest frames that it shadows are recorded as [`TableUse`]s. Such a frame is read-only for
//! the guest while it is in sync. Address spaces that use the same guest frame as a table of the last level, with the same
//! [`Role`], share its shadow table, which is freed with the last of them. The following is done under one lock:
//!
//! * A fault walks the guest's tables, records their frames as tables from the directory downwards, write-protects those that were
//!   not tables before, and *then* reads their entries again. The page is mapped only if the entries have not changed.
//! * A write to a directory is emulated by [`Shadow::write`], which then zaps the shadow of the entries, or unlinks it where it is
//!   shared. An entry that is written in two halves is therefore read again, whole, by the next fault that needs it.
//! * A table of the last level that is not a directory as well goes out of sync when it is written: from then on the guest
//!   may write it without an exit, and its shadow may have older entries, as a processor's TLB may. INVLPG zaps the one page. A load
//!   of CR3 zaps the shadow of each such table of the address space, in all roots, and brings it back in sync.
//!
//! When an entry of a shared shadow table is zapped, the CPUs that run on each of its roots flush their TLBs.

use crate::counters::{Counter, Counters, Counts};
use crate::gfn_hash::{Full, GfnHash};
use crate::metadata::{Capacity, LastLevel, RmapEntry, Role, Root, State, TableUse, UNPAGED, regions, with_capacity};
use crate::registers::Context;
use crate::resolve::{Resolved, resolve};
use crate::rules::Rule;
use crate::vtlb::{WHOLE, around, linear};
use crate::{FaultOutcome, Memory, NoMemory, Reason, Registers};
use addr::{Gfn, Gpa, Gva, PAGE_SIZE, PageSize, Pfn};
use alloc::vec::Vec;
use core::alloc::Layout;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};
use mmu::{Caps, Env, Fault, Leaf, Level, MapError, Pae, Room, ShareError, Tree};
use model::kept;
use model::sync::SpinMutex as Mutex;
use rcu::{Cpu, Space};
use walk::{Access, AccessKind, Mode, PhysMem, WalkStep};

/// How often a table can be written, without a fault through it in between, until its frame is not shadowed any more: the guest
/// probably uses it for other data by then (KVM calls this write flooding).
const FLOOD: u8 = 6;

/// How many mappings of a frame can be writable at once, and, beyond one for each root, how often a frame can be used as a table of
/// the last level. The oldest makes way for a new one. Without a bound, a frame that is mapped by each entry of a table, which each
/// entry of a directory refers to, makes one write protection go through millions of entries under the lock.
const MAPPINGS: usize = 32;
const EXTRA_USES: usize = 16;

/// How many writable mappings make way at once where there is no room for one more: one flush is for all of them. Of a small reverse
/// map it is a part.
const EVICTED: usize = 64;

/// The shadow of a guest's address spaces, shared by its vCPUs. It has to be ended by [`into_trees`](Self::into_trees).
pub struct Shadow<E: Env<Format = Pae<Gva>>> {
    /// One for each root. Changed under the lock of `state` only; processors walk them at any time.
    trees: Vec<Tree<E>>,
    state: Mutex<State>,
    /// The most shadow tables of the last level: what zapping them all costs is bounded, as the metadata is.
    max_tables: usize,
    counters: Counters,
}

/// The source of a write to guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// An emulated instruction or a device.
    Software,
    /// A walk that sets accessed and dirty bits. These writes do not count as write flooding.
    Walk,
}

/// The root that a vCPU runs on. Only this vCPU uses it.
#[derive(Debug)]
pub struct View {
    root: AtomicUsize,
    /// The root before that: kernels often switch back to it.
    previous: AtomicUsize,
}

impl<E: Env<Format = Pae<Gva>>> Shadow<E> {
    /// A shadow with one root for each of `envs`: at least one for each vCPU; each further one caches one more address space.
    /// `capacity` is how much it knows at once. When there is no room for a table or a use of one, the root that was loaded
    /// longest ago is zapped; when there is none for a writable mapping, the oldest ones are cleared. Faults make them again.
    /// `seed` is a number that the guest can hardly guess: the metadata's hash tables depend on it, so that a guest does not know
    /// which frames have the same hash.
    ///
    /// # Errors
    /// [`NoMemory`]: no frames for the roots, or no heap for the metadata.
    pub fn new(
        envs: impl IntoIterator<IntoIter: ExactSizeIterator<Item = E>>,
        caps: Caps,
        capacity: Capacity,
        seed: u64,
    ) -> Result<Self, NoMemory> {
        let envs = envs.into_iter();
        let (trees, state) = (with_capacity(envs.len())?, State::new(envs.len(), capacity, seed)?);
        let counters = Counters::new();
        counters.most(Counter::RmapRoom, state.rmap.capacity());
        counters.most(Counter::TableRoom, capacity.tables);
        let mut shadow = Self { trees, state: Mutex::new(state), max_tables: capacity.tables, counters };
        for env in envs {
            if let Err(error) = shadow.add(env, caps) {
                shadow.into_trees().into_iter().for_each(|tree| tree.free_pgtables(|_, _, _| {}));
                return Err(error);
            }
        }
        Ok(shadow)
    }

    /// The heap allocations of [`new`](Self::new) with `roots` environments. A shadow never makes any others.
    pub fn allocations(roots: usize, capacity: Capacity) -> impl Iterator<Item = Layout> {
        Layout::array::<Tree<E>>(roots).ok().into_iter().chain(State::allocations(roots, capacity))
    }

    fn add(&mut self, env: E, caps: Caps) -> Result<(), NoMemory> {
        self.state.get_mut().add_root()?;
        self.trees.push(Tree::new(env, caps)?);
        Ok(())
    }

    /// The view of a vCPU at its start, without paging.
    ///
    /// # Errors
    /// [`NoMemory`]: there are as many views as roots already.
    pub fn view(&self, cpu: &Cpu<'_, E::Platform>) -> Result<View, NoMemory> {
        let mut state = self.state.lock();
        if state.views == self.trees.len() {
            return Err(NoMemory);
        }
        state.views += 1;
        let root = self.acquire_root(cpu, &mut state, Context::UNPAGED, 0);
        Ok(View { root: AtomicUsize::new(root), previous: AtomicUsize::new(root) })
    }

    /// The frame of the four PDPTEs, below 4 GiB: CR3 while the guest runs.
    pub fn root(&self, view: &View) -> Pfn {
        self.tree(view).root()
    }

    /// The space to enter the guest with. Its [`Tlb`](rcu::Tlb) asks for a flush when the vCPU was in another space before.
    pub fn space(&self, view: &View) -> &Space {
        self.tree(view).space()
    }

    /// The spaces of all roots.
    pub fn spaces(&self) -> impl Iterator<Item = &Space> {
        self.trees.iter().map(Tree::space)
    }

    /// The counters' values.
    pub fn counts(&self) -> Counts {
        self.counters.read()
    }

    /// The vCPU has a new [context](crate::Change::Context), by a load of CR3, say. [`root`](Self::root) and
    /// [`space`](Self::space) may change.
    pub fn load(&self, cpu: &Cpu<'_, E::Platform>, view: &View, registers: &Registers) {
        self.counters.count(Counter::Loads);
        let mut state = self.state.lock();
        let left = view.root.load(Ordering::Relaxed);
        if let Some(root) = state.roots.get_mut(left) {
            root.vcpus -= 1;
        }
        let root = self.acquire_root(cpu, &mut state, registers.context(), view.previous.load(Ordering::Relaxed));
        view.root.store(root, Ordering::Relaxed);
        view.previous.store(left, Ordering::Relaxed);
        while let Some(gfn) = state.last.unsync_in(root) {
            self.sync(cpu, &mut state, gfn);
        }
    }

    /// The root of `context` for one more vCPU. If there is none, the root that was loaded longest ago, of those without a vCPU, is
    /// zapped and reused. `guess` is the root that is tried first.
    fn acquire_root(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, context: Context, guess: usize) -> usize {
        state.clock += 1;
        let matches = |root: &Root| root.context == Some(context);
        let found = match state.roots.get(guess).is_some_and(matches) {
            true => Some(guess),
            false => state.roots.iter().position(matches),
        };
        self.counters.count(if found.is_some() { Counter::Found } else { Counter::Made });
        // There are no more views than roots, so at least one root has no vCPU now.
        let idle = (0..).zip(&state.roots).filter(|(_, root)| root.vcpus == 0);
        let number = found.or_else(|| idle.min_by_key(|(_, root)| root.loaded).map(|(n, _)| n)).unwrap_or_default();
        let root = &mut state.roots[number];
        *root = Root { context: Some(context), vcpus: root.vcpus + 1, loaded: state.clock, ..*root };
        if found.is_none() {
            self.zap_root(cpu, state, number);
        }
        number
    }

    /// The vCPU executes INVLPG: the page is zapped if its table is out of sync.
    pub fn invlpg(&self, cpu: &Cpu<'_, E::Platform>, view: &View, gva: Gva) {
        self.counters.count(Counter::Invlpgs);
        let (gva, root) = (linear(gva), view.root.load(Ordering::Relaxed));
        let last = &self.state.lock().last;
        if let Some(gfn) = last.bound(root, gva)
            && last.is_unsync(gfn)
            && self.zap_page(cpu, root, gva)
        {
            self.flush_sharers(cpu, last, gfn);
        }
    }

    /// Lets the table go out of sync: the guest may write it without an exit. False if it is a directory, too.
    fn unsync(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn) -> bool {
        if state.directories.any(gfn, |_| true) {
            return false;
        }
        if let Some(oldest) = state.last.oldest_unsync() {
            self.sync(cpu, state, oldest);
        }
        self.counters.count(Counter::Unsynced);
        state.last.set_unsync(gfn, true);
        true
    }

    /// Brings the table back in sync: it is read-only again, and its shadow is zapped.
    fn sync(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn) {
        self.counters.count(Counter::Synced);
        state.last.set_unsync(gfn, false);
        self.write_protect(cpu, state, gfn);
        self.zap_table(cpu, &state.last, gfn, TableUse::whole);
    }

    /// Calls `store`, which writes the `len` bytes of guest memory from `gpa` on. When this returns, no processor uses a
    /// translation from before the write. A vCPU that sees the bytes earlier than that, and then executes INVLPG or loads CR3,
    /// waits there until this is done.
    pub fn write<R>(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        gpa: Gpa,
        len: usize,
        by: Writer,
        store: impl FnOnce() -> R,
    ) -> R {
        let (mut state, stored) = if kept(Rule::StoreLocked) {
            let state = self.state.lock();
            (state, store())
        } else {
            let stored = store();
            (self.state.lock(), stored)
        };
        let (mut at, end) = (gpa.raw(), gpa.raw().saturating_add(len as u64));
        while at < end {
            let next = (at & !(PAGE_SIZE - 1)).saturating_add(PAGE_SIZE).min(end);
            let from = at % PAGE_SIZE;
            self.track_write(cpu, &mut state, Gpa::new(at).frame(), &(from..from + (next - at)), by);
            at = next;
        }
        stored
    }

    fn track_write(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn, bytes: &Range<u64>, by: Writer) {
        let mut flooded = false;
        let mut count = |usage: &mut TableUse| {
            if !usage.unsync && by == Writer::Software {
                self.counters.count(Counter::Written);
                usage.write_flooding += 1;
                flooded |= usage.write_flooding >= FLOOD;
            }
            true
        };
        state.directories.retain(gfn, &mut count);
        state.last.tables.retain(gfn, &mut count);
        if flooded {
            self.counters.count(Counter::Flooded);
            return self.unshadow_frame(cpu, state, gfn);
        }
        for usage in state.directories.iter(gfn) {
            self.unlink(cpu, &mut state.last, usage.root, usage.of_bytes(bytes));
        }
        if state.last.tables.any(gfn, |usage| !usage.unsync) {
            self.zap_table(cpu, &state.last, gfn, |usage| usage.of_bytes(bytes));
        }
    }

    /// Stops shadowing the page at `gpa`, until a fault goes through it again: for an instruction that writes a table and can't be
    /// emulated. This does not help if the write itself is translated by that table.
    pub fn unshadow(&self, cpu: &Cpu<'_, E::Platform>, gpa: Gpa) {
        self.unshadow_frame(cpu, &mut self.state.lock(), gpa.frame());
    }

    /// Zaps the shadow of this frame, which is not a table any more.
    fn unshadow_frame(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn) {
        let State { directories, last, .. } = state;
        directories.retain(gfn, |usage| {
            self.unlink(cpu, last, usage.root, usage.whole());
            false
        });
        loop {
            let Some(usage) = last.tables.iter(gfn).next().copied() else { break };
            self.unlink(cpu, last, usage.root, usage.whole());
        }
    }

    /// To be called before guest memory gets other frames or other rights. When this returns, no processor has a translation to
    /// guest memory, nor gets one until [`resume`](Self::resume). Software may still read the old frames until a grace period
    /// has passed.
    pub fn suspend(&self, cpu: &Cpu<'_, E::Platform>) {
        let mut state = self.state.lock();
        state.suspensions += 1;
        state.suspended += 1;
        self.zap_all(cpu, &mut state);
    }

    /// Ends one [`suspend`](Self::suspend): faults map pages again when all are ended.
    pub fn resume(&self) {
        self.state.lock().suspended -= 1;
    }

    /// Handles a page fault of the vCPU at `gva`.
    ///
    /// # Errors
    /// [`NoMemory`]: there is no frame for a shadow table, or none for the page. [`make_way`](Self::make_way) may help.
    pub fn fault<M: Memory>(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        view: &View,
        mem: &M,
        registers: &Registers,
        gva: Gva,
        access: Access,
    ) -> Result<FaultOutcome, NoMemory> {
        self.counters.count(Counter::Faults);
        let outcome = match resolve(mem, registers, gva, access) {
            Ok(page) => {
                let at = At { root: view.root.load(Ordering::Relaxed), gva: linear(gva) };
                self.map(cpu, mem, &at, registers, &page, access.kind == AccessKind::Write)?
            }
            Err(outcome) => outcome,
        };
        self.counters.count_outcome(outcome);
        Ok(outcome)
    }

    // Out of what a fault executes that is the guest's own.
    #[inline(never)]
    fn map<M: Memory>(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        mem: &M,
        at: &At,
        registers: &Registers,
        page: &Resolved,
        write: bool,
    ) -> Result<FaultOutcome, NoMemory> {
        let mode = registers.paging().controls.mode();
        let suspensions = self.state.lock().suspensions;
        let backing = mem.backing(page.gpa, write)?;
        let mut state = self.state.lock();
        state.roots[at.root].used = true;
        let changed = |step: &WalkStep| kept(Rule::ReadAgain) && read(mem, mode, step.at) != Some(step.entry);
        let tracked = self.track_tables(cpu, &mut state, at, registers, page.steps.as_slice(), changed);
        let table = match tracked {
            Ok(Some(table)) if state.suspended == 0 && state.suspensions == suspensions => table,
            Ok(_) => return Ok(FaultOutcome::Retry),
            Err(Full) => return Ok(self.zap_oldest_root(cpu, &mut state, at.root)),
        };
        let (backing, mut rights) = match page.entry(backing, write) {
            Ok(entry) => entry,
            Err(outcome) => return Ok(outcome),
        };
        if state.is_protected(page.gpa.frame()) {
            if write && !self.unsync(cpu, &mut state, page.gpa.frame()) {
                return Ok(FaultOutcome::Emulate { gpa: page.gpa, reason: Reason::Table });
            }
            rights.write &= write;
            // `unsync` may have brought another table of this walk back in sync: its entry must still be the one that was read.
            if page.steps.as_slice().iter().any(changed) {
                return Ok(FaultOutcome::Retry);
            }
        }
        let mut size = page.size.min(backing.size).min(PageSize::Size2M);
        if size > PageSize::Size4K && frames(page.gpa, size).any(|gfn| state.is_protected(gfn)) {
            size = PageSize::Size4K;
        }
        self.install(cpu, &mut state, at, &table, page.gpa, Leaf::new(backing.pfn, rights), size)
    }

    /// Records that the fault at `at` went through the entries `steps`: their frames become tables, and read-only. Each entry is
    /// read again after that, before the next frame is recorded. Returns the last table; None if an entry has changed.
    fn track_tables(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        state: &mut State,
        at: &At,
        registers: &Registers,
        steps: &[WalkStep],
        changed: impl Fn(&WalkStep) -> bool,
    ) -> Result<Option<Table>, Full> {
        let mode = registers.paging().controls.mode();
        let mut role = Role::of_directory(registers);
        let mut table = Table { gfn: UNPAGED, usage: TableUse::unpaged(at.root, role) };
        if steps.is_empty() {
            self.track_directory(cpu, state, &table)?;
        }
        for step in steps {
            table = Table { gfn: step.at.frame(), usage: TableUse::by(at.root, at.gva, mode, step, role) };
            if table.usage.shape.is_last_level() {
                self.track_last_level(cpu, state, at.gva, &table)?;
            } else {
                self.track_directory(cpu, state, &table)?;
            }
            if changed(step) {
                return Ok(None);
            }
            role = role.below(step.entry);
        }
        // The directory's entry may have referred to a table before, and map a large page now.
        let entry = table.usage.entry(at.gva);
        if !table.usage.shape.is_last_level() && state.last.is_bound(at.root, &entry) {
            self.unlink(cpu, &mut state.last, at.root, entry);
        }
        Ok(Some(table))
    }

    fn track_directory(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, table: &Table) -> Result<(), Full> {
        let Table { gfn, usage } = *table;
        if let Some(known) = state.directories.find_mut(gfn, |known| known.is_at_same(&usage)) {
            known.write_flooding = 0;
            return Ok(());
        }
        self.protect_table(cpu, state, table);
        state.directories.insert(gfn, usage)
    }

    fn track_last_level(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        state: &mut State,
        gva: Gva,
        table: &Table,
    ) -> Result<(), Full> {
        let Table { gfn, usage } = *table;
        match state.last.tables.find_mut(gfn, |known| known.is_at_same(&usage) && known.role == usage.role) {
            Some(known) => known.write_flooding = 0,
            None => {
                // The directory's entry may have referred to another table before.
                self.unlink(cpu, &mut state.last, usage.root, usage.whole());
                self.protect_table(cpu, state, table);
                let most = self.trees.len() + EXTRA_USES;
                let oldest = state.last.tables.iter(gfn).nth(most - 1).copied();
                if let Some(oldest) = oldest {
                    self.unlink(cpu, &mut state.last, oldest.root, oldest.whole());
                }
                state.last.tables.insert(gfn, usage)?;
            }
        }
        state.last.bind(usage.root, gva, gfn);
        Ok(())
    }

    /// To be called before a use of the table is recorded: its frame becomes read-only, and in sync.
    fn protect_table(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, table: &Table) {
        let Table { gfn, usage } = *table;
        let other_format = |known: &TableUse| known.shape.pae != usage.shape.pae;
        if state.directories.any(gfn, other_format) || state.last.tables.any(gfn, other_format) {
            // The walk has set accessed bits in one format, which are address bits in the other: the other shadow is wrong now.
            self.unshadow_frame(cpu, state, gfn);
        }
        if kept(Rule::SyncFirst) && state.last.tables.any(gfn, |known| known.unsync) {
            self.sync(cpu, state, gfn);
        }
        if !state.is_protected(gfn) {
            self.counters.count(Counter::Tables);
            self.write_protect(cpu, state, gfn);
        }
    }

    /// Clears all writable mappings of the frame: by itself, or as a part of a page of 2 MiB.
    fn write_protect(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn) {
        if !kept(Rule::WriteProtect) {
            return;
        }
        let large = gfn.start().align_down(PageSize::Size2M.bytes()).frame();
        for first in [gfn, large] {
            let State { roots, directories, last, rmap, .. } = &mut *state;
            rmap.retain(first, |entry| {
                self.clear_mapping(cpu, roots, (directories, last), entry);
                false
            });
        }
        self.flush_stale(cpu, &mut state.roots);
    }

    /// Clears a writable mapping in each root that has it. These need a [`flush_stale`](Self::flush_stale) before the lock is
    /// released.
    fn clear_mapping(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        roots: &mut [Root],
        (directories, last): (&GfnHash<TableUse>, &LastLevel),
        entry: &RmapEntry,
    ) {
        let mut cleared = false;
        for usage in entry.uses(directories, last) {
            if self.trees[usage.root].clear_page(cpu, entry.at(usage)) {
                self.counters.count(Counter::Zapped);
                (roots[usage.root].stale, cleared) = (true, true);
            }
        }
        // The entry in a shared table is cleared once, so the other roots were not marked above.
        if cleared && kept(Rule::FlushSharers) {
            last.tables.iter(entry.table).for_each(|usage| roots[usage.root].stale = true);
        }
    }

    fn flush_stale(&self, cpu: &Cpu<'_, E::Platform>, roots: &mut [Root]) {
        for (tree, root) in self.trees.iter().zip(roots) {
            if core::mem::take(&mut root.stale) {
                tree.flush(cpu);
            }
        }
    }

    /// Records a mapping that is about to become writable.
    fn rmap_add(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gpa: Gpa, room: &Room<'_, E>, table: &Table) {
        let State { roots, directories, last, rmap, .. } = &mut *state;
        let entry = table.usage.rmap_entry(table.gfn, room.start());
        let first = gpa.align_down(room.size().bytes()).frame();
        if rmap.any(first, |known| *known == entry) {
            return;
        }
        let oldest = rmap.iter(first).nth(MAPPINGS - 1).copied();
        if let Some(oldest) = oldest {
            rmap.retain(first, |known| *known != oldest);
            self.clear_mapping(cpu, roots, (directories, last), &oldest);
            self.flush_stale(cpu, roots);
        }
        if rmap.is_full() {
            self.evict_mappings(cpu, state);
        }
        let added = state.rmap.insert(first, entry);
        debug_assert_eq!(added, Ok(()), "the oldest ones have made way");
        self.counters.most(Counter::Rmap, state.rmap.len());
    }

    /// The reverse map is full: clears its oldest mappings, which faults make again.
    #[cold]
    fn evict_mappings(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State) {
        let State { roots, directories, last, rmap, .. } = &mut *state;
        let evicted = EVICTED.min(rmap.capacity().div_ceil(EVICTED));
        for (_, entry) in core::iter::from_fn(|| rmap.evict()).take(evicted) {
            self.counters.count(Counter::Evicted);
            self.clear_mapping(cpu, roots, (directories, last), &entry);
        }
        self.flush_stale(cpu, roots);
    }

    #[expect(clippy::too_many_arguments, reason = "where, what, and how large")]
    fn install(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        state: &mut State,
        at: &At,
        table: &Table,
        gpa: Gpa,
        leaf: Leaf,
        size: PageSize,
    ) -> Result<FaultOutcome, NoMemory> {
        loop {
            let room = match self.trees[at.root].fault(cpu.read(), at.gva, size) {
                Ok(Fault::Room(room)) if room.is_in_table() || !self.share(cpu, &state.last, at, table)? => room,
                Ok(Fault::Room(_)) => continue,
                Ok(Fault::Present(found)) if found.hpa.frame() == leaf.pfn && found.leaf.rights == leaf.rights => {
                    return Ok(FaultOutcome::Mapped);
                }
                Ok(Fault::Present(_)) => {
                    self.zap_page(cpu, at.root, at.gva);
                    self.flush_sharers(cpu, &state.last, table.gfn);
                    continue;
                }
                // A 32-bit address is never out of range.
                Err(mmu::OutOfRange) => return Ok(FaultOutcome::Retry),
            };
            let needs_table = !room.is_in_table() && room.size() == PageSize::Size4K;
            if needs_table && state.last.shadow_tables >= self.max_tables {
                return Ok(self.zap_oldest_root(cpu, state, at.root));
            }
            if leaf.rights.write {
                self.rmap_add(cpu, state, gpa, &room, table);
            }
            let pfn = Pfn::new(leaf.pfn.raw() & !(room.size().frames() - 1));
            // Accessed and dirty are set from the start: the guest's own bits are in its tables, and `resolve` has set them.
            return match room.install(Leaf { pfn, accessed: true, dirty: leaf.rights.write, ..leaf }) {
                Ok(()) => {
                    state.last.shadow_tables += usize::from(needs_table);
                    self.counters.most(Counter::ShadowTables, state.last.shadow_tables);
                    Ok(FaultOutcome::Mapped)
                }
                Err(MapError::Raced | MapError::Present) => Ok(FaultOutcome::Retry),
                Err(MapError::NoMemory | MapError::Invalid) => Err(NoMemory),
            };
        }
    }

    /// Links the shadow of `table`, a table of the last level, into the root at `at`, if another root has one with the same role.
    /// Whether it did.
    fn share(&self, cpu: &Cpu<'_, E::Platform>, last: &LastLevel, at: &At, table: &Table) -> Result<bool, NoMemory> {
        // A directory that maps a large page may be known as a table of another address space, even with the same role.
        if !table.usage.shape.is_last_level() {
            return Ok(false);
        }
        for other in last.tables.iter(table.gfn).filter(|other| other.role == table.usage.role) {
            let there = other.start.wrapping_add(at.gva.raw() - table.usage.start.raw());
            match self.trees[at.root].share(cpu, at.gva, &self.trees[other.root], there, Level::PMD) {
                Ok(()) => {
                    self.counters.count(Counter::Shared);
                    return Ok(true);
                }
                Err(ShareError::NoMemory) => return Err(NoMemory),
                Err(ShareError::NoTable | ShareError::Present) => {}
            }
        }
        Ok(false)
    }

    /// Zaps the page at `gva`, of whatever size. Whether there was one.
    fn zap_page(&self, cpu: &Cpu<'_, E::Platform>, root: usize, gva: Gva) -> bool {
        let zapped = self.trees[root].zap_page(cpu, gva);
        if zapped {
            self.counters.count(Counter::Zapped);
        }
        zapped
    }

    /// Zaps the shadow of a part of a table of the last level, in all roots.
    fn zap_table(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        last: &LastLevel,
        gfn: Gfn,
        part: impl Fn(&TableUse) -> Range<Gva>,
    ) {
        let zapped: usize = last.tables.iter(gfn).map(|usage| self.zap(cpu, usage.root, part(usage))).sum();
        if zapped > 0 {
            self.flush_sharers(cpu, last, gfn);
        }
    }

    /// Flushes all roots that share the shadow of this table, after an entry was zapped by way of one of them.
    fn flush_sharers(&self, cpu: &Cpu<'_, E::Platform>, last: &LastLevel, gfn: Gfn) {
        if kept(Rule::FlushSharers) && last.tables.iter(gfn).nth(1).is_some() {
            let shares = |n: &usize| last.tables.any(gfn, |usage| usage.root == *n);
            (0..self.trees.len()).filter(shares).for_each(|n| self.trees[n].flush(cpu));
        }
    }

    /// Zaps the pages of `range`. A large page across an edge is zapped as a whole, because a split would need a frame. Returns the
    /// number of pages.
    fn zap(&self, cpu: &Cpu<'_, E::Platform>, root: usize, range: Range<Gva>) -> usize {
        let tree = &self.trees[root];
        let page = |at| {
            let size = tree.translate(cpu.read(), at).map_or(PageSize::Size4K, |found| found.size);
            around(at, size.bytes())
        };
        let last = Gva::new(range.end.raw().saturating_sub(1));
        let range = page(range.start).start..page(last).end;
        let mut pages = 0;
        let zapped = tree.zap(cpu, range, |_| pages += 1);
        debug_assert_eq!(zapped, Ok(()), "no page lies across an edge of the range");
        self.counters.add(Counter::Zapped, pages as u64);
        pages
    }

    /// The directory's entries for `range` have changed: removes their shadow from the root. Tables that other roots share stay
    /// there.
    fn unlink(&self, cpu: &Cpu<'_, E::Platform>, last: &mut LastLevel, root: usize, range: Range<Gva>) {
        regions(&range).for_each(|at| last.unbind(root, at));
        self.zap_tables(cpu, last, root, range);
    }

    fn zap_tables(&self, cpu: &Cpu<'_, E::Platform>, last: &mut LastLevel, root: usize, range: Range<Gva>) {
        let zapped = self.trees[root].zap_tables(cpu, range);
        debug_assert!(zapped.is_ok(), "a directory's entries translate regions of 2 MiB");
        let zapped = zapped.unwrap_or_default();
        self.counters.add(Counter::Zapped, zapped.pages);
        last.shadow_tables = last.shadow_tables.saturating_sub(zapped.tables);
    }

    /// There is no room for one more table, or for a use of one: zaps the root that was loaded longest ago, of those without a vCPU if
    /// there is one, and `own` only if it is the last. The fault, which is in `own`, is tried again.
    #[cold]
    fn zap_oldest_root(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, own: usize) -> FaultOutcome {
        self.counters.count(Counter::Dropped);
        let others = (0..).zip(&state.roots).filter(|(n, root)| root.used && *n != own);
        let oldest = others.min_by_key(|(_, root)| (root.vcpus != 0, root.loaded));
        let oldest = oldest.map_or(own, |(n, _)| n);
        self.zap_root(cpu, state, oldest);
        FaultOutcome::Retry
    }

    /// The host has no frame for what the vCPU needs: zaps a root, as where there is no room. Its frames come back after a
    /// grace period. False if no table is left.
    #[cold]
    pub fn make_way(&self, cpu: &Cpu<'_, E::Platform>, view: &View) -> bool {
        let mut state = self.state.lock();
        let has_tables = state.last.shadow_tables > 0;
        if has_tables {
            let _ = self.zap_oldest_root(cpu, &mut state, view.root.load(Ordering::Relaxed));
        }
        has_tables
    }

    fn zap_all(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State) {
        for (root, tree) in state.roots.iter_mut().enumerate() {
            if core::mem::take(&mut tree.used) {
                self.zap_tables(cpu, &mut state.last, root, WHOLE);
                state.last.unbind_all(root);
            }
        }
        state.clear();
    }

    /// Zaps a root. The reverse map keeps its mappings: to look for them would take a time that grows with the guest's memory.
    fn zap_root(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, root: usize) {
        if !core::mem::take(&mut state.roots[root].used) {
            return;
        }
        self.unlink(cpu, &mut state.last, root, WHOLE);
        state.directories.retain_all(|usage| usage.root != root);
    }

    fn tree(&self, view: &View) -> &Tree<E> {
        &self.trees[view.root.load(Ordering::Relaxed)]
    }

    /// How often the first frame is known as a table of the last level, and how many writable mappings of the second are.
    #[cfg(all(test, not(any(loom, shuttle))))]
    pub(crate) fn known(&self, table: Gfn, page: Gfn) -> (usize, usize) {
        let state = self.state.lock();
        (state.last.tables.iter(table).count(), state.rmap.iter(page).count())
    }

    /// The number of tables in all roots.
    #[cfg(all(test, not(any(loom, shuttle))))]
    pub(crate) fn tables(&self, cpu: &Cpu<'_, E::Platform>) -> u64 {
        self.trees.iter().map(|tree| tree.report(cpu.read()).tables).sum()
    }

    /// Ends it: the trees, for the caller to [free](Tree::free_pgtables). No vCPU may run any more, and all must have flushed since
    /// they ran. Tables that were unlinked before are freed by [`Cpu::poll`].
    pub fn into_trees(self) -> Vec<Tree<E>> {
        self.trees
    }
}

/// Where a fault is.
struct At {
    root: usize,
    gva: Gva,
}

/// A guest table that a fault goes through.
struct Table {
    gfn: Gfn,
    usage: TableUse,
}

fn read<M: PhysMem>(mem: &M, mode: Mode, at: Gpa) -> Option<u64> {
    if mode == Mode::Pae { mem.read_u64(at) } else { mem.read_u32(at).map(u64::from) }
}

/// The frames of the page of `size` around `gpa`.
fn frames(gpa: Gpa, size: PageSize) -> impl Iterator<Item = Gfn> {
    let first = gpa.align_down(size.bytes()).frame().raw();
    (first..first + size.frames()).map(Gfn::new)
}
