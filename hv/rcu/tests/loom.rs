//! Models of the crate's rules under every interleaving, and every stale read, up to loom's preemption bound.
//!
//! Each `loom_*` model has [mutants](model#mutants), each with one rule broken, which loom must catch. Run them with
//! `RUSTFLAGS="--cfg loom" cargo test -p rcu --release --test loom`.
#![cfg(loom)]

use addr::Pfn;
use loom::cell::UnsafeCell;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicBool, AtomicU64};
use loom::sync::{Condvar, Mutex};
use loom::thread::{self, JoinHandle};
use model::{Ending, Explorer, loom_tests};
use rcu::rules::Rule;
use rcu::{Backlog, Cpu, CpuData, Domain, Flush, Guard, Head, Platform, Space, Tlb};
use std::sync::Arc;
use std::sync::atomic::AtomicBool as Flag;

/// A page. Loom detects an access that is not ordered with the freeing, `freed` one that comes after it.
struct Page {
    head: Head,
    memory: UnsafeCell<()>,
    freed: Flag,
}

// SAFETY: the cell is empty; it only shows accesses to loom.
unsafe impl Sync for Page {}
// SAFETY: as above.
unsafe impl Send for Page {}

impl Page {
    fn new() -> Self {
        Self { head: Head::new(), memory: UnsafeCell::new(()), freed: Flag::new(false) }
    }

    fn walk(&self) {
        self.memory.with(|_| assert!(!self.freed.load(Relaxed), "a freed page is walked"));
    }

    fn write(&self) {
        self.memory.with_mut(|_| assert!(!self.freed.load(Relaxed), "a freed page is written"));
    }

    fn free(&self) {
        self.memory.with_mut(|_| assert!(!self.freed.swap(true, Relaxed), "a page is freed twice"));
    }

    /// What a barrier is for: the memory is used for something else behind it.
    fn reuse(&self) {
        self.memory.with_mut(|_| assert!(self.freed.load(Relaxed), "the barrier came too early"));
    }
}

/// `CPUS` CPUs, two pages, and an entry that leads to the first.
struct World<const CPUS: usize> {
    domain: Domain<TestPlatform, [CpuData; CPUS]>,
    space: Space,
}

struct TestPlatform {
    pages: [Page; 2],
    entry: AtomicU64,
    kicked: Mutex<bool>,
    interrupt: Condvar,
    ready: AtomicBool,
    posted: AtomicBool,
}

impl Platform for TestPlatform {
    fn head(&self, page: Pfn) -> &Head {
        &self.page(page).head
    }

    fn kick(&self, _: usize) {
        *self.kicked.lock().unwrap() = true;
        self.interrupt.notify_one();
    }

    fn now(&self) -> u64 {
        0
    }
}

const TABLE: Pfn = Pfn::new(0);
const OTHER: Pfn = Pfn::new(1);
/// An entry that is none.
const NONE: u64 = u64::MAX;

impl TestPlatform {
    fn page(&self, page: Pfn) -> &Page {
        &self.pages[page.raw() as usize]
    }

    fn free(&self, page: Pfn) {
        self.page(page).free();
    }

    /// A relaxed load of the entry, so that only the crate's fences order it.
    fn load(&self) -> Option<Pfn> {
        let entry = self.entry.load(Relaxed);
        (entry != NONE).then(|| Pfn::new(entry))
    }

    fn unlink(&self) -> Pfn {
        self.entry.store(NONE, Relaxed);
        TABLE
    }

    /// One walk in software.
    fn walk(&self, _: Guard<'_>) {
        if let Some(table) = self.load() {
            self.page(table).walk();
        }
    }

    /// The guest runs until its CPU is kicked. Blocked rather than spinning: loom does not promise two spinners a turn
    /// each.
    fn stay(&self) {
        let mut kicked = self.kicked.lock().unwrap();
        while !*kicked {
            kicked = self.interrupt.wait(kicked).unwrap();
        }
        *kicked = false;
    }

    /// The check before guest mode or sleep: whether no event was posted. Relaxed, as [`load`](Self::load) is.
    fn nothing_posted(&self) -> bool {
        !self.posted.load(Relaxed)
    }

    /// One access of the guest: by a cached translation, or by a walk that caches one.
    fn access(&self, cached: &mut Option<Pfn>) {
        *cached = cached.or_else(|| self.load());
        if let Some(table) = *cached {
            self.page(table).walk();
        }
    }
}

impl<const CPUS: usize> World<CPUS> {
    fn new(limit: u64) -> Arc<Self> {
        let platform = TestPlatform {
            pages: [Page::new(), Page::new()],
            entry: AtomicU64::new(TABLE.raw()),
            kicked: Mutex::new(false),
            interrupt: Condvar::new(),
            ready: AtomicBool::new(false),
            posted: AtomicBool::new(false),
        };
        let domain = Domain::new(platform, limit);
        let space = Space::new(&domain);
        Arc::new(Self { domain, space })
    }

    fn platform(&self) -> &TestPlatform {
        self.domain.platform()
    }

