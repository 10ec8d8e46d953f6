//! The cost of operations on the tree, as ratios within one run: `cargo bench -p mmu`.
//!
//! Criterion measures. The ratios are those of the fastest samples, which other work on the machine disturbs least.
//! With `SPEED_SVG=FILE` it writes the plot of `docs/speed.md`.

use addr::{Gpa, PageSize, Pfn};
use criterion::Criterion;
use mmu::pool::{self, FIRST, Memory, Pool, PoolPlatform};
use mmu::{BadEntry, Caps, Env, Fault, Leaf, Level, Npt, Rights, TableDesc, Tree};
use rcu::{Cpu, CpuData, Domain, Space};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The number of pages for the walks: 64 MiB of 4 KiB pages. Their 34 tables fit into the level 2 cache, so that cache
/// misses hide as little as possible of the other costs.
const PAGES: u64 = 1 << 14;
/// The frame of page 0, and the number of frames for tables.
const BASE: u64 = 0x10_0000;
const TABLES: usize = 64;
const REGION: u64 = 512;

/// Tables in a direct map, as in the hypervisor: a pointer is the map's base plus the address in the entry.
struct DirectMap {
    pool: Pool<Npt>,
    /// The address of frame 0.
    base: *const u8,
}

// SAFETY: `base` points into the pool's memory, which is `Sync`.
unsafe impl Send for DirectMap {}
// SAFETY: as above.
unsafe impl Sync for DirectMap {}

impl Env for DirectMap {
    type Format = Npt;
    type Platform = PoolPlatform<Npt>;

    fn alloc_table(&self) -> Option<Pfn> {
        self.pool.alloc_table()
    }
    fn free_table(&self, table: Pfn) {
        self.pool.free_table(table);
    }
    #[inline]
    fn table(&self, pfn: Pfn) -> Option<&[AtomicU64; 512]> {
        if !(FIRST..FIRST + TABLES as u64).contains(&pfn.raw()) {
            return None;
        }
        // SAFETY: the pool holds the tables of these frames at their offsets from `base`.
        Some(unsafe { &*self.base.wrapping_add(pfn.start().raw() as usize).cast::<[AtomicU64; 512]>() })
    }
    #[inline]
    fn desc(&self, pfn: Pfn) -> Option<&TableDesc> {
        self.pool.desc(pfn)
    }
    #[inline]
    fn space(&self) -> &Space {
        self.pool.space()
    }
    fn bad(&self, entry: BadEntry<Gpa>) {
        self.pool.bad(entry);
    }
}

type AllCpus = Domain<PoolPlatform<Npt>, [CpuData; 3]>;

/// How a CPU accesses the tree: directly, or under a lock for the whole tree.
trait Access: Send + Sync {
    const NAME: &str;
    fn new(tree: Tree<DirectMap>) -> Self;
    fn walk<R>(&self, with: impl FnOnce(&Tree<DirectMap>) -> R) -> R;
    fn change<R>(&self, with: impl FnOnce(&Tree<DirectMap>) -> R) -> R;
}

struct Lockless(Tree<DirectMap>);

impl Access for Lockless {
    const NAME: &str = "lockless";
    fn new(tree: Tree<DirectMap>) -> Self {
        Self(tree)
    }
    #[inline]
    fn walk<R>(&self, with: impl FnOnce(&Tree<DirectMap>) -> R) -> R {
        with(&self.0)
    }
    #[inline]
    fn change<R>(&self, with: impl FnOnce(&Tree<DirectMap>) -> R) -> R {
        with(&self.0)
    }
}

struct OneMutex(spin::Mutex<Tree<DirectMap>>);

impl Access for OneMutex {
    const NAME: &str = "spin::Mutex";
    fn new(tree: Tree<DirectMap>) -> Self {
        Self(spin::Mutex::new(tree))
    }
    fn walk<R>(&self, with: impl FnOnce(&Tree<DirectMap>) -> R) -> R {
        with(&self.0.lock())
    }
    fn change<R>(&self, with: impl FnOnce(&Tree<DirectMap>) -> R) -> R {
        with(&self.0.lock())
    }
}

