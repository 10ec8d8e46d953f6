//! Atomics and a lock: the processor's, or those that loom or shuttle schedule.
//!
//! What orders nothing, as statistics do, is better taken from `core` always, so that models need not branch on it.

#[cfg(not(any(loom, shuttle)))]
pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, fence};
#[cfg(shuttle)]
pub use shuttle::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, fence};

pub use core::sync::atomic::Ordering;

/// A spin lock. Others run while a CPU waits for it, also where shuttle schedules them. loom does not see it.
pub type SpinMutex<T> = spin::mutex::SpinMutex<T, Relax>;

/// How a CPU waits for a [`SpinMutex`]: by [`relax`].
#[derive(Debug)]
pub struct Relax;

impl spin::RelaxStrategy for Relax {
    #[inline(always)]
    fn relax() {
        relax();
    }
}

/// One turn of a loop that waits for another CPU.
#[inline]
pub fn relax() {
    #[cfg(not(any(loom, shuttle)))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
}

/// A function that is `const` wherever the atomics' constructors are; loom's are not.
#[macro_export]
macro_rules! const_unless_loom {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty $body:block) => {
        #[cfg(not(loom))]
        $(#[$doc])*
        $vis const fn $name($($arg: $ty),*) -> $ret $body
        #[cfg(loom)]
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) -> $ret $body
    };
}