    fn cpu(&self, index: usize) -> Cpu<'_, TestPlatform> {
        self.domain.register(index).unwrap_or_else(|_| unreachable!("it is registered once"))
    }

    /// Everything before this on one CPU happens before the end of [`wait_until_ready`](Self::wait_until_ready) on
    /// another.
    fn set_ready(&self) {
        self.platform().ready.store(true, Release);
    }

    fn wait_until_ready(&self) {
        while !self.platform().ready.load(Acquire) {
            thread::yield_now();
        }
    }

    /// Two iterations of a CPU's loop: enough for a grace period, if no other CPU holds it up.
    fn two_turns(&self, cpu: &mut Cpu<'_, TestPlatform>) {
        for _ in 0..2 {
            cpu.quiescent();
            cpu.poll(usize::MAX, |page| self.platform().free(page));
        }
    }

    /// A CPU's loop until its pages are free.
    fn turns(&self, cpu: &mut Cpu<'_, TestPlatform>) {
        while cpu.backlog() != 0 {
            self.two_turns(cpu);
            thread::yield_now();
        }
    }

    /// Checks that all deferred pages are freed when the other CPUs are offline.
    fn drain(&self) {
        let mut cpu = self.cpu(0);
        cpu.barrier(|page| self.platform().free(page));
        let stats = self.domain.stats();
        assert_eq!((stats.backlog, stats.deferred), (0, stats.freed), "pages are lost");
    }
}

fn spawn<const CPUS: usize>(world: &Arc<World<CPUS>>, run: fn(&World<CPUS>)) -> JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || run(&world))
}

/// The translation that a CPU's hardware has cached under one tag, and the record of the tag.
#[derive(Default)]
struct Tagged {
    tlb: Tlb,
    cached: Option<Pfn>,
}

impl Tagged {
    /// One entry to guest mode, in which the guest runs `accesses`.
    fn enter<const CPUS: usize>(
        &mut self,
        world: &World<CPUS>,
        cpu: &mut Cpu<'_, TestPlatform>,
        mut accesses: impl FnMut(&mut Option<Pfn>),
    ) {
        let cached = &mut self.cached;
        cpu.guest(&world.space, &mut self.tlb, |flush| {
            if flush == Flush::Needed {
                *cached = None;
            }
            accesses(cached);
        });
    }
}

const EXPLORER: Explorer =
    Explorer { preemptions: 2, signs: &["Causality violation", "a freed page is", "the barrier came too early"] };

/// A mutant whose model breaks the rule itself.
macro_rules! mutant {
    ($mutant:ident = $model:path) => {
        #[test]
        fn $mutant() {
            EXPLORER.must_fail::<Rule>(&[], $model, Ending::Broken);
        }
    };
}

// Software walkers.

fn free_vs_software_walker() {
    let world = World::<2>::new(9);
    let walker = spawn(&world, |world| {
        let mut cpu = world.cpu(1);
        world.platform().walk(cpu.read());
        cpu.quiescent();
        world.platform().walk(cpu.read());
    });
    let mut cpu = world.cpu(0);
    cpu.call_rcu(world.platform().unlink());
    world.turns(&mut cpu);
    drop(cpu);
    walker.join().unwrap();
    world.drain();
}

loom_tests! {
    /// A page that a walker may hold is not freed.
    loom_free_vs_software_walker = free_vs_software_walker;
    mutant_free_vs_software_walker breaks [WaitForSoftware]
}

/// The walker's own page makes grace periods begin and end, so the unlinking CPU is not the only one to advance the clock.
fn ticket_vs_running_grace_period() {
    let world = World::<2>::new(9);
    let walker = spawn(&world, |world| {
        let mut cpu = world.cpu(1);
        cpu.call_rcu(OTHER);
        cpu.poll(0, |_| ());
        cpu.quiescent();
        world.platform().walk(cpu.read());
    });
    let mut cpu = world.cpu(0);
    cpu.call_rcu(world.platform().unlink());
    world.turns(&mut cpu);
    drop(cpu);
    walker.join().unwrap();
    world.drain();
}

loom_tests! {
    /// A page is not freed after a grace period that began before the page was unlinked.
    loom_ticket_vs_running_grace_period = ticket_vs_running_grace_period;
    mutant_ticket_of_the_running_grace_period breaks [WaitForTheNext],
    mutant_ticket_without_fence breaks [FenceAtTicket]
}

fn quiescent_state_vs_walk_after_it() {
    let world = World::<3>::new(9);
    let walker = spawn(&world, |world| {
        let mut cpu = world.cpu(1);
        cpu.quiescent();
        world.platform().walk(cpu.read());
    });
    // A third CPU begins the grace period, which adds no order between the other two.
    let starter = spawn(&world, |world| {
        let cpu = world.cpu(2);
        cpu.call_rcu(OTHER);
        cpu.poll(0, |_| ());
    });
    let mut cpu = world.cpu(0);
    cpu.call_rcu(world.platform().unlink());
    world.two_turns(&mut cpu);
    drop(cpu);
    walker.join().unwrap();
    starter.join().unwrap();
    world.drain();
}

loom_tests! {
    /// Walks after a quiescent state do not find the unlinked page.
    loom_quiescent_state_vs_walk_after_it = quiescent_state_vs_walk_after_it;
    mutant_quiescent_state_without_fence breaks [FenceAtQuiescent]
}

fn return_from_idle_vs_grace_period() {
    let world = World::<2>::new(9);
    let walker = spawn(&world, |world| {
        let mut cpu = world.cpu(1);
        cpu.idle(|| ());
        world.platform().walk(cpu.read());
    });
    let mut cpu = world.cpu(0);
    cpu.call_rcu(world.platform().unlink());
    world.turns(&mut cpu);
    drop(cpu);
    walker.join().unwrap();
    world.drain();
}