struct OneRwLock(spin::RwLock<Tree<DirectMap>>);

impl Access for OneRwLock {
    const NAME: &str = "spin::RwLock";
    fn new(tree: Tree<DirectMap>) -> Self {
        Self(spin::RwLock::new(tree))
    }
    fn walk<R>(&self, with: impl FnOnce(&Tree<DirectMap>) -> R) -> R {
        with(&self.0.read())
    }
    fn change<R>(&self, with: impl FnOnce(&Tree<DirectMap>) -> R) -> R {
        with(&self.0.write())
    }
}

/// Nanoseconds of the fastest sample of each bench.
#[derive(Default)]
struct Best(RefCell<BTreeMap<String, f64>>);

impl Best {
    fn record(&self, name: &str, took: Duration, times: u64) -> Duration {
        let each = took.as_secs_f64() * 1e9 / times as f64;
        let mut best = self.0.borrow_mut();
        let entry = best.entry(name.to_owned()).or_insert(each);
        *entry = entry.min(each);
        took
    }

    fn get(&self, name: &str) -> f64 {
        self.0.borrow().get(name).copied().unwrap_or(f64::NAN)
    }
}

fn at(gfn: u64) -> Gpa {
    Gpa::new(gfn << 12)
}

fn page(pfn: u64) -> Leaf {
    Leaf::new(Pfn::new(pfn), Rights::ALL)
}

/// One random cycle through all pages, which a prefetcher can't predict: page `n` leads to page `next[n]`.
fn cycle() -> Vec<u64> {
    let mut order: Vec<u64> = (0..PAGES).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for n in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(n, (state >> 16) as usize % (n + 1));
    }
    let mut next = vec![0; order.len()];
    for (n, &page) in order.iter().enumerate() {
        next[page as usize] = order[(n + 1) % order.len()];
    }
    next
}

/// Tables of the same shape as the tree's, walked by loads only: the lower bound of a walk's cost.
fn four_loads(next: &[u64]) -> Vec<[AtomicU64; 512]> {
    let pmds = next.len().div_ceil(1 << 18);
    let count = 2 + pmds + next.len() / 512;
    let tables: Vec<[AtomicU64; 512]> = (0..count).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect();
    tables[0][0].store(1, Ordering::Relaxed);
    for (n, &next) in next.iter().enumerate() {
        let (pmd, pte) = (2 + (n >> 18), 2 + pmds + (n >> 9));
        tables[1][n >> 18].store(pmd as u64, Ordering::Relaxed);
        tables[pmd][n >> 9 & 511].store(pte as u64, Ordering::Relaxed);
        tables[pte][n & 511].store((BASE + next) << 12, Ordering::Relaxed);
    }
    tables
}

fn load(tables: &[[AtomicU64; 512]], table: u64, index: u64) -> u64 {
    tables[table as usize][index as usize % 512].load(Ordering::Acquire)
}

/// The next page by the value of a last entry: the same work for every walker.
fn page_in(entry: u64) -> u64 {
    (entry >> 12 & 0xff_ffff) - BASE
}

/// The walks continue from sample to sample, so that the caches do not hold the same few pages only.
fn chase(tables: &[[AtomicU64; 512]], from: &Cell<u64>, times: u64) -> Duration {
    let mut gfn = from.get();
    let start = Instant::now();
    for _ in 0..times {
        let at = at(gfn).raw();
        let pud = load(tables, 0, at >> 39);
        let pmd = load(tables, pud, at >> 30);
        let pte = load(tables, pmd, at >> 21);
        gfn = page_in(load(tables, pte, at >> 12));
    }
    from.set(black_box(gfn));
    start.elapsed()
}

