//! A CPU in virtual time, and guests that try to keep it.

use crate::{Config, Cpu, Instant, Scheduler, Slice, Task, Tasks, Turn};
use proptest::prelude::*;
use std::cell::Cell;
use std::mem;
use std::rc::Rc;
use std::vec::Vec;

/// Ticks of a slice.
pub(super) const SLICE: u64 = 5_000;
pub(super) const WATCHDOG_PERIOD: u64 = 50_000;
/// The longest that an exit's handling takes.
pub(super) const HANDLER: u64 = 300;

/// How long it takes to come to a task's guest, whatever the task does there.
pub(super) const ENTRY: u64 = 40;

/// How long it takes to finish a vCPU.
pub(super) const FINISH: u64 = HANDLER;

/// How long it takes to take a VM apart, and a step of that.
pub(super) const TEARDOWN: u64 = 70 * SLICE;
const TEARDOWN_STEP: u64 = 250;

pub(super) const CONFIG: Config = Config { slice: SLICE, watchdog_period: WATCHDOG_PERIOD };

/// One action of a guest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Executes instructions for so many ticks; the timer's interrupt causes an exit.
    Compute(u64),
    /// `count` exits that take `each` ticks. The processor takes no pending interrupt between them: exceptions whose delivery
    /// faults, string instructions, emulated code.
    Exits { count: u64, each: u64 },
    /// Arms its timer `times` times, each time for `after` ticks later.
    ArmTimer { after: u64, times: u64 },
    /// HLT, until its timer or a request.
    Halt,
    /// Leaves the CPU while it is runnable: it waits for an event that the scheduler does not know.
    Yield,
    /// Sends task `to` a request: an interrupt, an NMI.
    Request { to: usize },
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..20_000_u64).prop_map(Step::Compute),
        (1..200_u64, 1..=HANDLER).prop_map(|(count, each)| Step::Exits { count, each }),
        (0..20_000_u64, 1..50_u64).prop_map(|(after, times)| Step::ArmTimer { after, times }),
        Just(Step::Halt),
        Just(Step::Yield),
        (0..8_usize).prop_map(|to| Step::Request { to }),
    ]
}

/// The measurements of a task.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Record {
    /// The longest that the task was runnable and did not run.
    pub(super) longest_wait: u64,
    /// The ticks for which it ran.
    pub(super) ran: u64,
    /// Those in which its guest executed instructions.
    pub(super) computed: u64,
    /// When its limit ended its VM.
    pub(super) ended: Option<Instant>,
}

/// A guest that repeats its steps for ever; when it has ended, the teardown of its VM.
pub(super) struct TestTask {
    index: usize,
    vm: usize,
    limit: Instant,
    steps: Vec<Step>,
    next: usize,
    /// What is left of the current step: ticks, exits or times.
    left: u64,
    asleep: bool,
    timer: Instant,
    request: Request,
    over: bool,
    /// What is left of the teardown, in ticks.
    teardown: Option<u64>,
    clock: Rc<Cell<u64>>,
    /// When it left the CPU while it was runnable.
    preempted: Option<u64>,
    record: Record,
}

/// When the oldest pending request was sent.
type Request = Rc<Cell<Option<u64>>>;

impl TestTask {
    fn expire_timer(&mut self) {
        if self.timer.ticks() <= self.clock.get() {
            self.timer = Instant::NEVER;
        }
    }

    /// When it became runnable. The scheduler has picked it, so it is runnable.
    fn runnable_since(&self) -> u64 {
        let woken = || self.request.get().into_iter().chain([self.timer.ticks()]).min();
        self.preempted.or_else(woken).expect("a timer wakes it at the latest")
    }
}

impl Task for TestTask {
    fn vm(&self) -> usize {
        self.vm
    }

    fn has_ended(&self) -> bool {
        self.over
    }

    fn is_runnable(&self) -> bool {
        !self.asleep || self.has_request()
    }

    fn has_request(&self) -> bool {
        self.request.get().is_some()
    }

