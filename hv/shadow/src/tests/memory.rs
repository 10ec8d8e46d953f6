//! A guest's memory: a few pages for tables and data, and two pages of 2 MiB.

use crate::{Backing, BackingPage, Memory, NoMemory};
use addr::{Gpa, Hpa, PAGE_SIZE, PageSize, Pfn};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use walk::PhysMem;

/// The number of small pages, which begin at 0.
pub(super) const PAGES: u64 = 12;
/// Where the memory with large frames begins.
pub(super) const LARGE: u64 = 4 << 20;
const LARGE_END: u64 = LARGE + (4 << 20);
/// The number of the page that is read-only memory.
pub(super) const ROM: u64 = PAGES - 1;

/// The content: the words that are not zero, by address.
pub(super) type Words = BTreeMap<u64, u64>;

pub(super) struct GuestMemory {
    pub(super) words: RefCell<Words>,
    /// For each small page, how often it got another frame.
    moved: RefCell<[u64; PAGES as usize]>,
    /// How many calls of `backing` succeed until one fails.
    pub(super) budget: Cell<Option<usize>>,
}

const fn backed(at: u64) -> bool {
    at < PAGES * PAGE_SIZE || (at >= LARGE && at < LARGE_END)
}

impl GuestMemory {
    pub(super) fn new(words: Words) -> Self {
        Self { words: RefCell::new(words), moved: RefCell::default(), budget: Cell::new(None) }
    }

    /// Gives small page `page` another frame.
    pub(super) fn replace(&self, page: u64) {
        self.moved.borrow_mut()[page as usize] += 1;
    }

    fn frame(&self, at: u64) -> Pfn {
        match self.moved.borrow().get((at / PAGE_SIZE) as usize) {
            Some(moved) => Pfn::new(0x1000 + at / PAGE_SIZE + moved * PAGES),
            None => Pfn::new(0x10_0000 + at / PAGE_SIZE),
        }
    }

    /// The guest-physical address of the memory that the processor reaches at `hpa`.
    ///
    /// # Panics
    /// If the guest does not have that frame, or not any more.
    pub(super) fn reached(&self, hpa: Hpa) -> Gpa {
        let small = (0..PAGES).map(|page| page * PAGE_SIZE);
        let at = small.chain((LARGE..LARGE_END).step_by(PAGE_SIZE as usize)).find(|&at| self.frame(at) == hpa.frame());
        Gpa::new(at.unwrap_or_else(|| panic!("{hpa:?} is no frame of the memory's")) + hpa.page_offset())
    }
}

/// The content of memory, without frames.
pub(super) struct Plain<'w>(pub(super) &'w RefCell<Words>);

impl PhysMem for Plain<'_> {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        backed(at.raw()).then(|| self.0.borrow().get(&at.raw()).copied().unwrap_or(0))
    }

    fn read_u32(&self, at: Gpa) -> Option<u32> {
        Some((self.read_u64(at.align_down(8))? >> ((at.raw() & 4) * 8)) as u32)
    }

    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        let same = self.read_u64(at)? == old;
        if same {
            self.write(at, &new.to_le_bytes())?;
        }
        Some(same)
    }

    fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        let same = self.read_u32(at)? == old;
        if same {
            self.write(at, &new.to_le_bytes())?;
        }
        Some(same)
    }

    fn read(&self, at: Gpa, bytes: &mut [u8]) -> Option<()> {
        for (at, byte) in (at.raw()..).zip(bytes) {
            *byte = self.read_u64(Gpa::new(at & !7))?.to_le_bytes()[at as usize & 7];
        }
        Some(())
    }

    fn write(&self, at: Gpa, bytes: &[u8]) -> Option<()> {
        for (at, &byte) in (at.raw()..).zip(bytes) {
            let mut word = self.read_u64(Gpa::new(at & !7))?.to_le_bytes();
            word[at as usize & 7] = byte;
            match u64::from_le_bytes(word) {
                0 => self.0.borrow_mut().remove(&(at & !7)),
                word => self.0.borrow_mut().insert(at & !7, word),
            };
        }
        Some(())
    }
}

impl PhysMem for GuestMemory {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        Plain(&self.words).read_u64(at)
    }
    fn read_u32(&self, at: Gpa) -> Option<u32> {
        Plain(&self.words).read_u32(at)
    }
    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        Plain(&self.words).cmpxchg_u64(at, old, new)
    }
    fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        Plain(&self.words).cmpxchg_u32(at, old, new)
    }
    fn read(&self, at: Gpa, bytes: &mut [u8]) -> Option<()> {
        Plain(&self.words).read(at, bytes)
    }
    fn write(&self, at: Gpa, bytes: &[u8]) -> Option<()> {
        Plain(&self.words).write(at, bytes)
    }
}

impl Memory for GuestMemory {
    fn backing(&self, at: Gpa, _write: bool) -> Result<Backing, NoMemory> {
        if let Some(budget) = self.budget.get() {
            self.budget.set(Some(budget.checked_sub(1).ok_or(NoMemory)?));
        }
        let size = if at.raw() < LARGE { PageSize::Size4K } else { PageSize::Size2M };
        let page = BackingPage { pfn: self.frame(at.raw()), write: at.frame().raw() != ROM, size };
        Ok(if backed(at.raw()) { Backing::Page(page) } else { Backing::None })
    }
}

/// What a fault has just done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// It has walked the guest's tables, and got the backing of the page.
    Backing,
    /// It has read an entry of four bytes.
    Read(Gpa),
}

/// The same memory, and what another CPU does at moments of a fault.
pub(super) struct Meanwhile<'m, F>(pub(super) &'m GuestMemory, pub(super) F);

impl<F: Fn(Moment)> PhysMem for Meanwhile<'_, F> {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        self.0.read_u64(at)
    }
    fn read_u32(&self, at: Gpa) -> Option<u32> {
        let entry = self.0.read_u32(at);
        (self.1)(Moment::Read(at));
        entry
    }
    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        self.0.cmpxchg_u64(at, old, new)
    }
    fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        self.0.cmpxchg_u32(at, old, new)
    }
    fn read(&self, at: Gpa, bytes: &mut [u8]) -> Option<()> {
        self.0.read(at, bytes)
    }
    fn write(&self, at: Gpa, bytes: &[u8]) -> Option<()> {
        self.0.write(at, bytes)
    }
}

impl<F: Fn(Moment)> Memory for Meanwhile<'_, F> {
    fn backing(&self, at: Gpa, write: bool) -> Result<Backing, NoMemory> {
        let backing = self.0.backing(at, write);
        (self.1)(Moment::Backing);
        backing
    }
}
