//! Chooses a CPU that sends what is queued, and is sure to look at the queues.

use model::const_unless_loom;
use model::sync::{AtomicBool, AtomicU64, Ordering, fence};

/// No moment.
const NEVER: u64 = u64::MAX;

/// Sees to it that some CPU looks at the queues while there is something in them, without a lock and without every CPU doing so.
///
/// A CPU that puts bytes into a queue, or leaves some there when it has looked, asks [`wanted`](Self::wanted) afterwards, and
/// interrupts itself if that says so. A CPU that is interrupted [disarms](Self::disarm), [looks](Self::look) at the queues, says
/// when what is left there is due [`again`](Self::again), and [arms](Self::arm) its timer for that. So either some CPU is armed,
/// or the one that puts a byte is told to interrupt itself: the two write one word each, fence, and read the other's.
#[derive(Debug)]
pub struct Attention {
    /// When to look again; [`NEVER`] if nothing waits.
    due: AtomicU64,
    /// A CPU is armed for that, or about to interrupt itself.
    armed: AtomicBool,
}

impl Attention {
    const_unless_loom! {
        /// Nothing waits.
        pub fn new() -> Self {
            Self { due: AtomicU64::new(NEVER), armed: AtomicBool::new(false) }
        }
    }

    /// There is something in a queue. Whether this CPU is to interrupt itself, so that it looks.
    #[must_use]
    pub fn wanted(&self) -> bool {
        fence(Ordering::SeqCst);
        if self.waiting().is_none() {
            self.again(0);
            fence(Ordering::SeqCst);
        }
        !self.armed.load(Ordering::Relaxed) && !self.armed.swap(true, Ordering::Relaxed)
    }

    /// This CPU was interrupted. Whether it has to look at the queues.
    #[inline]
    pub fn disarm(&self) -> bool {
        !self.is_idle() && self.disarm_and_see()
    }

    /// Nothing waits, and no CPU counts as armed: then the CPU that puts something interrupts itself, and none of the others has to
    /// take anything back. This is all that most interrupts cost.
    #[inline]
    fn is_idle(&self) -> bool {
        self.waiting().is_none() && !self.armed.load(Ordering::Relaxed)
    }

    #[cold]
    fn disarm_and_see(&self) -> bool {
        self.armed.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.waiting().is_some()
    }

    /// The queues are looked at after this call, by one CPU at a time.
    pub fn look(&self) {
        self.due.store(NEVER, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// By then the queues have to be looked at again.
    pub fn again(&self, due: u64) {
        self.due.fetch_min(due, Ordering::Relaxed);
    }

    /// This CPU arms its timer anew: for when, if something waits.
    #[inline]
    pub fn arm(&self) -> Option<u64> {
        if self.is_idle() { None } else { self.arm_for_what_waits() }
    }

    #[cold]
    fn arm_for_what_waits(&self) -> Option<u64> {
        // The timer may have been armed for what is gone. A CPU that queues bytes after this sees that.
        if self.waiting().is_none() && !self.disarm_and_see() {
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
