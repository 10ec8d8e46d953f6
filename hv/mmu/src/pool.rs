//! An environment on the host for tests, models, benches and examples: tables in a vector, with every frame accounted
//! for and freed tables poisoned.

use crate::entry::Caps;
use crate::env::{BadEntry, Env, TableDesc};
use crate::format::Format;
use crate::tree::{NoMemory, Tree};
use addr::{PageSize, Pfn};
use core::sync::atomic::AtomicBool;
use model::sync::{AtomicU64, Ordering};
use rcu::{CpuData, Domain, Head, Platform, Space};
use std::boxed::Box;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

/// The entries of a freed table. The value is valid in no format and is no frozen entry.
pub const POISON: u64 = 0x6b6b_6b6b_6b6b_6b6a;

/// The first frame of a pool.
pub const FIRST: u64 = 2;

/// Creates tables.
pub trait NewTable {
    /// An array of entries.
    fn new_table() -> Self;
}

impl<const N: usize> NewTable for [AtomicU64; N] {
    fn new_table() -> Self {
        core::array::from_fn(|_| AtomicU64::new(POISON))
    }
}

/// Frames for tables with their descriptors, by frame number.
pub struct Memory<F: Format> {
    tables: Box<[F::Table]>,
    descs: Box<[TableDesc]>,
    state: Mutex<State<F>>,
    /// Whether each CPU was kicked. Core's atomics, because kicks play no role in the models of this crate.
    kicked: [AtomicBool; 8],
}

struct State<F: Format> {
    free: Vec<Pfn>,
    /// The number of allocations that still succeed, if limited.
    budget: Option<usize>,
    bad: Vec<BadEntry<F::Input>>,
}

impl<F: Format<Table: NewTable>> Memory<F> {
    /// `frames` frames, from [`FIRST`].
    pub fn new(frames: usize) -> Arc<Self> {
        let free = (0..frames as u64).rev().map(|n| Pfn::new(FIRST + n)).collect();
        let all = FIRST as usize + frames;
        Arc::new(Self {
            tables: (0..all).map(|_| F::Table::new_table()).collect(),
            descs: (0..all).map(|_| TableDesc::new()).collect(),
            state: Mutex::new(State { free, budget: None, bad: Vec::new() }),
            kicked: [const { AtomicBool::new(false) }; 8],
        })
    }
}

impl<F: Format> Memory<F> {
    fn state(&self) -> MutexGuard<'_, State<F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes allocations fail after `budget` more; with None all succeed.
    pub fn limit(&self, budget: Option<usize>) {
        self.state().budget = budget;
    }

    /// The number of frames used by trees or queued for a grace period.
    pub fn in_use(&self) -> usize {
        self.tables.len() - FIRST as usize - self.state().free.len()
    }

    /// Whether CPU `cpu` was kicked since the last call.
    pub fn take_kick(&self, cpu: usize) -> bool {
        self.kicked.get(cpu).is_some_and(|kicked| kicked.swap(false, Ordering::Acquire))
    }

    /// The bad entries reported so far.
    pub fn bad(&self) -> Vec<BadEntry<F::Input>> {
        self.state().bad.clone()
    }

    /// The table in frame `pfn`.
    #[inline]
    pub fn table(&self, pfn: Pfn) -> Option<&F::Table> {
        self.tables.get(pfn.raw() as usize).filter(|_| pfn.raw() >= FIRST)
    }

    /// The descriptor of frame `pfn`.
    #[inline]
    pub fn desc(&self, pfn: Pfn) -> Option<&TableDesc> {
        self.descs.get(pfn.raw() as usize).filter(|_| pfn.raw() >= FIRST)
    }

    fn alloc(&self) -> Option<Pfn> {
        let mut state = self.state();
        if let Some(budget) = &mut state.budget {
            *budget = budget.checked_sub(1)?;
        }
        state.free.pop()
    }

    /// Frees a frame and fills it with [`POISON`].
    ///
    /// # Panics
    /// If the frame is free, or still part of a tree.
    pub fn free(&self, pfn: Pfn) {
        assert!(self.desc(pfn).is_some_and(TableDesc::is_dead), "{pfn:?} is freed while in a tree");
        for entry in self.table(pfn).into_iter().flat_map(AsRef::as_ref) {
            entry.store(POISON, Ordering::Relaxed);
        }
        let mut state = self.state();
        assert!(!state.free.contains(&pfn), "{pfn:?} is freed twice");
        state.free.push(pfn);
    }
}

/// The platform of a pool. A thread that stands for a CPU in guest mode must poll for kicks itself
/// ([`Memory::take_kick`]).
pub struct PoolPlatform<F: Format>(Arc<Memory<F>>);

impl<F: Format> Platform for PoolPlatform<F> {
    fn head(&self, page: Pfn) -> &Head {
        self.0.desc(page).expect("only tables are deferred").head()
    }
    fn kick(&self, cpu: usize) {
        if let Some(kicked) = self.0.kicked.get(cpu) {
            kicked.store(true, Ordering::Release);
        }
    }
    fn now(&self) -> u64 {
        0
    }
}

/// The RCU domain of CPUs whose tables are in `memory`.
pub fn domain<F: Format, const CPUS: usize>(memory: &Arc<Memory<F>>) -> Domain<PoolPlatform<F>, [CpuData; CPUS]> {
    Domain::new(PoolPlatform(memory.clone()), 64)
}

/// The environment of one tree in a pool.
pub struct Pool<F: Format> {
    memory: Arc<Memory<F>>,
    space: Space,
}

impl<F: Format> Pool<F> {
    /// An environment for one tree.
    pub fn new<const CPUS: usize>(memory: &Arc<Memory<F>>, domain: &Domain<PoolPlatform<F>, [CpuData; CPUS]>) -> Self {
        Self { memory: memory.clone(), space: Space::new(domain) }
    }

    /// The memory with the tables.
    pub fn memory(&self) -> &Arc<Memory<F>> {
        &self.memory
    }

    /// A tree for a processor with 40 bits of physical address, 1 GiB pages, and accessed and dirty bits.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn tree(self) -> Result<Tree<Self>, NoMemory> {
        Tree::new(self, Caps::new(40, PageSize::Size1G, true))
    }
}

impl<F: Format> Env for Pool<F> {
    type Format = F;
    type Platform = PoolPlatform<F>;

    fn alloc_table(&self) -> Option<Pfn> {
        self.memory.alloc()
    }
    fn free_table(&self, table: Pfn) {
        self.memory.free(table);
    }
    #[inline]
    fn table(&self, pfn: Pfn) -> Option<&F::Table> {
        self.memory.table(pfn)
    }
    #[inline]
    fn desc(&self, pfn: Pfn) -> Option<&TableDesc> {
        self.memory.desc(pfn)
    }
    fn space(&self) -> &Space {
        &self.space
    }
    fn bad(&self, entry: BadEntry<F::Input>) {
        self.memory.state().bad.push(entry);
    }
}
