//! The operations of one CPU.

use crate::domain::{CpuData, Domain, PerCpu, Platform, RegisterError};
use crate::gather::{Backlog, Gather, Retired};
use crate::list::{List, Segment, Segments};
use crate::rules::Rule;
use crate::space::{Flush, Space, Tlb};
use crate::state::{Mode, State};
use addr::Pfn;
use core::cell::Cell;
use core::marker::PhantomData;
use core::ops::{Deref, RangeInclusive};
use model::sync::{self, AtomicU64, Ordering, fence};
use model::{kept, unwinds};

/// The handle of this CPU. Neither `Send` nor `Sync`; one exists per index. Dropping it takes the CPU offline, and
/// other CPUs free the pages that were queued on it.
///
/// ```compile_fail,E0277
/// # fn f<P: rcu::Platform>(cpu: rcu::Cpu<'_, P>) {
/// fn send(_: impl Send) {}
/// send(cpu);
/// # }
/// ```
pub struct Cpu<'d, P: Platform> {
    domain: &'d Domain<P>,
    index: usize,
    data: &'d CpuData,
    this: &'d PerCpu,
    /// The clock at the last quiescent state.
    seen: Cell<u64>,
    deferred: Cell<Segments>,
    /// Pages of CPUs that went offline.
    adopted: Cell<Segment>,
    not_send: PhantomData<*mut ()>,
}

/// A read-side critical section: no table that is read under it is freed before its end. Zero-sized, and `Copy` so that
/// sections can nest.
///
/// It can't be sent to another CPU, and its CPU can't report a quiescent state before its end:
///
/// ```compile_fail,E0502
/// # fn f<P: rcu::Platform>(cpu: &mut rcu::Cpu<'_, P>) {
/// let guard = cpu.read();
/// cpu.quiescent();
/// let still_walking = guard;
/// # }
/// ```
/// ```compile_fail,E0277
/// # fn f<P: rcu::Platform>(cpu: &rcu::Cpu<'_, P>) {
/// fn send(_: impl Send) {}
/// send(cpu.read());
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct Guard<'c>(PhantomData<&'c Cell<()>>);

impl<'d, P: Platform> Cpu<'d, P> {
    pub(crate) fn register(domain: &'d Domain<P>, index: usize) -> Result<Self, RegisterError> {
        let data = domain.cpu_data(index).ok_or(RegisterError::OutOfRange)?;
        if !data.take() {
            return Err(RegisterError::Taken);
        }
        let cpu = Self {
            domain,
            index,
            data,
            this: &data.cpu,
            seen: Cell::new(0),
            deferred: Cell::default(),
            adopted: Cell::default(),
            not_send: PhantomData,
        };
        cpu.come_online();
        Ok(cpu)
    }

