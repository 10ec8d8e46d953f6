//! The rules of this crate, by name. [Mutants](model#mutants) of the models break them, to show that each is needed.

/// A rule of [`Takeover`](crate::Takeover).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// One CPU of several takes the line.
    TakeAtOnce,
    /// What a CPU did with the line before it stopped is over for the CPU that sees that it has stopped.
    StopReleases,
    /// What a CPU that was called did with the line is over for the CPU that called it.
    AnswerReleases,
}
