//! The rules that the models break one at a time, to show that each is needed.
//!
//! Outside of the models every rule is kept, and [`kept`] is the constant `true`.

/// A rule that a twin of a model breaks.
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

/// Whether `rule` is kept.
#[cfg(not(any(loom, shuttle)))]
pub(crate) const fn kept(_rule: Rule) -> bool {
    true
}

#[cfg(all(any(loom, shuttle), test))]
pub(crate) use broken::breaking;
#[cfg(any(loom, shuttle))]
pub(crate) use broken::kept;

#[cfg(any(loom, shuttle))]
mod broken {
    use super::Rule;
    use core::cell::Cell;

    std::thread_local! {
        // loom and shuttle run all threads of a model on the thread that called it.
        static BROKEN: Cell<&'static [Rule]> = const { Cell::new(&[]) };
    }

    pub(crate) fn kept(rule: Rule) -> bool {
        !BROKEN.get().contains(&rule)
    }

    /// Runs `model` with `rules` broken.
    #[cfg(test)]
    pub(crate) fn breaking<R>(rules: &'static [Rule], model: impl FnOnce() -> R) -> R {
        struct Keep;
        impl Drop for Keep {
            fn drop(&mut self) {
                BROKEN.set(&[]);
            }
        }
        let _keep = Keep;
        BROKEN.set(rules);
        model()
    }
}