    /// This CPU's index.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The domain of this CPU.
    pub fn domain(&self) -> &'d Domain<P> {
        self.domain
    }

    /// Begins a read-side critical section. It compiles to no instruction: for
    ///
    /// ```
    /// # use core::sync::atomic::{AtomicU64, Ordering};
    /// # use rcu::{Cpu, Platform};
    /// pub fn load_guarded<P: Platform>(cpu: &Cpu<'_, P>, entry: &AtomicU64) -> u64 {
    ///     let _guard = cpu.read();
    ///     entry.load(Ordering::Acquire)
    /// }
    ///
    /// pub fn load_bare(entry: &AtomicU64) -> u64 {
    ///     entry.load(Ordering::Acquire)
    /// }
    /// ```
    ///
    /// `rustc -C opt-level=3 --emit asm` for `x86_64-unknown-none` gives
    ///
    /// ```asm
    /// load_guarded:
    ///     movq    (%rsi), %rax
    ///     retq
    /// load_bare:
    ///     movq    (%rdi), %rax
    ///     retq
    /// ```
    ///
    /// No fence is necessary either: [`quiescent`](Self::quiescent) and the returns from [`idle`](Self::idle) and
    /// [`guest`](Session::guest) order the reads before and after them.
    #[inline(always)]
    pub fn read(&self) -> Guard<'_> {
        Guard(PhantomData)
    }

    /// Reports a quiescent state: this CPU holds no reference that it read before. This costs a load and a comparison,
    /// unless a grace period has begun.
    #[inline]
    pub fn quiescent(&mut self) {
        let clock = self.domain.clock();
        if clock != self.seen.get() {
            self.set_online(clock);
            if kept(Rule::FenceAtQuiescent) {
                fence(Ordering::SeqCst);
            }
        }
    }

    /// Runs `wait` in an extended quiescent state: `wait` reads no tables and may take arbitrarily long.
    ///
    /// The state is announced and fenced before `wait` begins. So if `wait` checks for an event with interrupts off
    /// before it sleeps, it either sees the event, or the CPU that posted the event sees this CPU
    /// [away](Domain::is_away) and kicks it.
    pub fn idle<R>(&mut self, wait: impl FnOnce() -> R) -> R {
        self.this.set_state(State::new(Mode::Extended, self.seen.get()));
        if kept(Rule::FenceAtIdle) {
            fence(Ordering::SeqCst);
        }
        let _online = Online(self);
        wait()
    }

    /// Begins a sequence of entries to guest mode in `space`, without another space or tag in between. `tlb` is the
    /// record of the tag that the guest runs under.
    ///
    /// It announces the space once instead of at each entry.
    #[inline]
    pub fn session<'c>(&'c mut self, space: &'c Space, tlb: &'c mut Tlb) -> Session<'c, 'd, P> {
        self.announce(space, tlb);
        Session { cpu: self, space, tlb }
    }

    /// Step 0 of [`Space`]'s entry.
    #[inline]
    fn announce(&self, space: &Space, tlb: &mut Tlb) {
        let flushed = tlb.flushed(self.index, space);
        tlb.set_flushed(self.index, space, flushed);
        if kept(Rule::SpaceAtSession) {
            self.this.set_space(space, flushed);
        }
    }

    /// A [`session`](Self::session) of one entry.
    #[inline]
    pub fn guest<R>(&mut self, space: &Space, tlb: &mut Tlb, enter: impl FnOnce(Flush) -> R) -> R {
        self.session(space, tlb).guest(enter)
    }

    /// Begins to gather pages that are unlinked from `space`, with one flush for all of them.
    pub fn gather<'c>(&'c self, space: &'c Space) -> Gather<'c, P> {
        Gather::new(self, space)
    }

    /// Defers the freeing of one page that has been unlinked from `space`: a [`gather`](Self::gather) of one.
    pub fn defer(&self, space: &Space, page: Pfn) -> Retired {
        let mut gather = self.gather(space);
        gather.add(page);
        gather.finish()
    }

    /// Defers the freeing of a page that has been unlinked, and that no hardware walks.
    pub fn call_rcu(&self, page: Pfn) -> Backlog {
        let mut pages = List::default();
        pages.push(&self.domain.platform, page);
        self.enqueue(pages)
    }

    /// Queues `pages`, which are unlinked and flushed, for a grace period.
    pub(crate) fn enqueue(&self, pages: List) -> Backlog {
        let mut deferred = self.deferred.get();
        if pages.is_empty() {
            return self.over(deferred.len());
        }
        deferred.add(&self.domain.platform, pages, self.domain.ticket());
        self.deferred.set(deferred);
        bump(&self.this.deferred, pages.len());
        self.this.peak.fetch_max(deferred.len(), Ordering::Relaxed);
        self.over(deferred.len())
    }

    fn over(&self, backlog: u64) -> Backlog {
        if backlog > self.domain.limit { Backlog::Over } else { Backlog::Within }
    }

    /// The number of pages queued on this CPU.
    #[inline]
    pub fn backlog(&self) -> u64 {
        self.deferred.get().len() + self.adopted.get().pages.len()
    }

    /// Whether more pages are queued on this CPU than the domain's limit.
    pub fn is_over_limit(&self) -> bool {
        self.over(self.deferred.get().len()) == Backlog::Over
    }

    /// Passes up to `budget` pages whose grace period has ended to `free`, and starts the next grace period if pages
    /// wait for it. Returns the number of pages. Each CPU calls this at each exit from guest mode and in its idle loop.
    #[inline]
    pub fn poll(&self, budget: usize, free: impl FnMut(Pfn)) -> usize {
        if self.backlog() == 0 && self.domain.orphans.is_empty() { 0 } else { self.turn_over(budget, free) }
    }

    #[inline(never)]
    fn turn_over(&self, budget: usize, mut free: impl FnMut(Pfn)) -> usize {
        self.adopt();
        let completed = self.domain.complete();
        if let Some(wanted) = self.wanted() {
            self.domain.start(wanted);
        }
        let freed = self.free_own(completed, budget, &mut free);
        freed + self.free_adopted(completed, budget - freed, &mut free)
    }

    /// The last grace period that a page of this CPU waits for, if any.
    fn wanted(&self) -> Option<u64> {
        let (deferred, adopted) = (self.deferred.get(), self.adopted.get());
        let adopted = (!adopted.pages.is_empty()).then_some(adopted.grace);
        deferred.wanted().max(adopted)
    }

    fn free_own(&self, completed: u64, budget: usize, free: &mut impl FnMut(Pfn)) -> usize {
        let platform = &self.domain.platform;
        let mut deferred = self.deferred.get();
        deferred.ripen(platform, completed);
        self.deferred.set(deferred);
        for count in 0..budget {
            // Read again in each iteration, because `free` may defer pages itself.
            let mut deferred = self.deferred.get();
            let Some(page) = deferred.pop(platform) else { return count };
            self.deferred.set(deferred);
            free(page);
            bump(&self.this.done, 1);
            self.this.freed.fetch_add(1, Ordering::Relaxed);
        }
        budget
    }

    fn free_adopted(&self, completed: u64, budget: usize, free: &mut impl FnMut(Pfn)) -> usize {
        for count in 0..budget {
            let mut adopted = self.adopted.get();
            if adopted.grace > completed {
                return count;
            }
            let Some(page) = adopted.pages.pop(&self.domain.platform) else { return count };
            self.adopted.set(adopted);
            free(page);
            self.domain.orphaned.fetch_sub(1, Ordering::Release);
            self.this.freed.fetch_add(1, Ordering::Relaxed);
        }
        budget
    }

    /// Takes over the pages of CPUs that went offline, for a grace period that begins after this.
    fn adopt(&self) {
        if self.adopted.get().pages.is_empty() {
            let pages = self.domain.orphans.take(&self.domain.platform);
            if !pages.is_empty() {
                let grace = if kept(Rule::OrphansWait) { self.domain.ticket() } else { 0 };
                self.adopted.set(Segment { pages, grace });
            }
        }
    }

    /// Expedites the pages queued on this CPU: begins a grace period, and kicks the CPUs in guest mode that hold one
    /// up.
    pub fn hurry(&self) {
        self.domain.complete();
        if let Some(wanted) = self.wanted() {
            self.domain.start(wanted);
        }
        self.domain.kick_stale();
    }

    /// Waits until every CPU has passed a quiescent state, and every CPU in guest mode that must flush has left it.
    pub fn synchronize(&mut self) {
        self.wait_for(self.domain.ticket(), |_| ());
    }

    /// As [`synchronize`](Self::synchronize), but kicks the CPUs in guest mode that it waits for.
    pub fn synchronize_expedited(&mut self) {
        self.wait_for(self.domain.ticket(), Domain::kick_stale);
    }

    fn wait_for(&mut self, grace: u64, hurry: impl Fn(&Domain<P>)) {
        loop {
            self.quiescent();
            if self.domain.complete() >= grace {
                return;
            }
            self.domain.start(grace);
            hurry(self.domain);
            self.relax();
        }
    }

    fn relax(&self) {
        self.domain.platform.waits(self.index);
        sync::relax();
    }

    /// Waits until every page that was deferred before, on any CPU, has been freed. `free` gets the pages of this CPU
    /// and those that it adopts. Kicks the other CPUs with queued pages, which must then call [`poll`](Self::poll).
    pub fn barrier(&mut self, mut free: impl FnMut(Pfn)) {
        for index in 0.. {
            let Some(data) = self.domain.cpu_data(index) else { break };
            // In any order: what is waited for comes with `done`.
            let goal = data.cpu.deferred.load(Ordering::Relaxed);
            while data.cpu.done.load(Ordering::Acquire) < goal && kept(Rule::BarrierCountsAll) {
                self.ripen_and_kick(index..=index, &mut free);
            }
        }
        // Any CPU may have adopted the pages of CPUs that went offline.
        while self.domain.orphaned.load(Ordering::Acquire) != 0 && kept(Rule::BarrierCountsOrphans) {
            self.ripen_and_kick(0..=usize::MAX, &mut free);
        }
    }

    /// Ends the grace period of the pages deferred so far, frees those of this CPU, and makes `cpus` call `poll`.
    fn ripen_and_kick(&mut self, cpus: RangeInclusive<usize>, free: &mut impl FnMut(Pfn)) {
        self.poll(usize::MAX, &mut *free);
        self.synchronize_expedited();
        self.poll(usize::MAX, free);
        if kept(Rule::BarrierKicks) {
            self.domain.kick_others(self.index, cpus);
        }
        self.relax();
    }

    /// Begins a grace period for all pages deferred so far, on any CPU, and kicks the CPUs in guest mode that hold it up, and the other
    /// CPUs with queued pages. These must then call [`poll`](Self::poll), as this one must. It waits for none of them: a caller that
    /// counts its own pages calls it again until all are back, where a [`barrier`](Self::barrier) would keep others waiting.
    pub fn expedite(&self) {
        self.domain.complete();
        self.domain.start(self.domain.ticket());
        self.domain.kick_stale();
        self.domain.kick_queuing(self.index);
    }
}

