//! A stress test of Linux's memory management, and by it of the paging of what Linux runs on.
//!
//! It maps, unmaps, protects, moves, discards and writes memory, forks, and does all that in several threads of one address
//! space. A model has what each page holds and permits: each content is compared with it, and each access that has to fault is
//! made, and its SIGSEGV (`si_code`, `si_addr`, the page fault's error code) compared as well.
//!
//! Words on the command line:
//! - `seed=N`: all that a thread does follows from it (default: 1);
//! - `ops=N`: operations of each thread, and a sixteenth of it rounds of the shootdown test (default: 1000);
//! - `threads=N` (default: the number of CPUs, but two at least and eight at most);
//! - `inject=content` or `inject=fault`: memory or a protection is changed behind the model's back, so that the test has to fail.
//!
//! It makes system calls itself, and uses no C library: so it is built for the targets of the guests for the bare machine, which are
//! there anyway, and what runs between two faults is this program alone. The report on standard output is KTAP.
#![no_std]
#![no_main]

mod arch;
mod cases;
mod console;
mod exit;
// The guests for the bare machine have these modules in a library that brings its own console and panic handler.
#[allow(unreachable_pub, dead_code, reason = "it is public in that library")]
#[path = "../../base/src/ktap.rs"]
mod ktap;
mod model;
mod probe;
#[allow(unreachable_pub, reason = "it is public in that library")]
#[path = "../../base/src/random.rs"]
mod random;
mod runtime;
mod shootdown;
mod start;
mod sys;
mod thread;
mod window;
mod words;
mod worker;

use cases::{copy_on_write, faults, large_pages, many_threads, one_thread};
use exit::GuestStatus;
use shootdown::shootdown;
use window::{Reservation, Window};
use words::{MOST_THREADS, Words};

/// What all tests get.
struct Context {
    words: Words,
    /// Whether pages without PROT_EXEC can't be executed.
    no_execute: bool,
    /// A place for each thread's window.
    places: [Reservation; MOST_THREADS],
}

impl Context {
    /// A new window for this thread.
    fn window(&self, thread: usize) -> Result<Window, ktap::NotPassed> {
        Window::new(self.places[thread], self.words.seed << 8 | thread as u64, self.no_execute)
    }
}

fn main(words: Words) -> GuestStatus {
    println!("# seed {}, {} operations, {} threads", words.seed, words.operations, words.threads);
    probe::handle_faults();
    let places = core::array::from_fn(|_| Reservation::take());
    let context = Context { words, no_execute: probe::has_no_execute(), places };
    ktap::run(&context, cases![faults, copy_on_write, large_pages, one_thread, many_threads, shootdown])
}
