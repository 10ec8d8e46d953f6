//! Address spaces whose tables the hardware walks.

use crate::Domain;
use crate::rules::Rule;
use core::sync::atomic::AtomicU64 as Counter;
use model::kept;
use model::sync::{AtomicU64, Ordering};

/// An address space: one tree of tables, which the hardware of every CPU in its guest walks. It counts its flushes.
///
/// # Why no flush is lost
///
/// The entry to guest mode and the unlinking CPU each write one word, fence, and read the other's word (Dekker):
///
/// ```text
/// entry of CPU c                         unlinker of a page
/// 0  store space[c], flushed[c]
/// 1  load  clock -> n                    a  unlink the page
/// 2  store state[c] = Guest, n           b  generation += 1
/// 3  fence (SeqCst)                      c  fence (SeqCst)
/// 4  load  generation                    d  for every c: load state[c]; if Guest in this space with an older
/// 5  changed? acknowledge and flush           generation acknowledged: compare-and-exchange to Kicked, kick
/// 6  guest mode: hardware walks          e  fence (SeqCst); grace = clock + 1
/// 7  exit: store state[c] = Online, m    f  put the page on the list of pages that wait for grace
/// 8  fence (SeqCst)
/// ```
///
/// All CPUs agree on one order of the fences. *3 before c*: the loads of d see the store of 2 or a later one. If they
/// see the entry, the exchange makes the state Kicked, or fails because the CPU has left guest mode. A Kicked CPU holds
/// up every grace period above its n until 7, hence this page's (n was loaded before 3 and the clock after c, so n <
/// grace). *c before 3*: the load of 4 sees the new generation, and 5 flushes before the first walk of 6, which finds
/// the page unlinked.
///
/// Step 0 is done once for many entries (see [`Session`](crate::Session)): both values hold until a flush, which 5
/// stores, or until the CPU enters another space. If d finds another space than that of the state that it read, the CPU
/// has left the guest mode of that state, and will compare generations when it enters that space again.
///
/// So guest mode can count as an extended quiescent state: if a grace period ends while a CPU is in guest mode, the CPU
/// entered after the flush and has flushed, or runs another space. The second fence, e, makes this hold also for a
/// third CPU that ends the grace period: it reads the clock at or above grace, fences, then reads the states. Its fence
/// comes after e, so it can't see the state Guest that d replaced.
///
/// A kick is an interrupt, and interrupts are off from before 2 up to the entry (SVM: the global interrupt flag is
/// clear): a kick that arrives between 4 and 6 stays pending and ends guest mode at once.
pub struct Space {
    id: u64,
    pub(crate) generation: AtomicU64,
    pub(crate) kicks: Counter,
}

/// The generation before the first one of a space: no flush of the space has happened under the tag.
pub(crate) const NEVER: u64 = 0;
const FIRST: u64 = NEVER + 1;

impl Space {
    /// A new space, which no CPU has entered.
    pub fn new<P, S: ?Sized>(domain: &Domain<P, S>) -> Self {
        Self { id: domain.new_space_id(), generation: AtomicU64::new(FIRST), kicks: Counter::new(0) }
    }

    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The current generation.
    #[inline]
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// The number of its flushes.
    pub fn flushes(&self) -> u64 {
        self.generation().0 - FIRST
    }

    /// The number of kicks sent for its flushes.
    pub fn kicks(&self) -> u64 {
        self.kicks.load(Ordering::Relaxed)
    }
}

/// A number of flushes of a [`Space`]. It identifies one flush, for [`Domain::is_flushed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub(crate) u64);

impl Generation {
    /// The generation as a number, which grows with each flush.
    #[inline]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// A record of the translations under one tag (ASID; VPID and EPTP): their space, their CPU, and their last flush.
///
/// The user of the tag, usually a vCPU, owns the record. By this record, the first entry of a vCPU that moved to
/// another CPU, or whose tag was used for another space, flushes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tlb {
    /// The CPU of the last flush.
    cpu: usize,
    /// The space that was flushed; 0, the number of no space, before the first flush.
    space: u64,
    generation: u64,
}

impl Tlb {
    /// The record of a tag that may hold any translations: the first entry flushes.
    pub const fn new() -> Self {
        Self { cpu: 0, space: 0, generation: NEVER }
    }

    #[inline]
    pub(crate) fn flushed(&self, cpu: usize, space: &Space) -> u64 {
        let same_cpu = self.cpu == cpu || !kept(Rule::FlushOnMigration);
        if same_cpu && self.space == space.id { self.generation } else { NEVER }
    }

    /// The generation of the last flush.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    #[inline]
    pub(crate) fn set_flushed(&mut self, cpu: usize, space: &Space, generation: u64) {
        *self = Self { cpu, space: space.id, generation };
    }
}

/// Whether an entry to guest mode must flush the translations under its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a pending flush must be done before the guest runs"]
pub enum Flush {
    /// The translations may stay.
    Keep,
    /// An entry was unlinked since the last flush: all translations must be flushed before the guest's next
    /// instruction. The flush stays pending if this entry is cancelled.
    Needed,
}
