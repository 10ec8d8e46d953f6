//! Threads.

use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering};

use linux_raw_sys::general::{
    CLONE_CHILD_CLEARTID, CLONE_FILES, CLONE_FS, CLONE_SIGHAND, CLONE_SYSVSEM, CLONE_THREAD, CLONE_VM, MAP_ANONYMOUS,
    MAP_PRIVATE, PROT_READ, PROT_WRITE,
};

use crate::arch::clone_thread;
use crate::ktap::{NotPassed, Outcome};
use crate::sys::{self, Mapping, PAGE};
use crate::words::MOST_THREADS;

/// The pages of a thread's stack, on which a window's model is, and is moved.
const STACK_PAGES: usize = 128;
const FLAGS: u32 =
    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_CHILD_CLEARTID;
/// The value of [`Task::alive`] while the thread lives; the kernel makes it 0.
const ALIVE: u32 = 1;

/// What a thread does.
struct Task<'t> {
    alive: AtomicU32,
    index: usize,
    body: &'t (dyn Fn(usize) -> Outcome + Sync),
    outcome: Cell<Outcome>,
}

/// Calls `body` in so many threads at once, each with its index. Fails if one of them failed.
pub(crate) fn on_all(threads: usize, body: &(dyn Fn(usize) -> Outcome + Sync)) -> Outcome {
    let task = |index| Task { alive: AtomicU32::new(ALIVE), index, body, outcome: Cell::new(Err(NotPassed::Failed)) };
    let tasks: [Task<'_>; MOST_THREADS] = core::array::from_fn(task);
    let mapping =
        Mapping { protection: PROT_READ | PROT_WRITE, flags: MAP_PRIVATE | MAP_ANONYMOUS, file: 0, file_page: 0 };
    // SAFETY: the kernel takes a place where nothing is.
    let stacks = unsafe { sys::map(0, threads * STACK_PAGES, mapping) }.expect("stacks");
    for task in &tasks[..threads] {
        let stack = stacks + (task.index + 1) * STACK_PAGES * PAGE;
        // SAFETY: the stack is the thread's own, and the task lives until all threads have ended.
        let made = unsafe {
            clone_thread(FLAGS as usize, stack, &raw const task.alive, enter, core::ptr::from_ref(task).addr())
        };
        assert!(made > 0, "no thread: error {}", -made);
    }
    for task in &tasks[..threads] {
        while task.alive.load(Ordering::Acquire) == ALIVE {
            sys::wait_while(&task.alive, ALIVE);
        }
    }
    // SAFETY: no thread is left that stands on it.
    let unmapped = unsafe { sys::unmap(stacks, threads * STACK_PAGES) };
    assert_eq!(unmapped, Ok(()));
    tasks[..threads].iter().try_for_each(|task| task.outcome.get())
}

/// Where a thread begins.
///
/// # Safety
/// `task` is the address of a [`Task`] that outlives the thread.
unsafe extern "C" fn enter(task: usize) -> ! {
    // SAFETY: the caller's promise.
    let task = unsafe { &*(task as *const Task<'_>) };
    task.outcome.set((task.body)(task.index));
    sys::exit_thread()
}

/// Where threads wait for one another.
pub(crate) struct Barrier {
    threads: u32,
    arrived: AtomicU32,
}

impl Barrier {
    /// One for so many threads.
    pub(crate) fn new(threads: usize) -> Self {
        Self { threads: threads as u32, arrived: AtomicU32::new(0) }
    }

    /// Waits until all threads have come here as often as this one.
    pub(crate) fn wait(&self) {
        let before = self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = (before / self.threads + 1) * self.threads;
        while self.arrived.load(Ordering::Acquire) < all {
            sys::yield_now();
        }
    }
}
