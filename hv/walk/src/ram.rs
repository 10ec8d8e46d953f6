//! Memory of a guest for tests and fuzzing.

use crate::{HandleMem, PhysMem};
use addr::Gpa;
use std::cell::{Cell, RefCell};
use std::vec;
use std::vec::Vec;

/// A guest's memory of a few pages, from address 0.
pub(crate) struct Ram {
    words: RefCell<Vec<u64>>,
    pub(crate) generation: Cell<u64>,
    /// Added to the index of each address: stands for the mapping of guest to host memory.
    pub(crate) shift: Cell<usize>,
    /// The number of exchanges that fail from now on, as if other CPUs wrote the entry.
    pub(crate) contention: Cell<usize>,
    /// The number of reads of eight-byte entries by walks.
    pub(crate) reads: Cell<usize>,
}

impl Ram {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            words: RefCell::new(vec![0; pages * 512]),
            generation: Cell::new(0),
            shift: Cell::new(0),
            contention: Cell::new(0),
            reads: Cell::new(0),
        }
    }

    pub(crate) fn set(&self, at: u64, value: u64) {
        self.words.borrow_mut()[at as usize / 8 + self.shift.get()] = value;
    }

    pub(crate) fn set32(&self, at: u64, value: u32) {
        let old = self.read_u64(Gpa::new(at & !7)).unwrap();
        let shift = (at & 4) * 8;
        self.set(at & !7, (old & !(0xffff_ffff << shift)) | u64::from(value) << shift);
    }

    #[cfg(test)]
    pub(crate) fn get(&self, at: u64) -> u64 {
        self.read_u64(Gpa::new(at)).unwrap()
    }
}

impl std::fmt::Debug for Ram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words = self.words.borrow();
        let used = words.iter().enumerate().filter(|(_, word)| **word != 0);
        f.debug_map().entries(used.map(|(n, word)| (std::format!("{:#x}", n * 8), std::format!("{word:#x}")))).finish()
    }
}

impl PhysMem for Ram {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        assert!(at.is_aligned(8));
        self.reads.set(self.reads.get() + 1);
        self.handle(at).map(|handle| self.load(handle))
    }

    fn read_u32(&self, at: Gpa) -> Option<u32> {
        assert!(at.is_aligned(4));
        self.read_u64(at.align_down(8)).map(|word| (word >> ((at.raw() & 4) * 8)) as u32)
    }

    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        let found = self.read_u64(at)?;
        if self.contention.get() > 0 {
            self.contention.set(self.contention.get() - 1);
            return Some(false);
        }
        if found == old {
            self.set(at.raw(), new);
        }
        Some(found == old)
    }

    fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        let found = self.read_u32(at)?;
        if found == old {
            self.set32(at.raw(), new);
        }
        Some(found == old)
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
            self.set(at & !7, u64::from_le_bytes(word));
        }
        Some(())
    }
}

impl HandleMem for Ram {
    type Handle = usize;

    fn handle(&self, at: Gpa) -> Option<usize> {
        let index = usize::try_from(at.raw() / 8).ok()?.checked_add(self.shift.get())?;
        (index < self.words.borrow().len()).then_some(index)
    }

    fn load(&self, handle: usize) -> u64 {
        self.words.borrow()[handle]
    }

    fn load_u32(&self, handle: usize, offset: u64) -> u32 {
        assert!(offset <= 4092);
        let byte = |at: u64| self.load(handle + at as usize / 8).to_le_bytes()[at as usize % 8];
        u32::from_le_bytes(core::array::from_fn(|n| byte(offset + n as u64)))
    }

    fn generation(&self) -> u64 {
        self.generation.get()
    }
}
