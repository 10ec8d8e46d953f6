//! The rules of this crate, by name. [Mutants](model#mutants) of the models break them, to show that each is needed.

/// A rule of this crate, named after the code that applies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A grace period waits for CPUs that may walk in software.
    WaitForSoftware,
    /// A grace period waits for CPUs in guest mode that have not flushed.
    WaitForHardware,
    /// A page waits for a grace period that begins after it was unlinked, not for the running one.
    WaitForTheNext,
    /// An entry to guest mode is announced and fenced before it compares generations.
    FenceAtEntry,
    /// An entry to guest mode compares generations.
    CompareAtEntry,
    /// A session announces the space that its entries walk.
    SpaceAtSession,
    /// A flush stores its new generation and fences before it reads the states of CPUs.
    FenceAtFlush,
    /// There is a fence between the changes of other CPUs' states by a flush and the read of the clock.
    FenceAtTicket,
    /// CPUs in guest mode on stale translations are kicked.
    KickTheStale,
    /// `hurry` kicks the CPUs that a lazy flush did not kick.
    HurryKicks,
    /// Idle is announced and fenced before the last check for events.
    FenceAtIdle,
    /// There is a fence between the post of an event for a CPU and the check whether that CPU is away.
    FenceAtPost,
    /// The return from idle or guest mode is announced and fenced before any walk.
    FenceAtReturn,
    /// There is a fence between a quiescent state and the walks after it.
    FenceAtQuiescent,
    /// Pages of a CPU that went offline wait for a whole grace period at the CPU that adopts them.
    OrphansWait,
    /// A barrier waits for pages of CPUs that went offline.
    BarrierCountsOrphans,
    /// A barrier waits for other CPUs' pages.
    BarrierCountsAll,
    /// A barrier kicks the CPUs whose pages it waits for.
    BarrierKicks,
    /// A flush on one CPU does not count for translations on another.
    FlushOnMigration,
}