    fn wakes_at(&self) -> Instant {
        if self.asleep { self.timer } else { Instant::NEVER }
    }

    fn limit(&self) -> Instant {
        self.limit
    }
}

/// The CPU. Only guests, the handling of their exits and the ends of VMs take time.
pub(super) struct TestCpu {
    clock: Rc<Cell<u64>>,
    requests: Vec<Request>,
    /// When the hardware's timer interrupts.
    timer: Instant,
    /// When the machine is switched off.
    end: u64,
    /// When the CPU called the watchdog last, and the longest time without a call.
    watchdog_called: u64,
    longest_without_watchdog: u64,
    records: Vec<(usize, Record)>,
}

impl TestCpu {
    fn pass(&self, ticks: u64) {
        self.clock.set(self.clock.get() + ticks);
    }

    fn call_watchdog(&mut self) {
        let now = self.clock.get();
        self.longest_without_watchdog = self.longest_without_watchdog.max(now - self.watchdog_called);
        self.watchdog_called = now;
    }

    fn arm(&mut self, at: Option<Instant>) {
        self.timer = at.unwrap_or(self.timer);
    }

    /// The host handles its interrupt, and the guest's timer may expire.
    fn interrupted(&mut self, task: &mut TestTask, slice: &mut Slice<'_, TestTask>) -> Turn {
        self.call_watchdog();
        let turn = slice.interrupted(self.now());
        task.expire_timer();
        self.arm(slice.wake_at(task.timer));
        turn
    }

    /// Carries out a part of the task's step. Some if the task leaves the CPU.
    fn advance(&mut self, task: &mut TestTask, slice: &mut Slice<'_, TestTask>) -> Option<Turn> {
        let step = task.steps[task.next];
        let fresh = task.left == 0;
        match step {
            Step::Compute(ticks) => {
                assert!(self.timer <= slice.next_event(), "nothing would bring the CPU back in time");
                let wanted = if fresh { ticks } else { task.left };
                let until_timer = self.timer.since(self.now());
                let passed = wanted.min(until_timer);
                self.pass(passed);
                task.record.computed += passed;
                task.left = wanted - passed;
                if passed == until_timer {
                    self.timer = Instant::NEVER;
                    return self
                        .left(task)
                        .or_else(|| Some(self.interrupted(task, slice)).filter(|turn| *turn == Turn::Over));
                }
            }
            Step::Exits { count, each } => {
                task.left = if fresh { count } else { task.left } - 1;
                self.pass(each);
            }
            Step::ArmTimer { after, times } => {
                task.left = if fresh { times } else { task.left } - 1;
                self.pass(1);
                task.timer = self.now().after(after);
                self.arm(slice.wake_at(task.timer));
            }
            Step::Halt => {
                self.pass(1);
                task.asleep = task.timer > self.now() && !task.has_request();
            }
            Step::Yield => {
                self.pass(1);
                return self.left(task).or(Some(Turn::Over));
            }
            Step::Request { to } => {
                self.pass(1);
                let request = &self.requests[to % self.requests.len()];
                request.set(request.get().or(Some(self.clock.get())));
            }
        }
        self.next(task, slice)
    }

    /// After an exit.
    fn next(&mut self, task: &mut TestTask, slice: &mut Slice<'_, TestTask>) -> Option<Turn> {
        let is_due = self.now() >= slice.next_event();
        let turn = self.left(task).or_else(|| is_due.then(|| self.interrupted(task, slice)));
        turn.filter(|turn| *turn == Turn::Over)
    }

    /// Goes to the next step if this one is done. Some if the task sleeps or has ended.
    fn left(&self, task: &mut TestTask) -> Option<Turn> {
        if task.left == 0 {
            task.next = (task.next + 1) % task.steps.len();
        }
        task.over |= self.clock.get() >= self.end;
        (task.asleep || task.over).then_some(Turn::Over)
    }
}

