//! A shadow that outlives loads of CR3: a tree for each address space, kept up with the guest's tables.
//!
//! An entry of a tree stands for entries of the guest's tables, which are noted as [`Use`]s of the frames they are in. Such a
//! frame is read-only for the guest, as long as it is in sync. All of what follows is done under one lock:
//!
//! * a fault walks the guest's tables, notes their frames as tables, write-protects those that were none before, and *then*
//!   reads their entries again: only if they are still the same is the page mapped;
//! * a write to a table of an upper level is emulated: first the bytes, then [`Shadow::written`], which drops what stands for
//!   the entries. An entry that is written in two halves is so read anew, whole, by the next fault that needs it;
//! * a table that is a last level and nothing else goes out of sync when it is written: the guest may write it from then on,
//!   and a tree may have what the table had, as a processor's translation buffer may. INVLPG drops the one page; a load of CR3
//!   drops all that such a table stands for, in that address space and others, and brings it back in sync.

use crate::chains::{Chains, Full};
use crate::counters::{Counter, Counters, Counts};
use crate::registers::Context;
use crate::resolve::{Resolved, resolve};
use crate::vtlb::{WHOLE, around, linear};
use crate::{Memory, NoMemory, Outcome, Reason, Registers};
use addr::{Gfn, Gpa, Gva, PAGE_SIZE, PageSize, Pfn};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};
use mmu::{Caps, Env, Fault, Leaf, MapError, Pae, Tree};
use rcu::{Cpu, Space};
use spin::Mutex;
use walk::{Access, Kind, Mode, PhysMem, Step};

/// How often a table is written, without any fault through it in between, until it counts as a table no more.
const FLOOD: u8 = 6;
/// As many tables are out of sync at most: each load of CR3 and each INVLPG looks at them.
const UNSYNC: usize = 16;

/// The shadow of a guest's address spaces, shared by its vCPUs. It has to be ended by [`free`](Self::free).
pub struct Shadow<E: Env<Format = Pae<Gva>>> {
    /// Changed under the lock of `state` alone; walked by processors at any time.
    trees: Vec<Tree<E>>,
    state: Mutex<State>,
    counters: Counters,
}

/// Which tree a vCPU runs on. Its vCPU alone uses it.
#[derive(Debug)]
pub struct View {
    tree: AtomicUsize,
    /// The one before: kernels go to and fro.
    last: AtomicUsize,
}

struct State {
    /// By tree.
    owners: Vec<Owner>,
    /// By frame, what it is as a table.
    tables: Chains<Use>,
    /// By frame, where it may be mapped writable: the first of the frames, if they are many. A page that has gone since does
    /// no harm.
    writable: Chains<Place>,
    /// The tables that are out of sync, the one that has been for longest first.
    unsync: Vec<Gfn>,
    /// Counts loads.
    clock: u64,
    /// How often somebody began to change the frames of guest memory.
    suspensions: u64,
    /// Who is at it.
    suspended: u32,
    views: usize,
}

/// Whose a tree is.
#[derive(Clone, Copy)]
struct Owner {
    context: Option<Context>,
    vcpus: usize,
    /// The clock when it was last loaded.
    loaded: u64,
}

/// A guest frame, used as a table for a part of an address space.
struct Use {
    tree: usize,
    start: Gva,
    shape: Shape,
    /// How often it was written since a fault last went through it.
    writes: u8,
    /// The guest may write it without an exit. Of all uses of a frame, or of none.
    unsync: bool,
}

/// What a table's entries look like.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    /// The size of an entry.
    bytes: u64,
    /// What an entry translates.
    span: u64,
}

/// A page of a tree.
#[derive(PartialEq, Eq)]
struct Place {
    tree: usize,
    start: Gva,
}

impl Shape {
    fn of(mode: Mode, level: u32) -> Self {
        let (bytes, upper) = if mode == Mode::Pae { (8, PageSize::Size2M) } else { (4, PageSize::Size4M) };
        Self { bytes, span: if level == 1 { PAGE_SIZE } else { upper.bytes() } }
    }

    fn whole(self) -> u64 {
        PAGE_SIZE / self.bytes * self.span
    }

