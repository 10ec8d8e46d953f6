//! Notices a CPU that is stuck in the hypervisor, where interrupts are off and nothing else would show it: [`sched::Watchdog`] on
//! this machine's CPUs.
//!
//! Each CPU's heart beats whenever its scheduler runs (some times a second, however busy a guest keeps the CPU), whenever it has
//! slept, and while it waits for a grace period. About once a second, one of the CPUs that were interrupted or that wait
//! [checks](check) all hearts. A CPU is stuck if it was in the hypervisor, without a beat since the last check, at as many checks
//! in a row as the time-out has seconds: [`Hooks::stuck`] ends the machine. Long before, [`Hooks::report`] warns of the CPU that
//! holds up a grace period.

use crate::cpus::{self, MAX_CPUS};
use crate::timer;
use core::time::Duration;
use sched::{Heart, Instant, Watchdog};
use spin::Once;

/// From one check to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// How often each CPU calls the watchdog at the least: from a guest, from its sleep, or between two exits of a guest that never lets
/// an interrupt in. More often than there are checks, so that each check finds a beat of a CPU that makes progress.
const TICK: Duration = Duration::from_millis(250);

static WATCHDOG: Watchdog<MAX_CPUS> = Watchdog::new();
static HOOKS: Once<Hooks> = Once::new();

/// What the watchdog calls. It is below these parts of the image, as they use it themselves.
#[derive(Clone, Copy)]
pub(crate) struct Hooks {
    /// Whether a CPU is in guest mode or asleep: its silence means nothing then.
    pub(crate) is_away: fn(usize) -> bool,
    /// Ends the machine, because this CPU is stuck.
    pub(crate) stuck: fn(usize) -> !,
    /// Reports what has come up since the last check.
    pub(crate) report: fn(),
}

/// Begins to watch: after so many seconds of silence a CPU is stuck; 0 is never.
pub(crate) fn start(seconds: u32, hooks: Hooks) {
    HOOKS.call_once(|| hooks);
    WATCHDOG.start(timer::now(), timer::ticks_of(PERIOD), seconds);
}

/// Ticks of the TSC after which a CPU has to call [`check`] again.
pub(crate) fn period() -> u64 {
    timer::ticks_of(TICK)
}

/// When this CPU has to call [`check`] again.
pub(crate) fn next_check() -> Instant {
    timer::after(TICK)
}

/// The heart of CPU `cpu`.
pub(crate) fn heart(cpu: usize) -> &'static Heart {
    WATCHDOG.heart(cpu)
}

/// Checks all CPUs, if that is due and no other CPU does so. The caller's own heart has beaten since its last call.
pub(crate) fn check() {
    if WATCHDOG.is_due(timer::now()) {
        check_all();
    }
}

#[cold]
#[inline(never)]
fn check_all() {
    let Some(hooks) = HOOKS.get() else { return };
    if let Some(cpu) = WATCHDOG.check(cpus::online(), hooks.is_away) {
        (hooks.stuck)(cpu);
    }
    (hooks.report)();
}
