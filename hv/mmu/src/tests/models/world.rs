//! The world of the models: a tree of two levels, CPUs, and simulated hardware walks.

use crate::format::{Format, FormatExt, table_frame};
use crate::pool::{self, Memory, POISON, Pool, PoolPlatform};
use crate::tests::page;
use crate::{Entry, Fault, Leaf, Level, Pte, Toy, Tree};
use addr::{Gpa, PageSize, Pfn};
use core::ops::Range;
use model::sync::{AtomicU64, Ordering};
use rcu::{Cpu, CpuData, Domain};
use std::sync::Arc;

/// A root and tables of ptes, with two entries each: four pages, and large pages of two small ones.
pub(super) type F = Toy<2>;

pub(super) const WHOLE: Range<Gpa> = at(0)..at(4);
/// The frames that pages are mapped to; the first is aligned to a large page.
pub(super) const A: u64 = 0x1000;
pub(super) const B: u64 = A + 1;

pub(super) const fn at(gfn: u64) -> Gpa {
    Gpa::new(gfn << 12)
}

pub(super) struct World {
    pub(super) memory: Arc<Memory<F>>,
    pub(super) domain: Domain<PoolPlatform<F>, [CpuData; 3]>,
    pub(super) tree: Tree<Pool<F>>,
}

pub(super) type Thread<R> = loom::thread::JoinHandle<R>;

impl World {
    /// A world prepared by `prepare`, which runs on CPU 0.
    pub(super) fn new(prepare: impl FnOnce(&Self, &Cpu<'_, PoolPlatform<F>>)) -> Arc<Self> {
        let memory = Memory::new(4);
        let domain = pool::domain(&memory);
        let tree = Pool::new(&memory, &domain).tree().expect("there are frames");
        let world = Self { memory, domain, tree };
        {
            let cpu = world.domain.register(0).expect("it is the first");
            prepare(&world, &cpu);
        }
        Arc::new(world)
    }

    /// A world with nothing mapped and no table but the root.
    pub(super) fn empty() -> Arc<Self> {
        Self::new(|_, _| {})
    }

    /// A world whose first two pages are mapped to `A` and `B`.
    pub(super) fn two_pages() -> Arc<Self> {
        Self::new(|world, cpu| {
            world.map(cpu, 0, A);
            world.map(cpu, 1, B);
        })
    }

    /// A world whose first two pages are one large page.
    pub(super) fn large_page() -> Arc<Self> {
        Self::new(|world, cpu| {
            world.tree.map(cpu.read(), at(0), page(A), PageSize::Size2M).expect("there is room");
        })
    }

    /// A world with an empty table for the first two pages.
    pub(super) fn empty_table() -> Arc<Self> {
        Self::new(|world, cpu| {
            world.map(cpu, 0, A);
            world.tree.zap(cpu, WHOLE, |_| {}).expect("the range is one");
        })
    }

    /// Runs `work` on CPU `index`, which is online meanwhile.
    pub(super) fn on<R>(&self, index: usize, work: impl FnOnce(&mut Cpu<'_, PoolPlatform<F>>) -> R) -> R {
        let mut cpu = self.domain.register(index).expect("no other uses it");
        work(&mut cpu)
    }

    /// Runs `work` on CPU 1, in a thread.
    pub(super) fn spawn<R: 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &mut Cpu<'_, PoolPlatform<F>>) -> R + 'static,
    ) -> Thread<R> {
        self.spawn_on(1, work)
    }

    pub(super) fn spawn_on<R: 'static>(
        self: &Arc<Self>,
        index: usize,
        work: impl FnOnce(&Self, &mut Cpu<'_, PoolPlatform<F>>) -> R + 'static,
    ) -> Thread<R> {
        let world = self.clone();
        loom::thread::spawn(move || world.on(index, |cpu| work(&world, cpu)))
    }

    pub(super) fn map(&self, cpu: &Cpu<'_, PoolPlatform<F>>, gfn: u64, pfn: u64) {
        self.tree.map(cpu.read(), at(gfn), page(pfn), PageSize::Size4K).expect("there is room");
    }

    /// Tries once to map a small page. Whether it was mapped.
    pub(super) fn fault_in(&self, cpu: &Cpu<'_, PoolPlatform<F>>, gfn: u64, pfn: u64) -> bool {
        match self.tree.fault(cpu.read(), at(gfn), PageSize::Size4K).expect("it is in range") {
            Fault::Present(_) => false,
            Fault::Room(room) => room.install(page(pfn)).is_ok(),
        }
    }

    pub(super) fn pfn(&self, gfn: u64) -> Option<u64> {
        self.leaf(gfn).map(|leaf| leaf.pfn.raw())
    }

    /// The page as a processor's walk finds it.
    pub(super) fn leaf(&self, gfn: u64) -> Option<Leaf> {
        let (_, pte, level) = self.hardware_walk(gfn);
        match F::decode(pte, level, self.tree.caps()) {
            Entry::Leaf(leaf) => {
                let within = gfn & ((1 << level.number()) - 1);
                Some(Leaf { pfn: Pfn::new(leaf.pfn.raw() + within), ..leaf })
            }
            _ => None,
        }
    }

    /// The walk of a processor: the last entry that it finds.
    pub(super) fn hardware_walk(&self, gfn: u64) -> (&AtomicU64, Pte, Level) {
        let mut table = self.tree.root();
        let mut level = F::TOP;
        loop {
            let entry = self.hardware_entry(table, level, gfn);
            let pte = Pte::new(entry.load(Ordering::Acquire));
            assert_ne!(pte.raw(), POISON, "a freed table is walked");
            match level.below() {
                Some(below) if F::is_table(pte, level, self.tree.caps().address_mask()) => {
                    table = table_frame(pte, self.tree.caps().address_mask());
                    level = below;
                }
                _ => return (entry, pte, level),
            }
        }
    }

    pub(super) fn hardware_entry(&self, table: Pfn, level: Level, gfn: u64) -> &AtomicU64 {
        &self.memory.table(table).expect("it is a table")[F::index(gfn << 12, level)]
    }

    /// A processor's write after a walk: it sets the accessed and dirty bits by an atomic operation on the entry that
    /// it has read. Whether the write is allowed.
    pub(super) fn hardware_write(&self, gfn: u64) -> bool {
        loop {
            let (entry, pte, level) = self.hardware_walk(gfn);
            let Entry::Leaf(leaf) = F::decode(pte, level, self.tree.caps()) else { return false };
            if !leaf.rights.write {
                return false;
            }
            let marked = pte.raw() | F::AD;
            let exchange = entry.compare_exchange(pte.raw(), marked, Ordering::AcqRel, Ordering::Acquire);
            if leaf.dirty || exchange.is_ok() {
                return true;
            }
        }
    }

    pub(super) fn check_tables(&self) -> usize {
        crate::tests::check_tables(&self.tree, &self.memory)
    }
}
