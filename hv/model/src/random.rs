//! Models that shuttle runs.

use shuttle::scheduler::Scheduler;
use shuttle::{Config, FailurePersistence, Runner};

/// Runs `model` by the schedules of `scheduler`. Panics where it fails, and prints no schedule: a mutant's is of no use.
pub fn run(scheduler: impl Scheduler + 'static, model: fn()) {
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::None;
    Runner::new(scheduler, config).run(model);
}
