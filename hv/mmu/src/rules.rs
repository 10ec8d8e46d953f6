//! The rules of this crate, by name. [Mutants](model#mutants) of the models break them, to show that each is needed.

/// A rule of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Reread the pmd under the table's lock.
    RecheckPmd,
    /// Look at the entry again under the lock before it is set.
    RecheckEntry,
    /// Freeze the entries of a table that goes.
    Freeze,
    /// Take the table's own lock before it is taken out of the tree.
    LockChild,
    /// Change a present entry by one atomic read-modify-write.
    AtomicChange,
    /// Flush before what was changed is relied on.
    Flush,
    /// Give a table back only after its grace period.
    FreeLate,
    /// Fill a table before it is published.
    FillFirst,
    /// Keep what the processor noted in the entries that are collapsed.
    KeepNoted,
    /// Take every decision from one read.
    OneRead,
    /// Check that a table is empty under its lock.
    CountUnderLock,
    /// A table goes with the last entry that refers to it.
    CountEntries,
    /// Software notes its writes as a processor does.
    NoteWrites,
    /// Hold the table's lock while its entries are changed.
    Lock,
    /// An entry that is being collapsed looks like nothing else, least of all like none.
    FrozenIsNotNone,
    /// Of an entry in two halves, the one with the present bit is set last and cleared first.
    LowLast,
    /// Of an entry in two halves, the low half is read again.
    ReadLowAgain,
    /// An entry in two halves is set again only when nobody is in the middle of reading it.
    LocklessSync,
}
