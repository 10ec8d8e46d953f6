//! The model kit: what lock-free code and the models that check it have in common.
//!
//! Code that several CPUs run at once takes its atomics and its lock from [`sync`]. In an ordinary build these are `core`'s
//! and `spin`'s. Built with `--cfg loom` or `--cfg shuttle` they are those of [loom](https://docs.rs/loom), which explores
//! every interleaving and every stale read up to a bound, or of [shuttle](https://docs.rs/shuttle), which tries schedules at
//! random. A *model* is a test that one of them runs in this way.
//!
//! # Mutants
//!
//! A model that passes shows little by itself: it may be too small to reach the hazard. So each rule of such code has a name,
//! a variant of the crate's `Rule`, and the code asks [`kept`] where it applies the rule:
//!
//! ```
//! use model::kept;
//! use model::sync::{AtomicBool, AtomicU64, Ordering};
//!
//! #[derive(Clone, Copy, PartialEq, Eq)]
//! enum Rule {
//!     /// The flag is published behind the data.
//!     Publish,
//! }
//!
//! fn publish(data: &AtomicU64, is_ready: &AtomicBool) {
//!     data.store(7, Ordering::Relaxed);
//!     let order = if kept(Rule::Publish) { Ordering::Release } else { Ordering::Relaxed };
//!     is_ready.store(true, order);
//! }
//! # publish(&AtomicU64::new(0), &AtomicBool::new(false));
//! ```
//!
//! A *mutant* is a model that runs with one rule broken (see `breaking`; seldom with two, where each suffices by itself). It
//! is a test as well, which passes if the model fails: so the rule is needed, and the model would notice its loss. The tests
//! of models are named `loom_…` and `shuttle_…`, those of their mutants `mutant_…`.
//!
//! In an ordinary build [`kept`] is the constant `true`, and the compiler drops the other branch.
//!
//! # Running them
//!
//! `cargo xtask test` runs the models of all crates. Those of one:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p apic --release --lib
//! RUSTFLAGS="--cfg shuttle" cargo test -p shadow --release --lib
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(loom, shuttle))]
extern crate std;

#[cfg(loom)]
mod explore;
#[cfg(any(loom, shuttle))]
mod mutant;
#[cfg(shuttle)]
mod random;
pub mod sync;

#[cfg(loom)]
pub use explore::{Ending, Explorer};
#[cfg(any(loom, shuttle))]
pub use mutant::{breaking, failure, kept};
#[cfg(shuttle)]
pub use random::run;

/// Whether this thread unwinds, because loom has given up a mutant. Code that runs when something is dropped leaves atomics alone then:
/// loom can't carry out an access any more. False outside of loom's models.
#[inline(always)]
pub fn unwinds() -> bool {
    #[cfg(loom)]
    return std::thread::panicking();
    #[cfg(not(loom))]
    false
}

/// Whether `rule` is kept: always, but in a mutant.
#[cfg(not(any(loom, shuttle)))]
#[inline(always)]
pub const fn kept<R: Copy + Eq + 'static>(_rule: R) -> bool {
    true
}
