//! Tests of the rules by one thread, which holds the handles of several CPUs and interleaves their operations.

use super::*;
use addr::Pfn;
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;
use std::{assert_eq, vec};

#[derive(Default)]
struct TestPlatform {
    heads: [Head; 16],
    kicks: [AtomicU64; 3],
    time: AtomicU64,
}

impl Platform for TestPlatform {
    fn head(&self, page: Pfn) -> &Head {
        &self.heads[page.raw() as usize]
    }

    fn kick(&self, cpu: usize) {
        self.kicks[cpu].fetch_add(1, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.time.load(Ordering::Relaxed)
    }
}

type Three = Domain<TestPlatform, [CpuData; 3]>;

fn domain() -> Three {
    Domain::new(TestPlatform::default(), 4)
}

fn kicks(domain: &Three) -> [u64; 3] {
    domain.platform().kicks.each_ref().map(|count| count.load(Ordering::Relaxed))
}

fn page(number: u64) -> Pfn {
    Pfn::new(number)
}

/// The pages that a poll of `cpu` frees.
fn polled(cpu: &Cpu<'_, TestPlatform>) -> Vec<u64> {
    let mut pages = vec![];
    cpu.poll(usize::MAX, |page| pages.push(page.raw()));
    pages
}

/// The pages that three iterations of every CPU's loop free: enough for two grace periods.
fn turns(cpus: &mut [Cpu<'_, TestPlatform>]) -> Vec<u64> {
    let mut pages = vec![];
    for _ in 0..3 {
        for cpu in &mut *cpus {
            cpu.quiescent();
            pages.extend(polled(cpu));
        }
    }
    pages
}

#[test]
fn the_guard_is_nothing() {
    assert_eq!(size_of::<Guard<'_>>(), 0);
}

#[test]
fn one_handle_per_cpu() {
    let domain = domain();
    let first = domain.register(0).unwrap();
    assert_eq!(domain.register(0).err(), Some(RegisterError::Taken));
    assert_eq!(domain.register(3).err(), Some(RegisterError::OutOfRange));
    drop(first);
    assert_eq!(domain.register(0).unwrap().index(), 0);
}

#[test]
fn a_domain_may_have_fewer_cpus_than_data() {
    let domain = domain().with_cpus(2);
    assert!(domain.register(1).is_ok());
    assert_eq!(domain.register(2).err(), Some(RegisterError::OutOfRange));
}

#[test]
fn a_page_waits_for_every_cpu() {
    let domain = domain();
    let [mut first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    assert_eq!(first.call_rcu(page(5)), Backlog::Within);
    assert!(domain.platform().heads[5].is_queued());
    for _ in 0..3 {
        first.quiescent();
        assert_eq!(polled(&first), [], "the second CPU has passed no quiescent state");
    }
    second.quiescent();
    assert_eq!(polled(&first), [5]);
    assert!(!domain.platform().heads[5].is_queued());
}

/// The second CPU has reported for the running grace period before the page is unlinked, and then walks it.
#[test]
fn a_page_waits_for_the_grace_period_after_the_running_one() {
    let domain = domain();
    let [mut first, mut second, mut third] = [0, 1, 2].map(|index| domain.register(index).unwrap());
    first.call_rcu(page(1));
    assert_eq!(polled(&first), [], "the grace period begins");
    second.quiescent();
    first.call_rcu(page(2));
    first.quiescent();
    third.quiescent();
    assert_eq!(polled(&first), [1]);
    for _ in 0..3 {
        first.quiescent();
        third.quiescent();
        assert_eq!(polled(&first), [], "the second CPU walks page 2");
    }
    second.quiescent();
    assert_eq!(polled(&first), [2]);
}

#[test]
fn a_grace_period_begins_only_for_pages_that_wait_for_it() {
    let domain = domain();
    let mut cpu = domain.register(0).unwrap();
    for number in [1, 2] {
        cpu.call_rcu(page(number));
        assert_eq!(turns(core::slice::from_mut(&mut cpu)), [number]);
        assert_eq!(domain.stats().grace_periods, number);
    }
}

/// It is what each exit from guest mode costs.
#[test]
fn a_poll_without_pages_looks_at_no_other_cpu() {
    let domain = domain();
    let [mut first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    first.call_rcu(page(1));
    assert_eq!(polled(&first), [], "the grace period begins");
    first.quiescent();
    second.quiescent();
    assert_eq!(polled(&second), []);
    assert_eq!(domain.stats().grace_periods, 0, "the second CPU would have found that it is over");
    assert_eq!(polled(&first), [1]);
}

#[test]
fn a_session_does_what_its_cpu_does() {
    let domain = domain();
    let space = Space::new(&domain);
    let mut cpu = domain.register(1).unwrap();
    let mut tlb = Tlb::new();
    let mut session = cpu.session(&space, &mut tlb);
    session.call_rcu(page(1));
    assert_eq!(polled(&session), [], "the grace period begins");
    session.quiescent();
    assert_eq!(polled(&session), [1]);
    session.call_rcu(page(2));
    session.synchronize_expedited();
    assert_eq!(polled(&session), [2]);
    session.call_rcu(page(3));
    let mut freed = vec![];
    session.barrier(|page| freed.push(page.raw()));
    assert_eq!(freed, [3]);
    session.idle(|| assert!(domain.is_away(1)));
}

#[test]
fn idle_holds_up_nothing() {
    let domain = domain();
    let [mut first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    second.idle(|| {
        first.call_rcu(page(5));
        first.synchronize();
        assert_eq!(polled(&first), [5]);
    });
}

#[test]
fn a_panic_while_idle_does_not_leave_the_cpu_extended() {
    let domain = domain();
    let [mut first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    let idle = std::panic::AssertUnwindSafe(|| second.idle(|| std::panic::resume_unwind(Box::new(()))));
    assert!(std::panic::catch_unwind(idle).is_err());
    first.call_rcu(page(5));
    assert_eq!(turns(core::slice::from_mut(&mut first)), []);
}

#[test]
fn a_guest_is_kicked_and_counts_until_it_leaves() {
    let domain = domain();
    let space = Space::new(&domain);
    let [mut first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    let mut tlb = Tlb::new();
    second.guest(&space, &mut tlb, |flush| {
        assert_eq!(flush, Flush::Needed, "the tag may hold any translations");
        let retired = first.defer(&space, page(5));
        assert!(!domain.is_flushed(&space, retired.generation));
        assert_eq!(kicks(&domain), [0, 1, 0]);
        first.defer(&space, page(6));
        assert_eq!(kicks(&domain), [0, 1, 0], "once is enough");
        assert_eq!(turns(core::slice::from_mut(&mut first)), []);
    });
    assert!(domain.is_flushed(&space, space.generation()));
    second.guest(&space, &mut tlb, |flush| {
        assert_eq!(flush, Flush::Needed);
        assert!(domain.is_flushed(&space, space.generation()));
        assert_eq!(turns(core::slice::from_mut(&mut first)), [5, 6], "this entry came after the flush");
    });
    second.guest(&space, &mut tlb, |flush| assert_eq!(flush, Flush::Keep));
    assert_eq!(kicks(&domain), [0, 1, 0]);
    assert_eq!((space.flushes(), space.kicks()), (2, 1));
}

/// An event that is posted to a CPU that a flush has found in guest mode is not to wait for that flush.
#[test]
fn a_cpu_is_away_in_guest_mode_though_it_is_stale_or_kicked() {
    let domain = domain();
    let space = Space::new(&domain);
    let [first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    assert!(!domain.is_away(1));
    second.guest(&space, &mut Tlb::new(), |_| {
        assert!(domain.is_away(1));
        let mut gather = first.gather(&space);
        gather.changed();
        gather.finish_lazily();
        assert!(domain.is_away(1), "stale");
        first.hurry();
        assert_eq!(kicks(&domain), [0, 1, 0]);
        assert!(domain.is_away(1), "kicked, but still there");
    });
    assert!(!domain.is_away(1));
    second.idle(|| assert!(domain.is_away(1)));
    assert!(!domain.is_away(1) && !domain.is_away(3));
}

#[test]
fn a_guest_of_another_space_is_left_alone() {
    let domain = domain();
    let [space, other] = [(); 2].map(|()| Space::new(&domain));
    let [mut first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    second.guest(&other, &mut Tlb::new(), |_| {
        first.defer(&space, page(5));
        first.synchronize();
        assert_eq!(polled(&first), [5]);
    });
    assert_eq!(kicks(&domain), [0; 3]);
}

#[test]
fn a_lazy_flush_kicks_in_a_hurry_only() {
    let domain = domain();
    let space = Space::new(&domain);
    let [mut first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    second.guest(&space, &mut Tlb::new(), |_| {
        let mut gather = first.gather(&space);
        (0..5).for_each(|number| gather.add(page(number)));
        let retired = gather.finish_lazily();
        assert_eq!(retired.backlog, Backlog::Over);
        assert!(!domain.is_flushed(&space, retired.generation));
        assert_eq!(turns(core::slice::from_mut(&mut first)), [], "it counts nevertheless");
        assert_eq!(kicks(&domain), [0; 3]);
        first.hurry();
        first.hurry();
        assert_eq!(kicks(&domain), [0, 1, 0]);
    });
    assert_eq!(turns(&mut [first, second]), [0, 1, 2, 3, 4]);
}

#[test]
fn a_flush_with_kicks_also_kicks_cpus_that_a_lazy_flush_left() {
    let domain = domain();
    let space = Space::new(&domain);
    let [first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    second.guest(&space, &mut Tlb::new(), |_| {
        let mut gather = first.gather(&space);
        gather.changed();
        gather.finish_lazily();
        let mut gather = first.gather(&space);
        gather.changed();
        gather.finish();
        assert_eq!(kicks(&domain), [0, 1, 0]);
    });
}

/// The generations of another space, which the CPU has entered in between, are of no account.
#[test]
fn a_session_shows_how_old_its_translations_are() {
    let domain = domain();
    let [space, other] = [(); 2].map(|()| Space::new(&domain));
    let [mut first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    let mut tlb = Tlb::new();
    second.guest(&space, &mut tlb, |flush| assert_eq!(flush, Flush::Needed));
    (0..3).for_each(|_| first.gather(&other).changed());
    second.guest(&other, &mut Tlb::new(), |flush| assert_eq!(flush, Flush::Needed));
    second.guest(&space, &mut tlb, |flush| {
        assert_eq!(flush, Flush::Keep);
        first.defer(&space, page(5));
        assert_eq!(kicks(&domain), [0, 1, 0]);
        assert_eq!(turns(core::slice::from_mut(&mut first)), []);
    });
    assert_eq!(turns(&mut [first, second]), [5]);
}

#[test]
fn a_tag_is_flushed_when_its_cpu_or_its_space_is_another() {
    let domain = domain();
    let [space, other] = [(); 2].map(|()| Space::new(&domain));
    let [mut first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    let mut tlb = Tlb::new();
    let mut enter = |cpu: &mut Cpu<'_, TestPlatform>, space: &Space| cpu.guest(space, &mut tlb, |flush| flush);
    assert_eq!(enter(&mut first, &space), Flush::Needed);
    assert_eq!(enter(&mut first, &space), Flush::Keep);
    assert_eq!(enter(&mut second, &space), Flush::Needed);
    assert_eq!(enter(&mut first, &space), Flush::Needed);
    assert_eq!(enter(&mut first, &other), Flush::Needed);
    assert_eq!(enter(&mut first, &space), Flush::Needed);
    assert_eq!(enter(&mut first, &space), Flush::Keep);
}

#[test]
fn a_gather_flushes_once_and_however_it_ends() {
    let domain = domain();
    let space = Space::new(&domain);
    let mut cpu = domain.register(0).unwrap();
    assert_eq!(cpu.gather(&space).finish().generation, space.generation());
    assert_eq!(space.flushes(), 0, "there was nothing to flush");
    let ends: [fn(Gather<'_, TestPlatform>); 3] = [
        |gather| drop(gather),
        |gather| {
            gather.finish();
        },
        |gather| {
            gather.finish_lazily();
        },
    ];
    for (end, flushes) in ends.into_iter().zip(1..) {
        let mut gather = cpu.gather(&space);
        gather.add(page(1));
        gather.add(page(2));
        end(gather);
        assert_eq!((space.flushes(), cpu.backlog()), (flushes, 2));
        cpu.synchronize();
        assert_eq!(polled(&cpu), [1, 2]);
        assert_eq!(space.flushes(), flushes);
    }
}

#[test]
fn a_gather_without_pages_flushes_when_it_is_dropped() {
    let domain = domain();
    let space = Space::new(&domain);
    let cpu = domain.register(0).unwrap();
    drop(cpu.gather(&space));
    assert_eq!(space.flushes(), 0, "nothing has changed");
    cpu.gather(&space).changed();
    assert_eq!(space.flushes(), 1);
}

#[test]
fn the_backlog_is_over_above_the_limit() {
    let domain = domain();
    let cpu = domain.register(0).unwrap();
    (0..4).for_each(|number| assert_eq!(cpu.call_rcu(page(number)), Backlog::Within));
    assert!(!cpu.is_over_limit());
    assert_eq!(cpu.call_rcu(page(4)), Backlog::Over);
    assert!(cpu.is_over_limit());
}

#[test]
fn to_expedite_kicks_the_other_cpus_with_pages() {
    let domain = domain();
    let mut cpus = [0, 1, 2].map(|index| domain.register(index).unwrap());
    cpus[0].call_rcu(page(1));
    cpus[1].call_rcu(page(2));
    cpus[1].expedite();
    assert_eq!(kicks(&domain), [1, 0, 0], "neither itself, nor one without pages");
    assert_eq!(turns(&mut cpus), [1, 2]);
    cpus[1].expedite();
    assert_eq!(kicks(&domain), [1, 0, 0], "all pages are free");
}

/// Its page is that of the CPU which adopts it.
#[test]
fn a_cpu_that_comes_back_has_no_page_queued() {
    let domain = domain();
    let first = domain.register(0).unwrap();
    domain.register(1).unwrap().call_rcu(page(1));
    let mut cpus = [first, domain.register(1).unwrap()];
    cpus[0].expedite();
    assert_eq!(turns(&mut cpus), [1]);
    cpus[0].expedite();
    cpus[1].expedite();
    assert_eq!(kicks(&domain), [0; 3]);
}

#[test]
#[should_panic(expected = "deferred twice")]
fn a_page_is_not_deferred_twice() {
    let domain = domain();
    let cpu = domain.register(0).unwrap();
    cpu.call_rcu(page(1));
    cpu.call_rcu(page(1));
}

#[test]
fn a_poll_keeps_to_its_budget_and_its_callback_may_defer() {
    let domain = domain();
    let mut cpu = domain.register(0).unwrap();
    (0..3).for_each(|number| {
        cpu.call_rcu(page(number));
    });
    cpu.synchronize();
    let mut freed = vec![];
    let count = cpu.poll(2, |page| {
        freed.push(page.raw());
        cpu.call_rcu(Pfn::new(page.raw() + 8));
    });
    assert_eq!((count, freed), (2, vec![0, 1]));
    cpu.synchronize();
    assert_eq!(polled(&cpu), [2, 8, 9]);
}

#[test]
fn orphans_are_adopted_and_wait_anew() {
    let domain = domain();
    let [mut first, second, mut third] = [0, 1, 2].map(|index| domain.register(index).unwrap());
    second.call_rcu(page(1));
    second.call_rcu(page(2));
    drop(second);
    assert_eq!(polled(&first), []);
    assert_eq!(first.backlog(), 2);
    drop(first);
    assert_eq!(domain.stats().backlog, 2);
    let mut freed = vec![];
    third.barrier(|page| freed.push(page.raw()));
    assert_eq!(freed, [1, 2]);
    assert_eq!(kicks(&domain), [0; 3], "neither itself nor a CPU that is offline");
    first = domain.register(0).unwrap();
    assert_eq!(turns(&mut [first, third]), []);
    assert_eq!(domain.stats().backlog, 0);
}

#[test]
fn orphans_are_adopted_when_those_before_are_free_and_by_the_budget() {
    let domain = domain();
    let mut first = domain.register(0).unwrap();
    let leaves_behind = |pages: &[u64]| {
        let second = domain.register(1).unwrap();
        pages.iter().for_each(|&number| assert_eq!(second.call_rcu(page(number)), Backlog::Within));
    };
    leaves_behind(&[1, 2, 3]);
    assert_eq!(polled(&first), []);
    leaves_behind(&[4]);
    assert_eq!(polled(&first), []);
    assert_eq!(first.backlog(), 3, "the fourth waits until it is adopted");
    first.synchronize();
    let mut freed = vec![];
    assert_eq!(first.poll(2, |page| freed.push(page.raw())), 2);
    assert_eq!(freed, [1, 2]);
    assert_eq!(turns(core::slice::from_mut(&mut first)), [3, 4]);
}

/// The running grace period could end, and pages wait for the next one.
#[test]
fn a_hurry_ends_the_running_grace_period_and_begins_the_next() {
    let hurries: [fn(&Cpu<'_, TestPlatform>); 2] = [|cpu| cpu.hurry(), |cpu| cpu.expedite()];
    for hurry in hurries {
        let domain = domain();
        let [mut first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
        first.call_rcu(page(1));
        assert_eq!(polled(&first), [], "the grace period begins");
        first.call_rcu(page(2));
        first.quiescent();
        second.quiescent();
        hurry(&first);
        first.quiescent();
        second.quiescent();
        assert_eq!(polled(&first), [1, 2]);
    }
}

#[test]
fn to_expedite_kicks_a_guest_that_a_lazy_flush_left() {
    let domain = domain();
    let space = Space::new(&domain);
    let [first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    second.guest(&space, &mut Tlb::new(), |_| {
        let mut gather = first.gather(&space);
        gather.add(page(1));
        gather.finish_lazily();
        first.expedite();
        assert_eq!(kicks(&domain), [0, 1, 0]);
    });
}

/// The second CPU frees its page when it is kicked, and not before.
#[test]
fn a_barrier_kicks_and_waits_for_a_cpu_with_a_page() {
    let (domain, freed, deferred) = (domain(), AtomicU64::new(0), std::sync::Barrier::new(2));
    let frees_when_kicked = || {
        let mut second = domain.register(1).unwrap();
        second.call_rcu(page(7));
        deferred.wait();
        let begun = std::time::Instant::now();
        while freed.load(Ordering::SeqCst) == 0 {
            second.quiescent();
            // Without a kick the test fails after a while, rather than hang.
            let is_late = begun.elapsed().as_secs() >= 10;
            if kicks(&domain)[1] != 0 || is_late {
                let told = |page: Pfn| if is_late { u64::MAX } else { page.raw() };
                second.poll(usize::MAX, |page| freed.store(told(page), Ordering::SeqCst));
            }
            std::thread::yield_now();
        }
    };
    std::thread::scope(|threads| {
        threads.spawn(frees_when_kicked);
        deferred.wait();
        let wait = || domain.register(0).unwrap().barrier(|_| panic!("the page is the second CPU's"));
        domain.register(2).unwrap().idle(wait);
        assert_eq!(freed.load(Ordering::SeqCst), 7);
        assert_eq!(kicks(&domain)[2], 0, "it has no page");
    });
}

/// The second CPU leaves its guest when it is kicked, and not before.
#[test]
fn an_expedited_wait_kicks_a_guest_that_a_lazy_flush_left() {
    let (domain, entered) = (domain(), std::sync::Barrier::new(2));
    let space = Space::new(&domain);
    let stays_until_kicked = || {
        domain.register(1).unwrap().guest(&space, &mut Tlb::new(), |_| {
            entered.wait();
            let begun = std::time::Instant::now();
            // Without a kick the test fails after a while, rather than hang.
            while kicks(&domain)[1] == 0 && begun.elapsed().as_secs() < 10 {
                std::thread::yield_now();
            }
        });
    };
    std::thread::scope(|threads| {
        threads.spawn(stays_until_kicked);
        entered.wait();
        let mut first = domain.register(0).unwrap();
        let mut gather = first.gather(&space);
        gather.changed();
        gather.finish_lazily();
        first.synchronize_expedited();
        assert_eq!(kicks(&domain), [0, 1, 0]);
    });
}

#[test]
fn a_stall_names_its_cpu() {
    let domain = domain();
    let space = Space::new(&domain);
    let [mut first, mut second, mut third] = [0, 1, 2].map(|index| domain.register(index).unwrap());
    let time = |ticks| domain.platform().time.store(ticks, Ordering::Relaxed);
    let stalls = |limit| domain.stalls(limit).collect::<Vec<_>>();
    time(1_000);
    assert_eq!(stalls(0), [], "no grace period runs");
    third.guest(&space, &mut Tlb::new(), |_| {
        first.defer(&space, page(1));
        polled(&first);
        first.quiescent();
        time(1_100);
        assert_eq!(stalls(100), []);
        let stall = |cpu, mode| Stall { cpu, mode, ticks: 100 };
        assert_eq!(stalls(99), [stall(1, Mode::Online), stall(2, Mode::Kicked)]);
        second.quiescent();
        assert_eq!(stalls(99), [stall(2, Mode::Kicked)]);
    });
    third.quiescent();
    assert_eq!(polled(&first), [1]);
    assert_eq!(stalls(0), []);
}

/// The CPU's state is older than the last grace period, which has ended while its guest counted as quiescent.
#[test]
fn no_cpu_stalls_while_no_grace_period_runs() {
    let domain = domain();
    let space = Space::new(&domain);
    let [mut first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    second.guest(&space, &mut Tlb::new(), |_| {
        first.synchronize();
        first.gather(&space).changed();
        domain.platform().time.store(100, Ordering::Relaxed);
        assert_eq!(domain.stalls(0).next(), None);
        first.call_rcu(page(1));
        polled(&first);
        domain.platform().time.store(101, Ordering::Relaxed);
        assert!(domain.stalls(0).any(|stall| stall.mode == Mode::Kicked), "the next one waits for it");
    });
}

#[test]
fn statistics_add_up() {
    let domain = domain();
    let [mut first, mut second] = [0, 1].map(|index| domain.register(index).unwrap());
    let time = |ticks| domain.platform().time.store(ticks, Ordering::Relaxed);
    time(10);
    (0..3).for_each(|number| {
        first.call_rcu(page(number));
    });
    second.call_rcu(page(3));
    polled(&first);
    time(35);
    assert_eq!(domain.stats(), Stats { deferred: 4, backlog: 4, peak_backlog: 3, ..Stats::default() });
    first.quiescent();
    second.quiescent();
    assert_eq!(polled(&first), [0, 1, 2]);
    assert_eq!(polled(&second), [3]);
    let expected = Stats {
        deferred: 4,
        freed: 4,
        backlog: 0,
        peak_backlog: 3,
        grace_periods: 1,
        longest_grace_period: 25,
        kicks: 0,
    };
    assert_eq!(domain.stats(), expected);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Defer(usize),
    Quiescent(usize),
    Idle(usize),
    Poll(usize),
    Toggle(usize),
}

fn step() -> impl Strategy<Value = Step> {
    (0..3usize, 0..5).prop_map(|(cpu, what)| match what {
        0 => Step::Defer(cpu),
        1 => Step::Quiescent(cpu),
        2 => Step::Idle(cpu),
        3 => Step::Poll(cpu),
        _ => Step::Toggle(cpu),
    })
}

proptest! {
    /// No page is freed before each CPU that was online when it was deferred has passed a quiescent state. Each page is
    /// freed exactly once.
    #[test]
    fn any_sequence_frees_late_and_once(steps in prop::collection::vec(step(), 0..200)) {
        let domain = domain();
        let mut cpus = [0, 1, 2].map(|index| domain.register(index).ok());
        // For each page that waits, the CPUs that may still hold it.
        let mut holders: [Option<BTreeSet<usize>>; 16] = Default::default();
        let passed = |holders: &mut [Option<BTreeSet<usize>>; 16], cpu| {
            holders.iter_mut().flatten().for_each(|who| { who.remove(&cpu); });
        };
        for step in steps {
            let (Step::Defer(at) | Step::Quiescent(at) | Step::Idle(at) | Step::Poll(at) | Step::Toggle(at)) = step;
            let Some(cpu) = &mut cpus[at] else {
                if matches!(step, Step::Toggle(_)) {
                    cpus[at] = domain.register(at).ok();
                }
                continue;
            };
            match step {
                Step::Defer(_) => {
                    let Some(free) = holders.iter().position(Option::is_none) else { continue };
                    cpu.call_rcu(page(free as u64));
                    holders[free] = Some((0..3).filter(|&other| cpus[other].is_some()).collect());
                }
                Step::Quiescent(_) => cpu.quiescent(),
                Step::Idle(_) => cpu.idle(|| ()),
                Step::Poll(_) => for freed in polled(cpu) {
                    let held_by = holders[freed as usize].take();
                    prop_assert_eq!(held_by, Some(BTreeSet::new()));
                },
                Step::Toggle(_) => cpus[at] = None,
            }
            if matches!(step, Step::Quiescent(_) | Step::Idle(_) | Step::Toggle(_)) {
                passed(&mut holders, at);
            }
        }
        let mut cpus: Vec<_> = cpus.into_iter().flatten().collect();
        if cpus.is_empty() {
            cpus.push(domain.register(0).unwrap());
        }
        for _ in 0..3 {
            for freed in turns(&mut cpus) {
                prop_assert!(holders[freed as usize].take().is_some());
            }
        }
        prop_assert!(holders.iter().all(Option::is_none), "pages are lost");
    }
}
