//! Models of [`StartBarrier`], in every interleaving and with every stale read, up to loom's preemption bound. Run them with
//! `RUSTFLAGS="--cfg loom" cargo test -p sched --release --lib`.

use crate::StartBarrier;
use crate::rules::Rule;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use model::{Explorer, loom_tests};

const EXPLORER: Explorer = Explorer { preemptions: 3, signs: &[] };

/// What the other CPU makes, and what the boot CPU notes: loom finds an access to either that is not ordered with another.
struct Shared {
    barrier: StartBarrier,
    made: UnsafeCell<bool>,
    noted: UnsafeCell<bool>,
}

fn boot_cpu_vs_other() {
    let shared =
        Arc::new(Shared { barrier: StartBarrier::new(), made: UnsafeCell::new(false), noted: UnsafeCell::new(false) });
    let other = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            shared.made.with_mut(|_| ());
            shared.barrier.wait(1, 2, || unreachable!("the boot CPU opens it"));
            shared.noted.with(|_| ());
        })
    };
    shared.barrier.wait(0, 2, || {
        shared.made.with(|_| ());
        shared.noted.with_mut(|_| ());
    });
    other.join().unwrap();
}

loom_tests! {
    /// The boot CPU opens the barrier after the other CPU's work, and before the other CPU goes on.
    loom_boot_cpu_vs_other = boot_cpu_vs_other;
    mutant_barrier_that_is_open_too_early breaks [AllReady],
    mutant_ready_without_release breaks [ReadyReleases],
    mutant_open_without_release breaks [OpenReleases]
}
