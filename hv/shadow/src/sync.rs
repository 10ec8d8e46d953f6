//! The lock. In models that shuttle runs, others go on while one waits for it.

#[cfg(not(shuttle))]
pub(crate) use spin::Mutex;

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
