//! Makes sure that some CPU polls the queues while bytes are in them.

use model::const_unless_loom;
use model::sync::{AtomicBool, AtomicU64, Ordering, fence};

/// The time of no poll.
const NEVER: u64 = u64::MAX;

/// Makes sure that some CPU polls the queues while bytes are in them, without a lock, and without a timer on every CPU.
///
/// A CPU that puts bytes into a queue, or leaves some there after a poll, calls [`wanted`](Self::wanted) afterwards, and
/// interrupts itself if that returns true. A CPU that is interrupted calls [`disarm`](Self::disarm); if that returns true, it
/// calls [`look`](Self::look), polls the queues, and reports by [`again`](Self::again) when the remaining bytes are due. Then it
/// calls [`arm`](Self::arm), and programs its timer for the time that this returns.
///
/// So either some CPU is armed, or the CPU that puts a byte interrupts itself: each side writes one word, fences, and reads the
/// word of the other side.
#[derive(Debug)]
pub struct Attention {
    /// When to poll next; [`NEVER`] if no bytes wait.
    due: AtomicU64,
    /// A CPU's timer is programmed for that, or a CPU is about to interrupt itself.
    armed: AtomicBool,
}

impl Attention {
    const_unless_loom! {
        /// No bytes wait.
        pub fn new() -> Self {
            Self { due: AtomicU64::new(NEVER), armed: AtomicBool::new(false) }
        }
    }

    /// This CPU has put bytes into a queue, or left some there. True if it must interrupt itself, so that it polls.
    #[must_use]
    pub fn wanted(&self) -> bool {
        fence(Ordering::SeqCst);
        if self.waiting().is_none() {
            self.again(0);
            fence(Ordering::SeqCst);
        }
        !self.armed.load(Ordering::Relaxed) && !self.armed.swap(true, Ordering::Relaxed)
    }

    /// This CPU was interrupted. True if it must poll the queues.
    #[inline]
    pub fn disarm(&self) -> bool {
        !self.is_idle() && self.disarm_and_check()
    }

    /// No bytes wait, and no CPU is armed: a CPU that puts bytes then interrupts itself, and other CPUs have nothing to do. Most
    /// interrupts end here.
    #[inline]
    fn is_idle(&self) -> bool {
        self.waiting().is_none() && !self.armed.load(Ordering::Relaxed)
    }

    #[cold]
    fn disarm_and_check(&self) -> bool {
        self.armed.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.waiting().is_some()
    }

    /// To be called before the queues are polled, by one CPU at a time.
    pub fn look(&self) {
        self.due.store(NEVER, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The queues must be polled again at `due`, or before.
    pub fn again(&self, due: u64) {
        self.due.fetch_min(due, Ordering::Relaxed);
    }

    /// This CPU programs its timer. Returns the time of the next poll, for which the timer must interrupt; None if no bytes wait.
    #[inline]
    pub fn arm(&self) -> Option<u64> {
        if self.is_idle() { None } else { self.arm_for_what_waits() }
    }

    #[cold]
    fn arm_for_what_waits(&self) -> Option<u64> {
        // This CPU may have been armed for bytes that are sent by now. A CPU that puts bytes after this sees it disarmed.
        if self.waiting().is_none() && !self.disarm_and_check() {
            return None;
        }
        let due = self.waiting().unwrap_or(0);
        self.armed.store(true, Ordering::Relaxed);
        Some(due)
    }

    #[inline]
    fn waiting(&self) -> Option<u64> {
        Some(self.due.load(Ordering::Relaxed)).filter(|&due| due != NEVER)
    }
}

impl Default for Attention {
    fn default() -> Self {
        Self::new()
    }
}
