//! All operations concurrently on all CPUs, with every page and every table accounted for.

use super::{check_tables, page};
use crate::format::{Format, FormatExt, span, table_frame};
use crate::level::Address;
use crate::pool::{self, Memory, NewTable, Pool, PoolPlatform};
use crate::{Entry, Fault, Leaf, Level, Page, Rights, Tree};
use addr::{PageSize, Pfn};
use model::sync::Ordering;
use rcu::{Cpu, Tlb};
#[cfg(shuttle)]
use shuttle::thread;
use std::sync::atomic::AtomicI32;
#[cfg(not(shuttle))]
use std::thread;
use std::vec::Vec;

/// The number of large pages that the CPUs work on concurrently.
const REGIONS: u64 = 3;
/// Page `gfn` is mapped to frame `BASE + gfn`, so that every translation can be checked and neighbours can be
/// collapsed.
const BASE: u64 = 0x4_0000;

/// For each page, how many times more it was mapped than reported as unmapped. While CPUs run, the counts lag behind;
/// at the end each is 1 if the page is mapped, else 0.
struct Frames {
    mapped: Vec<AtomicI32>,
}

impl Frames {
    fn take(&self, gfn: u64, frames: u64) {
        self.add(gfn, frames, 1);
    }

    fn give_back(&self, gfn: u64, frames: u64) {
        self.add(gfn, frames, -1);
    }

    fn add(&self, gfn: u64, frames: u64, change: i32) {
        for mapped in &self.mapped[gfn as usize..][..frames as usize] {
            mapped.fetch_add(change, Ordering::Relaxed);
        }
    }

    fn check<F: Format>(&self, tree: &Tree<Pool<F>>, guard: rcu::Guard<'_>) {
        for (gfn, mapped) in (0..).zip(&self.mapped) {
            let found = tree.translate(guard, Stress::<F>::at(gfn));
            assert_eq!(mapped.load(Ordering::Relaxed), i32::from(found.is_some()), "page {gfn}");
        }
    }
}

/// Xorshift: the same numbers in each run, different ones for each CPU.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }
}

struct Stress<'s, 'd, F: Format> {
    tree: &'s Tree<Pool<F>>,
    memory: &'s Memory<F>,
    frames: &'s Frames,
    cpu: Cpu<'d, PoolPlatform<F>>,
    tlb: Tlb,
    random: Random,
}

impl<F: Format> Stress<'_, '_, F> {
    /// The number of small pages in a large page.
    const LARGE: u64 = 1 << F::INDEX_BITS;
    const GFNS: u64 = REGIONS * Self::LARGE;

    fn pages(size: PageSize) -> u64 {
        span::<F>(Level::of(size)) >> addr::PAGE_SHIFT
    }

    fn at(gfn: u64) -> F::Input {
        F::Input::from_offset(gfn << 12, F::INPUT_BITS)
    }

    fn range(&mut self) -> core::ops::Range<F::Input> {
        let (a, b) = (self.random.below(Self::GFNS), self.random.below(Self::GFNS));
        if self.random.below(4) == 0 {
            let start = a & !(Self::LARGE - 1);
            return Self::at(start)..Self::at(start + Self::LARGE);
        }
        Self::at(a.min(b))..Self::at(a.min(b) + (a.abs_diff(b) % 40))
    }

    fn round(&mut self) {
        let gfn = self.random.below(Self::GFNS);
        let start = gfn & !(Self::LARGE - 1);
        match self.random.below(19) {
            0..=4 => self.fault(gfn),
            5 => self.fill(start),
            6 => self.zap(),
            7 => _ = self.tree.split(self.cpu.read(), Self::at(gfn)),
            8 => _ = self.tree.collapse(&self.cpu, Self::at(gfn), PageSize::Size2M),
            9 => {
                let range = self.range();
                _ = self.tree.retract(&self.cpu, range);
            }
            10 => {
                let range = self.range();
                let rights = Rights { write: self.random.below(2) == 0, ..Rights::ALL };
                _ = self.tree.protect(&self.cpu, range, rights);
            }
            11 => {
                let range = self.range();
                _ = self.tree.harvest(&self.cpu, range.clone(), |_| {});
                _ = self.tree.age(self.cpu.read(), range);
            }
            12 => {
                let range = self.range();
                _ = self.tree.dirty_log(&self.cpu, range, |_| {});
            }
            13 => _ = self.tree.unprotect(self.cpu.read(), Self::at(gfn)),
            14 => _ = self.tree.report(self.cpu.read()),
            15 => self.write(gfn),
            16 => self.replace(gfn),
            17 => self.collapse_into(start),
            _ => self.maps(gfn),
        }
        self.guest(gfn);
        self.cpu.quiescent();
        self.cpu.poll(16, |table| self.memory.free(table));
    }

