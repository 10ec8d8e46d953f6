//! The rules that the models break one at a time, to show that each is needed.
//!
//! Outside of the models every rule is kept, and [`kept`] is the constant `true`.

/// A rule that a twin of a model breaks.
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

/// Whether `rule` is kept.
#[cfg(not(shuttle))]
pub(crate) const fn kept(_rule: Rule) -> bool {
    true
}

#[cfg(shuttle)]
pub(crate) use broken::kept;

#[cfg(shuttle)]
pub(crate) mod broken {
    use super::Rule;
    use core::cell::Cell;

    std::thread_local! {
        // shuttle runs all threads of a model on the thread that called it.
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    pub(crate) fn kept(rule: Rule) -> bool {
        BROKEN.get() != Some(rule)
    }

    /// Breaks `rule` from now on, in models that this thread runs.
    pub(crate) fn set(rule: Option<Rule>) {
        BROKEN.set(rule);
    }
}
