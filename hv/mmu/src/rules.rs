//! The rules of this crate, by name. [Mutants](model#mutants) of the models break them, to show that each is needed.

/// A rule of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Reread the pmd under the table's lock.
    RecheckPmd,
    /// Reread the entry under the lock before it is set.
    RecheckEntry,
    /// Freeze the entries of a table that is unlinked.
    Freeze,
    /// Take the table's own lock before it is unlinked.
    LockChild,
    /// Change a present entry by one atomic read-modify-write.
    AtomicChange,
    /// Flush before a change is relied on.
    Flush,
    /// Free a table only after its grace period.
    FreeLate,
    /// Fill a table before it is published.
    FillFirst,
    /// Keep the accessed and dirty bits of the entries that are collapsed.
    KeepAccessedDirty,
    /// Take all decisions about an entry from one read.
    OneRead,
    /// Check that a table is empty under its lock.
    CountUnderLock,
    /// Free a table when the last entry that refers to it is cleared, not before.
    CountEntries,
    /// Set the dirty bit at writes by software, as a processor does.
    MarkDirty,
    /// Hold the table's lock while its entries are changed.
    Lock,
    /// Lock two tables of one level in the order of their frames.
    LockOrder,
    /// A frozen entry differs from all others, in particular from none.
    FrozenIsNotNone,
    /// In an entry of two halves, set the half with the present bit last, and clear it first.
    LowLast,
    /// In an entry of two halves, read the low half again after the high half.
    ReadLowAgain,
    /// Set an entry of two halves again only when no CPU is still reading its previous value.
    LocklessSync,
}
