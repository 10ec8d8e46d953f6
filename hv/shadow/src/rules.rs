//! The rules of this crate, by name. [Mutants](model#mutants) of the models break them, to show that each is needed.

/// A rule of shadow paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A frame that becomes a table is write-protected in all roots.
    WriteProtect,
    /// The entries of a walk are read again after their frames are write-protected.
    ReadAgain,
    /// When an entry of a shared table is zapped, all roots that share it are flushed.
    FlushSharers,
    /// A table that is out of sync is brought back in sync before another address space uses it.
    SyncFirst,
    /// A guest table is written under the lock, so that INVLPG and loads of CR3 wait until the shadow of the old bytes is zapped.
    StoreLocked,
    /// A fault of a virtual TLB that has mapped a page looks again whether frames change, and zaps the page if they do.
    LookAgain,
    /// In a virtual TLB, a fence separates what each side writes from what it reads: a suspension is announced before the tables are
    /// zapped, and a page is mapped before it is looked again.
    FenceAtSuspend,
}
