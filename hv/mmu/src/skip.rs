//! What a test build can do to the tables on purpose, to show that somebody notices: leave a flush out, spoil an entry.

use crate::env::Env;
use crate::tree::Tree;
#[cfg(feature = "sabotage")]
use crate::{
    Address, Leaf, Level, Rights,
    format::{Format, FormatExt},
    map::Input,
    sync::{Note, Ordering},
};
#[cfg(feature = "sabotage")]
use addr::Pfn;
#[cfg(feature = "sabotage")]
use rcu::Guard;

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
    /// [`Tree::unshare`]: a table is another tree's alone.
    Unshare,
}

/// The one that is left out. Without the feature there is none, and nothing of this remains.
#[derive(Default)]
pub(crate) struct Skipped {
    #[cfg(feature = "sabotage")]
    after: Note,
}

impl Skipped {
    #[cfg(feature = "sabotage")]
    fn has(&self, after: After) -> bool {
        self.after.load(Ordering::Relaxed) == after as u32
    }

    #[cfg(not(feature = "sabotage"))]
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
    #[cfg(feature = "sabotage")]
    pub fn skip_flush(&self, after: Option<After>) {
        self.skipped.after.store(after.map_or(0, |after| after as u32), Ordering::Relaxed);
    }

    /// Puts an entry that makes no sense where the last level has none for `at`: it names a frame beyond all processors' reach.
    /// Whether it did.
    #[cfg(feature = "sabotage")]
    pub fn spoil(&self, guard: Guard<'_>, at: Input<E>) -> bool {
        let Some(offset) = at.to_offset(E::Format::INPUT_BITS) else { return false };
        let Some((table, _)) = self.walk(guard, offset, Level::PTE) else { return false };
        let Ok(locked) = table.lock() else { return false };
        let index = E::Format::index(offset, table.level);
        let room = table.level == Level::PTE && table.at(index).is_none();
        if room {
            locked.set(index, E::Format::leaf(&Leaf::new(Pfn::new((1 << 40) - 1), Rights::ALL), Level::PTE));
        }
        room
    }
}
