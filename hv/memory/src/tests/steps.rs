//! What takes long is done in steps, and comes to the same.

use super::world::{World, config};
use crate::arena::Arena;
use crate::ending::EndingStep;
use crate::pool::{PREZEROED, PlannedFailures};
use crate::{Ending, EndingStatus, EndingTimes, HostMemory};
use abi::hypercall::{Mapped, Refused, TestCall};
use addr::{Gpa, PAGE_SIZE, PageSize};
use core::iter;
use core::num::NonZero;
use loader::{GuestMemory, Paging, VmConfig};
use mmu::Npt;
use rcu::Cpu;
use sched::Instant;
use std::cell::Cell;
use std::vec::Vec;
use vm::Memory;

const MIB: u64 = 1 << 20;

/// Small pages alone.
fn small(bytes: u64, paging: Paging) -> VmConfig {
    VmConfig { pages: PageSize::Size4K, ..config(bytes, paging) }
}

/// How many steps the call takes, and its result.
fn count(world: &mut World<'_>, call: TestCall) -> (usize, u64) {
    let mut view = world.view();
    let mut results = iter::repeat_with(|| view.test_call(call)).enumerate();
    results.find_map(|(n, result)| Some((n + 1, result?.unwrap()))).expect("it ends")
}

#[test]
fn a_report_counts_a_part_of_the_memory_in_each_step() {
    let domain = Arena::domain(2048);
    let mut world = World::new(&domain, &small(5 << 30, Paging::Nested));
    let touched = [0, 63 * MIB, 64 * MIB, 65 * MIB, 3071 * MIB, 4096 * MIB, (6 << 30) - PAGE_SIZE];
    touched.iter().for_each(|&at| world.write(at, 1));
    let (steps, mapped) = count(&mut world, TestCall::Report);
    assert_eq!(mapped, Mapped { small: touched.len() as u32, large: 0 }.into());
    assert_eq!(steps, 6 * 1024 / 64);
    world.end();
}

#[test]
fn each_step_of_a_log_clears_its_part_of_the_bitmap() {
    let domain = Arena::domain(2048);
    let mut world = World::new(&domain, &small(4 * MIB, Paging::Nested));
    // The parts end at multiples of 128 pages, and none of them at a whole byte of the bitmap.
    let (first, pages, bitmap) = (5, 600, 3 * MIB);
    let dirty = [5, 6, 12, 13, 127, 128, 130, 255, 256, 383, 384, 603, 604];
    dirty.iter().for_each(|page| world.write(page * PAGE_SIZE, 1));
    (0..PAGE_SIZE / 8).for_each(|word| world.write(bitmap + word * 8, u64::MAX));
    let log = TestCall::LogDirty { start: first * PAGE_SIZE, bytes: pages * PAGE_SIZE, bitmap: NonZero::new(bitmap) };
    assert_eq!(count(&mut world, log), (5, dirty.len() as u64));
    for page in first..first + 640 {
        let bit = page - first;
        let is_set = world.read(bitmap + bit / 64 * 8) >> (bit % 64) & 1 == 1;
        // Bits behind the range stay as they are, but for those of its last byte.
        assert_eq!(is_set, dirty.contains(&page) || bit >= pages.next_multiple_of(8), "page {page}");
    }
    world.end();
}

/// Software's access can't fault again, and clears no more than a small page in each.
#[test]
fn software_clears_a_small_page_and_the_loader_a_large_one() {
    let domain = Arena::domain(4096);
    let mut world = World::new(&domain, &config(8 * MIB, Paging::Nested));
    assert_eq!(world.read(MIB), 0);
    world.write(3 * MIB, 1);
    assert_eq!(world.call(TestCall::Report), Ok(Mapped { small: 2, large: 0 }.into()));
    GuestMemory::write(&mut world.view(), Gpa::new(4 * MIB), &[1; 8]).unwrap();
    GuestMemory::zero(&mut world.view(), Gpa::new(6 * MIB), PAGE_SIZE).unwrap();
    assert_eq!(world.call(TestCall::Report), Ok(Mapped { small: 2, large: 1 }.into()), "nothing to clear");
    world.write(6 * MIB - 8, 1);
    GuestMemory::zero(&mut world.view(), Gpa::new(6 * MIB - 8), 16).unwrap();
    assert_eq!(world.read(6 * MIB - 8), 0);
    assert!(GuestMemory::zero(&mut world.view(), Gpa::new(8 * MIB - 8), 16).is_err(), "the RAM ends");
    world.end();
}

/// Ends the VM in steps that free one table each: their number, without those that wait.
fn end<'m>(mut ending: Ending<'m, Npt, Arena>, cpu: &mut Cpu<'m, Arena>) -> usize {
    let steps: Vec<_> =
        iter::repeat_with(|| ending.step(cpu, || true)).take_while(|step| *step != EndingStep::Done).collect();
    let waits = steps.iter().take_while(|step| **step == EndingStep::WaitsForGracePeriod).count();
    assert!(waits < 3, "a grace period of one CPU has ended by then");
    assert!(steps[waits..].iter().all(|step| *step == EndingStep::Preempted));
    let freed = ending.finish(cpu);
    assert_eq!((freed.accounts.left, freed.report.pages(PageSize::Size4K)), (0, 3));
    steps.len() - waits + 1
}

#[test]
fn a_vm_ends_in_steps() {
    for (paging, least) in [(Paging::Nested, 6), (Paging::Vtlb, 6), (Paging::Shadow, 20)] {
        let domain = Arena::domain(4096);
        let mut world = World::new(&domain, &small(1 << 30, paging));
        [0, 2 * MIB, 512 * MIB, 600 * MIB].iter().for_each(|&at| world.write(at, 1));
        assert_eq!(world.call(TestCall::Release { start: 600 * MIB, bytes: PAGE_SIZE }), Ok(1));
        let World { memory, mut cpu, .. } = world;
        let steps = end(memory.end(), &mut cpu);
        assert!(steps >= least, "{steps} steps");
    }
}

