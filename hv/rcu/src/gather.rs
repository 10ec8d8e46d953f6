//! Pages on their way from their tables to their grace period.

use crate::Cpu;
use crate::domain::Platform;
use crate::list::List;
use crate::space::{Generation, Space};
use crate::state::Mode;
use addr::Pfn;

/// Collects what one operation unlinks from an address space, flushes once, and lets the pages wait for their grace
/// period (Linux' `mmu_gather`). Its end does that, however it ends.
///
/// While it lives its CPU reports no quiescent state.
pub struct Gather<'c, P: Platform> {
    cpu: &'c Cpu<'c, P>,
    space: &'c Space,
    pages: List,
    changed: bool,
}

/// Whether more pages wait on this CPU than the domain's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backlog {
    /// No.
    Within,
    /// Yes: [`Cpu::hurry`].
    Over,
}

/// What a [`Gather`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retired {
    /// The flush that it made: see [`Domain::is_flushed`](crate::Domain::is_flushed).
    pub generation: Generation,
    /// Whether to hurry.
    pub backlog: Backlog,
}

impl<'c, P: Platform> Gather<'c, P> {
    pub(crate) fn new(cpu: &'c Cpu<'c, P>, space: &'c Space) -> Self {
        Self { cpu, space, pages: List::default(), changed: false }
    }

    /// Adds a page: a table, or memory that an entry mapped. No entry leads to it any more.
    ///
    /// # Panics
    /// If the page waits already.
    pub fn add(&mut self, page: Pfn) {
        self.changed = true;
        self.pages.push(&self.cpu.domain().platform, page);
    }

    /// Notes that an entry lost rights or its page without a page to give back: translations need the flush.
    pub fn changed(&mut self) {
        self.changed = true;
    }

    /// Flushes, kicking the CPUs in guest mode that use this space. Nothing if there was nothing to gather.
    pub fn finish(mut self) -> Retired {
        self.retire(Mode::Kicked)
    }

    /// Flushes, but leaves CPUs in guest mode alone until they leave it by themselves or [`Cpu::hurry`] makes them. For
    /// tables whose old translations are as good as the new ones.
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
