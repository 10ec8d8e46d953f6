//! A shadow that outlives loads of CR3: a tree for each address space, kept up with the guest's tables.
//!
//! An entry of a tree stands for entries of the guest's tables, which are noted as [`Use`]s of the frames they are in. Such a
//! frame is read-only for the guest, as long as it is in sync. Address spaces that have a table of the last level in common,
//! with the same [`Role`], share what stands for it: found by frame and role, and given back with the last of them. All of what
//! follows is done under one lock:
//!
//! * a fault walks the guest's tables, notes their frames as tables from the directory downwards, write-protects those that were
//!   none before, and *then* reads their entries again: only if they are still the same is the page mapped;
//! * a write to a directory is emulated, by [`Shadow::write`], which then drops what stands for the entries, or lets go of it
//!   where others share it. An entry that is written in two halves is so read anew, whole, by the next fault that
//!   needs it;
//! * a table that is a last level and nothing else goes out of sync when it is written: the guest may write it from then on,
//!   and a tree may have what the table had, as a processor's translation buffer may. INVLPG drops the one page; a load of CR3
//!   drops all that such a table stands for, in that address space and others, and brings it back in sync.
//!
//! What is dropped in one tree is so in all that share it: then the others' processors flush as well.

use crate::chains::Full;
use crate::counters::{Counter, Counters, Counts};
use crate::notes::{LastLevel, Owner, Role, State, UNPAGED, Use, regions, room};
use crate::registers::Context;
use crate::resolve::{Resolved, resolve};
use crate::rules::{Rule, kept};
use crate::sync::Mutex;
use crate::vtlb::{WHOLE, around, linear};
use crate::{Memory, NoMemory, Outcome, Reason, Registers};
use addr::{Gfn, Gpa, Gva, PAGE_SIZE, PageSize, Pfn};
use alloc::vec::Vec;
use core::alloc::Layout;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};
use mmu::{Caps, Env, Fault, Leaf, Level, MapError, Pae, Room, ShareError, Tree};
use rcu::{Cpu, Space};
use walk::{Access, Kind, Mode, PhysMem, Step};

/// How often a table is written, without any fault through it in between, until it counts as a table no more.
const FLOOD: u8 = 6;

/// The shadow of a guest's address spaces, shared by its vCPUs. It has to be ended by [`free`](Self::free).
pub struct Shadow<E: Env<Format = Pae<Gva>>> {
    /// Changed under the lock of `state` alone; walked by processors at any time.
    trees: Vec<Tree<E>>,
    state: Mutex<State>,
    counters: Counters,
}

/// Who writes guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// An instruction that is emulated, or a device.
    Software,
    /// A walk that sets accessed and dirty bits: a table that is used much is not given up for that.
    Walk,
}

/// Which tree a vCPU runs on. Its vCPU alone uses it.
#[derive(Debug)]
pub struct View {
    tree: AtomicUsize,
    /// The one before: kernels go to and fro.
    last: AtomicUsize,
}

impl<E: Env<Format = Pae<Gva>>> Shadow<E> {
    /// A tree for each of `envs`: at least one for each vCPU, and each more keeps one more address space. It has place for
    /// `notes` directories, as many tables and four times as many writable pages; when one is used up, everything is dropped
    /// and begun anew.
    ///
    /// # Errors
    /// [`NoMemory`]: no frames for the roots, or no memory for the notes.
    pub fn new(
        envs: impl IntoIterator<IntoIter: ExactSizeIterator<Item = E>>,
        caps: Caps,
        notes: u32,
    ) -> Result<Self, NoMemory> {
        let envs = envs.into_iter();
        let (trees, state) = (room(envs.len())?, State::new(envs.len(), notes)?);
        let mut shadow = Self { trees, state: Mutex::new(state), counters: Counters::new() };
        for env in envs {
            if let Err(error) = shadow.add(env, caps) {
                shadow.free();
                return Err(error);
            }
        }
        Ok(shadow)
    }

