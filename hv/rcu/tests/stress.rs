//! Threads that replace, walk and free pages as fast as they can. A page that is freed is poisoned at once, and every use
//! of it has a stamp of its own, which the entry tells: a walker notices a page that was freed, and one that was reused.
#![cfg(not(loom))]

use addr::Pfn;
use rcu::{Backlog, Cpu, Domain, Flush, Guard, Head, Platform, Slot, Space, Tlb};
#[cfg(shuttle)]
use shuttle::{
    sync::{Mutex, atomic::AtomicBool, atomic::AtomicU64},
    thread,
};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
#[cfg(not(shuttle))]
use std::sync::{Mutex, atomic::AtomicBool, atomic::AtomicU64};
#[cfg(not(shuttle))]
use std::thread;

const CPUS: usize = 4;
const ENTRIES: usize = if cfg!(shuttle) { 4 } else { 8 };
const PAGES: u64 = if cfg!(shuttle) { 12 } else { 256 };
const ROUNDS: u64 = if cfg!(shuttle) { 12 } else { 30_000 };
/// A writer walks once in so many rounds.
const ROUNDS_TO_A_WALK: u64 = if cfg!(shuttle) { 3 } else { 16 };
/// Pages that may wait on one CPU: fewer than there are.
const LIMIT: u64 = PAGES / 8;
const POISON: u64 = 0xdead_beef_dead_beef;

/// What an entry holds: the page's number, and above it the number of this use of it.
#[derive(Clone, Copy)]
struct Stamp(u64);

impl Stamp {
    fn page(self) -> Pfn {
        Pfn::new(self.0 % PAGES)
    }
}

struct Page {
    head: Head,
    /// Its stamp while it is in use.
    memory: [AtomicU64; 8],
}

struct Machine {
    pages: Vec<Page>,
    free: Mutex<Vec<Pfn>>,
    entries: [AtomicU64; ENTRIES],
    kicked: [AtomicBool; CPUS],
    uses: AtomicU64,
    /// Loops that replace pages and have not finished.
    writers: AtomicU64,
}

impl Platform for Machine {
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

impl Machine {
    fn new(writers: u64) -> Self {
        let page = || Page { head: Head::new(), memory: [const { AtomicU64::new(POISON) }; 8] };
        let machine = Self {
            pages: (0..PAGES).map(|_| page()).collect(),
            free: Mutex::new((0..PAGES).map(Pfn::new).collect()),
            entries: [const { AtomicU64::new(0) }; ENTRIES],
            kicked: [const { AtomicBool::new(false) }; CPUS],
            uses: AtomicU64::new(0),
            writers: AtomicU64::new(writers),
        };
        for entry in &machine.entries {
            entry.store(machine.allocate().expect("the pool is full").0, Release);
        }
        machine
    }

    fn page(&self, page: Pfn) -> &Page {
        &self.pages[page.raw() as usize]
    }

    fn allocate(&self) -> Option<Stamp> {
        let page = self.free.lock().unwrap().pop()?;
        let stamp = Stamp(self.uses.fetch_add(1, Relaxed) * PAGES + page.raw());
        self.page(page).memory.iter().for_each(|word| word.store(stamp.0, Relaxed));
        Some(stamp)
    }

    fn free(&self, page: Pfn) {
        self.page(page).memory.iter().for_each(|word| word.store(POISON, Relaxed));
        self.free.lock().unwrap().push(page);
    }

    fn load(&self, entry: usize) -> Stamp {
        Stamp(self.entries[entry].load(Acquire))
    }

    /// Puts a new page into an entry; the old one, if there was a new one.
    fn replace(&self, entry: usize) -> Option<Pfn> {
        let new = self.allocate()?;
        Some(Stamp(self.entries[entry].swap(new.0, AcqRel)).page())
    }

    fn check(&self, stamp: Stamp) {
        for word in &self.page(stamp.page()).memory {
            assert_eq!(word.load(Relaxed), stamp.0, "a freed page is walked");
        }
    }

    /// Holds what it finds for a while.
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

/// A writer's end, also by a panic: nobody waits for it in vain.
struct Finish<'m>(&'m Machine);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.writers.fetch_sub(1, AcqRel);
    }
}

