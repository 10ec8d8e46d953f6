//! What one CPU does.

use crate::domain::{Domain, PerCpu, Platform, RegisterError, Slot};
use crate::gather::{Backlog, Gather, Retired};
use crate::list::{List, Segment, Segments};
use crate::rule::{Rule, holds};
use crate::space::{Flush, Space, Tlb};
use crate::state::{Mode, State};
use crate::sync::{self, AtomicU64, Ordering, fence};
use addr::Pfn;
use core::cell::Cell;
use core::marker::PhantomData;
use core::ops::{Deref, RangeInclusive};

/// This CPU. Neither `Send` nor `Sync`; one exists per index. Dropping it takes the CPU offline, and what waited on it
/// is given back by the others.
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
    slot: &'d Slot,
    this: &'d PerCpu,
    /// The clock at the last quiescent state.
    seen: Cell<u64>,
    deferred: Cell<Segments>,
    /// Pages of CPUs that went away.
    adopted: Cell<Segment>,
    not_send: PhantomData<*mut ()>,
}

/// Tables stay what they are while it lives. Zero-sized; `Copy`, so it nests at will.
///
/// It can't leave its CPU, and no quiescent state can be reported before its end:
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
        let slot = domain.slot(index).ok_or(RegisterError::OutOfRange)?;
        if !slot.take() {
            return Err(RegisterError::Taken);
        }
        let cpu = Self {
            domain,
            index,
            slot,
            this: &slot.cpu,
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

    /// The domain that this CPU is one of.
    pub fn domain(&self) -> &'d Domain<P> {
        self.domain
    }

    /// Begins to read tables. No instruction: with
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
    /// The processor needs none either: [`quiescent`](Self::quiescent) and the returns from [`idle`](Self::idle) and
    /// [`guest`](Session::guest) order what is read before and after them.
    #[inline(always)]
    pub fn read(&self) -> Guard<'_> {
        Guard(PhantomData)
    }

    /// Reports that this CPU holds nothing of what it read before. A load and a comparison, unless a grace period began.
    #[inline]
    pub fn quiescent(&mut self) {
        let clock = self.domain.clock();
        if clock != self.seen.get() {
            self.set_online(clock);
            if holds(Rule::FenceAtQuiescent) {
                fence(Ordering::SeqCst);
            }
        }
    }

    /// Runs `wait`, which walks nothing and may take as long as it likes: an extended quiescent state.
    ///
    /// It is announced and fenced before `wait` begins. So what `wait` looks at before it sleeps, with interrupts off, it
    /// sees, or else whoever wrote it sees this CPU [away](Domain::is_away) and kicks it.
    pub fn idle<R>(&mut self, wait: impl FnOnce() -> R) -> R {
        self.this.set_state(State::new(Mode::Extended, self.seen.get()));
        if holds(Rule::FenceAtIdle) {
            fence(Ordering::SeqCst);
        }
        let _online = Online(self);
        wait()
    }

    /// Prepares for entries to guest mode in `space`: as many as there are without another space or tag in between. `tlb` is
    /// the record of the tag that the guest runs under.
    ///
    /// It says once what each entry would otherwise have to say.
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
        if holds(Rule::SpaceAtSession) {
            self.this.set_space(space, flushed);
        }
    }

    /// A [`session`](Self::session) of one entry.
    #[inline]
    pub fn guest<R>(&mut self, space: &Space, tlb: &mut Tlb, enter: impl FnOnce(Flush) -> R) -> R {
        self.session(space, tlb).guest(enter)
    }

    /// Gathers pages that are being unlinked from `space`, to flush once for all of them.
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

    /// Lets `pages`, unlinked and flushed, wait for a grace period.
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

    /// The number of pages that wait on this CPU.
    #[inline]
    pub fn backlog(&self) -> u64 {
        self.deferred.get().len() + self.adopted.get().pages.len()
    }

    /// Whether more pages wait on this CPU than the domain's limit.
    pub fn is_over_limit(&self) -> bool {
        self.over(self.deferred.get().len()) == Backlog::Over
    }

    /// Gives up to `budget` pages to `free` whose grace period has ended, and sees to it that the next begins. Returns
    /// how many. To be called at each exit from guest mode and each turn of the idle loop.
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

    /// The last grace period that a page of this CPU waits for, if any page does.
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
            // Taken anew each time: `free` may defer pages itself.
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

    /// Takes over what CPUs that went away left, for a grace period from now.
    fn adopt(&self) {
        if self.adopted.get().pages.is_empty() {
            let pages = self.domain.orphans.take(&self.domain.platform);
            if !pages.is_empty() {
                let grace = if holds(Rule::OrphansWait) { self.domain.ticket() } else { 0 };
                self.adopted.set(Segment { pages, grace });
            }
        }
    }

    /// Hurries what waits on this CPU: begins a grace period, and kicks the CPUs in guest mode that hold one up.
    pub fn hurry(&self) {
        self.domain.complete();
        if let Some(wanted) = self.wanted() {
            self.domain.start(wanted);
        }
        self.domain.kick_stale();
    }

    /// Waits until every CPU has passed a quiescent state, and every one in guest mode that must flush has left.
    pub fn synchronize(&mut self) {
        self.wait_for(self.domain.ticket(), |_| ());
    }

    /// [`synchronize`](Self::synchronize), kicking the CPUs in guest mode that it waits for.
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

    /// Waits until every page that was deferred before, on whichever CPU, has been given back; this CPU's own, and what it
    /// adopts, to `free`. Kicks the CPUs that have some, which must [`poll`](Self::poll) then.
    pub fn barrier(&mut self, mut free: impl FnMut(Pfn)) {
        for index in 0.. {
            let Some(slot) = self.domain.slot(index) else { break };
            let goal = slot.cpu.deferred.load(Ordering::Acquire);
            while slot.cpu.done.load(Ordering::Acquire) < goal && holds(Rule::BarrierCountsAll) {
                self.ripen_and_kick(index..=index, &mut free);
            }
        }
        // Any CPU may have adopted them.
        while self.domain.orphaned.load(Ordering::Acquire) != 0 && holds(Rule::BarrierCountsOrphans) {
            self.ripen_and_kick(0..=usize::MAX, &mut free);
        }
    }

    /// Makes what was deferred so far ripe, and `cpus` poll, this one among them.
    fn ripen_and_kick(&mut self, cpus: RangeInclusive<usize>, free: &mut impl FnMut(Pfn)) {
        self.poll(usize::MAX, &mut *free);
        self.synchronize_expedited();
        self.poll(usize::MAX, free);
        if holds(Rule::BarrierKicks) {
            self.domain.kick_others(self.index, cpus);
        }
        self.relax();
    }
}

