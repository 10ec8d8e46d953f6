//! A translation buffer: one vCPU's pages since it last loaded CR3.

use crate::counters::{Counter, Counters, Counts};
use crate::resolve::{Resolved, resolve};
use crate::{Memory, NoMemory, Outcome, Registers};
use addr::{Gva, PageSize, Pfn};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use mmu::{Caps, Env, Fault, Leaf, MapError, Pae, Room, Tree};
use rcu::{Cpu, Space};
use walk::{Access, Kind};

pub(crate) const WHOLE: Range<Gva> = Gva::new(0)..Gva::new(1 << 32);
/// The largest page that a 32-bit guest has: what an INVLPG drops at most.
const REGION: u64 = PageSize::Size4M.bytes();
const REGIONS: usize = (1 << 32) / REGION as usize;
/// One in the upper half of [`Vtlb::suspended`].
const BEGUN: u64 = 1 << 32;

/// One vCPU's shadow: pages that it used since its last load of CR3, in a tree of its own.
///
/// Its vCPU calls it, but for [`suspend`](Self::suspend) and [`resume`](Self::resume). It has to be ended by [`free`](Self::free).
pub struct Vtlb<E: Env<Format = Pae<Gva>>> {
    tree: Tree<E>,
    /// Regions, a bit each, where an entry stands for a large page of the guest's, or for a piece of one.
    large: [AtomicU64; REGIONS / 64],
    /// Who is changing the frames of guest memory, in the lower half, and how often somebody began to, in the upper.
    suspended: AtomicU64,
    counters: Counters,
}

impl<E: Env<Format = Pae<Gva>>> Vtlb<E> {
    /// Nothing is mapped.
    ///
    /// # Errors
    /// [`NoMemory`]: no frame for the root.
    pub fn new(env: E, caps: Caps) -> Result<Self, NoMemory> {
        Ok(Self {
            tree: Tree::new(env, caps)?,
            large: core::array::from_fn(|_| AtomicU64::new(0)),
            suspended: AtomicU64::new(0),
            counters: Counters::new(),
        })
    }

    /// The frame of the four PDPTEs, below 4 GiB: the processor's CR3.
    pub fn root(&self) -> Pfn {
        self.tree.root()
    }

    /// The space to enter with this root.
    pub fn space(&self) -> &Space {
        self.tree.space()
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counters.read()
    }

    /// The vCPU has a new [context](crate::Change::Context): all is dropped.
    pub fn load(&self, cpu: &Cpu<'_, E::Platform>) {
        self.counters.count(Counter::Loads);
        self.large.iter().for_each(|regions| regions.store(0, Ordering::Relaxed));
        self.drop_all(cpu);
    }

    /// The vCPU runs INVLPG: the page at `gva` is dropped, whatever its size was.
    pub fn invlpg(&self, cpu: &Cpu<'_, E::Platform>, gva: Gva) {
        self.counters.count(Counter::Invlpgs);
        let gva = linear(gva);
        let (word, bit) = region(gva);
        if self.large[word].load(Ordering::Relaxed) & bit != 0 {
            self.zap(cpu, around(gva, REGION));
        } else {
            self.zap_page(cpu, gva);
        }
    }

    /// Guest memory is about to get other frames, or other rights to them: when this returns no processor uses any, nor will
    /// until [`resume`](Self::resume). Software may still be reading them, until a grace period from now has ended.
    pub fn suspend(&self, cpu: &Cpu<'_, E::Platform>) {
        self.suspended.fetch_add(BEGUN | 1, Ordering::Relaxed);
        // See `install`.
        fence(Ordering::SeqCst);
        self.drop_all(cpu);
    }

    /// What [`suspend`](Self::suspend) was called for is done.
    pub fn resume(&self) {
        self.suspended.fetch_sub(1, Ordering::Release);
    }

    /// The vCPU met a page fault at `gva`.
    ///
    /// # Errors
    /// [`NoMemory`]: for a table or for the page.
    pub fn fault<M: Memory>(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        mem: &M,
        registers: &Registers,
        gva: Gva,
        access: Access,
    ) -> Result<Outcome, NoMemory> {
        self.counters.count(Counter::Faults);
        let outcome = match resolve(mem, registers, gva, access) {
            Ok(page) => self.map(cpu, mem, linear(gva), page, access)?,
            Err(outcome) => outcome,
        };
        self.counters.count_outcome(outcome);
        Ok(outcome)
    }

