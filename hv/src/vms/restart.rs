//! A VM whose machine is reset begins anew: the boot vCPU's CPU makes its memory what it was at the start, in slices of the vCPU's, when
//! no vCPU is left in the guest. Nothing is allocated, and the frames stay the VM's.

use super::guest::Guest;
use crate::rcu_domain::HostMachine;
use crate::timer;
use addr::Gpa;
use core::time::Duration;
use loader::rom::Progress;
use memory::{Nested, View};
use sched::{Slice, Task};
use vm::Stop;

/// How long it goes on without a quiescent state of its CPU, which other VMs' grace periods wait for.
const QUIET: Duration = Duration::from_millis(1);

/// How many bytes are written at once.
const PART: u64 = 64 << 10;

/// How far the reset of a VM has come, whose vCPUs have left their guests.
pub(super) enum Restart {
    /// The memory below this address is taken away.
    Clears(Gpa),
    /// So much is written again.
    Loads(Progress),
}

impl Default for Restart {
    fn default() -> Self {
        Self::Clears(Gpa::new(0))
    }
}

impl Restart {
    /// Goes on with it until the slice is over, or the VM has begun anew. Whether it has.
    pub(super) fn run<F: Nested, T: Task>(
        &mut self,
        guest: &Guest<F>,
        view: &mut View<'_, 'static, F, HostMachine>,
        slice: &mut Slice<'_, T>,
    ) -> bool {
        let end = timer::after(QUIET);
        while timer::now() < end {
            match self.step(guest, view) {
                Some(next) => *self = next,
                None => return true,
            }
            if slice.is_wanted(timer::now()) {
                _ = slice.interrupted(timer::now());
                break;
            }
        }
        false
    }

    /// A step, and what follows it; None if that is the guest.
    fn step<F: Nested>(&self, guest: &Guest<F>, view: &mut View<'_, 'static, F, HostMachine>) -> Option<Self> {
        match *self {
            Self::Clears(from) => Some(view.clear(from).map_or(Self::Loads(Progress::default()), Self::Clears)),
            Self::Loads(done) => {
                let rom = guest.rom.as_ref()?;
                match rom.write_part(view, done, PART) {
                    Ok(Some(more)) => return Some(Self::Loads(more)),
                    Ok(None) => guest.vm.begin_anew(),
                    // Its frames have not all come back yet.
                    Err(_) if view.hurry_back() => return Some(Self::Loads(done)),
                    // What the image takes it has had before: other VMs have it now.
                    Err(_) => _ = guest.end_now(Stop::OutOfMemory),
                }
                None
            }
        }
    }
}
