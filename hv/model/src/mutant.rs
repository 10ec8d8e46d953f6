//! Rules that are broken on purpose.

use core::any::Any;
use core::cell::RefCell;
use std::boxed::Box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::vec::Vec;

std::thread_local! {
    /// The broken rules, each a `&'static [R]` of some crate's `R`. loom and shuttle run all threads of a model on the thread
    /// that called them.
    static BROKEN: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Whether `rule` is kept: always, but in a mutant.
pub fn kept<R: Copy + Eq + 'static>(rule: R) -> bool {
    let breaks =
        |broken: &Box<dyn Any>| broken.downcast_ref::<&'static [R]>().is_some_and(|rules| rules.contains(&rule));
    BROKEN.with_borrow(|broken| !broken.iter().any(breaks))
}

/// Runs `model` with `rules` broken, besides those that are broken already.
pub fn breaking<R: Copy + Eq + 'static, T>(rules: &'static [R], model: impl FnOnce() -> T) -> T {
    struct Mend;
    impl Drop for Mend {
        fn drop(&mut self) {
            BROKEN.with_borrow_mut(Vec::pop);
        }
    }
    BROKEN.with_borrow_mut(|broken| broken.push(Box::new(rules)));
    let _mend = Mend;
    model()
}

/// How `run` fails with `rules` broken: the message of its panic (empty if it is no text), or None if it does not fail.
pub fn failure<R: Copy + Eq + 'static>(rules: &'static [R], run: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(|| breaking(rules, run))).err()?;
    let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    Some(message.unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Rule {
        First,
        Second,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum OtherCrates {
        First,
    }

    #[test]
    fn only_the_named_rules_are_broken() {
        assert!(kept(Rule::First));
        breaking(&[Rule::First], || {
            assert!(!kept(Rule::First));
            assert!(kept(Rule::Second));
            assert!(kept(OtherCrates::First));
            breaking(&[OtherCrates::First], || assert!(!kept(Rule::First) && !kept(OtherCrates::First)));
            assert!(kept(OtherCrates::First));
        });
        assert!(kept(Rule::First));
    }

    #[test]
    fn a_mutant_that_fails_says_why_and_the_rule_is_kept_again() {
        let says = failure(&[Rule::First], || assert!(kept(Rule::First), "{} is broken", 1));
        assert_eq!(says.as_deref(), Some("1 is broken"));
        assert!(kept(Rule::First));
    }

    #[test]
    fn a_mutant_that_passes_is_told() {
        assert_eq!(failure(&[Rule::First], || assert!(kept(Rule::Second))), None);
    }
}
