//! Notices a CPU that is stuck in the hypervisor, where with interrupts off nothing else would ever tell: [`sched::Watchdog`] on
//! this machine's CPUs.
//!
//! Each CPU's heart beats whenever its schedule is looked at (which is due some times a second, however busy a guest keeps it),
//! whenever it has slept, and while it waits for a grace period.
//! About once a second one of the CPUs that were interrupted, or wait so, [looks](look) at all hearts. A CPU that was found in
//! the hypervisor, without a beat since the last look, at as many looks in a row as it has seconds, is stuck: the machine ends,
//! by [`Hooks::stuck`]. Long before, a warning names the CPU that holds up a grace period ([`Hooks::report`]).

use crate::cpus::{self, MAX_CPUS};
use crate::timer;
use core::time::Duration;
use sched::{Heart, Instant, Watchdog};
use spin::Once;

/// From one look to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// How often each CPU comes back at the least, from a guest, from its sleep, or between two exits of a guest that never lets an
/// interrupt in. More often than there are looks, so that each look finds a beat of a CPU that makes progress.
const VISIT: Duration = Duration::from_millis(250);

static WATCHDOG: Watchdog<MAX_CPUS> = Watchdog::new();
static HOOKS: Once<Hooks> = Once::new();

/// What the watchdog calls. It is below these parts of the image, as they use it themselves.
#[derive(Clone, Copy)]
pub(crate) struct Hooks {
    /// Whether a CPU is in guest mode or asleep: its silence means nothing then.
    pub(crate) is_away: fn(usize) -> bool,
    /// Ends the machine, because this CPU is stuck.
    pub(crate) stuck: fn(usize) -> !,
    /// Reports what has come up since the last look.
    pub(crate) report: fn(),
}

/// Begins to watch: after so many seconds of silence a CPU is stuck; 0 is never.
pub(crate) fn start(patience: u32, hooks: Hooks) {
    HOOKS.call_once(|| hooks);
    WATCHDOG.start(timer::now(), timer::ticks_of(PERIOD), patience);
}

/// Ticks after which a CPU comes to [`look`] at the latest.
pub(crate) fn visit() -> u64 {
    timer::ticks_of(VISIT)
}

/// When this CPU has to come again.
pub(crate) fn next_visit() -> Instant {
    timer::after(VISIT)
}

/// The heart of CPU `cpu`.
pub(crate) fn heart(cpu: usize) -> &'static Heart {
    WATCHDOG.heart(cpu)
}

/// Looks after all CPUs, if that is due and no other CPU is at it. To be called by a CPU that has had a beat since it last did.
pub(crate) fn look() {
    if WATCHDOG.is_due(timer::now()) {
        look_at_all();
    }
}

#[cold]
fn look_at_all() {
    let Some(hooks) = HOOKS.get() else { return };
    if let Some(cpu) = WATCHDOG.check(cpus::online(), hooks.is_away) {
        (hooks.stuck)(cpu);
    }
    (hooks.report)();
}
