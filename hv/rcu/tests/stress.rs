//! Threads that replace, walk and free pages as fast as possible. A page is poisoned when it is freed, and each use of
//! a page has a new stamp, which the entry holds too: a walker detects pages that were freed or reused.
#![cfg(not(loom))]

use addr::Pfn;
use rcu::{Backlog, Cpu, CpuData, Domain, Flush, Guard, Head, Platform, Space, Tlb};
#[cfg(shuttle)]
use shuttle::{
    sync::{Mutex, MutexGuard, atomic::AtomicBool, atomic::AtomicU64},
    thread,
};
use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
#[cfg(not(shuttle))]
use std::sync::{Mutex, MutexGuard, atomic::AtomicBool, atomic::AtomicU64};
#[cfg(not(shuttle))]
use std::thread;

const CPUS: usize = 4;
const ENTRIES: usize = if cfg!(shuttle) { 4 } else { 8 };
const PAGES: u64 = if cfg!(shuttle) { 12 } else { 256 };
const ROUNDS: u64 = if cfg!(shuttle) { 12 } else { 30_000 };
/// A writer walks once in this number of rounds.
const ROUNDS_TO_A_WALK: u64 = if cfg!(shuttle) { 3 } else { 16 };
/// The limit of pages queued on one CPU: less than all pages.
const LIMIT: u64 = PAGES / 8;
const POISON: u64 = 0xdead_beef_dead_beef;

/// The value of an entry: the page's number in the low bits, and the number of this use of the page above it.
#[derive(Clone, Copy)]
struct Stamp(u64);

impl Stamp {
    fn page(self) -> Pfn {
        Pfn::new(self.0 % PAGES)
    }
}

struct Page {
    head: Head,
    /// The stamp in each word while the page is in use.
    memory: [AtomicU64; 8],
}

struct TestPlatform {
    pages: Vec<Page>,
    free: Mutex<Vec<Pfn>>,
    entries: [AtomicU64; ENTRIES],
    kicked: [AtomicBool; CPUS],
    uses: AtomicU64,
    /// The number of writers that have not finished.
    writers: AtomicU64,
}

impl Platform for TestPlatform {
    fn head(&self, page: Pfn) -> &Head {
        &self.page(page).head
    }

    fn kick(&self, cpu: usize) {
        self.kicked[cpu].store(true, Release);
    }

    fn now(&self) -> u64 {
        0
    }
}

impl TestPlatform {
    fn new(writers: u64) -> Self {
        let page = || Page { head: Head::new(), memory: [const { AtomicU64::new(POISON) }; 8] };
        let platform = Self {
            pages: (0..PAGES).map(|_| page()).collect(),
            free: Mutex::new((0..PAGES).map(Pfn::new).collect()),
            entries: [const { AtomicU64::new(0) }; ENTRIES],
            kicked: [const { AtomicBool::new(false) }; CPUS],
            uses: AtomicU64::new(0),
            writers: AtomicU64::new(writers),
        };
        for entry in &platform.entries {
            entry.store(platform.allocate().expect("the pool is full").0, Release);
        }
        platform
    }

    fn page(&self, page: Pfn) -> &Page {
        &self.pages[page.raw() as usize]
    }

    /// The free pages. A mutant's panic that unwinds another task with the lock poisons it; the first panic is the one to report.
    fn free_pages(&self) -> MutexGuard<'_, Vec<Pfn>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocate(&self) -> Option<Stamp> {
        let page = self.free_pages().pop()?;
        let stamp = Stamp(self.uses.fetch_add(1, Relaxed) * PAGES + page.raw());
        self.page(page).memory.iter().for_each(|word| word.store(stamp.0, Relaxed));
        Some(stamp)
    }

    fn free(&self, page: Pfn) {
        self.page(page).memory.iter().for_each(|word| word.store(POISON, Relaxed));
        self.free_pages().push(page);
    }

    fn load(&self, entry: usize) -> Stamp {
        Stamp(self.entries[entry].load(Acquire))
    }

    /// Puts a new page into an entry and returns the old one. None if no page is free.
    fn replace(&self, entry: usize) -> Option<Pfn> {
        let new = self.allocate()?;
        Some(Stamp(self.entries[entry].swap(new.0, AcqRel)).page())
    }

    fn check(&self, stamp: Stamp) {
        for word in &self.page(stamp.page()).memory {
            assert_eq!(word.load(Relaxed), stamp.0, "a freed page is walked");
        }
    }

    /// Reads an entry and checks its page repeatedly.
    fn walk(&self, _: Guard<'_>, entry: usize) {
        let found = self.load(entry);
        for _ in 0..2 {
            self.check(found);
            thread::yield_now();
        }
        self.check(found);
    }

    fn is_over(&self) -> bool {
        self.writers.load(Acquire) == 0
    }
}

/// Counts a writer as finished when dropped, also by a panic: otherwise the other threads would not end.
struct Finish<'m>(&'m TestPlatform);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.writers.fetch_sub(1, AcqRel);
    }
}

