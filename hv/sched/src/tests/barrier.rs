//! CPUs that wait for each other before the first guest starts.

use crate::StartBarrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

#[test]
fn no_cpu_goes_on_before_all_are_ready_and_the_boot_cpu_has_opened() {
    const CPUS: usize = 4;
    let (barrier, ready, opened) = (StartBarrier::new(), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for cpu in 0..CPUS {
            let (barrier, ready, opened) = (&barrier, &ready, &opened);
            scope.spawn(move || {
                ready.fetch_add(1, Ordering::Relaxed);
                barrier.wait(cpu, CPUS, || {
                    assert_eq!((cpu, ready.load(Ordering::Relaxed)), (0, CPUS));
                    opened.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(opened.load(Ordering::Relaxed), 1);
            });
        }
    });
}
