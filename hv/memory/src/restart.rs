//! A VM that begins anew: its memory is made what it was at the start, in turns of its boot vCPU's CPU, so that other VMs on the CPU
//! have their time meanwhile. Nothing is allocated, and the frames stay the VM's.

use crate::host::HostMemory;
use crate::tree_env::Nested;
use crate::view::View;
use addr::Gpa;
use core::time::Duration;
use loader::rom::{Progress, Rom};
use sched::Instant;

/// How many bytes are written at once.
const PART: u64 = 64 << 10;

/// How far the reset of a VM's memory has come. None of its vCPUs is in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// The memory below this address is taken away.
    Clears(Gpa),
    /// So much is written again.
    Loads(Progress),
}

/// What has come of a turn of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartStatus {
    /// The memory is what it was at the start.
    Done,
    /// The turn is over: there is more to do.
    Preempted,
    /// There is no frame for what the image takes, which it has had before: other VMs have it now.
    OutOfMemory,
}

impl Default for Restart {
    fn default() -> Self {
        Self::Clears(Gpa::new(0))
    }
}

impl Restart {
    /// How long it goes on without a quiescent state of its CPU, which other VMs' grace periods wait for.
    pub const QUIET: Duration = Duration::from_millis(1);

    /// Goes on with it until it is done or the turn is over: when another task is `wanted` at a time, or after `quiet` ticks of `now`'s
    /// clock, of which [`QUIET`](Self::QUIET) has that many. `rom` is what the memory held at the start.
    pub fn run<F: Nested, H: HostMemory>(
        &mut self,
        view: &mut View<'_, '_, F, H>,
        rom: &Rom<'_>,
        quiet: u64,
        now: impl Fn() -> Instant,
        wanted: impl Fn(Instant) -> bool,
    ) -> RestartStatus {
        let end = now().after(quiet);
        loop {
            match self.step(view, rom) {
                RestartStatus::Preempted => {}
                status => return status,
            }
            let now = now();
            if now >= end || wanted(now) {
                return RestartStatus::Preempted;
            }
        }
    }

    fn step<F: Nested, H: HostMemory>(&mut self, view: &mut View<'_, '_, F, H>, rom: &Rom<'_>) -> RestartStatus {
        *self = match *self {
            Self::Clears(from) => view.clear(from).map_or(Self::Loads(Progress::default()), Self::Clears),
            Self::Loads(done) => match rom.write_part(view, done, PART) {
                Ok(Some(more)) => Self::Loads(more),
                Ok(None) => return RestartStatus::Done,
                // Its frames have not all come back yet.
                Err(_) if view.hurry_back() => *self,
                Err(_) => return RestartStatus::OutOfMemory,
            },
        };
        RestartStatus::Preempted
    }
}