/// A CPU that enters guest mode in one space under one tag repeatedly.
///
/// It derefs to the CPU, except for the methods that would begin another session.
pub struct Session<'c, 'd, P: Platform> {
    cpu: &'c mut Cpu<'d, P>,
    space: &'c Space,
    /// For this CPU and this space while the session lasts.
    tlb: &'c mut Tlb,
}

impl<'d, P: Platform> Deref for Session<'_, 'd, P> {
    type Target = Cpu<'d, P>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        self.cpu
    }
}

impl<'c, P: Platform> Session<'c, '_, P> {
    /// Runs the guest: `enter` flushes if its argument demands it, enters guest mode, and returns at the exit.
    ///
    /// This is an extended quiescent state: a CPU that unlinks a table from the space meanwhile kicks this CPU, or
    /// makes grace periods wait for it until it leaves by itself (see [`Space`]).
    ///
    /// The entry costs one store to this CPU's own cache line, one locked operation, three loads and a comparison; the
    /// return one load, two stores and one locked operation.
    ///
    /// Call it with interrupts off, so that a kick that arrives before the entry stays pending and ends guest mode at
    /// once. `enter` must not walk tables in software.
    ///
    /// # Cancelled entries
    ///
    /// Guest mode is announced and fenced before `enter` begins, so `enter` may check for events of other CPUs (an
    /// interrupt for this vCPU): it either sees the event, or the CPU that posted it sees this CPU
    /// [away](Domain::is_away) and kicks it. `enter` may then return without entering. This CPU has acknowledged a
    /// demanded flush before `enter` begins, so it is demanded only once: a cancelled entry must leave it pending for
    /// the next entry under the tag (in a VMCB's TLB_CONTROL), or flush at once. Otherwise the guest would run with
    /// stale translations.
    #[inline]
    pub fn guest<R>(&mut self, enter: impl FnOnce(Flush) -> R) -> R {
        let cpu = &*self.cpu;
        cpu.this.set_state(State::new(Mode::Guest, cpu.domain.clock()));
        if kept(Rule::FenceAtEntry) {
            fence(Ordering::SeqCst);
        }
        let flushed = self.tlb.generation();
        let generation =
            if kept(Rule::CompareAtEntry) { self.space.generation.load(Ordering::Acquire) } else { flushed };
        let flush = if generation == flushed { Flush::Keep } else { self.acknowledge(generation) };
        let _online = Online(self.cpu);
        enter(flush)
    }

    /// Continues in another space under the same tag. As in a new session, the next entry flushes.
    #[inline]
    pub fn switch(&mut self, space: &'c Space) {
        self.cpu.announce(space, self.tlb);
        self.space = space;
    }

    #[cold]
    fn acknowledge(&mut self, generation: u64) -> Flush {
        self.cpu.this.acknowledge(generation);
        self.tlb.set_flushed(self.cpu.index, self.space, generation);
        Flush::Needed
    }

    /// [`Cpu::quiescent`].
    #[inline]
    pub fn quiescent(&mut self) {
        self.cpu.quiescent();
    }

    /// [`Cpu::idle`].
    pub fn idle<R>(&mut self, wait: impl FnOnce() -> R) -> R {
        self.cpu.idle(wait)
    }

    /// [`Cpu::synchronize_expedited`].
    pub fn synchronize_expedited(&mut self) {
        self.cpu.synchronize_expedited();
    }

    /// [`Cpu::barrier`].
    pub fn barrier(&mut self, free: impl FnMut(Pfn)) {
        self.cpu.barrier(free);
    }
}

