//! Flushes that a test build can leave out, to show that somebody notices.

use crate::env::Env;
#[cfg(feature = "skip-flush")]
use crate::sync::{Note, Ordering};
use crate::tree::Tree;

/// What a flush comes after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum After {
    /// [`Tree::zap`]: pages were unmapped.
    Zap = 1,
    /// [`Tree::protect`]: rights were taken.
    Protect,
    /// [`Tree::harvest`]: accessed and dirty bits were cleared.
    Harvest,
    /// [`Tree::dirty_log`]: pages were write-protected.
    DirtyLog,
    /// [`Tree::replace`]: a page was frozen, to be copied.
    Replace,
    /// [`Tree::collapse_into`]: a table's pages were frozen, to be copied.
    Collapse,
    /// [`Tree::move_table`]: a table went elsewhere.
    Move,
}

/// The one that is left out. Without the feature there is none, and nothing of this remains.
#[derive(Default)]
pub(crate) struct Skipped {
    #[cfg(feature = "skip-flush")]
    after: Note,
}

impl Skipped {
    #[cfg(feature = "skip-flush")]
    fn has(&self, after: After) -> bool {
        self.after.load(Ordering::Relaxed) == after as u32
    }

    #[cfg(not(feature = "skip-flush"))]
    const fn has(&self, _: After) -> bool {
        false
    }
}

impl<E: Env> Tree<E> {
    /// Whether the flush that comes after this is left out.
    pub(crate) fn skips(&self, after: After) -> bool {
        self.skipped.has(after)
    }

    /// From now on leaves out the flush (and with it the kick) that comes after `after`, or none. What the operation promises
    /// is then wrong: it is for tests that have to find that.
    #[cfg(feature = "skip-flush")]
    pub fn skip_flush(&self, after: Option<After>) {
        self.skipped.after.store(after.map_or(0, |after| after as u32), Ordering::Relaxed);
    }
}