    fn is_last_level(self) -> bool {
        self.span == PAGE_SIZE
    }
}

impl Use {
    fn whole(&self) -> Range<Gva> {
        around(self.start, self.shape.whole())
    }

    /// What the entries translate that have any of these bytes of the table.
    fn by(&self, bytes: &Range<u64>) -> Range<Gva> {
        let Shape { bytes: size, span } = self.shape;
        let end = bytes.end.div_ceil(size) * span;
        self.start.wrapping_add(bytes.start / size * span)..self.start.wrapping_add(end)
    }
}

impl State {
    /// Whether the guest must not write the frame without an exit.
    fn is_protected(&self, gfn: Gfn) -> bool {
        self.tables.any(gfn, |user| !user.unsync)
    }

    /// A table that is out of sync and has such a use.
    fn unsync_of(&self, is: impl Fn(&Use) -> bool) -> Option<Gfn> {
        self.unsync.iter().copied().find(|&gfn| self.tables.any(gfn, |user| user.unsync && is(user)))
    }
}

impl<E: Env<Format = Pae<Gva>>> Shadow<E> {
    /// A tree for each of `envs`: at least one for each vCPU, and each more keeps one more address space. It has place for
    /// `notes` tables and four times as many writable pages; when one is used up, everything is dropped and begun anew.
    ///
    /// # Errors
    /// [`NoMemory`]: no frames for the roots, or no memory for the notes.
    pub fn new(envs: impl IntoIterator<Item = E>, caps: Caps, notes: u32) -> Result<Self, NoMemory> {
        let tables = Chains::new(notes)?;
        let writable = Chains::new(notes.saturating_mul(4))?;
        let mut unsync = Vec::new();
        unsync.try_reserve_exact(UNSYNC).map_err(|_| NoMemory)?;
        let mut shadow = Self {
            trees: Vec::new(),
            state: Mutex::new(State {
                owners: Vec::new(),
                tables,
                writable,
                unsync,
                clock: 0,
                suspensions: 0,
                suspended: 0,
                views: 0,
            }),
            counters: Counters::new(),
        };
        for env in envs {
            if let Err(error) = shadow.add(env, caps) {
                shadow.free();
                return Err(error);
            }
        }
        Ok(shadow)
    }

