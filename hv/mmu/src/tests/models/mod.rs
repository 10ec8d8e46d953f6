//! Models of the rules under every interleaving and every stale read, up to loom's preemption bound.
//!
//! Each `loom_*` model has `twin_*`s: the same model with rules broken, which loom must catch. Where two rules each suffice (a
//! frozen table is refused also by who forgot to compare the pmd), the twin breaks both. Tables have two entries. Run them with
//! `RUSTFLAGS="--cfg loom" cargo test -p mmu --release --lib`.

mod accessed_dirty;
mod huge;
mod locks;
mod pages;
mod replaced;
mod shared;
mod split_entry;
mod world;

use crate::rules::{Rule, breaking};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;

fn explore(model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 10_000;
    builder.check(model);
}

fn must_fail(rules: &'static [Rule], model: fn()) {
    let panic = catch_unwind(AssertUnwindSafe(|| breaking(rules, || explore(model))))
        .expect_err("without the rules the model holds as well");
    // By its own assertion, not by hanging.
    let says = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref().map(String::as_str));
    assert!(!says.is_some_and(|says| says.starts_with("Model exceeded")), "{rules:?}: {says:?}");
}

/// A model, and the twins that break it.
macro_rules! model {
    ($model:ident: $loom:ident, $($twin:ident breaks $rules:expr),+) => {
        #[test]
        fn $loom() {
            super::explore($model);
        }
        $(
            #[test]
            fn $twin() {
                use crate::rules::Rule::*;
                super::must_fail(&$rules, $model);
            }
        )+
    };
}
use model;