#[test]
fn an_ending_gives_the_frames_at_hand_back_in_steps() {
    let domain = Arena::domain(12_000);
    let world = World::new(&domain, &small(4 * MIB, Paging::Nested));
    world.memory.prezero(|| false);
    let World { memory, mut cpu, .. } = world;
    let available = || domain.platform().frames().available();
    let (before, mut ending) = (available(), memory.end());
    let mut given = std::vec![before];
    while ending.step(&mut cpu, || true) != EndingStep::Done {
        given.push(available());
    }
    given.push(available());
    assert!(available() - before >= PREZEROED / 2, "{given:?}");
    assert!(given.windows(2).all(|step| step[1] - step[0] <= 64), "{given:?}");
    let left = available();
    ending.finish(&cpu);
    assert_eq!(available(), left, "nothing is left for the last step");
}

/// A bug elsewhere: a page is taken and counted, and is on no CPU's list.
fn lose_a_page(world: &World<'_>) {
    let lost = world.memory.tree.env().alloc(PageSize::Size4K).unwrap();
    world.memory.account().retire(&world.memory.host().descriptors()[lost.raw() as usize], PageSize::Size4K);
}

#[test]
fn a_page_that_does_not_come_back_is_a_leak_and_no_endless_wait() {
    let domain = Arena::domain(2048);
    let mut world = World::new(&domain, &small(4 * MIB, Paging::Nested));
    world.write(0, 1);
    lose_a_page(&world);
    let World { memory, mut cpu, .. } = world;
    let mut ending = memory.end();
    (0..10).for_each(|_| assert_eq!(ending.step(&mut cpu, || false), EndingStep::WaitsForGracePeriod));
    ending.give_up();
    assert_eq!(ending.step(&mut cpu, || false), EndingStep::Done);
    assert_eq!(ending.finish(&cpu).accounts.left, 1);
}

/// A clock that is a millisecond later whenever it is read.
fn ticking() -> impl Fn() -> Instant {
    let ticks = Cell::new(0);
    move || Instant::new(ticks.replace(ticks.get() + 1))
}

/// Milliseconds.
fn times() -> EndingTimes {
    EndingTimes::new(|duration| duration.as_millis() as u64)
}

#[test]
fn an_ending_leaves_its_cpu_after_a_millisecond_and_when_another_task_is_wanted() {
    for wanted in [false, true] {
        let domain = Arena::domain(4096);
        let mut world = World::new(&domain, &small(1 << 30, Paging::Nested));
        [0, 2 * MIB, 512 * MIB, 600 * MIB].iter().for_each(|&at| world.write(at, 1));
        let World { memory, mut cpu, .. } = world;
        let mut ending = memory.end();
        // A clock that stands still takes turns only because another task is wanted.
        let (ticking, still) = (ticking(), || Instant::new(0));
        let mut turn = || match wanted {
            true => ending.run(&mut cpu, &times(), still, |_| true),
            false => ending.run(&mut cpu, &times(), &ticking, |_| false),
        };
        let turns: Vec<_> = iter::repeat_with(&mut turn).take_while(|status| *status != EndingStatus::Done).collect();
        assert!(turns.len() > 3 && turns.iter().all(|status| *status == EndingStatus::Preempted), "{turns:?}");
        assert_eq!(ending.finish(&cpu).accounts.left, 0);
    }
}

#[test]
fn an_ending_with_nothing_in_its_way_is_one_turn() {
    let domain = Arena::domain(4096);
    let mut world = World::new(&domain, &small(1 << 30, Paging::Nested));
    world.write(0, 1);
    let World { memory, mut cpu, .. } = world;
    let mut ending = memory.end();
    assert_eq!(ending.run(&mut cpu, &times(), || Instant::new(0), |_| false), EndingStatus::Done);
    assert_eq!(ending.finish(&cpu).accounts.left, 0);
}

#[test]
fn an_ending_waits_ten_seconds_for_a_page_a_millisecond_at_a_time() {
    let domain = Arena::domain(2048);
    let mut world = World::new(&domain, &small(4 * MIB, Paging::Nested));
    world.write(0, 1);
    lose_a_page(&world);
    let World { memory, mut cpu, .. } = world;
    let (mut ending, clock) = (memory.end(), Cell::new(7));
    let waits = iter::from_fn(|| match ending.run(&mut cpu, &times(), || Instant::new(clock.get()), |_| false) {
        EndingStatus::WaitsUntil(at) => Some(clock.set(at.ticks())),
        status => {
            assert_eq!(status, EndingStatus::Done);
            None
        }
    });
    assert_eq!(waits.count(), 10_000);
    assert_eq!(ending.finish(&cpu).accounts.left, 1);
}

#[test]
fn a_log_whose_bitmap_finds_no_frame_logs_nothing() {
    let domain = Arena::domain(2048);
    let mut world = World::new(&domain, &small(400 * MIB, Paging::Nested));
    // Its bitmap has three pages, two of which are never touched.
    let (bitmap, bytes) = (399 * MIB, 300 * MIB);
    [0, 200 * MIB, bitmap].iter().for_each(|&at| world.write(at, 1));
    let log = TestCall::LogDirty { start: 0, bytes, bitmap: NonZero::new(bitmap) };
    world.fail(PlannedFailures::All);
    assert_eq!(world.call(log), Err(Refused::NoMemory));
    world.fail(PlannedFailures::None);
    assert_eq!(world.call(log), Ok(2), "nothing is lost");
    world.end();
}
