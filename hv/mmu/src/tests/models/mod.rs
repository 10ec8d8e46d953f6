//! Models of the rules under every interleaving and every stale read, up to loom's preemption bound.
//!
//! Each `loom_*` model has [mutants](model#mutants), which loom must catch. Where two rules each suffice (a frozen table is
//! refused also where the pmd was not compared), the mutant breaks both. Tables have two entries. Run them with
//! `RUSTFLAGS="--cfg loom" cargo test -p mmu --release --lib`.

mod accessed_dirty;
mod huge;
mod locks;
mod moves;
mod pages;
mod replaced;
mod shared;
mod split_entry;
mod world;

use model::Explorer;

const EXPLORER: Explorer = Explorer { preemptions: 3, signs: &[] };
