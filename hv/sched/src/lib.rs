//! One CPU's schedule: which virtual CPU runs, for how long, and when the CPU's timer has to interrupt it.
//!
//! ```text
//!   what the guest wants      its APIC timer, the 8254, …  ──┐
//!                                                            ├─ min ─▶ Slice::next_event ─▶ the CPU's timer
//!   what the host wants       end of the slice, limits,    ──┘                          └▶ compared with the TSC
//!                             other tasks' timers, watchdog                                after each VM exit
//! ```
//!
//! A guest's wish can bring the next event nearer, and never pushes the host's away. The timer's interrupt alone does not suffice:
//! a guest whose exits follow each other before the processor takes a pending interrupt (the delivery of an exception that
//! faults again and again) never lets it in. So the time of each exit is compared with the next event as well.
//!
//! # Fairness
//!
//! The VMs of a CPU have equal parts of it. In each round a task has [`Config::slice`] of time, divided by the number of its VM's
//! tasks on this CPU where other VMs are there, too. A task that wakes up runs at once if it has time left in this round; a task
//! that has used its time waits for the next one. So a storm of wake-ups buys no time, and a task that is always runnable waits for
//! the slices of the others at most. Time beyond a task's part (an exit whose handling took long) is a debt that later rounds pay.
//!
//! # Limits
//!
//! A task's [`limit`](Task::limit) is the scheduler's business: it is looked at between slices, which end there, and while the CPU
//! sleeps, so that it holds for a guest that runs, that sleeps, and that only exits.
//!
//! The crate knows no hardware: [`Cpu`] is what the image implements, and what the tests implement in virtual time.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod instant;
mod scheduler;
mod slice;
#[cfg(test)]
mod tests;
mod watchdog;

pub use instant::Instant;
pub use scheduler::{Config, Cpu, Scheduler, Task, Tasks};
pub use slice::{Slice, Turn};
pub use watchdog::{Heart, Watchdog};
