//! What stress guests have in common: words on the command line, processors that work side by side, and an end.
//!
//! Words: `--seed N`, from which all that a processor does follows; `--ops N`, steps of each processor, or `--seconds N`,
//! shared by the guest's parts; `--skip-flush NAME`, which has the hypervisor leave a flush out: then the guest has to fail.

use abi::lines::Operations;
use abi::options::guest as word;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::boot::Boot;
use crate::exit::GuestStatus;
use crate::hypercall::{FlushPoint, Microhv, Refused};
use crate::ktap::{self, Case, NotPassed, Outcome};
use crate::random::Random;
use crate::smp::{self, Cpu};
use crate::{clock, interrupts, println, tsc};

/// When a part is over.
#[derive(Clone, Copy)]
enum Limit {
    /// After so many steps of each processor.
    Steps(u64),
    /// After so many ticks of the TSC.
    Ticks(u64),
}

/// Steps, where the command line says nothing.
const USUAL_STEPS: u64 = 1_000;

/// A run.
pub struct Stress<'b> {
    /// What the loader handed over.
    pub boot: &'b Boot,
    seed: u64,
    limit: Limit,
    usable: Result<(), NotPassed>,
    stopped: AtomicBool,
    operations: AtomicU64,
}

impl<'b> Stress<'b> {
    /// Starts all processors, and reads what the run is to be: `parts` calls of [`Stress::on_all`], in all as long as wanted.
    pub fn new(boot: &'b Boot, parts: u64) -> Self {
        let cpus = smp::start_all(boot);
        let seed = boot.option(word::SEED).unwrap_or(1);
        println!("# seed {seed}, {cpus} processors");
        let limit = match (boot.option(word::STEPS), boot.option::<u64>(word::SECONDS)) {
            (None, Some(seconds)) => Limit::Ticks(clock::seconds(seconds) / parts),
            (steps, _) => Limit::Steps(steps.unwrap_or(USUAL_STEPS)),
        };
        let usable = if boot.has_word(word::SKIP_FLUSH) { skip_flush(boot.option(word::SKIP_FLUSH)) } else { Ok(()) };
        let (stopped, operations) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { boot, seed, limit, usable, stopped, operations }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The hypervisor, for tests that can't do without; those are skipped elsewhere.
    pub fn hypervisor(&self) -> Result<Microhv, NotPassed> {
        self.usable?;
        Microhv::here().ok_or(NotPassed::Skipped("not under this hypervisor"))
    }

    /// Runs `body` on all processors at once, with interrupts on: a hypervisor's kick then reaches them on any host. When it fails on one, the others are told to end.
    pub fn on_all(&self, body: impl Fn(&mut Worker<'_>) -> Outcome + Sync) -> Outcome {
        self.usable?;
        self.stopped.store(false, Relaxed);
        let start = tsc::read();
        smp::run_on_all(|cpu| {
            let random = Random::new(self.seed << 8 | cpu.index() as u64);
            let mut worker = Worker { stress: self, cpu, random, start, steps: 0, operations: 0 };
            interrupts::enable();
            let outcome = body(&mut worker);
            interrupts::disable();
            if outcome.is_err() {
                self.stop();
            }
            self.operations.fetch_add(worker.operations, Relaxed);
            outcome
        })
    }

    /// Tells all processors to end.
    pub fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// Whether they were told to.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    /// Notes operations that no worker did.
    pub fn did(&self, operations: u64) {
        self.operations.fetch_add(operations, Relaxed);
    }

    /// Runs the tests, and reports how many operations there were.
    pub fn run(&self, cases: &[Case<Self>]) -> GuestStatus {
        let status = ktap::run(self, cases);
        println!("{}", Operations(self.operations.load(Relaxed)));
        status
    }
}

fn skip_flush(point: Option<FlushPoint>) -> Result<(), NotPassed> {
    let hypervisor = Microhv::here().ok_or(NotPassed::Skipped("not under this hypervisor"))?;
    match hypervisor.skip_flush(point.ok_or(NotPassed::Skipped("there is no such flush"))?) {
        Ok(()) => Ok(()),
        Err(Refused::NoSuchCall) => Err(NotPassed::Skipped("this hypervisor leaves no flush out")),
        Err(_) => Err(NotPassed::Skipped("the flush can't be left out")),
    }
}

/// A processor at work.
pub struct Worker<'s> {
    stress: &'s Stress<'s>,
    /// Which processor it is.
    pub cpu: Cpu,
    /// Its own numbers.
    pub random: Random,
    start: u64,
    steps: u64,
    operations: u64,
}

impl Worker<'_> {
    /// Whether it is to do another step; counts it.
    pub fn goes_on(&mut self) -> bool {
        self.steps += 1;
        let over = match self.stress.limit {
            Limit::Steps(steps) => self.steps > steps,
            Limit::Ticks(ticks) => tsc::read().wrapping_sub(self.start) > ticks,
        };
        !(over || self.stress.is_stopped())
    }

    /// Notes operations that it did.
    pub fn did(&mut self, operations: u64) {
        self.operations += operations;
    }
}
