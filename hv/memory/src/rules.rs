//! The rules of this crate, by name. [Mutants](model#mutants) of the models break them, to show that each is needed.

/// A rule of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The flush generation under which a page's place is kept is read before the tree is walked.
    GenerationFirst,
    /// A page that was taken from the guest is given back only after a grace period.
    RetireLate,
    /// A page is filled with zeroes before an entry leads to it.
    ZeroFirst,
    /// A fault whose page another CPU's fault was faster to map gives its own back.
    GiveBackLoser,
    /// When a page is mapped, it is looked whether it became hidden meanwhile.
    LookAgain,
    /// A page is mapped beside hidden ones while these do not change.
    InstallLocked,
}
