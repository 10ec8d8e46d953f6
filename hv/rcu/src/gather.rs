//! Pages that are unlinked and wait for their flush.

use crate::Cpu;
use crate::domain::Platform;
use crate::list::List;
use crate::space::{Generation, Space};
use crate::state::Mode;
use addr::Pfn;

/// Collects the pages that one operation unlinks from an address space, flushes once, and queues the pages for their
/// grace period (Linux's `mmu_gather`). Dropping it does that too.
///
/// It borrows its CPU, which can't report a quiescent state meanwhile.
pub struct Gather<'c, P: Platform> {
    cpu: &'c Cpu<'c, P>,
    space: &'c Space,
    pages: List,
    changed: bool,
}

/// Whether more pages are queued on this CPU than the domain's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backlog {
    /// Not more.
    Within,
    /// More: the caller should call [`Cpu::hurry`].
    Over,
}

/// The result of a [`Gather`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retired {
    /// The flush that it made: see [`Domain::is_flushed`](crate::Domain::is_flushed).
    pub generation: Generation,
    /// Whether the caller should call [`Cpu::hurry`].
    pub backlog: Backlog,
}

impl<'c, P: Platform> Gather<'c, P> {
    pub(crate) fn new(cpu: &'c Cpu<'c, P>, space: &'c Space) -> Self {
        Self { cpu, space, pages: List::default(), changed: false }
    }

    /// Adds a page: a table, or memory that an entry mapped. No entry refers to it any more.
    ///
    /// # Panics
    /// If the page is queued already.
    pub fn add(&mut self, page: Pfn) {
        self.changed = true;
        self.pages.push(&self.cpu.domain().platform, page);
    }

    /// Records that an entry lost rights or its page without a page to free: stale translations must be flushed.
    pub fn changed(&mut self) {
        self.changed = true;
    }

    /// Flushes, and kicks the CPUs in guest mode that use this space. Does nothing if nothing changed.
    pub fn finish(mut self) -> Retired {
        self.retire(Mode::Kicked)
    }

    /// Flushes without kicks: CPUs in guest mode stay there until they leave it by themselves or [`Cpu::hurry`] kicks
    /// them. For tables whose old translations are still correct.
    pub fn finish_lazily(mut self) -> Retired {
        self.retire(Mode::Stale)
    }

    fn retire(&mut self, mode: Mode) -> Retired {
        let changed = core::mem::take(&mut self.changed);
        let pages = core::mem::take(&mut self.pages);
        let generation = if changed { self.cpu.domain().flush(self.space, mode) } else { self.space.generation() };
        Retired { generation, backlog: self.cpu.enqueue(pages) }
    }
}

impl<P: Platform> Drop for Gather<'_, P> {
    fn drop(&mut self) {
        if self.changed {
            self.retire(Mode::Kicked);
        }
    }
}
