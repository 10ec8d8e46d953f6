//! The state that all CPUs share: their modes, and the clock of grace periods.

use crate::cpu::Cpu;
use crate::line::Line;
use crate::list::{Head, Orphans};
use crate::rules::Rule;
use crate::space::{Generation, Space};
use crate::state::{Mode, State};
use addr::Pfn;
use core::fmt;
use core::ops::RangeInclusive;
use core::sync::atomic::AtomicU64 as Counter;
use model::const_unless_loom;
use model::kept;
use model::sync::{AtomicBool, AtomicU64, Ordering, fence};

/// The machine that the CPUs run on.
pub trait Platform {
    /// The link in the descriptor of `page`. Always the same one for the same page.
    fn head(&self, page: Pfn) -> &Head;

    /// Makes CPU `cpu` leave guest mode or idle soon, by an interrupt. It has no effect on a CPU in the hypervisor.
    ///
    /// The kick must not be lost on a CPU that is about to enter guest mode: the interrupt stays pending and ends guest
    /// mode at once.
    fn kick(&self, cpu: usize);

    /// The time in ticks of any unit, the same on all CPUs. It is used for statistics and stalls only.
    fn now(&self) -> u64;

    /// Called in each iteration of a loop in which CPU `cpu` waits for others.
    fn waits(&self, cpu: usize) {
        let _ = cpu;
    }
}

/// The data of one CPU. Only the CPU itself writes it, except for the change of its mode from guest to stale or kicked.
pub struct CpuData {
    taken: AtomicBool,
    pub(crate) cpu: Line<PerCpu>,
}

pub(crate) struct PerCpu {
    /// A [`State`].
    state: AtomicU64,
    /// The space last entered; 0 if none.
    space: AtomicU64,
    /// The generation of that space that this CPU has acknowledged.
    flushed: AtomicU64,
    /// Pages deferred on this CPU so far.
    pub(crate) deferred: AtomicU64,
    /// The number of them that were freed, or handed over when the CPU went offline.
    pub(crate) done: AtomicU64,
    pub(crate) freed: Counter,
    pub(crate) peak: Counter,
}

impl CpuData {
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