    fn leaf(gfn: u64) -> Leaf {
        page(BASE + gfn)
    }

    fn fault(&mut self, gfn: u64) {
        let want = if self.random.below(8) == 0 { PageSize::Size2M } else { PageSize::Size4K };
        match self.tree.fault(self.cpu.read(), Self::at(gfn), want).expect("it is in range") {
            Fault::Present(found) => assert_eq!(found.hpa.frame(), Pfn::new(BASE + gfn)),
            Fault::Room(room) => {
                let frames = Self::pages(room.size());
                if room.install(Self::leaf(gfn & !(frames - 1))).is_ok() {
                    self.frames.take(gfn & !(frames - 1), frames);
                }
            }
        }
    }

    fn fill(&mut self, start: u64) {
        for gfn in start..start + Self::LARGE {
            if let Ok(Fault::Room(room)) = self.tree.fault(self.cpu.read(), Self::at(gfn), PageSize::Size4K)
                && room.install(Self::leaf(gfn)).is_ok()
            {
                self.frames.take(gfn, 1);
            }
        }
    }

    fn zap(&mut self) {
        let range = self.range();
        let frames = self.frames;
        let back = |page: Page<F::Input>| {
            let gfn = page.leaf.pfn.raw() - BASE;
            assert_eq!(page.at, Self::at(gfn));
            frames.give_back(gfn, Self::pages(page.size));
        };
        if self.random.below(2) == 0 {
            _ = self.tree.unmap(&self.cpu, range, back);
        } else {
            _ = self.tree.zap(&self.cpu, range, back);
        }
    }

    fn write(&mut self, gfn: u64) {
        if let Ok(frame) = self.tree.write(self.cpu.read(), Self::at(gfn), |found| found.hpa.frame()) {
            assert_eq!(frame, Pfn::new(BASE + gfn));
        }
    }

    /// Replaces the frame by itself, so that the translation stays checkable.
    fn replace(&mut self, gfn: u64) {
        let new = Pfn::new(BASE + gfn);
        if let Ok(old) =
            self.tree.replace(&self.cpu, Self::at(gfn), PageSize::Size4K, new, |old| assert_eq!(old.pfn, new))
        {
            assert_eq!(old.pfn, new);
        }
    }

    /// As for [`replace`](Self::replace).
    fn collapse_into(&mut self, start: u64) {
        let new = Pfn::new(BASE + start);
        let copy = |index: usize, leaf: Leaf| assert_eq!(leaf.pfn, new.add(index as u64));
        let mut pages = 0;
        let back = |_| pages += 1;
        let result = self.tree.collapse_into(&self.cpu, Self::at(start), PageSize::Size2M, new, copy, back);
        assert_eq!(pages, if result.is_ok() { Self::LARGE } else { 0 });
    }

    /// Reads entries by the offset maps.
    fn maps(&mut self, gfn: u64) {
        let guard = self.cpu.read();
        let Some(entry) = self.tree.find(guard, Self::at(gfn), Level::PMD) else { return };
        if let Ok(map) = entry.pte_offset_map() {
            assert_ne!(map.get(Self::at(gfn)), Entry::Bad, "a freed table is read");
        }
        if let Ok(locked) = entry.pte_offset_map_lock() {
            assert_ne!(locked.get(Self::at(gfn)), Entry::Frozen, "a frozen entry in a locked table of the tree");
        }
    }

    /// A write by hardware: it walks without a guard, and sets the accessed and dirty bits.
    fn guest(&mut self, gfn: u64) {
        let (tree, memory) = (self.tree, self.memory);
        self.cpu.guest(tree.space(), &mut self.tlb, |_| hardware_write(tree, memory, gfn));
    }
}

fn hardware_write<F: Format>(tree: &Tree<Pool<F>>, memory: &Memory<F>, gfn: u64) {
    let (mut table, mut level) = (tree.root(), F::TOP);
    loop {
        let entry = &memory.table(table).expect("it is a table").as_ref()[F::index(gfn << 12, level)];
        let pte = crate::Pte::new(entry.load(Ordering::Acquire));
        assert_ne!(pte.raw(), pool::POISON, "a processor walks a freed table");
        match F::decode(pte, level, tree.caps()) {
            Entry::Table(_) => {
                table = table_frame(pte, tree.caps().address_mask());
                level = level.below().expect("a pte is no table");
            }
            Entry::Leaf(leaf) => {
                let within = gfn & ((1 << (F::INDEX_BITS * u32::from(level.number()))) - 1);
                assert_eq!(leaf.pfn.raw() + within, BASE + gfn, "a wrong translation");
                if leaf.rights.write {
                    let marked = pte.raw() | F::AD;
                    // If the entry has changed meanwhile, a processor walks again. This simulation does not.
                    _ = entry.compare_exchange(pte.raw(), marked, Ordering::AcqRel, Ordering::Relaxed);
                }
                return;
            }
            Entry::None | Entry::Frozen => return,
            Entry::Bad => panic!("{pte:?} of {level:?}"),
        }
    }
}