    fn add(&mut self, env: E, caps: Caps) -> Result<(), NoMemory> {
        let owners = &mut self.state.get_mut().owners;
        owners.try_reserve(1).map_err(|_| NoMemory)?;
        self.trees.try_reserve(1).map_err(|_| NoMemory)?;
        self.trees.push(Tree::new(env, caps)?);
        owners.push(Owner { context: None, vcpus: 0, loaded: 0 });
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
        while let Some(gfn) = state.unsync_of(|user| user.tree == tree) {
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
        *owner = Owner { context: Some(context), vcpus: owner.vcpus + 1, loaded: state.clock };
        if taken {
            self.drop_tree(cpu, tree);
            state.tables.retain_all(|user| user.tree != tree);
            state.writable.retain_all(|place| place.tree != tree);
            let State { unsync, tables, .. } = &mut *state;
            unsync.retain(|&gfn| tables.any(gfn, |_| true));
        }
        tree
    }

    /// The vCPU runs INVLPG: if the page is by a table that is out of sync, it is dropped.
    pub fn invlpg(&self, cpu: &Cpu<'_, E::Platform>, view: &View, gva: Gva) {
        self.counters.count(Counter::Invlpgs);
        let (gva, tree) = (linear(gva), view.tree.load(Ordering::Relaxed));
        let state = self.state.lock();
        if state.unsync_of(|user| user.tree == tree && user.whole().contains(&gva)).is_some() {
            self.zap_page(cpu, tree, gva);
        }
    }

    /// The table may be written without an exit from now on. False if it is not only a last level.
    fn unsync(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn) -> bool {
        if state.tables.any(gfn, |user| !user.shape.is_last_level()) {
            return false;
        }
        if state.unsync.len() == UNSYNC {
            let oldest = state.unsync[0];
            self.sync(cpu, state, oldest);
        }
        self.counters.count(Counter::Unsynced);
        state.unsync.push(gfn);
        state.tables.retain(gfn, |user| {
            user.unsync = true;
            true
        });
        true
    }

    /// The table is read-only again, and nothing is left of what it had before.
    fn sync(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn) {
        self.counters.count(Counter::Synced);
        state.unsync.retain(|&other| other != gfn);
        self.write_protect(cpu, state, gfn);
        state.tables.retain(gfn, |user| {
            if core::mem::take(&mut user.unsync) {
                self.zap(cpu, user.tree, user.whole());
            }
            true
        });
    }

    /// Software, or a device, has written guest memory: the `len` bytes from `gpa` on. No processor uses what tables said before
    /// when this returns.
    pub fn written(&self, cpu: &Cpu<'_, E::Platform>, gpa: Gpa, len: usize) {
        let mut state = self.state.lock();
        let (mut at, end) = (gpa.raw(), gpa.raw().saturating_add(len as u64));
        while at < end {
            let next = (at & !(PAGE_SIZE - 1)).saturating_add(PAGE_SIZE).min(end);
            let from = at % PAGE_SIZE;
            self.written_table(cpu, &mut state, Gpa::new(at).frame(), &(from..from + (next - at)));
            at = next;
        }
    }

    fn written_table(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn, bytes: &Range<u64>) {
        state.tables.retain(gfn, |user| {
            if user.unsync {
                return true;
            }
            self.counters.count(Counter::Written);
            user.writes += 1;
            let flooded = user.writes >= FLOOD;
            self.zap(cpu, user.tree, if flooded { user.whole() } else { user.by(bytes) });
            if flooded {
                self.counters.count(Counter::Flooded);
            }
            !flooded
        });
    }

    /// The write of a table can't be emulated: the page counts as a table no more, until a fault goes through it. Of no use
    /// for a write that goes through that very table.
    pub fn unshadow(&self, cpu: &Cpu<'_, E::Platform>, gpa: Gpa) {
        let mut state = self.state.lock();
        state.unsync.retain(|&gfn| gfn != gpa.frame());
        state.tables.retain(gpa.frame(), |user| {
            self.zap(cpu, user.tree, user.whole());
            false
        });
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
                self.map(cpu, mem, &at, registers.paging().controls.mode(), &page, access.kind == Kind::Write)?
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
        mode: Mode,
        page: &Resolved,
        write: bool,
    ) -> Result<Outcome, NoMemory> {
        let suspensions = self.state.lock().suspensions;
        let backing = mem.backing(page.gpa, write)?;
        let mut state = self.state.lock();
        let noted = page.steps.as_slice().iter().try_for_each(|step| self.note_table(cpu, &mut state, at, mode, step));
        if noted == Err(Full) {
            return Ok(self.empty(cpu, &mut state));
        }
        let changed = || page.steps.as_slice().iter().any(|step| read(mem, mode, step.at) != Some(step.entry));
        if changed() || state.suspended != 0 || state.suspensions != suspensions {
            return Ok(Outcome::Retry);
        }
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
            if changed() {
                return Ok(Outcome::Retry);
            }
        }
        let mut size = page.size.min(backing.size).min(PageSize::Size2M);
        if size > PageSize::Size4K && frames(page.gpa, size).any(|gfn| state.is_protected(gfn)) {
            size = PageSize::Size4K;
        }
        self.install(cpu, &mut state, at, page.gpa, Leaf::new(backing.pfn, rights), size)
    }

    /// Notes that the fault at `at` went through this entry: its frame is a table, and read-only.
    fn note_table(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        state: &mut State,
        at: &At,
        mode: Mode,
        step: &Step,
    ) -> Result<(), Full> {
        let shape = Shape::of(mode, step.level);
        let (gfn, start) = (step.at.frame(), at.gva.align_down(shape.whole()));
        let (mut table, mut known, mut unsync) = (false, false, false);
        state.tables.retain(gfn, |user| {
            if user.shape.bytes != shape.bytes {
                // What one format calls an accessed bit is an address to the other, and that walk has just set it.
                self.zap(cpu, user.tree, user.whole());
                return false;
            }
            table = true;
            unsync |= user.unsync;
            if user.tree == at.tree && user.start == start && user.shape == shape {
                known = true;
                user.writes = 0;
            }
            true
        });
        if known {
            return Ok(());
        }
        if unsync && !shape.is_last_level() {
            self.sync(cpu, state, gfn);
            unsync = false;
        }
        state.tables.insert(gfn, Use { tree: at.tree, start, shape, writes: 0, unsync })?;
        if !table {
            self.counters.count(Counter::Tables);
            self.write_protect(cpu, state, gfn);
        }
        Ok(())
    }

