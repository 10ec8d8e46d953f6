//! What all CPUs share: their states, and the clock of grace periods.

use crate::cpu::Cpu;
use crate::list::{Head, Orphans};
use crate::rule::{Rule, holds};
use crate::space::{Generation, Space};
use crate::state::{Mode, State};
use crate::sync::{AtomicBool, AtomicU64, Counter, Line, Ordering, const_unless_loom, fence};
use addr::Pfn;
use core::fmt;
use core::ops::RangeInclusive;

/// What the machine gives.
pub trait Platform {
    /// The link in the descriptor of `page`. Always the same one for the same page.
    fn head(&self, page: Pfn) -> &Head;

    /// Makes CPU `cpu` leave guest mode or idle soon, by an interrupt; without effect on one that is in the hypervisor.
    ///
    /// It must not be lost on a CPU that is about to enter: the interrupt stays pending until the entry, and ends it.
    fn kick(&self, cpu: usize);

    /// The time in ticks of any unit, the same on all CPUs. For statistics and stalls alone.
    fn now(&self) -> u64;

    /// What CPU `cpu` does in each turn of a wait for others, besides.
    fn waits(&self, cpu: usize) {
        let _ = cpu;
    }
}

/// The state of one CPU, written by itself but for the change from guest mode to stale.
pub struct Slot {
    taken: AtomicBool,
    pub(crate) cpu: Line<PerCpu>,
}

pub(crate) struct PerCpu {
    /// A [`State`].
    state: AtomicU64,
    /// The space last entered; 0 if none was.
    space: AtomicU64,
    /// The generation of that space which this CPU acknowledged.
    flushed: AtomicU64,
    /// Pages deferred on this CPU so far.
    pub(crate) deferred: AtomicU64,
    /// Those of them that were given back, or handed over when the CPU went away.
    pub(crate) done: AtomicU64,
    pub(crate) freed: Counter,
    pub(crate) peak: Counter,
}

impl Slot {
    const_unless_loom! {
        fn new() -> Self {
            Self {
                taken: AtomicBool::new(false),
                cpu: Line(PerCpu {
                    state: AtomicU64::new(State::new(Mode::Extended, 0).raw()),
                    space: AtomicU64::new(0),
                    flushed: AtomicU64::new(0),
                    deferred: AtomicU64::new(0),
                    done: AtomicU64::new(0),
                    freed: Counter::new(0),
                    peak: Counter::new(0),
                }),
            }
        }
    }

    pub(crate) fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn release(&self) {
        self.taken.store(false, Ordering::Release);
    }
}

impl PerCpu {
    #[inline]
    pub(crate) fn state(&self) -> State {
        State::from_raw(self.state.load(Ordering::Acquire))
    }