impl TestCpu {
    fn tear_down(&mut self, task: &mut TestTask, mut left: u64, slice: &mut Slice<'_, TestTask>) {
        // A step at least, so that it gets on.
        loop {
            self.pass(TEARDOWN_STEP);
            left -= TEARDOWN_STEP;
            if left == 0 || slice.is_wanted(self.now()) {
                break;
            }
        }
        (task.teardown, task.over) = (Some(left), left == 0);
        slice.interrupted(self.now());
    }
}

impl Cpu for TestCpu {
    type Task = TestTask;

    fn now(&self) -> Instant {
        Instant::new(self.clock.get())
    }

    fn run(&mut self, task: &mut TestTask, slice: &mut Slice<'_, TestTask>) {
        if let Some(left) = task.teardown {
            self.call_watchdog();
            return self.tear_down(task, left, slice);
        }
        assert!(slice.others().all(|other| other.index != task.index), "a task is not one of the others");
        let start = self.clock.get();
        task.record.longest_wait = task.record.longest_wait.max(start - task.runnable_since());
        task.request.set(None);
        self.pass(ENTRY);
        task.expire_timer();
        task.asleep = false;
        self.arm(slice.wake_at(task.timer));
        let is_due = self.now() >= slice.next_event();
        if !is_due || self.interrupted(task, slice) == Turn::On {
            while self.advance(task, slice).is_none() {}
        }
        task.record.ran += self.clock.get() - start;
        task.preempted = (!task.asleep).then(|| self.clock.get());
    }

    fn reach_limit(&mut self, task: &mut TestTask) {
        task.over = true;
        task.record.ended = Some(self.now());
    }

    fn sleep(&mut self, until: Instant, tasks: Tasks<'_, TestTask>) {
        if tasks.have_request() {
            return;
        }
        let until = until.min(Instant::new(self.end));
        self.clock.set(until.ticks().max(self.clock.get() + 1));
        self.call_watchdog();
    }

    fn finish(&mut self, task: &mut TestTask) {
        self.clock.set(self.clock.get() + FINISH);
        self.call_watchdog();
        if task.teardown.is_none() {
            self.records.push((task.index, mem::take(&mut task.record)));
            (task.teardown, task.over) = (Some(TEARDOWN), false);
            (task.asleep, task.limit) = (false, Instant::NEVER);
        }
    }
}

/// A guest's VM, its limit and its steps.
pub(super) type Story = (usize, Option<u64>, Vec<Step>);

/// Runs these guests on one CPU until `end`. Returns the record of each, in their order. Checks that the watchdog is called in
/// time, whatever the guests do.
pub(super) fn run(stories: &[Story], end: u64) -> Vec<Record> {
    let clock = Rc::new(Cell::new(0));
    let requests: Vec<Request> = stories.iter().map(|_| Request::default()).collect();
    let tasks = stories.iter().enumerate().map(|(index, (vm, limit, steps))| TestTask {
        index,
        vm: *vm,
        limit: limit.map_or(Instant::NEVER, Instant::new).min(Instant::new(end)),
        steps: steps.clone(),
        next: 0,
        left: 0,
        asleep: false,
        timer: Instant::NEVER,
        request: requests[index].clone(),
        over: false,
        teardown: None,
        clock: clock.clone(),
        preempted: Some(0),
        record: Record::default(),
    });
    let tasks: Vec<_> = tasks.collect();
    let mut cpu = TestCpu {
        clock: clock.clone(),
        requests: requests.clone(),
        timer: Instant::NEVER,
        end,
        watchdog_called: 0,
        longest_without_watchdog: 0,
        records: Vec::new(),
    };
    Scheduler::new(tasks.into_iter(), CONFIG, Instant::new(0)).run(&mut cpu);
    let longest = cpu.longest_without_watchdog;
    assert!(longest <= WATCHDOG_PERIOD + HANDLER + FINISH + 8, "the watchdog was not called for {longest}");
    let mut records = cpu.records;
    records.sort_by_key(|(index, _)| *index);
    records.into_iter().map(|(_, record)| record).collect()
}
