//! The rules of this crate, by name. [Mutants](model#mutants) of the models break them, to show that each is needed.

/// A rule of this crate, by the place that keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A grace period waits for CPUs that may walk in software.
    WaitForSoftware,
    /// A grace period waits for CPUs in guest mode that have not flushed.
    WaitForHardware,
    /// A page waits for a grace period that begins after it was unlinked, not for one that runs.
    WaitForTheNext,
    /// Entry to guest mode is announced, fenced, and only then compares generations.
    FenceAtEntry,
    /// Entry to guest mode compares generations at all.
    CompareAtEntry,
    /// A session says which space its entries walk.
    SpaceAtSession,
    /// The unlinker's new generation is fenced before it reads who is in guest mode.
    FenceAtFlush,
    /// What a flush did to other CPUs' states is fenced before the clock is read.
    FenceAtTicket,
    /// CPUs in guest mode on stale translations are kicked.
    KickTheStale,
    /// A hurry kicks those that a lazy flush left alone.
    HurryKicks,
    /// Idle is announced and fenced before the last look at what could end it.
    FenceAtIdle,
    /// What is posted for a CPU is fenced before it is read whether that CPU is away.
    FenceAtPost,
    /// Return from idle or guest mode is announced before anything is walked.
    FenceAtReturn,
    /// A quiescent state is fenced from the walks after it.
    FenceAtQuiescent,
    /// Pages of a CPU that went away wait for a whole grace period at their new CPU.
    OrphansWait,
    /// A barrier waits for pages of CPUs that went away.
    BarrierCountsOrphans,
    /// A barrier waits for other CPUs' pages.
    BarrierCountsAll,
    /// A barrier kicks the CPUs whose pages it waits for.
    BarrierKicks,
    /// Translations made on one CPU say nothing about another's.
    FlushOnMigration,
}
