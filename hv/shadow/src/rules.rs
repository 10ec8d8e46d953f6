//! The rules of this crate, by name. [Mutants](model#mutants) of the models break them, to show that each is needed.

/// A rule of shadow paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A frame that becomes a table is taken away from whoever may write it.
    WriteProtect,
    /// Entries are read again when their frames are read-only.
    ReadAgain,
    /// What one tree drops of a shared table, the others' processors flush.
    FlushSharers,
    /// A table that is out of sync is back in sync before another address space has it.
    SyncFirst,
    /// Bytes are written where INVLPG and loads of CR3 wait until what stood for them is gone.
    StoreLocked,
}