    /// What [`new`](Self::new) allocates for so many trees and notes. It is all that a shadow ever does.
    pub fn allocations(trees: usize, notes: u32) -> impl Iterator<Item = Layout> {
        Layout::array::<Tree<E>>(trees).ok().into_iter().chain(State::allocations(trees, notes))
    }

    fn add(&mut self, env: E, caps: Caps) -> Result<(), NoMemory> {
        self.state.get_mut().add_tree()?;
        self.trees.push(Tree::new(env, caps)?);
        Ok(())
    }

    /// The view of a vCPU that starts, without paging.
    ///
    /// # Errors
    /// [`NoMemory`]: there are as many views as trees.
    pub fn view(&self, cpu: &Cpu<'_, E::Platform>) -> Result<View, NoMemory> {
        let mut state = self.state.lock();
        if state.views == self.trees.len() {
            return Err(NoMemory);
        }
        state.views += 1;
        let tree = self.enter(cpu, &mut state, Context::UNPAGED, 0);
        Ok(View { tree: AtomicUsize::new(tree), last: AtomicUsize::new(tree) })
    }

    /// The frame of the four PDPTEs, below 4 GiB: the processor's CR3.
    pub fn root(&self, view: &View) -> Pfn {
        self.tree(view).root()
    }

    /// The space to enter with this root; its [`Tlb`](rcu::Tlb) tells to flush when this was another before.
    pub fn space(&self, view: &View) -> &Space {
        self.tree(view).space()
    }

    /// All that there are.
    pub fn spaces(&self) -> impl Iterator<Item = &Space> {
        self.trees.iter().map(Tree::space)
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counters.read()
    }

    /// The vCPU has a new [context](crate::Change::Context): root and space may be others now.
    pub fn load(&self, cpu: &Cpu<'_, E::Platform>, view: &View, registers: &Registers) {
        self.counters.count(Counter::Loads);
        let mut state = self.state.lock();
        let left = view.tree.load(Ordering::Relaxed);
        if let Some(owner) = state.owners.get_mut(left) {
            owner.vcpus -= 1;
        }
        let tree = self.enter(cpu, &mut state, registers.context(), view.last.load(Ordering::Relaxed));
        view.tree.store(tree, Ordering::Relaxed);
        view.last.store(left, Ordering::Relaxed);
        while let Some(gfn) = state.last.unsync_in(tree) {
            self.sync(cpu, &mut state, gfn);
        }
    }

    /// The tree of `context`, if need be by emptying the one that was loaded longest ago. `guess`: it may well be this one.
    fn enter(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, context: Context, guess: usize) -> usize {
        state.clock += 1;
        let is_it = |owner: &Owner| owner.context == Some(context);
        let found = match state.owners.get(guess).is_some_and(is_it) {
            true => Some(guess),
            false => state.owners.iter().position(is_it),
        };
        self.counters.count(if found.is_some() { Counter::Found } else { Counter::Made });
        // There are no more views than trees, so one of those without is free.
        let idle = (0..).zip(&state.owners).filter(|(_, owner)| owner.vcpus == 0);
        let tree = found.or_else(|| idle.min_by_key(|(_, owner)| owner.loaded).map(|(n, _)| n)).unwrap_or_default();
        let owner = &mut state.owners[tree];
        let taken = found.is_none() && owner.context.is_some();
        *owner = Owner { context: Some(context), vcpus: owner.vcpus + 1, loaded: state.clock, ..*owner };
        if taken {
            self.empty_tree(cpu, state, tree);
        }
        tree
    }

    /// The vCPU runs INVLPG: if the page is by a table that is out of sync, it is dropped.
    pub fn invlpg(&self, cpu: &Cpu<'_, E::Platform>, view: &View, gva: Gva) {
        self.counters.count(Counter::Invlpgs);
        let (gva, tree) = (linear(gva), view.tree.load(Ordering::Relaxed));
        let last = &self.state.lock().last;
        if let Some(gfn) = last.bound(tree, gva)
            && last.is_unsync(gfn)
            && self.zap_page(cpu, tree, gva)
        {
            self.flush_sharers(cpu, last, gfn);
        }
    }

    /// The table may be written without an exit from now on. False if it is not only a last level.
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