fn walks<A: Access>(access: &A, cpu: &Cpu<'_, PoolPlatform<Npt>>, from: &Cell<u64>, times: u64) -> Duration {
    let mut gfn = from.get();
    let start = Instant::now();
    for _ in 0..times {
        let found = access.walk(|tree| tree.translate(cpu.read(), at(gfn)));
        gfn = found.map_or(0, |found| found.hpa.frame().raw() - BASE);
    }
    from.set(black_box(gfn));
    start.elapsed()
}

/// The walk only: to the last entry, without decoding it.
fn lookups(tree: &Tree<DirectMap>, cpu: &Cpu<'_, PoolPlatform<Npt>>, from: &Cell<u64>, times: u64) -> Duration {
    let mut gfn = from.get();
    let start = Instant::now();
    for _ in 0..times {
        let found = tree.lookup(cpu.read(), at(gfn));
        gfn = found.map_or(0, |(_, pte)| page_in(pte.raw()));
    }
    from.set(black_box(gfn));
    start.elapsed()
}

fn world() -> (Arc<Memory<Npt>>, AllCpus) {
    let memory = Memory::new(TABLES);
    let domain = pool::domain(&memory);
    (memory, domain)
}

fn tree(memory: &Arc<Memory<Npt>>, domain: &AllCpus) -> Tree<DirectMap> {
    let first = memory.table(Pfn::new(FIRST)).expect("there are frames");
    let base = first.as_ptr().cast::<u8>().wrapping_sub(Pfn::new(FIRST).start().raw() as usize);
    let env = DirectMap { pool: Pool::new(memory, domain), base };
    Tree::new(env, Caps::new(40, PageSize::Size1G, true)).expect("there are frames")
}

fn bench_walks(c: &mut Criterion, best: &Best) {
    let next = cycle();
    let tables = four_loads(&next);
    let mut group = c.benchmark_group("walk");
    group.sample_size(40).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let from = Cell::new(0);
    let chase = |n| best.record("four loads", chase(&tables, &from, n), n);
    group.bench_function("four dependent loads", |b| b.iter_custom(chase));
    bench_walk(&mut group, best, &next, &chase);
    bench_translate::<Lockless>(&mut group, best, &next);
    bench_translate::<OneMutex>(&mut group, best, &next);
    bench_translate::<OneRwLock>(&mut group, best, &next);
}

type Group<'c> = criterion::BenchmarkGroup<'c, criterion::measurement::WallTime>;

fn mapped(tree: &Tree<DirectMap>, cpu: &Cpu<'_, PoolPlatform<Npt>>, next: &[u64]) {
    for (gfn, next) in (0..).zip(next) {
        tree.map(cpu.read(), at(gfn), page(BASE + next), PageSize::Size4K).expect("there is room");
    }
}

fn bench_walk(group: &mut Group<'_>, best: &Best, next: &[u64], chase: &dyn Fn(u64) -> Duration) {
    let (memory, domain) = world();
    let cpu = domain.register(0).expect("it is the first");
    let tree = tree(&memory, &domain);
    mapped(&tree, &cpu, next);
    let from = Cell::new(0);
    let walk = |n| best.record("walk", lookups(&tree, &cpu, &from, n), n);
    group.bench_function("walk", |b| b.iter_custom(walk));
    // The two alternate, so that other work on the machine disturbs both equally.
    for _ in 0..300 {
        chase(20_000);
        walk(20_000);
    }
}

fn bench_translate<A: Access>(group: &mut Group<'_>, best: &Best, next: &[u64]) {
    let (memory, domain) = world();
    let cpu = domain.register(0).expect("it is the first");
    let tree = tree(&memory, &domain);
    mapped(&tree, &cpu, next);
    let access = A::new(tree);
    let (name, from) = (format!("translate {}", A::NAME), Cell::new(0));
    group.bench_function(&name, |b| b.iter_custom(|n| best.record(&name, walks(&access, &cpu, &from, n), n)));
}

