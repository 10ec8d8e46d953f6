//! Models that shuttle runs.

use shuttle::scheduler::Scheduler;
use shuttle::{Config, FailurePersistence, Runner};

/// The stack of each thread of a model, in bytes. A model may build its world, with all its memory, on one.
const STACK: usize = 1 << 20;

/// Runs `model` by the schedules of `scheduler`. Panics where it fails, and prints no schedule: a mutant's is of no use.
pub fn run(scheduler: impl Scheduler + 'static, model: fn()) {
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::None;
    config.stack_size = STACK;
    Runner::new(scheduler, config).run(model);
}