    /// Takes away what may map the frame writable: alone, or in a page of 2 MiB.
    fn write_protect(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State, gfn: Gfn) {
        let large = gfn.start().align_down(PageSize::Size2M.bytes()).frame();
        for first in [gfn, large] {
            state.writable.retain(first, |place| {
                self.zap_page(cpu, place.tree, place.start);
                false
            });
        }
    }

    fn install(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        state: &mut State,
        at: &At,
        gpa: Gpa,
        leaf: Leaf,
        size: PageSize,
    ) -> Result<Outcome, NoMemory> {
        loop {
            let room = match self.trees[at.tree].fault(cpu.read(), at.gva, size) {
                Ok(Fault::Room(room)) => room,
                Ok(Fault::Present(found)) if found.hpa.frame() == leaf.pfn && found.leaf.rights == leaf.rights => {
                    return Ok(Outcome::Mapped);
                }
                Ok(Fault::Present(_)) => {
                    self.zap_page(cpu, at.tree, at.gva);
                    continue;
                }
                // No 32-bit address is.
                Err(mmu::OutOfRange) => return Ok(Outcome::Retry),
            };
            let place = Place { tree: at.tree, start: room.start() };
            let first = gpa.align_down(room.size().bytes()).frame();
            if leaf.rights.write
                && !state.writable.any(first, |known| *known == place)
                && state.writable.insert(first, place) == Err(Full)
            {
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

    /// Drops the page at `gva`, or the whole large page that it is in.
    fn zap_page(&self, cpu: &Cpu<'_, E::Platform>, tree: usize, gva: Gva) {
        if self.trees[tree].zap_page(cpu, gva).is_some() {
            self.counters.count(Counter::Zapped);
        }
    }

    /// Drops the pages of `range`, and whatever else is in a large page at its edges: no frame is wanted for a split.
    fn zap(&self, cpu: &Cpu<'_, E::Platform>, tree: usize, range: Range<Gva>) {
        let tree = &self.trees[tree];
        let page = |at| {
            let size = tree.translate(cpu.read(), at).map_or(PageSize::Size4K, |found| found.size);
            around(at, size.bytes())
        };
        let last = Gva::new(range.end.raw().saturating_sub(1));
        let range = page(range.start).start..page(last).end;
        let zapped = tree.zap(cpu, range, |_| self.counters.count(Counter::Zapped));
        debug_assert_eq!(zapped, Ok(()), "no page lies across an edge of the range");
    }

    /// There is no place for a note.
    #[cold]
    fn empty(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State) -> Outcome {
        self.counters.count(Counter::Emptied);
        self.drop_all(cpu, state);
        Outcome::Retry
    }

    fn drop_all(&self, cpu: &Cpu<'_, E::Platform>, state: &mut State) {
        (0..self.trees.len()).for_each(|tree| self.drop_tree(cpu, tree));
        state.tables.clear();
        state.writable.clear();
        state.unsync.clear();
    }

    fn drop_tree(&self, cpu: &Cpu<'_, E::Platform>, tree: usize) {
        let dropped = self.trees[tree].unmap(cpu, WHOLE, |_| self.counters.count(Counter::Zapped));
        debug_assert!(dropped.is_ok(), "no page lies across the edges of all");
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

fn read<M: PhysMem>(mem: &M, mode: Mode, at: Gpa) -> Option<u64> {
    if mode == Mode::Pae { mem.read_u64(at) } else { mem.read_u32(at).map(u64::from) }
}

/// The frames of the page of `size` around `gpa`.
fn frames(gpa: Gpa, size: PageSize) -> impl Iterator<Item = Gfn> {
    let first = gpa.align_down(size.bytes()).frame().raw();
    (first..first + size.frames()).map(Gfn::new)
}
