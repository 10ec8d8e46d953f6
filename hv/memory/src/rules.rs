//! The rules that the models break one at a time, to show that each is needed.
//!
//! A **mutant** is a model that runs with a rule broken on purpose, and has to fail. Outside of the models every rule is kept, and
//! [`kept`] is the constant `true`.

/// A rule that a mutant breaks.
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
}

/// Whether `rule` is kept.
#[cfg(not(shuttle))]
#[inline(always)]
pub(crate) const fn kept(_rule: Rule) -> bool {
    true
}

#[cfg(shuttle)]
pub(crate) use broken::kept;
#[cfg(all(shuttle, test))]
pub(crate) use broken::mutant;

#[cfg(shuttle)]
mod broken {
    use super::Rule;
    use core::cell::Cell;

    std::thread_local! {
        // shuttle runs all threads of a model on the thread that called it.
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    pub(crate) fn kept(rule: Rule) -> bool {
        BROKEN.get() != Some(rule)
    }

    /// Runs `model` with `rule` broken.
    #[cfg(test)]
    pub(crate) fn mutant<R>(rule: Rule, model: impl FnOnce() -> R) -> R {
        struct Mend;
        impl Drop for Mend {
            fn drop(&mut self) {
                BROKEN.set(None);
            }
        }
        let _mend = Mend;
        BROKEN.set(Some(rule));
        model()
    }
}