loom_tests! {
    /// A CPU that was idle when the grace period ended walks no page that is freed then.
    loom_return_from_idle_vs_grace_period = return_from_idle_vs_grace_period;
    mutant_return_from_idle_without_fence breaks [FenceAtReturn]
}

fn grace_period_ended_by_another_cpu() {
    let world = World::<3>::new(9);
    let walker = spawn(&world, |world| {
        let mut cpu = world.cpu(1);
        cpu.idle(|| ());
        world.platform().walk(cpu.read());
    });
    let ender = spawn(&world, |world| {
        let mut cpu = world.cpu(2);
        cpu.call_rcu(OTHER);
        world.two_turns(&mut cpu);
    });
    let mut cpu = world.cpu(0);
    cpu.call_rcu(world.platform().unlink());
    world.two_turns(&mut cpu);
    drop(cpu);
    walker.join().unwrap();
    ender.join().unwrap();
    world.drain();
}

loom_tests! {
    /// A page may be freed when another CPU has ended the grace period.
    loom_grace_period_ended_by_another_cpu = grace_period_ended_by_another_cpu;
    mutant_grace_period_ended_too_early breaks [WaitForSoftware]
}

/// The walker keeps the page that it has found, under the generation that it has read before, and uses it while that is the current one.
fn page_kept_under_a_generation<const READS_GENERATION_FIRST: bool>() {
    let world = World::<2>::new(9);
    let walker = spawn(&world, |world| {
        let mut cpu = world.cpu(1);
        let before = world.space.generation();
        let kept = world.platform().load();
        let generation = if READS_GENERATION_FIRST { before } else { world.space.generation() };
        cpu.quiescent();
        if let Some(table) = kept.filter(|_| world.space.generation() == generation) {
            world.platform().page(table).walk();
        }
    });
    let mut cpu = world.cpu(0);
    cpu.defer(&world.space, world.platform().unlink());
    world.turns(&mut cpu);
    drop(cpu);
    walker.join().unwrap();
    world.drain();
}

loom_tests! {
    /// A walk after the read of a generation sees what was unlinked before the flush of that generation.
    loom_page_kept_under_a_generation = page_kept_under_a_generation::<true>;
    mutant_kept_page_that_nothing_waits_for breaks [WaitForSoftware]
}
mutant!(mutant_page_kept_under_a_generation_read_late = page_kept_under_a_generation::<false>);

// Hardware walkers.

fn free_vs_hardware_walker() {
    let world = World::<2>::new(9);
    let vcpu = spawn(&world, |world| {
        let (mut cpu, mut tagged) = (world.cpu(1), Tagged::default());
        for _ in 0..2 {
            tagged.enter(world, &mut cpu, |cached| world.platform().access(cached));
        }
    });
    let mut cpu = world.cpu(0);
    cpu.defer(&world.space, world.platform().unlink());
    world.turns(&mut cpu);
    drop(cpu);
    vcpu.join().unwrap();
    world.drain();
}

loom_tests! {
    /// A page that the hardware may walk, or has cached, is not freed.
    loom_free_vs_hardware_walker = free_vs_hardware_walker;
    mutant_free_while_in_guest_mode breaks [WaitForHardware],
    mutant_entry_without_comparison breaks [CompareAtEntry],
    mutant_entry_without_fence breaks [FenceAtEntry],
    mutant_flush_without_fence breaks [FenceAtFlush]
}

/// The CPU of the guest begins a grace period between two entries, in the second of which it may use what it has cached in the first.
fn flush_vs_grace_period_of_the_guests_cpu() {
    let world = World::<2>::new(9);
    let vcpu = spawn(&world, |world| {
        let (mut cpu, mut tagged) = (world.cpu(1), Tagged::default());
        tagged.enter(world, &mut cpu, |cached| world.platform().access(cached));
        thread::yield_now();
        cpu.expedite();
        tagged.enter(world, &mut cpu, |cached| {
            world.platform().access(cached);
            thread::yield_now();
            world.platform().access(cached);
        });
    });
    let mut cpu = world.cpu(0);
    thread::yield_now();
    cpu.defer(&world.space, world.platform().unlink());
    world.two_turns(&mut cpu);
    drop(cpu);
    vcpu.join().unwrap();
    world.drain();
}

loom_tests! {
    /// The grace period of a page begins after its flush, so that a guest whose entry came before the flush holds it up.
    loom_flush_vs_grace_period_of_the_guests_cpu = flush_vs_grace_period_of_the_guests_cpu;
    mutant_flush_whose_grace_period_passes_over_the_guest breaks [WaitForHardware],
    mutant_flush_of_the_running_grace_period breaks [WaitForTheNext]
}

/// The guest never leaves by itself, unless its entry saw the flush.
fn flush_handshake() {
    let world = World::<2>::new(9);
    let vcpu = spawn(&world, |world| {
        let (mut cpu, mut tagged) = (world.cpu(1), Tagged::default());
        let platform = world.platform();
        while !platform.page(TABLE).freed.load(Relaxed) {
            tagged.enter(world, &mut cpu, |cached| {
                platform.access(cached);
                if cached.is_some() {
                    platform.stay();
                    // Until the kick arrives, the guest continues.
                    platform.access(cached);
                }
            });
            thread::yield_now();
        }
    });
    let mut cpu = world.cpu(0);
    cpu.defer(&world.space, world.platform().unlink());
    cpu.synchronize();
    assert_eq!(cpu.poll(usize::MAX, |page| world.platform().free(page)), 1);
    drop(cpu);
    vcpu.join().unwrap();
    world.drain();
}