/// Replaces pages, and walks what others put there.
fn writer(cpu: &mut Cpu<'_, Machine>, space: &Space) {
    let machine = cpu.domain().platform();
    let finish = Finish(machine);
    let mut round = 0;
    while round < ROUNDS {
        let entry = (round as usize + cpu.index()) % ENTRIES;
        if round % ROUNDS_TO_A_WALK == 0 {
            machine.walk(cpu.read(), entry);
        }
        // Without a page to put there it waits for those that it has deferred.
        if let Some(old) = machine.replace(entry) {
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
        cpu.poll(16, |page| machine.free(page));
    }
    drop(finish);
    while !machine.is_over() {
        cpu.quiescent();
        cpu.poll(16, |page| machine.free(page));
        cpu.idle(thread::yield_now);
    }
}

/// Stays in guest mode, with whatever translations it has, until it is kicked.
fn vcpu(cpu: &mut Cpu<'_, Machine>, space: &Space) {
    let machine = cpu.domain().platform();
    let kicked = &machine.kicked[cpu.index()];
    let mut tlb = Tlb::new();
    let mut cached = [None; ENTRIES];
    while !machine.is_over() {
        cpu.guest(space, &mut tlb, |flush| {
            if flush == Flush::Needed {
                cached = [None; ENTRIES];
            }
            while !kicked.swap(false, AcqRel) && !machine.is_over() {
                // A kick takes its time: the guest goes on with what it has.
                for _ in 0..4 {
                    for (entry, cached) in cached.iter_mut().enumerate() {
                        machine.check(*cached.get_or_insert_with(|| machine.load(entry)));
                    }
                    thread::yield_now();
                }
            }
        });
        cpu.poll(16, |page| machine.free(page));
    }
}

/// Comes and goes, and leaves what it has deferred to the others.
fn leaver(domain: &Domain<Machine, [Slot; CPUS]>, index: usize, space: &Space) {
    let machine = domain.platform();
    while !machine.is_over() {
        let cpu = domain.register(index).unwrap();
        if let Some(old) = machine.replace(index) {
            cpu.defer(space, old);
        }
        machine.walk(cpu.read(), 0);
    }
}

fn replace_walk_and_free() {
    let domain: Domain<Machine, [Slot; CPUS]> = Domain::new(Machine::new(2), LIMIT);
    let space = Space::new(&domain);
    thread::scope(|scope| {
        let (domain, space) = (&domain, &space);
        for index in [0, 1] {
            scope.spawn(move || writer(&mut domain.register(index).unwrap(), space));
        }
        scope.spawn(move || vcpu(&mut domain.register(2).unwrap(), space));
        scope.spawn(move || leaver(domain, 3, space));
    });
    let machine = domain.platform();
    domain.register(0).unwrap().barrier(|page| machine.free(page));
    let stats = domain.stats();
    assert_eq!((stats.backlog, stats.deferred), (0, stats.freed));
    assert!(stats.deferred >= 2 * ROUNDS);
    let mut pages: BTreeSet<_> = machine.free.lock().unwrap().iter().copied().collect();
    pages.extend((0..ENTRIES).map(|entry| machine.load(entry).page()));
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
    use rcu::rule::{Rule, with_broken};
    use shuttle::scheduler::RandomScheduler;
    use shuttle::{Config, FailurePersistence, Runner};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const RUNS: usize = 1_500;
    /// A twin ends with the first run that fails: some do so once in a thousand.
    const TWIN_RUNS: usize = 40 * RUNS;

    #[test]
    fn shuttle_pages_are_freed_late_and_all_come_back() {
        shuttle::check_random(replace_walk_and_free, RUNS);
    }

    /// Few changes of CPU at places chosen at random find what needs a long way on one CPU.
    #[test]
    fn shuttle_pages_are_freed_late_and_all_come_back_by_few_switches() {
        shuttle::check_pct(replace_walk_and_free, RUNS, 5);
    }

    fn must_fail(rule: Rule) {
        let mut config = Config::new();
        config.failure_persistence = FailurePersistence::None;
        let runner = Runner::new(RandomScheduler::new(TWIN_RUNS), config);
        let broken = || with_broken(Some(rule), || runner.run(replace_walk_and_free));
        let panic = catch_unwind(AssertUnwindSafe(broken)).expect_err("without the rule it holds as well");
        let says = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref().map(String::as_str));
        assert!(says.is_some_and(|says| says.contains("a freed page is walked")), "{rule:?}: {says:?}");
    }

    #[test]
    fn twin_shuttle_without_waiting_for_software() {
        must_fail(Rule::WaitForSoftware);
    }

    #[test]
    fn twin_shuttle_without_waiting_for_hardware() {
        must_fail(Rule::WaitForHardware);
    }

    #[test]
    fn twin_shuttle_that_waits_for_the_running_grace_period() {
        must_fail(Rule::WaitForTheNext);
    }

    #[test]
    fn twin_shuttle_without_comparing_generations_at_entry() {
        must_fail(Rule::CompareAtEntry);
    }
}