/// Replaces pages, and walks pages of the other writers.
fn writer(cpu: &mut Cpu<'_, TestPlatform>, space: &Space) {
    let platform = cpu.domain().platform();
    let finish = Finish(platform);
    let mut round = 0;
    while round < ROUNDS {
        let entry = (round as usize + cpu.index()) % ENTRIES;
        if round % ROUNDS_TO_A_WALK == 0 {
            platform.walk(cpu.read(), entry);
        }
        // If no page is free, the writer waits for the pages that it has deferred.
        if let Some(old) = platform.replace(entry) {
            let mut gather = cpu.gather(space);
            gather.add(old);
            let retired = if round % 32 == 0 { gather.finish() } else { gather.finish_lazily() };
            if retired.backlog == Backlog::Over {
                cpu.hurry();
            }
            round += 1;
        } else {
            cpu.hurry();
            thread::yield_now();
        }
        cpu.quiescent();
        cpu.poll(16, |page| platform.free(page));
    }
    drop(finish);
    while !platform.is_over() {
        cpu.quiescent();
        cpu.poll(16, |page| platform.free(page));
        cpu.idle(thread::yield_now);
    }
}

/// Stays in guest mode with its cached translations until it is kicked.
fn vcpu(cpu: &mut Cpu<'_, TestPlatform>, space: &Space) {
    let platform = cpu.domain().platform();
    let kicked = &platform.kicked[cpu.index()];
    let mut tlb = Tlb::new();
    let mut cached = [None; ENTRIES];
    while !platform.is_over() {
        cpu.guest(space, &mut tlb, |flush| {
            if flush == Flush::Needed {
                cached = [None; ENTRIES];
            }
            while !kicked.swap(false, AcqRel) && !platform.is_over() {
                // Until the kick arrives, the guest continues with its translations.
                for _ in 0..4 {
                    for (entry, cached) in cached.iter_mut().enumerate() {
                        platform.check(*cached.get_or_insert_with(|| platform.load(entry)));
                    }
                    thread::yield_now();
                }
            }
        });
        cpu.poll(16, |page| platform.free(page));
    }
}

/// Goes online and offline, so that other CPUs adopt its pages.
fn leaver(domain: &Domain<TestPlatform, [CpuData; CPUS]>, index: usize, space: &Space) {
    let platform = domain.platform();
    while !platform.is_over() {
        let cpu = domain.register(index).unwrap();
        if let Some(old) = platform.replace(index) {
            cpu.defer(space, old);
        }
        platform.walk(cpu.read(), 0);
    }
}

fn replace_walk_and_free() {
    let domain: Domain<TestPlatform, [CpuData; CPUS]> = Domain::new(TestPlatform::new(2), LIMIT);
    let space = Space::new(&domain);
    thread::scope(|scope| {
        let (domain, space) = (&domain, &space);
        for index in [0, 1] {
            scope.spawn(move || writer(&mut domain.register(index).unwrap(), space));
        }
        scope.spawn(move || vcpu(&mut domain.register(2).unwrap(), space));
        scope.spawn(move || leaver(domain, 3, space));
    });
    let platform = domain.platform();
    domain.register(0).unwrap().barrier(|page| platform.free(page));
    let stats = domain.stats();
    assert_eq!((stats.backlog, stats.deferred), (0, stats.freed));
    assert!(stats.deferred >= 2 * ROUNDS);
    let mut pages: BTreeSet<_> = platform.free_pages().iter().copied().collect();
    pages.extend((0..ENTRIES).map(|entry| platform.load(entry).page()));
    assert_eq!(pages.len() as u64, PAGES, "each page is free or in use, none is both");
    println!("{stats:?}");
}

#[cfg(not(shuttle))]
#[test]
fn pages_are_freed_late_and_all_come_back() {
    replace_walk_and_free();
}

/// Random schedules.
#[cfg(shuttle)]
mod random {
    use super::replace_walk_and_free;
    use rcu::rules::Rule;
    use shuttle::scheduler::RandomScheduler;

    const RUNS: usize = 1_500;
    /// A mutant ends with the first run that fails: some do so once in a thousand.
    const MUTANT_RUNS: usize = 40 * RUNS;

    #[test]
    fn shuttle_pages_are_freed_late_and_all_come_back() {
        shuttle::check_random(replace_walk_and_free, RUNS);
    }

    /// Few context switches at random points find errors that need one CPU to run for long.
    #[test]
    fn shuttle_pages_are_freed_late_and_all_come_back_by_few_switches() {
        shuttle::check_pct(replace_walk_and_free, RUNS, 5);
    }

    fn must_fail(rules: &'static [Rule]) {
        let says = model::failure(rules, || model::run(RandomScheduler::new(MUTANT_RUNS), replace_walk_and_free));
        assert!(says.as_ref().is_some_and(|says| says.contains("a freed page is walked")), "{rules:?}: {says:?}");
    }

    #[test]
    fn mutant_shuttle_without_waiting_for_software() {
        must_fail(&[Rule::WaitForSoftware]);
    }

    #[test]
    fn mutant_shuttle_without_waiting_for_hardware() {
        must_fail(&[Rule::WaitForHardware]);
    }

    #[test]
    fn mutant_shuttle_that_waits_for_the_running_grace_period() {
        must_fail(&[Rule::WaitForTheNext]);
    }

    #[test]
    fn mutant_shuttle_without_comparing_generations_at_entry() {
        must_fail(&[Rule::CompareAtEntry]);
    }
}