loom_tests! {
    /// No kick is lost: a guest that can walk the page is kicked, and one that is not kicked can't walk it.
    loom_flush_handshake = flush_handshake;
    mutant_flush_without_kick hangs_without [KickTheStale],
    mutant_handshake_without_entry_fence breaks [FenceAtEntry],
    mutant_handshake_without_flush_fence breaks [FenceAtFlush]
}

/// A third CPU, which neither unlinks nor runs the guest, ends the grace period. It reads the guest's state first.
fn guest_passed_over_by_another_cpu() {
    let world = World::<3>::new(9);
    let vcpu = spawn(&world, |world| {
        let (mut cpu, mut tagged) = (world.cpu(0), Tagged::default());
        tagged.enter(world, &mut cpu, |cached| {
            world.platform().access(cached);
            thread::yield_now();
            world.platform().access(cached);
        });
    });
    let ender = spawn(&world, |world| {
        let mut cpu = world.cpu(1);
        cpu.call_rcu(OTHER);
        cpu.poll(0, |_| ());
        cpu.quiescent();
        cpu.poll(0, |_| ());
    });
    let mut cpu = world.cpu(2);
    thread::yield_now();
    cpu.defer(&world.space, world.platform().unlink());
    thread::yield_now();
    cpu.quiescent();
    world.two_turns(&mut cpu);
    drop(cpu);
    vcpu.join().unwrap();
    ender.join().unwrap();
    world.drain();
}

loom_tests! {
    /// The CPU that ends the grace period sees that a guest with stale translations no longer counts as quiescent.
    loom_guest_passed_over_by_another_cpu = guest_passed_over_by_another_cpu;
    mutant_guest_passed_over breaks [WaitForHardware],
    mutant_guest_passed_over_without_fence breaks [FenceAtTicket]
}

/// The hardware walks in two spaces alternately; the page is unlinked from one of them.
fn sessions_by_turns() {
    let world = World::<2>::new(9);
    let vcpu = spawn(&world, |world| {
        let (mut cpu, mut tlb, mut cached) = (world.cpu(1), Tlb::new(), None);
        let other = Space::new(&world.domain);
        for _ in 0..2 {
            {
                let mut session = cpu.session(&world.space, &mut tlb);
                for _ in 0..2 {
                    session.guest(|flush| {
                        if flush == Flush::Needed {
                            cached = None;
                        }
                        world.platform().access(&mut cached);
                    });
                }
            }
            cpu.session(&other, &mut Tlb::new()).guest(|_| ());
        }
    });
    let mut cpu = world.cpu(0);
    cpu.defer(&world.space, world.platform().unlink());
    world.turns(&mut cpu);
    drop(cpu);
    vcpu.join().unwrap();
    world.drain();
}

loom_tests! {
    /// The space that a session announces holds for each of its entries, and not for entries of other sessions.
    loom_sessions_by_turns = sessions_by_turns;
    mutant_session_that_names_no_space breaks [SpaceAtSession],
    mutant_session_whose_entries_compare_nothing breaks [CompareAtEntry],
    mutant_session_whose_entries_are_not_fenced breaks [FenceAtEntry]
}

/// One session switches to another space and back under the same tag.
fn session_that_switches() {
    let world = World::<2>::new(9);
    let vcpu = spawn(&world, |world| {
        let (mut cpu, mut tlb, mut cached) = (world.cpu(1), Tlb::new(), None);
        let other = Space::new(&world.domain);
        let mut session = cpu.session(&other, &mut tlb);
        for turn in 0..2 {
            session.switch(&world.space);
            session.guest(|flush| {
                if flush == Flush::Needed {
                    cached = None;
                }
                world.platform().access(&mut cached);
            });
            if turn == 0 {
                session.switch(&other);
                session.guest(|flush| assert_eq!(flush, Flush::Needed, "what the tag has is another space's"));
                cached = None;
            }
        }
    });
    let mut cpu = world.cpu(0);
    cpu.defer(&world.space, world.platform().unlink());
    world.turns(&mut cpu);
    drop(cpu);
    vcpu.join().unwrap();
    world.drain();
}

loom_tests! {
    /// A session that has switched behaves as a new one.
    loom_session_that_switches = session_that_switches;
    mutant_switch_that_names_no_space breaks [SpaceAtSession],
    mutant_switch_whose_entries_are_not_fenced breaks [FenceAtEntry]
}

/// An entry is cancelled after a flush was demanded.
fn entry_cancelled<const KEEPS_THE_FLUSH_PENDING: bool>() {
    let world = World::<2>::new(9);
    let vcpu = spawn(&world, |world| {
        let (mut cpu, mut tagged) = (world.cpu(1), Tagged::default());
        tagged.enter(world, &mut cpu, |cached| world.platform().access(cached));
        let Tagged { tlb, cached } = &mut tagged;
        let mut session = cpu.session(&world.space, tlb);
        let mut pending = session.guest(|flush| flush == Flush::Needed);
        session.guest(|flush| {
            pending = flush == Flush::Needed || pending && KEEPS_THE_FLUSH_PENDING;
            if pending {
                *cached = None;
            }
            world.platform().access(cached);
        });
    });
    let mut cpu = world.cpu(0);
    cpu.defer(&world.space, world.platform().unlink());
    world.turns(&mut cpu);
    drop(cpu);
    vcpu.join().unwrap();
    world.drain();
}

