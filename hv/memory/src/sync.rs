//! The lock, and what models add to raw accesses.

/// The lock. In models that shuttle runs, others go on while one waits for it.
#[cfg(not(shuttle))]
pub(crate) type Mutex<T> = spin::Mutex<T>;
#[cfg(shuttle)]
pub(crate) type Mutex<T> = spin::mutex::SpinMutex<T, Yield>;

#[cfg(shuttle)]
pub(crate) struct Yield;

#[cfg(shuttle)]
impl spin::RelaxStrategy for Yield {
    fn relax() {
        shuttle::thread::yield_now();
    }
}

/// A point before an access to a frame at which, in a model, another CPU may come in between.
#[inline(always)]
pub(crate) fn access_point() {
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
}
