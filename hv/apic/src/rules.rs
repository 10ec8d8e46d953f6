//! The rules of this crate, by name. [Mutants](model#mutants) of the models break them, to show that each is needed.

/// A rule of [`Posted`](crate::Posted), or of the [`Request`](crate::Request) beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A CPU that posts a vector sets its bit in the IRR first, and the summary's bit last.
    SummaryLast,
    /// The memory that the sender wrote before it posted is visible to the vCPU that takes the vector.
    Publish,
    /// The owner reads a word of the IRR again after it has cleared the summary's bit for it.
    ReadAgain,
    /// The owner takes all signals in one atomic step.
    TakeAtOnce,
    /// The sender of an IPI has the request raised after it has posted.
    RaiseLast,
    /// A vCPU shows its mode and fences before it looks whether the 8259s have an interrupt.
    FenceAtMode,
    /// A CPU that shows that the 8259s have an interrupt fences before it looks which vCPUs accept it.
    FenceAtExtInt,
}