loom_tests! {
    /// The next entry does the flush that was demanded of a cancelled entry.
    loom_entry_cancelled = entry_cancelled::<true>;
    mutant_cancelled_entry_without_comparison breaks [CompareAtEntry]
}

mutant!(mutant_cancelled_entry_that_loses_its_flush = entry_cancelled::<false>);

/// Posts an event for CPU 1, which is kicked if it is away.
fn post(world: &World<2>) {
    world.platform().posted.store(true, Relaxed);
    if world.domain.is_away(1) {
        world.platform().kick(1);
    }
}

/// A guest that only a kick ends.
fn posted_event_vs_entry() {
    let world = World::<2>::new(9);
    let vcpu = spawn(&world, |world| {
        let (mut cpu, mut tlb) = (world.cpu(1), Tlb::new());
        cpu.guest(&world.space, &mut tlb, |_| {
            if world.platform().nothing_posted() {
                world.platform().stay();
            }
        });
    });
    post(&world);
    vcpu.join().unwrap();
}

loom_tests! {
    /// A posted event is seen by the check of the entry, or the CPU is kicked.
    loom_posted_event_vs_entry = posted_event_vs_entry;
    mutant_entry_that_looks_without_fence sleeps_without [FenceAtEntry],
    mutant_post_to_a_guest_without_fence sleeps_without [FenceAtPost]
}

/// A sleep that only a kick ends.
fn posted_event_vs_idle() {
    let world = World::<2>::new(9);
    let sleeper = spawn(&world, |world| {
        world.cpu(1).idle(|| {
            if world.platform().nothing_posted() {
                world.platform().stay();
            }
        });
    });
    post(&world);
    sleeper.join().unwrap();
}

loom_tests! {
    /// A posted event is seen by the check before the sleep, or the CPU is kicked.
    loom_posted_event_vs_idle = posted_event_vs_idle;
    mutant_idle_that_looks_without_fence sleeps_without [FenceAtIdle],
    mutant_post_to_an_idle_cpu_without_fence sleeps_without [FenceAtPost]
}

/// One vCPU, one tag: on CPU 1, then on CPU 2, then on CPU 1 again, which still has its old translations.
fn vcpu_migrates() {
    let world = World::<3>::new(9);
    let vcpu = spawn(&world, |world| {
        let mut cpus = [world.cpu(1), world.cpu(2)];
        let (mut tlb, mut caches) = (Tlb::new(), [None; 2]);
        for at in [0, 1, 0] {
            cpus.iter_mut().for_each(|cpu| cpu.quiescent());
            cpus[at].guest(&world.space, &mut tlb, |flush| {
                if flush == Flush::Needed {
                    caches[at] = None;
                }
                world.platform().access(&mut caches[at]);
            });
        }
    });
    let mut cpu = world.cpu(0);
    cpu.defer(&world.space, world.platform().unlink());
    world.turns(&mut cpu);
    drop(cpu);
    vcpu.join().unwrap();
    world.drain();
}

loom_tests! {
    /// A flush on one CPU does not count for the translations that the vCPU has left on another.
    loom_vcpu_migrates = vcpu_migrates;
    mutant_vcpu_migrates_unflushed breaks [FlushOnMigration]
}

/// What takes three preemptions to go wrong, in models that are small enough.
mod collecting {
    use super::*;

    const EXPLORER: Explorer = Explorer { preemptions: 3, ..super::EXPLORER };

