//! Models that loom explores.

use crate::mutant::failure;
use core::fmt::Debug;

/// How far loom explores a crate's models, and what they say when a rule is broken.
#[derive(Clone, Copy, Debug)]
pub struct Explorer {
    /// The most preemptions in one execution: loom's bound.
    pub preemptions: usize,
    /// Parts of what the models' own assertions say, and loom's check of accesses. Empty: they may say anything.
    pub signs: &'static [&'static str],
}

/// How loom shows that a rule is needed: by what ends the mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model's own assertion, or accesses that nothing orders.
    Broken,
    /// A thread gets no further: loom gives up after many turns.
    Hung,
    /// Every thread sleeps.
    Asleep,
}

/// Two spinning threads take turns in a model, so that this is far more than one that ends needs.
const BRANCHES: usize = 10_000;
const HUNG: &str = "exceeded maximum number of branches";
const ASLEEP: &str = "deadlock";

impl Explorer {
    /// Runs `model` in every interleaving and with every stale read, up to the bound. Panics where it fails.
    pub fn explore(&self, model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(self.preemptions);
        builder.max_branches = BRANCHES;
        builder.check(model);
    }

    /// Panics unless `model` ends as `expected` with `rules` broken.
    pub fn must_fail<R: Copy + Eq + Debug + 'static>(&self, rules: &'static [R], model: fn(), expected: Ending) {
        let says =
            failure(rules, || self.explore(model)).unwrap_or_else(|| panic!("without {rules:?} it holds as well"));
        assert!(self.ending(&says) == Some(expected), "without {rules:?} loom says: {says}");
    }

    /// None: neither loom's words nor those of the models.
    fn ending(&self, says: &str) -> Option<Ending> {
        match says {
            _ if says.contains(HUNG) => Some(Ending::Hung),
            _ if says.contains(ASLEEP) => Some(Ending::Asleep),
            _ if self.signs.is_empty() || self.signs.iter().any(|sign| says.contains(sign)) => Some(Ending::Broken),
            _ => None,
        }
    }
}

/// The tests of one model: that it holds, and that each of its mutants fails.
///
/// `loom_name = model; mutant_name breaks [RuleA, RuleB], other_name hangs_without [RuleC], third sleeps_without [RuleD]`, where
/// `model` is a `fn()`. The module has an [`Explorer`] named `EXPLORER` and the crate's `Rule` in scope.
#[macro_export]
macro_rules! loom_tests {
    ($(#[$doc:meta])* $name:ident = $model:path; $($mutant:ident $how:ident [$($rule:ident),+]),+ $(,)?) => {
        $(#[$doc])*
        #[test]
        fn $name() {
            EXPLORER.explore($model);
        }
        $(
            #[doc = concat!("[`", stringify!($name), "`] without", $(" [`Rule::", stringify!($rule), "`]",)+ ".")]
            #[test]
            fn $mutant() {
                EXPLORER.must_fail(&[$(Rule::$rule),+], $model, $crate::loom_tests!($how));
            }
        )+
    };
    (breaks) => { $crate::Ending::Broken };
    (hangs_without) => { $crate::Ending::Hung };
    (sleeps_without) => { $crate::Ending::Asleep };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kept;
    use crate::sync::{AtomicBool, Ordering, relax};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Rule {
        Publish,
        Notify,
        Store,
    }

    const STALE: &str = "what was published is not there";
    const EXPLORER: Explorer = Explorer { preemptions: 2, signs: &[STALE] };

    fn published() {
        let shared = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let sender = Arc::clone(&shared);
        let sends = thread::spawn(move || {
            let [data, is_ready] = &*sender;
            data.store(true, Ordering::Relaxed);
            if kept(Rule::Store) {
                is_ready.store(true, if kept(Rule::Publish) { Ordering::Release } else { Ordering::Relaxed });
            }
        });
        let [data, is_ready] = &*shared;
        while !is_ready.load(Ordering::Acquire) {
            relax();
        }
        assert!(data.load(Ordering::Relaxed), "{STALE}");
        sends.join().unwrap();
    }

    fn woken() {
        let shared = Arc::new((Mutex::new(false), Condvar::new()));
        let sender = Arc::clone(&shared);
        let sends = thread::spawn(move || {
            *sender.0.lock().unwrap() = true;
            if kept(Rule::Notify) {
                sender.1.notify_one();
            }
        });
        let mut is_set = shared.0.lock().unwrap();
        while !*is_set {
            is_set = shared.1.wait(is_set).unwrap();
        }
        drop(is_set);
        sends.join().unwrap();
    }

    loom_tests! {
        loom_published = published;
        mutant_published_relaxed breaks [Publish],
        mutant_never_published hangs_without [Store]
    }

    loom_tests! {
        loom_woken = woken;
        mutant_not_woken sleeps_without [Notify]
    }

    #[test]
    #[should_panic = "it holds as well"]
    fn a_rule_that_the_model_does_not_need_is_told() {
        EXPLORER.must_fail(&[Rule::Notify], published, Ending::Broken);
    }

    #[test]
    #[should_panic = "loom says"]
    fn a_mutant_that_fails_for_another_reason_is_told() {
        EXPLORER.must_fail(&[Rule::Store], published, Ending::Broken);
    }
}
