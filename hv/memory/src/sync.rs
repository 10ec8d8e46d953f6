//! The lock, and what models add to raw accesses.

pub(crate) use model::sync::SpinMutex as Mutex;

/// A point before an access to a frame at which, in a model, another CPU may come in between.
#[inline(always)]
pub(crate) fn access_point() {
    #[cfg(shuttle)]
    model::sync::relax();
}
