//! A guest's physical memory, and what the nested tables say of it.

use crate::{Memory, NestedFault, Resolved};
use addr::{Gpa, Gva, PAGE_SIZE};
use core::cell::{Cell, RefCell};
use std::vec;
use std::vec::Vec;
use walk::{Access, HandleMem, PhysMem};

/// Pages from address 0, of which one may be a hole; nothing behind them.
pub(super) struct TestMemory {
    bytes: RefCell<Vec<u8>>,
    pub(super) hole: Cell<Option<u64>>,
    pub(super) out_of_frames: Cell<bool>,
    /// Translations have to be flushed before the next entry.
    pub(super) stale: Cell<bool>,
    /// What another vCPU writes before the next compare-and-exchange: where, and what.
    pub(super) meanwhile: Cell<Option<(u64, u64)>>,
    /// How often the handlers looked at memory.
    pub(super) accesses: Cell<u64>,
    /// The table of the guest's that all faults write; none: each its own address.
    pub(super) table_at: Cell<Option<u64>>,
    /// What was a table of the guest's until it was written by something that can't be emulated.
    pub(super) given_up: Option<Gpa>,
}

impl TestMemory {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            bytes: RefCell::new(vec![0; pages * PAGE_SIZE as usize]),
            hole: Cell::new(None),
            out_of_frames: Cell::new(false),
            stale: Cell::new(false),
            meanwhile: Cell::new(None),
            accesses: Cell::new(0),
            table_at: Cell::new(None),
            given_up: None,
        }
    }

    /// Where `len` bytes at `at` are; None in a hole and behind the end.
    fn place(&self, at: Gpa, len: usize) -> Option<core::ops::Range<usize>> {
        self.accesses.set(self.accesses.get() + 1);
        assert!(at.page_offset() as usize + len <= PAGE_SIZE as usize, "{len} bytes at {at} are not in one page");
        let start = usize::try_from(at.raw()).ok()?;
        let end = start.checked_add(len)?;
        let backed = end <= self.bytes.borrow().len() && self.hole.get() != Some(at.frame().start().raw());
        backed.then_some(start..end)
    }

    fn get<const N: usize>(&self, at: Gpa) -> Option<[u8; N]> {
        let place = self.place(at, N)?;
        self.bytes.borrow()[place].try_into().ok()
    }

    pub(super) fn put(&self, at: u64, bytes: &[u8]) {
        self.bytes.borrow_mut()[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn put_u64(&self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    pub(super) fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        self.bytes.borrow()[at as usize..at as usize + N].try_into().expect("the range has N bytes")
    }

    /// All of it, to compare.
    pub(super) fn snapshot(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }
}

impl Memory for TestMemory {
    /// All memory is the guest's tables.
    fn shadow_fault(
        &mut self,
        _: &shadow::Registers,
        at: Gva,
        _: Access,
    ) -> Result<shadow::FaultOutcome, shadow::NoMemory> {
        let gpa = Gpa::new(self.table_at.get().unwrap_or(at.raw()));
        Ok(shadow::FaultOutcome::Emulate { gpa, reason: shadow::Reason::Table })
    }
    fn unshadow(&mut self, at: Gpa) {
        self.given_up = Some(at);
    }

    fn fault(&mut self, fault: NestedFault) -> Resolved {
        match self.place(fault.address(), 1) {
            None => Resolved::NotMemory,
            Some(_) if self.out_of_frames.get() => Resolved::OutOfMemory,
            Some(_) => Resolved::Retry,
        }
    }

    fn guest<R>(&mut self, enter: impl FnOnce(bool) -> R) -> R {
        enter(self.stale.take())
    }
}

impl PhysMem for TestMemory {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        assert!(at.is_aligned(8));
        self.get(at).map(u64::from_le_bytes)
    }
    fn read_u32(&self, at: Gpa) -> Option<u32> {
        assert!(at.is_aligned(4));
        self.get(at).map(u32::from_le_bytes)
    }
    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        if let Some((at, value)) = self.meanwhile.take() {
            self.put_u64(at, value);
        }
        let same = self.read_u64(at)? == old;
        if same {
            self.put(at.raw(), &new.to_le_bytes());
        }
        Some(same)
    }
    fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        let same = self.read_u32(at)? == old;
        if same {
            self.put(at.raw(), &new.to_le_bytes());
        }
        Some(same)
    }
    fn read(&self, at: Gpa, bytes: &mut [u8]) -> Option<()> {
        let place = self.place(at, bytes.len())?;
        bytes.copy_from_slice(&self.bytes.borrow()[place]);
        Some(())
    }
    fn write(&self, at: Gpa, bytes: &[u8]) -> Option<()> {
        let place = self.place(at, bytes.len())?;
        self.bytes.borrow_mut()[place].copy_from_slice(bytes);
        Some(())
    }
}

impl HandleMem for TestMemory {
    type Handle = Gpa;

    fn handle(&self, at: Gpa) -> Option<Gpa> {
        assert!(at.is_aligned(8));
        self.place(at, 8).map(|_| at)
    }
    fn load(&self, handle: Gpa) -> u64 {
        self.read_u64(handle).expect("a handle has memory")
    }
    fn load_u32(&self, handle: Gpa, offset: u64) -> u32 {
        self.get(handle.wrapping_add(offset)).map(u32::from_le_bytes).expect("a handle has memory")
    }
    fn generation(&self) -> u64 {
        // Holes come and go.
        self.hole.get().unwrap_or(1)
    }
}
