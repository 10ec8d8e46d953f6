//! Address spaces whose tables the hardware walks.

use crate::Domain;
use crate::rule::{Rule, holds};
use crate::sync::{AtomicU64, Counter, Ordering};

/// An address space: one tree of tables, walked by the hardware of every CPU in its guest. Holds its flush generation.
///
/// # Why no flush is lost
///
/// Entry and unlinker each write one word, fence, and read the other's (Dekker):
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
/// Fences have one order that all CPUs agree on. *3 before c*: the loads of d see what 2 wrote, or something later. If
/// they see the entry, the exchange makes it Kicked, or fails because the CPU has left; a Kicked CPU holds up every grace
/// period above its n, hence this page's (n was loaded before 3 and the clock after c, so n < grace), until 7. *c before
/// 3*: the load of 4 sees the new generation, and 5 flushes before the first walk of 6, which finds the entry unlinked.
///
/// Step 0 is done once for many entries (see [`Session`](crate::Session)): both hold until a flush, which 5 stores, or until
/// another space's turn. An unlinker that finds another space there than that of the state it read is late: the CPU has left
/// the guest mode that the state speaks of, and compares generations when it comes back to that space.
///
/// So guest mode may count as an extended quiescent state: a CPU that the grace period passes over in guest mode has
/// either entered after the flush, and flushed, or runs another space. The second fence, e, makes it so for whoever ends
/// the grace period: it reads the clock at or above grace, fences, then reads the states, so its fence comes after e and
/// it can't see the Guest that d replaced.
///
/// A kick is an interrupt, and the entry runs with interrupts off from before 2 (SVM: with the global interrupt flag
/// clear): one that arrives between 4 and 6 stays pending and ends the guest mode at once.
pub struct Space {
    id: u64,
    pub(crate) generation: AtomicU64,
    pub(crate) kicks: Counter,
}

/// The generation before a space's first: nothing was ever flushed to it.
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

    /// How often it was flushed.
    pub fn flushes(&self) -> u64 {
        self.generation().0 - FIRST
    }

    /// Kicks sent for its flushes.
    pub fn kicks(&self) -> u64 {
        self.kicks.load(Ordering::Relaxed)
    }
}

/// How often a [`Space`] was flushed: the name of one flush, for [`Domain::is_flushed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub(crate) u64);

impl Generation {
    /// As a number: a later generation's is larger.
    #[inline]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// What the translations under one tag (ASID; VPID and EPTP) hold: of which space, on which CPU, flushed when.
///
/// It belongs to whoever uses the tag, as a rule the vCPU. A vCPU that moved to another CPU, or whose tag served another
/// space before, is told to flush by this record alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tlb {
    /// The CPU of the last flush.
    cpu: usize,
    /// The space that was flushed; 0, which is none's, before the first.
    space: u64,
    generation: u64,
}

impl Tlb {
    /// A tag of which nothing is known: the first entry flushes.
    pub const fn new() -> Self {
        Self { cpu: 0, space: 0, generation: NEVER }
    }

    #[inline]
    pub(crate) fn flushed(&self, cpu: usize, space: &Space) -> u64 {
        let same_cpu = self.cpu == cpu || !holds(Rule::FlushOnMigration);
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

/// What an entry to guest mode must do with the translations under its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a flush that is owed must be done before the guest runs"]
pub enum Flush {
    /// They may stay.
    Keep,
    /// Something was unlinked since the last flush: drop them all before the guest's next instruction. It is owed even
    /// if this entry is given up.
    Needed,
}
