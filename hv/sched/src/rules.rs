//! The rules of this crate, by name. [Mutants](model#mutants) of the models break them, to show that each is needed.

/// A rule of [`StartBarrier`](crate::StartBarrier).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The boot CPU opens the barrier when all CPUs are ready.
    AllReady,
    /// What a CPU did before it was ready is over for the CPU that opens the barrier.
    ReadyReleases,
    /// What the CPU that opens the barrier did before is over for the CPUs that it releases.
    OpenReleases,
}