    /// The table is read-only again, and nothing is left of what it had before.
    fn sync(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn) {
        self.counters.count(Counter::Synced);
        state.last.set_unsync(gfn, false);
        self.write_protect(cpu, state, gfn);
        self.zap_table(cpu, &state.last, gfn, Use::whole);
    }

    /// Has `store` write the `len` bytes of guest memory from `gpa` on. No processor uses what tables said before when this
    /// returns; and who has seen the bytes before that, and then runs INVLPG or loads CR3, waits for it there.
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
            self.written(cpu, &mut state, Gpa::new(at).frame(), &(from..from + (next - at)), by);
            at = next;
        }
        stored
    }

    fn written(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn, bytes: &Range<u64>, by: Writer) {
        let mut flooded = false;
        let mut count = |user: &mut Use| {
            if !user.unsync && by == Writer::Software {
                self.counters.count(Counter::Written);
                user.writes += 1;
                flooded |= user.writes >= FLOOD;
            }
            true
        };
        state.directories.retain(gfn, &mut count);
        state.last.tables.retain(gfn, &mut count);
        if flooded {
            self.counters.count(Counter::Flooded);
            return self.give_up(cpu, state, gfn);
        }
        for user in state.directories.iter(gfn) {
            self.cut(cpu, &mut state.last, user.tree, user.of_bytes(bytes));
        }
        if state.last.tables.any(gfn, |user| !user.unsync) {
            self.zap_table(cpu, &state.last, gfn, |user| user.of_bytes(bytes));
        }
    }

    /// The write of a table can't be emulated: the page counts as a table no more, until a fault goes through it. Of no use
    /// for a write that goes through that very table.
    pub fn unshadow(&self, cpu: &Cpu<'_, E::Platform>, gpa: Gpa) {
        self.give_up(cpu, &mut self.state.lock(), gpa.frame());
    }

    /// The frame is a table no more.
    fn give_up(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn) {
        let State { directories, last, .. } = state;
        directories.retain(gfn, |user| {
            self.cut(cpu, last, user.tree, user.whole());
            false
        });
        loop {
            let Some(user) = last.tables.iter(gfn).next().copied() else { break };
            self.cut(cpu, last, user.tree, user.whole());
        }
    }

    /// Guest memory is about to get other frames, or other rights to them: when this returns no processor uses any, nor will
    /// until [`resume`](Self::resume). Software may still be reading them, until a grace period from now has ended.
    pub fn suspend(&self, cpu: &Cpu<'_, E::Platform>) {
        let mut state = self.state.lock();
        state.suspensions += 1;
        state.suspended += 1;
        self.drop_all(cpu, &mut state);
    }

    /// What [`suspend`](Self::suspend) was called for is done.
    pub fn resume(&self) {
        self.state.lock().suspended -= 1;
    }

    /// The vCPU met a page fault at `gva`.
    ///
    /// # Errors
    /// [`NoMemory`]: for a table or for the page.
    pub fn fault<M: Memory>(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        view: &View,
        mem: &M,
        registers: &Registers,
        gva: Gva,
        access: Access,
    ) -> Result<Outcome, NoMemory> {
        self.counters.count(Counter::Faults);
        let outcome = match resolve(mem, registers, gva, access) {
            Ok(page) => {
                let at = At { tree: view.tree.load(Ordering::Relaxed), gva: linear(gva) };
                self.map(cpu, mem, &at, registers, &page, access.kind == Kind::Write)?
            }
            Err(outcome) => outcome,
        };
        self.counters.count_outcome(outcome);
        Ok(outcome)
    }

    fn map<M: Memory>(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        mem: &M,
        at: &At,
        registers: &Registers,
        page: &Resolved,
        write: bool,
    ) -> Result<Outcome, NoMemory> {
        let mode = registers.paging().controls.mode();
        let suspensions = self.state.lock().suspensions;
        let backing = mem.backing(page.gpa, write)?;
        let mut state = self.state.lock();
        let changed = |step: &Step| kept(Rule::ReadAgain) && read(mem, mode, step.at) != Some(step.entry);
        let noted = self.note_tables(cpu, &mut state, at, registers, page.steps.as_slice(), changed);
        let table = match noted {
            Ok(Some(table)) if state.suspended == 0 && state.suspensions == suspensions => table,
            Ok(_) => return Ok(Outcome::Retry),
            Err(Full) => return Ok(self.empty(cpu, &mut state)),
        };
        let (backing, mut rights) = match page.entry(backing, write) {
            Ok(entry) => entry,
            Err(outcome) => return Ok(outcome),
        };
        if state.is_protected(page.gpa.frame()) {
            if write && !self.unsync(cpu, &mut state, page.gpa.frame()) {
                return Ok(Outcome::Emulate { gpa: page.gpa, reason: Reason::Table });
            }
            rights.write &= write;
            // For this one a table of these steps may have come back in sync: it must be so as it is now.
            if page.steps.as_slice().iter().any(changed) {
                return Ok(Outcome::Retry);
            }
        }
        let mut size = page.size.min(backing.size).min(PageSize::Size2M);
        if size > PageSize::Size4K && frames(page.gpa, size).any(|gfn| state.is_protected(gfn)) {
            size = PageSize::Size4K;
        }
        self.install(cpu, &mut state, at, &table, page.gpa, Leaf::new(backing.pfn, rights), size)
    }

    /// Notes that the fault at `at` went through these entries: their frames are tables, and read-only. Each is looked at again
    /// when it is, before the next is noted. Gives the last; None if an entry has changed.
    fn note_tables(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        state: &mut State,
        at: &At,
        registers: &Registers,
        steps: &[Step],
        changed: impl Fn(&Step) -> bool,
    ) -> Result<Option<Table>, Full> {
        let mode = registers.paging().controls.mode();
        let mut role = Role::of_directory(registers);
        let mut table = Table { gfn: UNPAGED, user: Use::unpaged(at.tree, role) };
        if steps.is_empty() {
            self.note_directory(cpu, state, &table)?;
        }
        for step in steps {
            table = Table { gfn: step.at.frame(), user: Use::by(at.tree, at.gva, mode, step, role) };
            if table.user.shape.is_last_level() {
                self.note_last_level(cpu, state, at.gva, &table)?;
            } else {
                self.note_directory(cpu, state, &table)?;
            }
            if changed(step) {
                return Ok(None);
            }
            role = role.below(step.entry);
        }
        // Likewise, where a table was and a large page is.
        let entry = table.user.entry(at.gva);
        if !table.user.shape.is_last_level() && state.last.is_bound(at.tree, &entry) {
            self.cut(cpu, &mut state.last, at.tree, entry);
        }
        Ok(Some(table))
    }

    fn note_directory(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, table: &Table) -> Result<(), Full> {
        let Table { gfn, user } = *table;
        if let Some(known) = state.directories.find_mut(gfn, |known| known.is_at_same(&user)) {
            known.writes = 0;
            return Ok(());
        }
        self.prepare(cpu, state, table);
        state.directories.insert(gfn, user)
    }

    fn note_last_level(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        state: &mut State,
        gva: Gva,
        table: &Table,
    ) -> Result<(), Full> {
        let Table { gfn, user } = *table;
        match state.last.tables.find_mut(gfn, |known| known.is_at_same(&user) && known.role == user.role) {
            Some(known) => known.writes = 0,
            None => {
                // What the directory's entry led to before, if anything.
                self.cut(cpu, &mut state.last, user.tree, user.whole());
                self.prepare(cpu, state, table);
                state.last.tables.insert(gfn, user)?;
            }
        }
        state.last.bind(user.tree, gva, gfn);
        Ok(())
    }

    /// A frame is about to be noted: it is read-only and in sync.
    fn prepare(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, table: &Table) {
        let Table { gfn, user } = *table;
        let other_format = |known: &Use| known.shape.bytes != user.shape.bytes;
        if state.directories.any(gfn, other_format) || state.last.tables.any(gfn, other_format) {
            // What one format calls an accessed bit is an address to the other, and that walk has just set it.
            self.give_up(cpu, state, gfn);
        }
        if kept(Rule::SyncFirst) && state.last.tables.any(gfn, |known| known.unsync) {
            self.sync(cpu, state, gfn);
        }
        if !state.is_protected(gfn) {
            self.counters.count(Counter::Tables);
            self.write_protect(cpu, state, gfn);
        }
    }

    /// Takes away what may map the frame writable: alone, or in a page of 2 MiB.
    fn write_protect(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn) {
        if !kept(Rule::WriteProtect) {
            return;
        }
        let State { owners, directories, last, writable, .. } = state;
        let large = gfn.start().align_down(PageSize::Size2M.bytes()).frame();
        for first in [gfn, large] {
            writable.retain(first, |place| {
                let mut cleared = false;
                for user in place.uses(directories, last) {
                    if self.trees[user.tree].clear_page(cpu, user.start.wrapping_add(place.offset)) {
                        self.counters.count(Counter::Zapped);
                        (owners[user.tree].stale, cleared) = (true, true);
                    }
                }
                // Those that share the table found the page gone already.
                if cleared && place.shape.is_last_level() && kept(Rule::FlushSharers) {
                    last.tables.iter(place.table).for_each(|user| owners[user.tree].stale = true);
                }
                false
            });
        }
        for (tree, owner) in self.trees.iter().zip(owners) {
            if core::mem::take(&mut owner.stale) {
                tree.flush(cpu);
            }
        }
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
    ) -> Result<Outcome, NoMemory> {
        loop {
            let room = match self.trees[at.tree].fault(cpu.read(), at.gva, size) {
                Ok(Fault::Room(room)) if room.is_in_table() || !self.share(cpu, &state.last, at, table)? => room,
                Ok(Fault::Room(_)) => continue,
                Ok(Fault::Present(found)) if found.hpa.frame() == leaf.pfn && found.leaf.rights == leaf.rights => {
                    return Ok(Outcome::Mapped);
                }
                Ok(Fault::Present(_)) => {
                    self.zap_page(cpu, at.tree, at.gva);
                    self.flush_sharers(cpu, &state.last, table.gfn);
                    continue;
                }
                // No 32-bit address is.
                Err(mmu::OutOfRange) => return Ok(Outcome::Retry),
            };
            if leaf.rights.write && !note_writable(state, gpa, &room, table) {
                return Ok(self.empty(cpu, state));
            }
            let pfn = Pfn::new(leaf.pfn.raw() & !(room.size().frames() - 1));
            // The processor has nothing to note: what is noted is in the guest's tables.
            return match room.install(Leaf { pfn, accessed: true, dirty: leaf.rights.write, ..leaf }) {
                Ok(()) => Ok(Outcome::Mapped),
                Err(MapError::Raced | MapError::Present) => Ok(Outcome::Retry),
                Err(MapError::NoMemory | MapError::Invalid) => Err(NoMemory),
            };
        }
    }

    /// Lets the tree have what stands for `table` elsewhere, if it does. Whether it has that now.
    fn share(&self, cpu: &Cpu<'_, E::Platform>, last: &LastLevel, at: &At, table: &Table) -> Result<bool, NoMemory> {
        let same = |other: &&Use| other.role == table.user.role && other.shape == table.user.shape;
        for other in last.tables.iter(table.gfn).filter(same) {
            let there = other.start.wrapping_add(at.gva.raw() - table.user.start.raw());
            match self.trees[at.tree].share(cpu, at.gva, &self.trees[other.tree], there, Level::PMD) {
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

    /// Drops the page at `gva`, or the whole large page that it is in. Whether there was one.
    fn zap_page(&self, cpu: &Cpu<'_, E::Platform>, tree: usize, gva: Gva) -> bool {
        let zapped = self.trees[tree].zap_page(cpu, gva);
        if zapped {
            self.counters.count(Counter::Zapped);
        }
        zapped
    }

    /// Drops what stands for a part of a table of the last level, wherever it does.
    fn zap_table(&self, cpu: &Cpu<'_, E::Platform>, last: &LastLevel, gfn: Gfn, part: impl Fn(&Use) -> Range<Gva>) {
        let zapped: usize = last.tables.iter(gfn).map(|user| self.zap(cpu, user.tree, part(user))).sum();
        if zapped > 0 {
            self.flush_sharers(cpu, last, gfn);
        }
    }

    /// One tree has flushed after something of this table's was dropped; all that share it do, each once.
    fn flush_sharers(&self, cpu: &Cpu<'_, E::Platform>, last: &LastLevel, gfn: Gfn) {
        if kept(Rule::FlushSharers) && last.tables.iter(gfn).nth(1).is_some() {
            let shares = |n: &usize| last.tables.any(gfn, |user| user.tree == *n);
            (0..self.trees.len()).filter(shares).for_each(|n| self.trees[n].flush(cpu));
        }
    }

    /// Drops the pages of `range`, and whatever else is in a large page at its edges: no frame is wanted for a split. Gives
    /// their number.
    fn zap(&self, cpu: &Cpu<'_, E::Platform>, tree: usize, range: Range<Gva>) -> usize {
        let tree = &self.trees[tree];
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

    /// A directory's entries for `range` are no more what they were: the tree lets go of tables that others share, and drops all
    /// else.
    fn cut(&self, cpu: &Cpu<'_, E::Platform>, last: &mut LastLevel, tree: usize, range: Range<Gva>) {
        for at in regions(&range) {
            if last.unbind(tree, at) {
                self.trees[tree].unshare(cpu, at, Level::PMD);
            }
        }
        self.zap(cpu, tree, range.clone());
        let retracted = self.trees[tree].retract(cpu, range);
        debug_assert!(retracted.is_ok(), "it is in the tree");
    }

    /// There is no place for a note.
    #[cold]
    fn empty(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State) -> Outcome {
        self.counters.count(Counter::Emptied);
        self.drop_all(cpu, state);
        Outcome::Retry
    }

    fn drop_all(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State) {
        for tree in &self.trees {
            let dropped = tree.unmap(cpu, WHOLE, |_| self.counters.count(Counter::Zapped));
            debug_assert!(dropped.is_ok(), "no page lies across the edges of all");
        }
        // A page that several shared has been the first one's to flush.
        self.trees.iter().for_each(|tree| tree.flush(cpu));
        state.clear();
    }

    fn empty_tree(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, tree: usize) {
        self.cut(cpu, &mut state.last, tree, WHOLE);
        let State { directories, last, writable, .. } = state;
        directories.retain_all(|user| user.tree != tree);
        writable.retain_all(|place| place.uses(directories, last).next().is_some());
    }

    fn tree(&self, view: &View) -> &Tree<E> {
        &self.trees[view.tree.load(Ordering::Relaxed)]
    }

    /// Gives the tables back. No vCPU runs any more, and all have flushed since they did. Tables that were dropped before come
    /// back by [`Cpu::poll`].
    pub fn free(self) {
        self.trees.into_iter().for_each(|tree| tree.free_pgtables(|_, _, _| {}));
    }
}

/// Where a fault is.
struct At {
    tree: usize,
    gva: Gva,
}

/// A table of the guest's, as a fault uses it.
struct Table {
    gfn: Gfn,
    user: Use,
}

/// Notes where a page is about to be writable. Whether there was place for that.
fn note_writable<E: Env<Format = Pae<Gva>>>(state: &mut State, gpa: Gpa, room: &Room<'_, E>, table: &Table) -> bool {
    let place = table.user.place(table.gfn, room.start());
    let first = gpa.align_down(room.size().bytes()).frame();
    state.writable.any(first, |known| *known == place) || state.writable.insert(first, place) != Err(Full)
}

fn read<M: PhysMem>(mem: &M, mode: Mode, at: Gpa) -> Option<u64> {
    if mode == Mode::Pae { mem.read_u64(at) } else { mem.read_u32(at).map(u64::from) }
}

/// The frames of the page of `size` around `gpa`.
fn frames(gpa: Gpa, size: PageSize) -> impl Iterator<Item = Gfn> {
    let first = gpa.align_down(size.bytes()).frame().raw();
    (first..first + size.frames()).map(Gfn::new)
}