    fn map<M: Memory>(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        mem: &M,
        gva: Gva,
        page: Resolved,
        access: Access,
    ) -> Result<Outcome, NoMemory> {
        let Resolved { gpa, size, .. } = page;
        let write = access.kind == Kind::Write;
        let suspended = self.suspended.load(Ordering::Acquire);
        if suspended as u32 != 0 {
            return Ok(Outcome::Retry);
        }
        let (backing, rights) = match page.entry(mem.backing(gpa, write)?, write) {
            Ok(entry) => entry,
            Err(outcome) => return Ok(outcome),
        };
        if size > PageSize::Size4K {
            let (word, bit) = region(gva);
            self.large[word].fetch_or(bit, Ordering::Relaxed);
        }
        loop {
            match self.tree.fault(cpu.read(), gva, size.min(backing.size)) {
                Ok(Fault::Room(room)) => return self.install(cpu, room, Leaf::new(backing.pfn, rights), suspended),
                Ok(Fault::Present(found)) if found.hpa.frame() == backing.pfn && found.leaf.rights == rights => {
                    return Ok(Outcome::Mapped);
                }
                Ok(Fault::Present(_)) => self.zap_page(cpu, gva),
                // No 32-bit address is.
                Err(mmu::OutOfRange) => return Ok(Outcome::Retry),
            }
        }
    }

    /// Maps the page, of whatever size the room is. Should a [`suspend`](Self::suspend) have come since the frame was asked
    /// for, either it sees the entry, or it is seen here: each side writes, fences, and reads what the other writes.
    fn install(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        room: Room<'_, E>,
        leaf: Leaf,
        suspended: u64,
    ) -> Result<Outcome, NoMemory> {
        let (start, size) = (room.start(), room.size());
        let pfn = Pfn::new(leaf.pfn.raw() & !(size.frames() - 1));
        // The processor has nothing to note: what is noted is in the guest's tables.
        match room.install(Leaf { pfn, accessed: true, dirty: leaf.rights.write, ..leaf }) {
            Ok(()) => {}
            Err(MapError::Raced | MapError::Present) => return Ok(Outcome::Retry),
            Err(MapError::NoMemory | MapError::Invalid) => return Err(NoMemory),
        }
        fence(Ordering::SeqCst);
        if self.suspended.load(Ordering::Relaxed) == suspended {
            return Ok(Outcome::Mapped);
        }
        self.zap_page(cpu, start);
        Ok(Outcome::Retry)
    }

    fn zap_page(&self, cpu: &Cpu<'_, E::Platform>, gva: Gva) {
        if self.tree.zap_page(cpu, gva) {
            self.counters.count(Counter::Zapped);
        }
    }

    fn zap(&self, cpu: &Cpu<'_, E::Platform>, range: Range<Gva>) {
        let zapped = self.tree.zap(cpu, range, |_| self.counters.count(Counter::Zapped));
        debug_assert_eq!(zapped, Ok(()), "no page lies across an edge of the range");
    }

    /// Unmaps all pages and gives the tables back.
    fn drop_all(&self, cpu: &Cpu<'_, E::Platform>) {
        let dropped = self.tree.unmap(cpu, WHOLE, |_| self.counters.count(Counter::Zapped));
        debug_assert!(dropped.is_ok(), "no page lies across the edges of all");
    }

    /// Gives the tables back. The vCPU does not run any more, and has flushed since it did. Tables that were dropped before
    /// come back by [`Cpu::poll`].
    pub fn free(self) {
        self.tree.free_pgtables(|_, _, _| {});
    }

    #[cfg(all(test, not(shuttle)))]
    pub(crate) fn tree(&self) -> &Tree<E> {
        &self.tree
    }
}

/// The address as the processor takes it outside of long mode.
pub(crate) const fn linear(gva: Gva) -> Gva {
    Gva::new(gva.raw() & 0xffff_ffff)
}

/// Where the bit of `gva`'s region is.
const fn region(gva: Gva) -> (usize, u64) {
    let region = (gva.raw() / REGION) as usize;
    (region / 64, 1 << (region % 64))
}

/// The `size` bytes, a power of two, around `gva`.
pub(crate) const fn around(gva: Gva, size: u64) -> Range<Gva> {
    let start = gva.align_down(size);
    start..start.wrapping_add(size)
}