/// Faults for all small pages of a table that exists.
fn fault_in<A: Access>(access: &A, cpu: &Cpu<'_, PoolPlatform<Npt>>, first: u64) {
    for gfn in first..first + REGION {
        access.change(|tree| match tree.fault(cpu.read(), at(gfn), PageSize::Size4K) {
            Ok(Fault::Room(room)) => room.install(page(BASE + gfn)).expect("no other CPU maps it"),
            _ => unreachable!("nothing is mapped"),
        });
    }
}

/// Unmaps them one by one. No hardware walks this tree, so there is no flush.
fn clear<A: Access>(access: &A, cpu: &Cpu<'_, PoolPlatform<Npt>>, first: u64) {
    access.change(|tree| {
        let entry = tree.find(cpu.read(), at(first), Level::PMD).expect("there are tables");
        let Ok(locked) = entry.pte_offset_map_lock() else { unreachable!("there is a table") };
        for gfn in first..first + REGION {
            locked.ptep_get_and_clear(at(gfn)).expect("it is mapped");
        }
    });
}

fn prepared(tree: &Tree<DirectMap>, cpu: &Cpu<'_, PoolPlatform<Npt>>, regions: u64) {
    for region in 0..regions {
        tree.map(cpu.read(), at(region * REGION), page(BASE), PageSize::Size4K).expect("there is room");
    }
    tree.zap(cpu, at(0)..at(regions * REGION), |_| {}).expect("the range is one");
}

/// Measures `work` for 512 pages, without `before` and `after`.
fn bench_each(group: &mut Group<'_>, best: &Best, name: &str, before: &dyn Fn(), work: &dyn Fn(), after: &dyn Fn()) {
    group.bench_function(name, |b| {
        b.iter_custom(|n| {
            let took = (0..n).map(|_| {
                before();
                let start = Instant::now();
                work();
                let took = best.record(name, start.elapsed(), REGION);
                after();
                took
            });
            took.sum()
        });
    });
}

fn bench_changes(c: &mut Criterion, best: &Best) {
    let (memory, domain) = world();
    let cpu = RefCell::new(domain.register(0).expect("it is the first"));
    let tree = Lockless::new(tree(&memory, &domain));
    prepared(&tree.0, &cpu.borrow(), 1);
    let all = || at(0)..at(REGION);
    let fill = || fault_in(&tree, &cpu.borrow(), 0);
    let empty = || clear(&tree, &cpu.borrow(), 0);
    let zap = || tree.0.zap(&cpu.borrow(), all(), |found| _ = black_box(found)).expect("the range is one");
    let collapse = || tree.0.collapse(&cpu.borrow(), at(0), PageSize::Size2M).expect("it is uniform");
    let split = || tree.0.split(cpu.borrow().read(), at(0)).expect("there is a large page");
    let reclaim = || cpu.borrow_mut().barrier(|table| memory.free(table));
    let mut group = c.benchmark_group("512 pages");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    bench_each(&mut group, best, "fault-in", &|| {}, &fill, &empty);
    bench_each(&mut group, best, "zap", &fill, &zap, &|| {});
    fill();
    let undo = || {
        split();
        reclaim();
    };
    bench_each(&mut group, best, "collapse", &|| {}, &collapse, &undo);
    let redo = || {
        collapse();
        reclaim();
    };
    redo();
    bench_each(&mut group, best, "split", &|| {}, &split, &redo);
}

/// Rounds of faults and unmaps by `cpus` CPUs, each in its own 2 MiB. Returns the time from the start of the first CPU
/// to the end of the last one.
fn parallel<A: Access>(cpus: usize, rounds: u64) -> Duration {
    let (memory, domain) = world();
    let tree = tree(&memory, &domain);
    prepared(&tree, &domain.register(0).expect("it is the first"), cpus as u64);
    let access = A::new(tree);
    let waiting = AtomicUsize::new(cpus);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus)
            .map(|index| {
                let (access, domain, waiting) = (&access, &domain, &waiting);
                scope.spawn(move || {
                    let cpu = domain.register(index).expect("no other uses it");
                    waiting.fetch_sub(1, Ordering::AcqRel);
                    while waiting.load(Ordering::Acquire) != 0 {
                        std::hint::spin_loop();
                    }
                    let begin = Instant::now();
                    for _ in 0..rounds {
                        fault_in(access, &cpu, index as u64 * REGION);
                        clear(access, &cpu, index as u64 * REGION);
                    }
                    (begin, Instant::now())
                })
            })
            .collect();
        let times: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect();
        let begin = times.iter().map(|time| time.0).min().expect("there is one");
        let end = times.iter().map(|time| time.1).max().expect("there is one");
        end - begin
    })
}

