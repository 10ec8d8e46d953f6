//! Fault injection for test builds, whose tests have to detect the faults: a flush that is left out, a misconfigured
//! entry.

use crate::env::Env;
use crate::tree::Tree;
#[cfg(feature = "fault-injection")]
use crate::{
    Address, Leaf, Level, Rights,
    format::{Format, FormatExt},
    map::Input,
};
#[cfg(feature = "fault-injection")]
use addr::Pfn;
#[cfg(feature = "fault-injection")]
use core::sync::atomic::AtomicU32 as Note;
#[cfg(feature = "fault-injection")]
use model::sync::Ordering;
#[cfg(feature = "fault-injection")]
use rcu::Guard;

/// The operation that a flush belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum After {
    /// [`Tree::zap`]: pages were unmapped.
    Zap = 1,
    /// [`Tree::protect`]: rights were removed.
    Protect,
    /// [`Tree::harvest`]: accessed and dirty bits were cleared.
    Harvest,
    /// [`Tree::dirty_log`]: pages were write-protected.
    DirtyLog,
    /// [`Tree::replace`]: a page was frozen, to be copied.
    Replace,
    /// [`Tree::collapse_into`]: a table's pages were frozen, to be copied.
    Collapse,
    /// [`Tree::move_table`]: a table was moved.
    Move,
    /// [`Tree::retract`]: an entry of a shared table was cleared.
    Retract,
}

/// The flush that is left out, if any. Zero-sized without the feature.
#[derive(Default)]
pub(crate) struct InjectedFault {
    #[cfg(feature = "fault-injection")]
    after: Note,
}

impl InjectedFault {
    #[cfg(feature = "fault-injection")]
    fn has(&self, after: After) -> bool {
        self.after.load(Ordering::Relaxed) == after as u32
    }

    #[cfg(not(feature = "fault-injection"))]
    const fn has(&self, _: After) -> bool {
        false
    }
}

impl<E: Env> Tree<E> {
    /// Whether the flush of this operation is left out.
    pub(crate) fn skips(&self, after: After) -> bool {
        self.injected.has(after)
    }

    /// Leaves out the flush of operation `after`, and thereby its kicks, from now on; None ends this. The operation
    /// then breaks its promise, which a test has to detect.
    #[cfg(feature = "fault-injection")]
    pub fn skip_flush(&self, after: Option<After>) {
        self.injected.after.store(after.map_or(0, |after| after as u32), Ordering::Relaxed);
    }

    /// Sets the entry of the last level for `at`, if it is none, to one with reserved bits: its frame is above all
    /// processors' physical addresses. Whether it did.
    #[cfg(feature = "fault-injection")]
    pub fn misconfigure(&self, guard: Guard<'_>, at: Input<E>) -> bool {
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