impl<P: Platform> Cpu<'_, P> {
    #[inline]
    fn set_online(&self, clock: u64) {
        self.seen.set(clock);
        self.this.set_state(State::new(Mode::Online, clock));
    }

    /// Announces and fences before this CPU walks anything: if a CPU that unlinks a table does not see the
    /// announcement, this CPU's walks see the unlinking.
    #[inline]
    fn come_online(&self) {
        self.set_online(self.domain.clock());
        if kept(Rule::FenceAtReturn) {
            fence(Ordering::SeqCst);
        }
    }
}

/// Goes offline: an extended quiescent state. Any CPU may adopt the pages that were queued here.
impl<P: Platform> Drop for Cpu<'_, P> {
    fn drop(&mut self) {
        if unwinds() {
            return;
        }
        let platform = &self.domain.platform;
        let own = self.deferred.get().into_list(platform);
        // `orphaned` grows before `done` does, so that a barrier counts the pages in at least one of them.
        self.domain.orphaned.fetch_add(own.len(), Ordering::Relaxed);
        bump(&self.this.done, own.len());
        let mut pages = self.adopted.get().pages;
        pages.append(platform, own);
        self.domain.orphans.push(platform, pages);
        self.this.set_state(State::new(Mode::Extended, self.seen.get()));
        self.data.release();
    }
}

/// Ends an extended quiescent state when dropped, also if its closure unwinds.
struct Online<'c, 'd, P: Platform>(&'c Cpu<'d, P>);

impl<P: Platform> Drop for Online<'_, '_, P> {
    fn drop(&mut self) {
        if !unwinds() {
            self.0.come_online();
        }
    }
}

/// Adds to a counter that no other CPU writes.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Release);
}
