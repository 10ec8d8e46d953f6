//! The rules of this crate, by name. [Mutants](model#mutants) of the models break them, to show that each is needed.

/// A rule of the mailbox.
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