    /// What was read before is read before the new state is seen.
    #[inline]
    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state.raw(), Ordering::Release);
    }

    /// Says what the coming guest mode walks, with translations as old as `flushed`.
    #[inline]
    pub(crate) fn set_space(&self, space: &Space, flushed: u64) {
        self.space.store(space.id(), Ordering::Release);
        self.flushed.store(flushed, Ordering::Release);
    }

    #[inline]
    pub(crate) fn acknowledge(&self, generation: u64) {
        self.flushed.store(generation, Ordering::Release);
    }

    /// Whether the hardware may walk `space` with translations from before `generation`.
    ///
    /// The space is read after the state: it is that of the state, or of a later entry, which compares generations itself.
    fn walks_stale(&self, space: &Space, generation: u64) -> bool {
        self.space.load(Ordering::Acquire) == space.id() && self.flushed.load(Ordering::Acquire) < generation
    }

    /// Makes a guest mode that walks what was unlinked before `generation` count for grace periods.
    /// Whether that is this call's doing: the caller then kicks, if `to` is [`Mode::Kicked`].
    fn revoke(&self, space: &Space, generation: u64, to: Mode) -> bool {
        loop {
            let state = self.state();
            let counts = match state.mode() {
                Mode::Online | Mode::Extended | Mode::Kicked => true,
                Mode::Stale => to == Mode::Stale,
                Mode::Guest => false,
            };
            if counts || !self.walks_stale(space, generation) {
                return false;
            }
            if self.change_mode(state, to) {
                return true;
            }
        }
    }

    fn change_mode(&self, from: State, to: Mode) -> bool {
        let to = from.with_mode(to).raw();
        self.state.compare_exchange(from.raw(), to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// All CPUs that may walk the same tables. One static for the machine:
///
/// ```
/// # use rcu::{Domain, Head, Platform, Slot};
/// # use addr::Pfn;
/// struct Machine;
/// # static HEAD: Head = Head::new();
/// impl Platform for Machine {
///     fn head(&self, page: Pfn) -> &Head { /* the page's descriptor */
/// #       &HEAD
///     }
///     fn kick(&self, cpu: usize) { /* an interrupt */ }
///     fn now(&self) -> u64 { /* the time stamp counter */
/// #       0
///     }
/// }
///
/// static RCU: Domain<Machine, [Slot; 64]> = Domain::new(Machine, 1024);
/// let cpu = RCU.register(0).unwrap();
/// let everywhere: &'static Domain<Machine> = &RCU;
/// ```
///
/// # Grace periods
///
/// `clock` counts the grace periods that have begun, `completed` those that have ended; one runs at a time. Each CPU's
/// state holds the clock as it was at the CPU's last quiescent state. A page waits for period `clock + 1`, which begins
/// after it was unlinked, and ends when every state has reached that number or is extended.
///
/// Why that is late enough: the deferring CPU unlinks, fences, and reads the clock as n. A reader that reports n + 1
/// read the clock as n + 1, and fenced. Were its fence the earlier one, the deferring CPU would have read n + 1 too: so
/// it is the later one, and what the reader walks from then on no longer holds the page. What it walked before is over
/// before the report is seen. A CPU that ends the period reads the clock, fences (its own quiescent state is among those
/// that it needs, so that fence is enough), and reads the states: one that leaves an extended quiescent state announces
/// it and fences before it walks, so either the announcement is seen, or the walk comes after the unlinking.
pub struct Domain<P, S: ?Sized = [Slot]> {
    pub(crate) platform: P,
    /// Pages deferred on one CPU beyond which it hurries.
    pub(crate) limit: u64,
    spaces: AtomicU64,
    clock: Line<AtomicU64>,
    completed: Line<AtomicU64>,
    pub(crate) orphans: Line<Orphans>,
    /// Pages of CPUs that went away, until they are given back.
    pub(crate) orphaned: AtomicU64,
    started: Counter,
    longest: Counter,
    kicks: Counter,
    /// Those of the slots whose CPUs there are.
    cpus: usize,
    slots: S,
}

impl<P, const CPUS: usize> Domain<P, [Slot; CPUS]> {
    const_unless_loom! {
        /// A domain of CPUs 0 to `CPUS` - 1, none of them there yet.
        ///
        /// `limit`: pages that may wait on one CPU before its deferrals answer [`Backlog::Over`](crate::Backlog::Over).
        pub fn new(platform: P, limit: u64) -> Self {
            Self {
                platform,
                limit,
                spaces: AtomicU64::new(0),
                clock: Line(AtomicU64::new(0)),
                completed: Line(AtomicU64::new(0)),
                orphans: Line(Orphans::new()),
                orphaned: AtomicU64::new(0),
                started: Counter::new(0),
                longest: Counter::new(0),
                kicks: Counter::new(0),
                cpus: CPUS,
                slots: new_slots(),
            }
        }
    }

    /// The same with no more than `cpus` CPUs: each flush looks at all that may be there.
    #[must_use]
    pub fn with_cpus(self, cpus: usize) -> Self {
        Self { cpus: cpus.min(CPUS), ..self }
    }

    /// Brings CPU `cpu` online. To be called on that CPU, which keeps the handle.
    pub fn register(&self, cpu: usize) -> Result<Cpu<'_, P>, RegisterError>
    where
        P: Platform,
    {
        Cpu::register(self, cpu)
    }
}

#[cfg(not(loom))]
const fn new_slots<const CPUS: usize>() -> [Slot; CPUS] {
    [const { Slot::new() }; CPUS]
}

#[cfg(loom)]
fn new_slots<const CPUS: usize>() -> [Slot; CPUS] {
    core::array::from_fn(|_| Slot::new())
}

impl<P, S: ?Sized> Domain<P, S> {
    /// The machine.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    pub(crate) fn new_space_id(&self) -> u64 {
        self.spaces.fetch_add(1, Ordering::Relaxed) + 1
    }

    #[inline]
    pub(crate) fn clock(&self) -> u64 {
        self.clock.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn completed(&self) -> u64 {
        self.completed.load(Ordering::Acquire)
    }

    /// The grace period after which no CPU walks what the caller has unlinked (and flushed) before this call.
    pub(crate) fn ticket(&self) -> u64 {
        if holds(Rule::FenceAtTicket) {
            fence(Ordering::SeqCst);
        }
        self.clock() + u64::from(holds(Rule::WaitForTheNext))
    }
}

impl<P: Platform, S: ?Sized + AsRef<[Slot]>> Domain<P, S> {
    fn cpus(&self) -> impl Iterator<Item = (usize, &PerCpu)> {
        self.slots().iter().map(|slot| &*slot.cpu).enumerate()
    }

    fn slots(&self) -> &[Slot] {
        &self.slots.as_ref()[..self.cpus]
    }

    pub(crate) fn slot(&self, cpu: usize) -> Option<&Slot> {
        self.slots().get(cpu)
    }

    /// Begins a grace period if `wanted` has not begun and none runs.
    pub(crate) fn start(&self, wanted: u64) {
        let clock = self.clock();
        if wanted <= clock || self.completed() != clock {
            return;
        }
        // Before the exchange, so that nobody sees the period without its beginning; a loser's time is as good.
        self.started.fetch_max(self.platform.now(), Ordering::Relaxed);
        // Whoever loses has what he wanted: a grace period that begins.
        let _ = self.clock.compare_exchange(clock, clock + 1, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Ends the grace period that runs, if no CPU holds it up. The number of the last that ended.
    pub(crate) fn complete(&self) -> u64 {
        let running = self.clock();
        let completed = self.completed();
        if completed == running {
            return completed;
        }
        if self.cpus().any(|(_, cpu)| holds_up(cpu.state(), running)) {
            return completed;
        }
        match self.completed.compare_exchange(completed, running, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                self.longest.fetch_max(self.running_for(), Ordering::Relaxed);
                running
            }
            Err(newer) => newer,
        }
    }

    fn running_for(&self) -> u64 {
        self.platform.now().saturating_sub(self.started.load(Ordering::Relaxed))
    }

    /// Makes every CPU flush before it next walks `space`, and what walks it now count for grace periods.
    pub(crate) fn flush(&self, space: &Space, to: Mode) -> Generation {
        let generation = space.generation.fetch_add(1, Ordering::AcqRel) + 1;
        if holds(Rule::FenceAtFlush) {
            fence(Ordering::SeqCst);
        }
        for (index, cpu) in self.cpus() {
            if cpu.revoke(space, generation, to) && to == Mode::Kicked && holds(Rule::KickTheStale) {
                space.kicks.fetch_add(1, Ordering::Relaxed);
                self.kick(index);
            }
        }
        Generation(generation)
    }

    /// Kicks the CPUs that lazy flushes left in guest mode.
    pub(crate) fn kick_stale(&self) {
        for (index, cpu) in self.cpus() {
            let state = cpu.state();
            if state.mode() == Mode::Stale && cpu.change_mode(state, Mode::Kicked) && holds(Rule::HurryKicks) {
                self.kick(index);
            }
        }
    }

    /// Kicks those of `cpus` that are online, but for CPU `this`.
    pub(crate) fn kick_others(&self, this: usize, cpus: RangeInclusive<usize>) {
        for (index, slot) in self.slots().iter().enumerate() {
            if index != this && cpus.contains(&index) && slot.taken.load(Ordering::Relaxed) {
                self.kick(index);
            }
        }
    }

    fn kick(&self, cpu: usize) {
        self.kicks.fetch_add(1, Ordering::Relaxed);
        self.platform.kick(cpu);
    }

    /// Whether `generation` of `space` has reached every CPU: none walks with translations that are older. For callers
    /// that unlink no table but need the flush itself: to collect dirty bits after write-protecting, say.
    pub fn is_flushed(&self, space: &Space, generation: Generation) -> bool {
        fence(Ordering::SeqCst);
        !self.cpus().any(|(_, cpu)| {
            matches!(cpu.state().mode(), Mode::Guest | Mode::Stale | Mode::Kicked)
                && cpu.walks_stale(space, generation.0)
        })
    }

    /// Whether CPU `cpu` is in guest mode or idle, or about to be, so that it takes a kick for it to see what the caller has
    /// just posted for it (an interrupt for one of its vCPUs, by an atomic store of any order).
    ///
    /// Post and look here, entry and idle announce and look there, with a fence between on either side (Dekker): if this
    /// says no, the CPU is in the hypervisor, and finds what was posted by its look after [`Session::guest`] or
    /// [`Cpu::idle`] has begun. If it says yes, the kick comes before or in guest mode, and ends it.
    ///
    /// [`Session::guest`]: crate::Session::guest
    pub fn is_away(&self, cpu: usize) -> bool {
        if holds(Rule::FenceAtPost) {
            fence(Ordering::SeqCst);
        }
        self.slot(cpu).is_some_and(|slot| slot.cpu.state().mode() != Mode::Online)
    }

    /// The CPUs that hold up a grace period which has run for more than `limit` ticks.
    pub fn stalls(&self, limit: u64) -> impl Iterator<Item = Stall> {
        let running = self.clock();
        let ticks = if self.completed() == running { 0 } else { self.running_for() };
        self.cpus()
            .filter(move |(_, cpu)| ticks > limit && cpu.state().holds_up(running))
            .map(move |(index, cpu)| Stall { cpu: index, mode: cpu.state().mode(), ticks })
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        let sum = |of: fn(&PerCpu) -> u64| self.cpus().map(|(_, cpu)| of(cpu)).sum::<u64>();
        let deferred = sum(|cpu| cpu.deferred.load(Ordering::Relaxed));
        let freed = sum(|cpu| cpu.freed.load(Ordering::Relaxed));
        Stats {
            deferred,
            freed,
            backlog: deferred.saturating_sub(freed),
            peak_backlog: self.cpus().map(|(_, cpu)| cpu.peak.load(Ordering::Relaxed)).max().unwrap_or(0),
            grace_periods: self.completed(),
            longest_grace_period: self.longest.load(Ordering::Relaxed),
            kicks: self.kicks.load(Ordering::Relaxed),
        }
    }
}

fn holds_up(state: State, grace: u64) -> bool {
    let kept = match state.mode() {
        Mode::Online => holds(Rule::WaitForSoftware),
        Mode::Stale | Mode::Kicked => holds(Rule::WaitForHardware),
        Mode::Extended | Mode::Guest => true,
    };
    kept && state.holds_up(grace)
}

/// A CPU that holds up a grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Its index.
    pub cpu: usize,
    /// What it does: in the hypervisor without a quiescent state, or in guest mode without flushing.
    pub mode: Mode,
    /// For how long the grace period has been running.
    pub ticks: u64,
}

/// What a [`Domain`] has done so far. Read while CPUs run, the numbers need not be of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pages deferred.
    pub deferred: u64,
    /// Pages given back after their grace period.
    pub freed: u64,
    /// Pages that wait now.
    pub backlog: u64,
    /// The most that ever waited on one CPU.
    pub peak_backlog: u64,
    /// Grace periods that ended.
    pub grace_periods: u64,
    /// The longest of them, in ticks.
    pub longest_grace_period: u64,
    /// Kicks sent.
    pub kicks: u64,
}

/// Why a CPU can't come online.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// The domain has no CPU of this index.
    OutOfRange,
    /// A handle of this CPU exists.
    Taken,
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfRange => "no such CPU",
            Self::Taken => "the CPU is online already",
        })
    }
}

impl core::error::Error for RegisterError {}