    /// Acquires what the last owner has released. So one that reads a state of the new owner finds the last one's walks over, too.
    pub(crate) fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::Acquire)
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

    /// A release store: reads before it complete before another CPU sees the new state.
    #[inline]
    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state.raw(), Ordering::Release);
    }

    /// Announces the space that the next guest mode walks, with translations as old as `flushed`.
    ///
    /// One that reads this or [`acknowledge`](Self::acknowledge)'s value finds all walks of earlier guest modes over: the fence of the
    /// return from them releases these stores, which need no order of their own. The state, which is stored next, does so for this.
    #[inline]
    pub(crate) fn set_space(&self, space: &Space, flushed: u64) {
        self.space.store(space.id(), Ordering::Relaxed);
        self.flushed.store(flushed, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn acknowledge(&self, generation: u64) {
        self.flushed.store(generation, Ordering::Relaxed);
    }

    /// Whether the hardware may walk `space` with translations from before `generation`.
    ///
    /// The caller reads the state first. So the space is that of the state, or that of a later entry, which compares
    /// generations itself.
    fn walks_stale(&self, space: &Space, generation: u64) -> bool {
        self.space.load(Ordering::Acquire) == space.id() && self.flushed.load(Ordering::Acquire) < generation
    }

    /// Makes grace periods wait for this CPU if it is in guest mode and may walk tables unlinked before `generation`.
    /// True if this call changed the mode: the caller then kicks, if `to` is [`Mode::Kicked`].
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

    /// In any order: it makes others wait, and publishes nothing. What the CPU's own store of the state has released stays released.
    fn change_mode(&self, from: State, to: Mode) -> bool {
        let to = from.with_mode(to).raw();
        self.state.compare_exchange(from.raw(), to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// All CPUs that may walk the same tables. One static for the machine:
///
/// ```
/// # use rcu::{CpuData, Domain, Head, Platform};
/// # use addr::Pfn;
/// struct ExamplePlatform;
/// # static HEAD: Head = Head::new();
/// impl Platform for ExamplePlatform {
///     fn head(&self, page: Pfn) -> &Head { /* the page's descriptor */
/// #       &HEAD
///     }
///     fn kick(&self, cpu: usize) { /* an interrupt */ }
///     fn now(&self) -> u64 { /* the time stamp counter */
/// #       0
///     }
/// }
///
/// static RCU: Domain<ExamplePlatform, [CpuData; 64]> = Domain::new(ExamplePlatform, 1024);
/// let cpu = RCU.register(0).unwrap();
/// let everywhere: &'static Domain<ExamplePlatform> = &RCU;
/// ```
///
/// # Grace periods
///
/// `clock` counts the grace periods that have begun, `completed` those that have ended; one runs at a time. Each CPU's
/// state holds the value of the clock at the CPU's last quiescent state. A page waits for period `clock + 1`. This
/// period begins after the page was unlinked, and ends when every state has reached its number or is extended.
///
/// No CPU can walk the page after that period. The deferring CPU unlinks, fences, and reads the clock as n. A reader
/// that reports n + 1 read the clock as n + 1, then fenced. If its fence were the earlier of the two, the deferring CPU
/// would have read n + 1 too. So it is the later one, and the reader's walks after it do not find the page; the
/// reader's walks before it end before the report is visible. A CPU that ends the period reads the clock, fences (by
/// its own quiescent state, which the period needs too), and reads the states. A CPU that leaves an extended quiescent
/// state announces that and fences before it walks: either the announcement is seen, or the walk comes after the
/// unlinking.
pub struct Domain<P, S: ?Sized = [CpuData]> {
    pub(crate) platform: P,
    /// The number of pages queued on one CPU above which it should hurry.
    pub(crate) limit: u64,
    spaces: AtomicU64,
    clock: Line<AtomicU64>,
    completed: Line<AtomicU64>,
    pub(crate) orphans: Line<Orphans>,
    /// The number of pages of CPUs that went offline that are not freed yet.
    pub(crate) orphaned: AtomicU64,
    started: Counter,
    longest: Counter,
    kicks: Counter,
    /// The number of CPUs that exist, at most as many as `cpu_data` has elements.
    cpus: usize,
    cpu_data: S,
}

impl<P, const CPUS: usize> Domain<P, [CpuData; CPUS]> {
    const_unless_loom! {
        /// A domain of CPUs 0 to `CPUS` - 1, all of them offline.
        ///
        /// If more than `limit` pages are queued on a CPU, its deferrals return
        /// [`Backlog::Over`](crate::Backlog::Over).
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
                cpu_data: new_cpu_data(),
            }
        }
    }

    /// The domain with at most `cpus` CPUs. This makes flushes cheaper, because each reads the states of all CPUs.
    #[must_use]
    pub fn with_cpus(self, cpus: usize) -> Self {
        Self { cpus: cpus.min(CPUS), ..self }
    }

    /// Brings CPU `cpu` online. That CPU calls this and keeps the handle.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn register(&self, cpu: usize) -> Result<Cpu<'_, P>, RegisterError>
    where
        P: Platform,
    {
        Cpu::register(self, cpu)
    }
}

#[cfg(not(loom))]
const fn new_cpu_data<const CPUS: usize>() -> [CpuData; CPUS] {
    [const { CpuData::new() }; CPUS]
}

#[cfg(loom)]
fn new_cpu_data<const CPUS: usize>() -> [CpuData; CPUS] {
    core::array::from_fn(|_| CpuData::new())
}

impl<P, S: ?Sized> Domain<P, S> {
    /// The platform.
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

    /// The grace period after which no CPU walks tables that the caller has unlinked (and flushed) before this call.
    pub(crate) fn ticket(&self) -> u64 {
        if kept(Rule::FenceAtTicket) {
            fence(Ordering::SeqCst);
        }
        self.clock() + u64::from(kept(Rule::WaitForTheNext))
    }
}

impl<P: Platform, S: ?Sized + AsRef<[CpuData]>> Domain<P, S> {
    fn cpus(&self) -> impl Iterator<Item = (usize, &PerCpu)> {
        self.all().iter().map(|data| &*data.cpu).enumerate()
    }

    fn all(&self) -> &[CpuData] {
        &self.cpu_data.as_ref()[..self.cpus]
    }

    pub(crate) fn cpu_data(&self, cpu: usize) -> Option<&CpuData> {
        self.all().get(cpu)
    }

    /// Begins a grace period if `wanted` has not begun and none runs.
    pub(crate) fn start(&self, wanted: u64) {
        let clock = self.clock();
        if wanted <= clock || self.completed() != clock {
            return;
        }
        // Stored before the exchange, so that no CPU sees the period without its start. A CPU that loses the exchange
        // stores nearly the same time.
        self.started.fetch_max(self.platform.now(), Ordering::Relaxed);
        // If the exchange fails, another CPU has begun the grace period.
        let _ = self.clock.compare_exchange(clock, clock + 1, Ordering::Release, Ordering::Relaxed);
    }

    /// Ends the running grace period if no CPU holds it up. Returns the number of the last period that has ended.
    pub(crate) fn complete(&self) -> u64 {
        let running = self.clock();
        let completed = self.completed();
        if completed == running {
            return completed;
        }
        if self.cpus().any(|(_, cpu)| holds_up(cpu.state(), running)) {
            return completed;
        }
        match self.completed.compare_exchange(completed, running, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => {
                self.longest.fetch_max(self.running_for(), Ordering::Relaxed);
                running
            }
            Err(_) => self.completed(),
        }
    }

    fn running_for(&self) -> u64 {
        self.platform.now().saturating_sub(self.started.load(Ordering::Relaxed))
    }

    /// Makes every CPU flush before its next entry to `space`, and makes grace periods wait for the CPUs that walk it
    /// now.
    pub(crate) fn flush(&self, space: &Space, to: Mode) -> Generation {
        // Releases what was unlinked to a CPU that reads the generation. What other flushes have released with theirs goes on with it.
        let generation = space.generation.fetch_add(1, Ordering::Release) + 1;
        if kept(Rule::FenceAtFlush) {
            fence(Ordering::SeqCst);
        }
        for (index, cpu) in self.cpus() {
            if cpu.revoke(space, generation, to) && to == Mode::Kicked && kept(Rule::KickTheStale) {
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
            if state.mode() == Mode::Stale && cpu.change_mode(state, Mode::Kicked) && kept(Rule::HurryKicks) {
                self.kick(index);
            }
        }
    }

    /// Kicks those of `cpus` that are online, except CPU `this`.
    pub(crate) fn kick_others(&self, this: usize, cpus: RangeInclusive<usize>) {
        for (index, data) in self.all().iter().enumerate() {
            if index != this && cpus.contains(&index) && data.taken.load(Ordering::Relaxed) {
                self.kick(index);
            }
        }
    }

    /// Kicks the CPUs that have pages queued, except CPU `this`. A CPU that is offline has none. The counts are read in any order: one
    /// that is not up to date costs a kick too many, or leaves one to the next call.
    pub(crate) fn kick_queuing(&self, this: usize) {
        for (index, cpu) in self.cpus() {
            let is_queuing = cpu.deferred.load(Ordering::Relaxed) != cpu.done.load(Ordering::Relaxed);
            if index != this && is_queuing {
                self.kick(index);
            }
        }
    }

    fn kick(&self, cpu: usize) {
        self.kicks.fetch_add(1, Ordering::Relaxed);
        self.platform.kick(cpu);
    }

    /// Whether `generation` of `space` has reached every CPU: none walks with older translations. Used by callers that
    /// need the flush itself, for example to collect dirty bits after write-protecting.
    pub fn is_flushed(&self, space: &Space, generation: Generation) -> bool {
        // For a caller that has found the generation in the space: the flush of another CPU may not have come to its fence yet. See
        // `Space`.
        fence(Ordering::SeqCst);
        !self.cpus().any(|(_, cpu)| {
            matches!(cpu.state().mode(), Mode::Guest | Mode::Stale | Mode::Kicked)
                && cpu.walks_stale(space, generation.0)
        })
    }

    /// Whether CPU `cpu` is in guest mode or idle, or about to be, so that the caller must kick it for it to see an
    /// event that the caller has just posted (an interrupt for one of its vCPUs, by an atomic store of any order).
    ///
    /// The caller stores the event, fences and loads the state; the CPU stores the state, fences and loads the event
    /// (Dekker). If this returns false, the CPU is in the hypervisor and sees the event at its check after
    /// [`Session::guest`] or [`Cpu::idle`] has begun. If it returns true, the kick arrives before or in guest mode and
    /// ends it.
    ///
    /// [`Session::guest`]: crate::Session::guest
    pub fn is_away(&self, cpu: usize) -> bool {
        if kept(Rule::FenceAtPost) {
            fence(Ordering::SeqCst);
        }
        self.cpu_data(cpu).is_some_and(|data| data.cpu.state().mode() != Mode::Online)
    }

    /// The CPUs that hold up a grace period that has been running for more than `limit` ticks.
    pub fn stalls(&self, limit: u64) -> impl Iterator<Item = Stall> {
        let running = self.clock();
        let ticks = if self.completed() == running { 0 } else { self.running_for() };
        self.cpus()
            .filter(move |(_, cpu)| ticks > limit && cpu.state().holds_up(running))
            .map(move |(index, cpu)| Stall { cpu: index, mode: cpu.state().mode(), ticks })
    }

    /// The statistics since boot.
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

/// [`State::holds_up`], where no mutant breaks a rule.
fn holds_up(state: State, grace: u64) -> bool {
    match state.mode() {
        Mode::Online if !kept(Rule::WaitForSoftware) => false,
        Mode::Stale | Mode::Kicked if !kept(Rule::WaitForHardware) => false,
        _ => state.holds_up(grace),
    }
}

/// A CPU that holds up a grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Its index.
    pub cpu: usize,
    /// Its mode: in the hypervisor without a quiescent state, or in guest mode without a flush.
    pub mode: Mode,
    /// The time since the grace period began.
    pub ticks: u64,
}

/// Statistics of a [`Domain`]. CPUs run while they are read, so the numbers may not be consistent with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pages deferred.
    pub deferred: u64,
    /// Pages freed after their grace period.
    pub freed: u64,
    /// Pages queued now.
    pub backlog: u64,
    /// The most pages that were queued on one CPU at a time.
    pub peak_backlog: u64,
    /// Grace periods that ended.
    pub grace_periods: u64,
    /// The longest grace period, in ticks.
    pub longest_grace_period: u64,
    /// Kicks sent.
    pub kicks: u64,
}

/// Why a CPU can't come online.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// The domain has no CPU of this index.
    OutOfRange,
    /// The handle of this CPU exists already.
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