/// A CPU that enters guest mode in one space under one tag, again and again.
///
/// It is the CPU as well, but for what would begin another session.
pub struct Session<'c, 'd, P: Platform> {
    cpu: &'c mut Cpu<'d, P>,
    space: &'c Space,
    /// Of this CPU and this space, as long as the session lasts.
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
    /// Runs the guest: `enter` flushes if told to, then enters guest mode and comes back.
    ///
    /// An extended quiescent state, because whatever is unlinked from the space meanwhile kicks this CPU, or counts it
    /// again until it leaves by itself (see [`Space`]).
    ///
    /// It costs one store to this CPU's own cache line, one locked operation, three loads and a comparison; the way back
    /// one load, two stores, one locked operation.
    ///
    /// Call it with interrupts off, so that a kick that comes too early is pending at the entry. `enter` walks nothing
    /// in software.
    ///
    /// # Giving an entry up
    ///
    /// This CPU's guest mode is announced and fenced before `enter` begins, so `enter` may look for what other CPUs post
    /// (an interrupt for this vCPU): it sees it, or else who posted it sees this CPU [away](Domain::is_away) and kicks
    /// it. It may then return without entering. A flush is told of once, as this CPU has acknowledged it by then: `enter`
    /// has to note it where it lasts, in what the next entry under the tag does (a VMCB's TLB_CONTROL), or to flush at once.
    #[inline]
    pub fn guest<R>(&mut self, enter: impl FnOnce(Flush) -> R) -> R {
        let cpu = &*self.cpu;
        cpu.this.set_state(State::new(Mode::Guest, cpu.domain.clock()));
        if holds(Rule::FenceAtEntry) {
            fence(Ordering::SeqCst);
        }
        let flushed = self.tlb.generation();
        let generation =
            if holds(Rule::CompareAtEntry) { self.space.generation.load(Ordering::Acquire) } else { flushed };
        let flush = if generation == flushed { Flush::Keep } else { self.acknowledge(generation) };
        let _online = Online(self.cpu);
        enter(flush)
    }

    /// Goes on in another space, under the same tag, as a new session would: the next entry flushes.
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

    /// Announced and fenced before anything is walked: whoever unlinked something before, and does not see the
    /// announcement, has it out of this CPU's sight.
    #[inline]
    fn come_online(&self) {
        self.set_online(self.domain.clock());
        if holds(Rule::FenceAtReturn) {
            fence(Ordering::SeqCst);
        }
    }
}

/// Offline: an extended quiescent state, and the pages that wait here are anyone's to adopt.
impl<P: Platform> Drop for Cpu<'_, P> {
    fn drop(&mut self) {
        let platform = &self.domain.platform;
        let own = self.deferred.get().into_list(platform);
        // Counted there before they are no longer counted here: a barrier finds them in one place at least.
        self.domain.orphaned.fetch_add(own.len(), Ordering::Relaxed);
        bump(&self.this.done, own.len());
        let mut pages = self.adopted.get().pages;
        pages.append(platform, own);
        self.domain.orphans.push(platform, pages);
        self.this.set_state(State::new(Mode::Extended, self.seen.get()));
        self.slot.release();
    }
}

/// Ends an extended quiescent state, also when its closure unwinds.
struct Online<'c, 'd, P: Platform>(&'c Cpu<'d, P>);

impl<P: Platform> Drop for Online<'_, '_, P> {
    fn drop(&mut self) {
        self.0.come_online();
    }
}

/// Adds to a counter that only this CPU writes.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Release);
}
