//! The rules that the models break one at a time, to show that each is needed.
//!
//! Outside of the models every rule is kept, and [`kept`] is the constant `true`.

/// A rule of the mailbox that a twin of a model breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Who posts sets the request's bit first and the summary's last.
    SummaryLast,
    /// What the sender wrote before it posted is there for who takes it.
    Publish,
    /// The owner reads a word again after it has cleared its bit of the summary.
    ReadAgain,
    /// The owner forgets the summary before the requests.
    ForgetSummaryFirst,
    /// The owner takes all signals in one step.
    TakeAtOnce,
    /// Of a door: who posts rings behind that.
    #[cfg(loom)]
    RingLast,
    /// Of a door: who rings fences before it looks whether the owner is away.
    #[cfg(loom)]
    FenceAtKnock,
    /// Of a door: the owner says that it goes away, fences, and looks at the bell.
    #[cfg(loom)]
    FenceAtEntry,
}

#[cfg(not(loom))]
#[inline(always)]
pub(crate) const fn kept(_rule: Rule) -> bool {
    true
}

#[cfg(loom)]
std::thread_local! {
    // loom runs all threads of a model on the thread that called it.
    pub(crate) static BROKEN: core::cell::Cell<Option<Rule>> = const { core::cell::Cell::new(None) };
}

#[cfg(loom)]
pub(crate) fn kept(rule: Rule) -> bool {
    BROKEN.get() != Some(rule)
}