fn bench_parallel<A: Access>(best: &Best) {
    const ROUNDS: u64 = 50;
    for _ in 0..400 {
        for cpus in [1, 2] {
            let took = parallel::<A>(cpus, ROUNDS);
            best.record(&format!("{cpus} CPUs {}", A::NAME), took, ROUNDS * REGION * cpus as u64);
        }
    }
}

/// Name, value, goal.
type Ratio = (&'static str, f64, Option<&'static str>);

fn ratios(best: &Best) -> Vec<Ratio> {
    let of = |a: &str, b: &str| best.get(a) / best.get(b);
    vec![
        ("walk / four dependent loads", of("walk", "four loads"), Some("at most 1.2")),
        ("translate / four dependent loads", of("translate lockless", "four loads"), None),
        ("translate, spin::Mutex / lockless", of("translate spin::Mutex", "translate lockless"), None),
        ("translate, spin::RwLock / lockless", of("translate spin::RwLock", "translate lockless"), None),
        ("two CPUs / one, disjoint 2 MiB", of("1 CPUs lockless", "2 CPUs lockless"), Some("at least 1.8")),
        ("two CPUs / one, spin::Mutex", of("1 CPUs spin::Mutex", "2 CPUs spin::Mutex"), None),
        ("two CPUs / one, spin::RwLock", of("1 CPUs spin::RwLock", "2 CPUs spin::RwLock"), None),
        ("fault-in / translate", of("fault-in", "translate lockless"), None),
        ("zap, a page / translate", of("zap", "translate lockless"), None),
        ("collapse, a page / translate", of("collapse", "translate lockless"), None),
        ("split, a page / translate", of("split", "translate lockless"), None),
    ]
}

/// A bar for each ratio.
fn plot(ratios: &[Ratio]) -> String {
    let most = ratios.iter().map(|ratio| ratio.1).fold(0.0, f64::max);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"640\" height=\"{}\" font-family=\"sans-serif\" font-size=\"13\">\n",
        24 * ratios.len() + 16
    );
    for (n, (name, value, goal)) in ratios.iter().enumerate() {
        let (y, width) = (24 * n + 8, value / most * 300.0);
        let goal = goal.map_or(String::new(), |goal| format!(" (goal: {goal})"));
        let _ = writeln!(
            svg,
            "<text x=\"228\" y=\"{}\" text-anchor=\"end\">{name}</text>\n\
             <rect x=\"234\" y=\"{y}\" width=\"{width:.1}\" height=\"16\" fill=\"#4878a8\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">{value:.2}{goal}</text>",
            y + 13,
            240.0 + width,
            y + 13,
        );
    }
    svg + "</svg>\n"
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let best = Best::default();
    bench_walks(&mut criterion, &best);
    bench_changes(&mut criterion, &best);
    bench_parallel::<Lockless>(&best);
    bench_parallel::<OneMutex>(&best);
    bench_parallel::<OneRwLock>(&best);
    criterion.final_summary();
    let ratios = ratios(&best);
    for (name, nanoseconds) in best.0.borrow().iter() {
        println!("{name:32} {nanoseconds:9.2} ns");
    }
    for (name, value, goal) in &ratios {
        println!("{name:32} {value:9.2}  {}", goal.unwrap_or_default());
    }
    if let Ok(file) = std::env::var("SPEED_SVG") {
        std::fs::write(&file, plot(&ratios)).expect("the plot can be written");
    }
}