fn stress<F: Format<Table: NewTable> + Send, const CPUS: usize>(rounds: u32, seed: u64)
where
    F::Table: Send + Sync,
    F::Input: Send + Sync,
{
    let memory = Memory::<F>::new(64);
    let domain = pool::domain::<F, CPUS>(&memory);
    let tree = Pool::new(&memory, &domain).tree().expect("there are frames");
    let frames = Frames { mapped: (0..Stress::<F>::GFNS).map(|_| AtomicI32::new(0)).collect() };
    thread::scope(|scope| {
        for index in 0..CPUS {
            let (tree, memory, frames, domain) = (&tree, &*memory, &frames, &domain);
            scope.spawn(move || {
                let cpu = domain.register(index).expect("no other uses it");
                let random = Random((0x9e37_79b9_7f4a_7c15 ^ ((index as u64 + 1) << 32)).wrapping_mul(seed | 1));
                let mut stress = Stress { tree, memory, frames, cpu, tlb: Tlb::new(), random };
                for _ in 0..rounds {
                    stress.round();
                }
            });
        }
    });
    let mut cpu = domain.register(0).expect("no other uses it any more");
    cpu.barrier(|table| memory.free(table));
    assert_eq!(memory.in_use(), check_tables(&tree, &memory));
    frames.check(&tree, cpu.read());
    assert!(memory.bad().is_empty());
    tree.free_pgtables(|_, size, leaf| frames.give_back(leaf.pfn.raw() - BASE, Stress::<F>::pages(size)));
    assert!(frames.mapped.iter().all(|mapped| mapped.load(Ordering::Relaxed) == 0));
    assert_eq!(memory.in_use(), 0);
}

/// With real threads, at full speed.
#[cfg(not(shuttle))]
mod fast {
    use super::stress;
    use crate::{Ept, Npt, Pae};

    const ROUNDS: u32 = 3000;

    #[test]
    fn stress_npt() {
        stress::<Npt, 4>(ROUNDS, 0);
    }

    #[test]
    fn stress_ept() {
        stress::<Ept, 4>(ROUNDS, 0);
    }

    #[test]
    fn stress_pae() {
        stress::<Pae, 4>(ROUNDS, 0);
    }
}

/// Random schedules, on tables of two entries.
#[cfg(shuttle)]
mod random {
    use super::stress;
    use crate::Toy;
    use crate::rules::Rule;
    use shuttle::rand::{Rng, thread_rng};
    use shuttle::scheduler::RandomScheduler;

    const RUNS: usize = 4_000;
    /// A mutant ends with the first run that fails.
    const MUTANT_RUNS: usize = 10 * RUNS;

    fn all_operations() {
        stress::<Toy<3>, 3>(20, thread_rng().r#gen());
    }

    #[test]
    fn shuttle_all_operations() {
        shuttle::check_random(all_operations, RUNS);
    }

    /// Few context switches at random points find errors that need one CPU to run for long.
    #[test]
    fn shuttle_all_operations_by_few_switches() {
        shuttle::check_pct(all_operations, RUNS, 5);
    }

    /// The first error may be a wrong count, a wrong translation, poison in a table, or a lock that is never released.
    fn must_fail(rules: &'static [Rule]) {
        let says = model::failure(rules, || model::run(RandomScheduler::new(MUTANT_RUNS), all_operations));
        assert!(says.is_some(), "without {rules:?} it holds as well");
    }

    #[test]
    fn mutant_shuttle_freed_at_unlink() {
        must_fail(&[Rule::FreeLate]);
    }

    #[test]
    fn mutant_shuttle_without_the_lock() {
        must_fail(&[Rule::Lock]);
    }

    #[test]
    fn mutant_shuttle_without_rechecking_the_pmd() {
        must_fail(&[Rule::RecheckPmd]);
    }

    #[test]
    fn mutant_shuttle_without_rechecking_the_entry() {
        must_fail(&[Rule::RecheckEntry]);
    }

    #[test]
    fn mutant_shuttle_without_counting_under_the_lock() {
        must_fail(&[Rule::CountUnderLock]);
    }

    #[test]
    fn mutant_shuttle_published_before_filled() {
        must_fail(&[Rule::FillFirst]);
    }

    #[test]
    fn mutant_shuttle_changed_in_two_steps() {
        must_fail(&[Rule::AtomicChange]);
    }
}
