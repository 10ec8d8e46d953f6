//! Rules that hold whatever guests do.

use super::cpu::{ENTRY, FINISH, HANDLER, Record, SLICE, Step, Story, TestTask, WATCHDOG_PERIOD, run, step};
use crate::scheduler::Entry;
use crate::slice::WatchdogTimer;
use crate::{Instant, Slice};
use proptest::prelude::*;
use std::{vec, vec::Vec};

/// The slice of the only task until `end`.
fn slice_until(end: u64, watchdog: &mut WatchdogTimer) -> Slice<'_, TestTask> {
    Slice::new([&[], &[]], Instant::new(end), Instant::NEVER, watchdog)
}

/// How long the guests run, in ticks.
const END: u64 = 200 * SLICE;

/// How much an exit may lengthen a turn: by its handling, and a few ticks. The next turn's entry is a part of it.
const OVERSHOOT: u64 = HANDLER + ENTRY + 8;

const SPIN: Step = Step::Compute(20_000);

fn stories(vms: usize) -> impl Strategy<Value = Vec<Story>> {
    let limit = prop_oneof![Just(None), (1..END).prop_map(Some)];
    prop::collection::vec((0..vms, limit, prop::collection::vec(step(), 1..8)), 1..7)
}

/// A guest that spins, and attackers of one other VM.
fn victim_beside(attackers: Vec<Vec<Step>>) -> Vec<Record> {
    let attackers = attackers.into_iter().map(|steps| (1, None, steps));
    let stories: Vec<Story> = [(0, None, vec![SPIN])].into_iter().chain(attackers).collect();
    run(&stories, END)
}

proptest! {
    #[test]
    fn a_runnable_task_waits_for_one_slice_of_each_other_at_most(stories in stories(7)) {
        let others = stories.len() as u64 - 1;
        let bound = others * (SLICE + OVERSHOOT + FINISH) + OVERSHOOT;
        for record in run(&stories, END) {
            prop_assert!(record.longest_wait <= bound, "{record:?}, of {bound}");
        }
    }

    #[test]
    fn a_limit_ends_its_vm_when_it_is_reached(stories in stories(7)) {
        let late = OVERSHOOT + (stories.len() as u64 - 1) * FINISH;
        for ((_, limit, _), record) in stories.iter().zip(run(&stories, END)) {
            if let (Some(limit), Some(ended)) = (limit, record.ended) {
                prop_assert!(ended.since(Instant::new(*limit)) <= late, "{ended:?} for {limit}");
            } else if limit.is_some_and(|limit| limit + late < END) {
                prop_assert!(record.ended.is_some(), "{limit:?} was passed");
            }
        }
    }

    #[test]
    fn a_vm_has_half_of_the_cpu_however_many_tasks_the_other_has(
        attackers in prop::collection::vec(prop::collection::vec(step(), 1..8), 1..6)
    ) {
        let victim = victim_beside(attackers)[0];
        prop_assert!(victim.ran * 100 >= END * 48, "{victim:?}");
        prop_assert!(victim.longest_wait <= SLICE + 6 * OVERSHOOT, "{victim:?}");
    }

    #[test]
    fn a_guests_event_never_delays_the_hosts(events in prop::collection::vec(any::<u64>(), 1..20)) {
        let mut watchdog = WatchdogTimer::new(WATCHDOG_PERIOD, Instant::new(0));
        let mut slice = slice_until(900, &mut watchdog);
        for event in events {
            slice.wake_at(Instant::new(event));
            prop_assert_eq!(slice.next_event(), Instant::new(event.min(900)));
        }
    }

    #[test]
    fn the_timer_is_programmed_for_the_earliest_event_and_not_again_for_later_ones(events in prop::collection::vec(1..800_u64, 1..20)) {
        let mut watchdog = WatchdogTimer::new(WATCHDOG_PERIOD, Instant::new(0));
        let mut slice = slice_until(900, &mut watchdog);
        let mut programmed = u64::MAX;
        for event in events {
            let expected = (event < programmed).then_some(Instant::new(event));
            prop_assert_eq!(slice.wake_at(Instant::new(event)), expected);
            programmed = programmed.min(event);
        }
    }
}

#[test]
fn the_only_task_of_a_cpu_is_interrupted_for_the_watchdog_alone() {
    let none: &[Entry<TestTask>] = &[];
    let mut watchdog = WatchdogTimer::new(WATCHDOG_PERIOD, Instant::new(7));
    let slice = Slice::new([none, none], Instant::NEVER, Instant::NEVER, &mut watchdog);
    assert_eq!(slice.next_event(), Instant::new(7 + WATCHDOG_PERIOD));
}

#[test]
fn time_beyond_a_tasks_share_is_deducted_later() {
    // Each exit takes ten slices.
    let attacker = vec![Step::Exits { count: 1, each: 10 * SLICE }];
    let victim = victim_beside(vec![attacker])[0];
    assert!(victim.ran * 100 >= END * 48, "{victim:?}");
}

#[test]
fn a_vm_is_taken_apart_in_its_own_share_of_the_time() {
    let records = run(&[(0, None, vec![SPIN]), (1, None, vec![SPIN]), (2, Some(10 * SLICE), vec![SPIN])], END);
    let [one, other] = [records[0], records[1]];
    assert!(one.ran.abs_diff(other.ran) <= SLICE + OVERSHOOT, "{one:?} and {other:?}");
    // The teardown has a third, as the VM had before.
    let third = (END - 10 * SLICE - FINISH) / 3;
    assert!(one.ran.abs_diff(third + 10 * SLICE / 3) <= 3 * (SLICE + OVERSHOOT), "{one:?}");
    assert!(one.longest_wait <= 2 * (SLICE + OVERSHOOT) + FINISH, "{one:?}");
}

#[test]
fn a_storm_of_requests_gains_no_time() {
    let storm = vec![Step::Request { to: 1 }, Step::Request { to: 2 }, Step::Halt];
    let victim = victim_beside(vec![storm.clone(), storm])[0];
    assert!(victim.ran * 100 >= END * 48, "{victim:?}");
}

/// The sleeper's wake-ups take less time than coming to the other guest, which they interrupt before its first instruction.
#[test]
fn a_sleeper_whose_timer_is_always_due_leaves_the_others_their_time() {
    let sleeper = vec![Step::ArmTimer { after: 3, times: 1 }, Step::Halt];
    let victim = victim_beside(vec![sleeper])[0];
    assert!(victim.computed * 100 >= END * 45, "{victim:?}");
}

#[test]
fn a_task_that_leaves_its_slices_early_does_not_delay_the_watchdog() {
    // `run` checks this.
    run(&[(0, None, vec![Step::Yield])], END);
    run(&[(0, None, vec![Step::Yield]), (1, None, vec![Step::Yield])], END);
}

#[test]
fn a_sleeper_wakes_at_its_time_beside_a_guest_that_spins() {
    let sleeper = vec![Step::ArmTimer { after: 700, times: 1 }, Step::Halt];
    let stories = [(0, None, sleeper), (1, None, vec![SPIN])];
    let record = run(&stories, END)[0];
    assert!(record.longest_wait <= OVERSHOOT, "{record:?}");
}
