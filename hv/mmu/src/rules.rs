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
}

/// Whether `rule` is kept.
#[cfg(not(loom))]
pub(crate) const fn kept(_rule: Rule) -> bool {
    true
}

#[cfg(loom)]
pub(crate) use broken::{breaking, kept};

#[cfg(loom)]
mod broken {
    use super::Rule;
    use core::cell::Cell;

    std::thread_local! {
        // loom runs all threads of a model on the thread that called it.
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    pub(crate) fn kept(rule: Rule) -> bool {
        BROKEN.get() != Some(rule)
    }

    /// Runs `model` with `rule` broken.
    pub(crate) fn breaking(rule: Rule, model: impl FnOnce()) {
        BROKEN.set(Some(rule));
        model();
        BROKEN.set(None);
    }
}
