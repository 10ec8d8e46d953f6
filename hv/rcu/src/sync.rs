//! The atomics of this crate: core's, or in its models loom's or shuttle's.

#[cfg(not(any(loom, shuttle)))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Statistics order nothing, so the models need not branch on them: core's atomics always.
pub(crate) use core::sync::atomic::AtomicU64 as Counter;

/// One turn of a loop that waits for another CPU.
pub(crate) fn relax() {
    #[cfg(not(any(loom, shuttle)))]
    core::hint::spin_loop();
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
    #[cfg(loom)]
    loom::thread::yield_now();
}

/// A function that is `const` wherever the atomics' constructors are; loom's are not.
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
pub(crate) use const_unless_loom;

/// What one CPU writes often, on cache lines of its own; two lines, because processors fetch neighbours in pairs.
#[repr(align(128))]
pub(crate) struct Line<T>(pub(crate) T);

impl<T> core::ops::Deref for Line<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