    /// The hypervisor write-protects, flushes, and collects the writes of the guest of CPU 1, which runs twice, the last time in its
    /// own space or in another.
    fn collect<const WAITS: bool>(last_run: fn(&World<2>, &mut Cpu<'_, TestPlatform>, &mut Tagged)) {
        let world = World::<2>::new(9);
        let vcpu = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let (mut cpu, mut tagged) = (world.cpu(1), Tagged::default());
                write_once(&world, &mut cpu, &mut tagged);
                last_run(&world, &mut cpu, &mut tagged);
            })
        };
        let cpu = world.cpu(0);
        let mut gather = cpu.gather(&world.space);
        let page = world.platform().unlink();
        gather.changed();
        let retired = gather.finish();
        while WAITS && !world.domain.is_flushed(&world.space, retired.generation) {
            thread::yield_now();
        }
        world.platform().page(page).walk();
        drop(cpu);
        vcpu.join().unwrap();
    }

    fn write_once(world: &World<2>, cpu: &mut Cpu<'_, TestPlatform>, tagged: &mut Tagged) {
        tagged.enter(world, cpu, |cached| {
            *cached = cached.or_else(|| world.platform().load());
            if let Some(page) = *cached {
                world.platform().page(page).write();
            }
        });
    }

    fn collect_after_flush() {
        collect::<true>(write_once);
    }

    fn collect_without_waiting() {
        collect::<false>(write_once);
    }

    fn collect_from_a_cpu_that_left() {
        collect::<true>(|world, cpu, _| {
            let other = Space::new(&world.domain);
            cpu.guest(&other, &mut Tlb::new(), |_| ());
        });
    }

    loom_tests! {
        /// When the flush has reached every CPU, no guest writes by a stale translation.
        loom_collect_after_flush = collect_after_flush;
        mutant_collect_without_comparison breaks [CompareAtEntry]
    }
    mutant!(mutant_collect_without_waiting = collect_without_waiting);

    loom_tests! {
        /// A CPU that has gone to another space has ended its writes to this one.
        loom_collect_from_a_cpu_that_left = collect_from_a_cpu_that_left;
        mutant_collect_from_a_cpu_that_names_no_space breaks [SpaceAtSession]
    }

    /// A third CPU collects. It has read the generation in the space, and the flush may not have looked at the CPUs yet.
    fn collect_after_another_cpus_flush() {
        let world = World::<2>::new(9);
        let before = world.space.generation();
        let vcpu = spawn(&world, |world| write_once(world, &mut world.cpu(1), &mut Tagged::default()));
        let collector = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let generation = world.space.generation();
                if generation != before && world.domain.is_flushed(&world.space, generation) {
                    world.platform().page(TABLE).walk();
                }
            })
        };
        let cpu = world.cpu(0);
        let mut gather = cpu.gather(&world.space);
        world.platform().unlink();
        gather.changed();
        gather.finish();
        drop(cpu);
        vcpu.join().unwrap();
        collector.join().unwrap();
    }

    loom_tests! {
        /// A CPU may ask whether the flush of another has reached every CPU.
        loom_collect_after_another_cpus_flush = collect_after_another_cpus_flush;
        mutant_collect_after_another_cpus_flush_without_fence breaks [FenceAtEntry]
    }
}

// Guards, locks, backlog and barriers.

/// The walker holds the page beyond the end of an inner guard.
fn nested_guards<const INNER_END_IS_QUIESCENT: bool>() {
    let world = World::<2>::new(9);
    let walker = spawn(&world, |world| {
        let mut cpu = world.cpu(1);
        let platform = world.platform();
        let outer = platform.load();
        platform.walk(cpu.read());
        // With the outer guard in a variable, the compiler refuses this: see the documentation of `Guard`.
        if INNER_END_IS_QUIESCENT {
            cpu.quiescent();
        }
        if let Some(table) = outer {
            platform.page(table).walk();
        }
    });
    let mut cpu = world.cpu(0);
    cpu.call_rcu(world.platform().unlink());
    world.turns(&mut cpu);
    drop(cpu);
    walker.join().unwrap();
    world.drain();
}

loom_tests! {
    /// The end of an inner guard does not end the outer critical section.
    loom_nested_guards = nested_guards::<false>;
    mutant_nested_guards_that_do_not_wait breaks [WaitForSoftware]
}
mutant!(mutant_nested_guards_that_end_with_the_inner = nested_guards::<true>);

/// The walker locks the table that it found and then checks whether the table is still in the tree. The lock is in the
/// page's descriptor, which the next user of the page initializes.
fn lock_lives_as_long_as_its_table<const DEFERS: bool>() {
    let world = World::<2>::new(9);
    let lock = Arc::new(Mutex::new(()));
    let walker = {
        let (world, lock) = (Arc::clone(&world), Arc::clone(&lock));
        thread::spawn(move || {
            let cpu = world.cpu(1);
            let guard = cpu.read();
            if let Some(table) = world.platform().load() {
                let locked = lock.lock().unwrap();
                world.platform().walk(guard);
                drop(locked);
                world.platform().page(table).walk();
            }
        })
    };
    let mut cpu = world.cpu(0);
    let locked = lock.lock().unwrap();
    let table = world.platform().unlink();
    drop(locked);
    if DEFERS {
        cpu.call_rcu(table);
    } else {
        world.platform().free(table);
    }
    world.turns(&mut cpu);
    drop(cpu);
    walker.join().unwrap();
    world.drain();
}

loom_tests! {
    /// A CPU that waits for the lock of a table that is being unlinked gets the lock and finds the table unlinked.
    loom_lock_lives_as_long_as_its_table = lock_lives_as_long_as_its_table::<true>;
    mutant_lock_of_a_table_without_a_wait breaks [WaitForSoftware]
}
mutant!(mutant_freed_at_unlink = lock_lives_as_long_as_its_table::<false>);

/// A lazy flush does not kick the guest until the backlog exceeds the limit.
fn backlog_and_expedite() {
    let world = World::<2>::new(0);
    let vcpu = spawn(&world, |world| {
        let (mut cpu, mut tagged) = (world.cpu(1), Tagged::default());
        let platform = world.platform();
        tagged.enter(world, &mut cpu, |cached| {
            platform.access(cached);
            if cached.is_some() {
                platform.stay();
                // Until the kick arrives, the guest continues.
                platform.access(cached);
            }
        });
    });
    let mut cpu = world.cpu(0);
    let mut gather = cpu.gather(&world.space);
    gather.add(world.platform().unlink());
    assert_eq!(gather.finish_lazily().backlog, Backlog::Over);
    cpu.hurry();
    cpu.synchronize();
    assert_eq!(cpu.poll(usize::MAX, |page| world.platform().free(page)), 1);
    drop(cpu);
    vcpu.join().unwrap();
    world.drain();
}

