//! The scheduler of one CPU: which vCPU runs, for how long, and when the CPU's timer must interrupt it.
//!
//! ```text
//!   the guest's events        its APIC timer, the 8254, …  ──┐
//!                                                            ├─ min ─▶ Slice::next_event ─▶ the CPU's timer
//!   the host's events         end of the slice, limits,    ──┘                          └▶ compared with the TSC
//!                             other tasks' timers, watchdog                                after each VM exit
//! ```
//!
//! The guest's event can make the next event earlier, and can never delay the host's. The timer's interrupt alone does not
//! suffice: if each exit happens before the processor takes a pending interrupt (an exception whose delivery faults again and
//! again), the interrupt is never taken. Therefore the time of each exit is compared with the next event as well.
//!
//! # Fairness
//!
//! The VMs of a CPU get equal shares of its time. In each round a task gets [`Config::slice`] of time; if there are other VMs on
//! this CPU, that is divided by the number of tasks of its VM. A task that wakes up runs at once if it has time left in this
//! round; a task that has used its time waits for the next round. So a storm of wake-ups gains no time, and a task that is always
//! runnable waits at most for the slices of the others. A task that interrupts another one's turn soon after its beginning pays for
//! that turn, which was mostly spent on the way to the guest. If a task runs longer than its share (an exit that took long to handle),
//! the excess is deducted in later rounds.
//!
//! # Limits
//!
//! The scheduler enforces a task's [`limit`](Task::limit): a slice ends at the limit, and so does the CPU's sleep, so that the limit
//! holds whether the guest runs, sleeps, or causes exit after exit.
//!
//! The crate accesses no hardware: the image implements [`Cpu`], and the tests implement it in virtual time.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

mod barrier;
mod instant;
#[cfg(all(test, loom))]
mod models;
mod placement;
mod rules;
mod scheduler;
mod slice;
#[cfg(all(test, not(loom)))]
mod tests;
mod watchdog;

pub use barrier::StartBarrier;
pub use instant::Instant;
pub use placement::Placement;
pub use scheduler::{Config, Cpu, Scheduler, Task, Tasks};
pub use slice::{Slice, Turn};
pub use watchdog::{Heart, Watchdog};
