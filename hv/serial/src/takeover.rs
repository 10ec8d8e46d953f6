//! One CPU takes the line from all others, for good.

use crate::rules::Rule;
use model::sync::{AtomicU64, AtomicUsize, Ordering};
use model::{const_unless_loom, kept};

/// How one CPU takes the line from all others, for good: the hypervisor panics, and the CPU that holds the lock on the line may
/// never give it back.
///
/// The CPU that [takes](Self::take) it first is the speaker. It interrupts the others, each of which [stops](Self::stop), and uses
/// the line when [all that can have](Self::has_stopped). Then it [calls](Self::call) one after the other to use the line in turn, for
/// as long as that CPU [is called](Self::is_called).
///
/// ```text
///   speaker   take ── interrupt others ── has_stopped? ── use the line ── call ─────────────── has_answered? ── …
///   another                    stop ──────────────────────────── is_called? ── use the line ── answer
/// ```
#[derive(Debug)]
pub struct Takeover {
    /// The number of the speaker, plus 1; 0 if there is none.
    speaker: AtomicUsize,
    /// The CPUs that have stopped, a bit each.
    stopped: AtomicU64,
    /// The number of the CPU that is called, plus 1; 0 if none is.
    called: AtomicUsize,
}

/// Which CPU has the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The CPU that asks, from now on.
    Now,
    /// The CPU that asks, which has taken it before.
    Before,
    /// Another CPU: the one that asks has to stop.
    ByAnother,
}

impl Takeover {
    const_unless_loom! {
        /// Any CPU uses the line, by its lock.
        pub fn new() -> Self {
            Self { speaker: AtomicUsize::new(0), stopped: AtomicU64::new(0), called: AtomicUsize::new(0) }
        }
    }

    /// CPU `cpu` wants to speak alone.
    pub fn take(&self, cpu: usize) -> Taken {
        let own = cpu + 1;
        let before = if kept(Rule::TakeAtOnce) {
            self.speaker.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire).unwrap_or_else(|speaker| speaker)
        } else {
            let before = self.speaker.load(Ordering::Acquire);
            self.speaker.store(own, Ordering::Release);
            before
        };
        match before {
            0 => Taken::Now,
            speaker if speaker == own => Taken::Before,
            _ => Taken::ByAnother,
        }
    }

    /// Whether some CPU has the line: then one that is interrupted has to stop.
    pub fn is_taken(&self) -> bool {
        self.speaker.load(Ordering::Acquire) != 0
    }

    /// CPU `cpu`, of at most 64, uses the line no more, but when it is called.
    pub fn stop(&self, cpu: usize) {
        let order = if kept(Rule::StopReleases) { Ordering::AcqRel } else { Ordering::Relaxed };
        self.stopped.fetch_or(1 << cpu, order);
    }

    /// Whether CPU `cpu` has stopped.
    pub fn has_stopped(&self, cpu: usize) -> bool {
        self.stopped.load(Ordering::Acquire) & 1 << cpu != 0
    }

    /// The speaker lets CPU `cpu`, which has stopped, use the line until that answers.
    pub fn call(&self, cpu: usize) {
        self.called.store(cpu + 1, Ordering::Release);
    }

    /// Whether CPU `cpu` may use the line.
    pub fn is_called(&self, cpu: usize) -> bool {
        self.called.load(Ordering::Acquire) == cpu + 1
    }

    /// The CPU that is called gives the line back.
    pub fn answer(&self) {
        let order = if kept(Rule::AnswerReleases) { Ordering::Release } else { Ordering::Relaxed };
        self.called.store(0, order);
    }

    /// Whether the CPU that was called has answered.
    pub fn has_answered(&self) -> bool {
        self.called.load(Ordering::Acquire) == 0
    }
}

impl Default for Takeover {
    fn default() -> Self {
        Self::new()
    }
}