loom_tests! {
    /// Above the limit, a guest that would stay forever is kicked, and the page is freed.
    loom_backlog_and_expedite = backlog_and_expedite;
    mutant_hurry_without_kick hangs_without [HurryKicks],
    mutant_hurry_that_does_not_wait breaks [WaitForHardware]
}

/// Two CPUs at once find the guest of a third one stale.
fn two_kickers<const LAZILY: bool>() {
    fn kick<const LAZILY: bool>(world: &World<3>, index: usize) {
        let cpu = world.cpu(index);
        if LAZILY {
            cpu.hurry();
        } else {
            cpu.gather(&world.space).changed();
        }
    }
    let world = World::<3>::new(9);
    world.cpu(2).guest(&world.space, &mut Tlb::new(), |_| {
        if LAZILY {
            let cpu = world.cpu(0);
            let mut gather = cpu.gather(&world.space);
            gather.changed();
            gather.finish_lazily();
        }
        let other = spawn(&world, |world| kick::<LAZILY>(world, 1));
        kick::<LAZILY>(&world, 0);
        other.join().unwrap();
    });
    assert_eq!(world.domain.stats().kicks, 1);
}

/// One of two flushes kicks a guest, and the other finds it kicked.
#[test]
fn loom_two_flushes_kick_once() {
    EXPLORER.explore(two_kickers::<false>);
}

/// One of two CPUs in a hurry kicks a guest that a lazy flush left, and the other finds it kicked.
#[test]
fn loom_two_in_a_hurry_kick_once() {
    EXPLORER.explore(two_kickers::<true>);
}

fn synchronize_vs_walker() {
    let world = World::<2>::new(9);
    let walker = spawn(&world, |world| {
        let mut cpu = world.cpu(1);
        world.platform().walk(cpu.read());
        cpu.quiescent();
        world.platform().walk(cpu.read());
    });
    let mut cpu = world.cpu(0);
    let table = world.platform().unlink();
    cpu.synchronize();
    world.platform().free(table);
    drop(cpu);
    walker.join().unwrap();
}

loom_tests! {
    /// After `synchronize` no CPU holds a page that was unlinked before it.
    loom_synchronize_vs_walker = synchronize_vs_walker;
    mutant_synchronize_that_does_not_wait breaks [WaitForSoftware]
}

/// CPU 1 defers a page and goes offline. When it is online again, it may adopt the page, or the barrier's CPU does.
fn barrier_vs_adopted_page() {
    let world = World::<2>::new(9);
    world.cpu(1).call_rcu(world.platform().unlink());
    let adopter = spawn(&world, |world| world.two_turns(&mut world.cpu(1)));
    let mut cpu = world.cpu(0);
    cpu.barrier(|page| world.platform().free(page));
    world.platform().page(TABLE).reuse();
    drop(cpu);
    adopter.join().unwrap();
    world.drain();
}

loom_tests! {
    /// After a barrier a page is freed, also if its CPU went offline and another CPU was about to free it.
    loom_barrier_vs_adopted_page = barrier_vs_adopted_page;
    mutant_barrier_without_orphans breaks [BarrierCountsOrphans]
}

fn barrier_vs_deferring_cpu() {
    let world = World::<2>::new(9);
    let other = spawn(&world, |world| {
        let mut cpu = world.cpu(1);
        cpu.call_rcu(world.platform().unlink());
        world.set_ready();
        world.turns(&mut cpu);
    });
    world.wait_until_ready();
    let mut cpu = world.cpu(0);
    cpu.barrier(|page| world.platform().free(page));
    world.platform().page(TABLE).reuse();
    drop(cpu);
    other.join().unwrap();
    world.drain();
}

loom_tests! {
    /// After a barrier the pages of other CPUs are freed, too.
    loom_barrier_vs_deferring_cpu = barrier_vs_deferring_cpu;
    mutant_barrier_for_one_cpu breaks [BarrierCountsAll]
}

/// CPU 1 goes offline while the barrier looks at it: its page is an orphan before it is none of the CPU's any more.
fn barrier_vs_leaving_cpu() {
    let world = World::<2>::new(9);
    let leaver = spawn(&world, |world| {
        let cpu = world.cpu(1);
        cpu.call_rcu(world.platform().unlink());
        world.set_ready();
        drop(cpu);
    });
    world.wait_until_ready();
    let mut cpu = world.cpu(0);
    cpu.barrier(|page| world.platform().free(page));
    world.platform().page(TABLE).reuse();
    drop(cpu);
    leaver.join().unwrap();
    world.drain();
}

loom_tests! {
    /// A barrier counts the pages of a CPU that is going offline, as the CPU's own or as orphans.
    loom_barrier_vs_leaving_cpu = barrier_vs_leaving_cpu;
    mutant_barrier_without_orphans_of_a_leaving_cpu breaks [BarrierCountsOrphans],
    mutant_barrier_without_pages_of_a_leaving_cpu breaks [BarrierCountsAll]
}

/// CPU 1 polls only after a kick out of guest mode; it has adopted one of its pages.
fn barrier_vs_guest() {
    let world = World::<2>::new(9);
    world.cpu(1).call_rcu(OTHER);
    let vcpu = spawn(&world, |world| {
        let mut cpu = world.cpu(1);
        let mut tagged = Tagged::default();
        cpu.call_rcu(world.platform().unlink());
        cpu.poll(0, |_| ());
        world.set_ready();
        loop {
            cpu.poll(usize::MAX, |page| world.platform().free(page));
            if cpu.backlog() == 0 {
                return;
            }
            tagged.enter(world, &mut cpu, |_| world.platform().stay());
        }
    });
    world.wait_until_ready();
    let mut cpu = world.cpu(0);
    cpu.barrier(|page| world.platform().free(page));
    drop(cpu);
    vcpu.join().unwrap();
    world.drain();
}

loom_tests! {
    /// A barrier frees the pages of a CPU that would stay in guest mode, its own and those that it adopted.
    loom_barrier_vs_guest = barrier_vs_guest;
    mutant_barrier_without_kick hangs_without [BarrierKicks]
}

/// Two threads are CPU 1, if one after the other.
fn cpu_that_passes_to_another_thread() {
    fn defer_one(world: &World<2>, page: Pfn) {
        // Once, as loom can't bound a loop.
        if let Ok(cpu) = world.domain.register(1) {
            cpu.call_rcu(page);
        }
    }
    let world = World::<2>::new(9);
    let other = spawn(&world, |world| defer_one(world, OTHER));
    defer_one(&world, world.platform().unlink());
    other.join().unwrap();
    world.drain();
}

/// The next thread that registers as this CPU goes on from its counts of pages.
#[test]
fn loom_cpu_that_passes_to_another_thread() {
    EXPLORER.explore(cpu_that_passes_to_another_thread);
}

/// Two threads walk as CPU 1, if one after the other: the first goes offline while the second comes online.
fn walkers_that_pass_a_cpu_on() {
    fn walk_once(world: &World<2>) {
        // Once, as loom can't bound a loop.
        if let Ok(cpu) = world.domain.register(1) {
            let _guard = cpu.read();
            let found = world.platform().load();
            thread::yield_now();
            if let Some(table) = found {
                world.platform().page(table).walk();
            }
        }
    }
    let world = World::<2>::new(9);
    let walkers = [spawn(&world, walk_once), spawn(&world, walk_once)];
    let mut cpu = world.cpu(0);
    thread::yield_now();
    cpu.call_rcu(world.platform().unlink());
    world.turns(&mut cpu);
    drop(cpu);
    walkers.into_iter().for_each(|walker| walker.join().unwrap());
    world.drain();
}

loom_tests! {
    /// A CPU is offline before another thread registers as it.
    loom_walkers_that_pass_a_cpu_on = walkers_that_pass_a_cpu_on;
    mutant_walkers_that_nothing_waits_for breaks [WaitForSoftware]
}

/// Two CPUs go offline at the same time, and the third one adopts the page of each.
fn two_leave() {
    let world = World::<3>::new(9);
    let other = spawn(&world, |world| {
        world.cpu(1).call_rcu(OTHER);
    });
    let another = spawn(&world, |world| {
        world.cpu(2).call_rcu(world.platform().unlink());
    });
    let mut cpu = world.cpu(0);
    // loom lets other threads begin here. Without this it tries no order in which they were before this one's first look.
    thread::yield_now();
    world.two_turns(&mut cpu);
    drop(cpu);
    other.join().unwrap();
    another.join().unwrap();
    world.drain();
}

/// A CPU that takes the pages of several CPUs finds each of them.
#[test]
fn loom_two_leave() {
    EXPLORER.explore(two_leave);
}

/// CPU 1 unlinks a page and goes offline at once.
fn orphans_vs_walker() {
    let world = World::<2>::new(9);
    let leaver = spawn(&world, |world| {
        let cpu = world.cpu(1);
        cpu.call_rcu(world.platform().unlink());
    });
    let mut cpu = world.cpu(0);
    for _ in 0..2 {
        let guard = cpu.read();
        let table = world.platform().load();
        cpu.poll(usize::MAX, |page| world.platform().free(page));
        if let Some(table) = table {
            world.platform().page(table).walk();
        }
        world.platform().walk(guard);
        cpu.quiescent();
    }
    drop(cpu);
    leaver.join().unwrap();
    world.drain();
}

loom_tests! {
    /// A CPU that adopts a page of an offline CPU waits for a whole grace period.
    loom_orphans_vs_walker = orphans_vs_walker;
    mutant_orphans_freed_at_once breaks [OrphansWait]
}

/// CPU 1 begins a grace period, reports for it, and walks the page, which CPU 2 then unlinks to go offline at once. They are one thread,
/// and nothing yields before: so loom comes to the order in which CPU 0 begins to adopt first.
fn orphans_vs_running_grace_period() {
    let world = World::<3>::new(9);
    let adopter = spawn(&world, |world| {
        let mut cpu = world.cpu(0);
        cpu.call_rcu(OTHER);
        cpu.poll(usize::MAX, |page| world.platform().free(page));
        world.two_turns(&mut cpu);
    });
    let (mut walker, leaver) = (world.cpu(1), world.cpu(2));
    walker.expedite();
    walker.quiescent();
    let guard = walker.read();
    leaver.call_rcu(world.platform().unlink());
    drop(leaver);
    thread::yield_now();
    world.platform().page(TABLE).walk();
    let _still_walking = guard;
    drop(walker);
    adopter.join().unwrap();
    world.drain();
}

loom_tests! {
    /// The grace period of adopted pages begins after they were adopted.
    loom_orphans_vs_running_grace_period = orphans_vs_running_grace_period;
    mutant_orphans_freed_in_the_running_grace_period breaks [OrphansWait]
}
