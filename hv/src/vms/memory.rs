//! A VM's memory: nested page tables over frames that are given on first touch.

use crate::frames::Pool;
use crate::paging;
use addr::{Gpa, Hpa, PAGE_SIZE, PageSize, Pfn};
use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loader::{GuestMemory, GuestRam, MemoryError};
use vm::{NestedFault, Resolved};
use walk::{PhysMem, SlotMem};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const LEAF: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// One VM's memory.
pub(crate) struct Memory {
    root: Pfn,
    ram: GuestRam,
    largest: PageSize,
    pool: RefCell<Pool>,
    generation: Cell<u64>,
}

/// A table's entry.
fn entry(table: Hpa, index: u64) -> &'static AtomicU64 {
    // SAFETY: `table` is a frame of this VM's tables, index is below 512.
    unsafe { &*paging::direct(table).cast::<AtomicU64>().add(index as usize) }
}

impl Memory {
    /// Nothing mapped yet. None if there is not a single frame.
    pub(crate) fn new(ram: GuestRam, largest: PageSize) -> Option<Self> {
        let mut pool = Pool::new();
        let root = zeroed(&mut pool, PageSize::Size4K)?;
        Some(Self { root, ram, largest, pool: RefCell::new(pool), generation: Cell::new(0) })
    }

    /// Where the processor starts its walks.
    pub(crate) fn root(&self) -> Hpa {
        self.root.start()
    }

    /// What backs `at`, and how far it goes.
    fn translate(&self, at: Gpa) -> Option<Hpa> {
        let mut table = self.root();
        for shift in [39, 30, 21, 12] {
            let value = entry(table, at.raw() >> shift & 511).load(Ordering::Relaxed);
            if value & PRESENT == 0 {
                return None;
            }
            if value & LEAF != 0 || shift == 12 {
                let mask = (1 << shift) - 1;
                return Some(Hpa::new(value & ADDRESS & !mask | at.raw() & mask));
            }
            table = Hpa::new(value & ADDRESS);
        }
        None
    }

    fn leaf_size(&self, at: Gpa) -> PageSize {
        let start = at.align_down(PageSize::Size2M.bytes());
        let whole = self.ram.backs(start.wrapping_add(PageSize::Size2M.bytes() - 1));
        if whole { self.largest } else { PageSize::Size4K }
    }

    fn populate(&self, at: Gpa) -> Result<Hpa, MemoryError> {
        if let Some(found) = self.translate(at) {
            return Ok(found);
        }
        if !self.ram.backs(at) {
            return Err(MemoryError::Outside(at));
        }
        let mut pool = self.pool.borrow_mut();
        let size = self.leaf_size(at);
        let mut table = self.root();
        for shift in [39, 30, 21, 12] {
            let slot = entry(table, at.raw() >> shift & 511);
            if shift == size.shift() {
                let frame = zeroed(&mut pool, size).ok_or(MemoryError::NoFrames)?;
                let leaf = if size == PageSize::Size4K { 0 } else { LEAF };
                slot.store(frame.start().raw() | PRESENT | WRITABLE | USER | leaf, Ordering::Release);
                break;
            }
            if slot.load(Ordering::Relaxed) & PRESENT == 0 {
                let below = zeroed(&mut pool, PageSize::Size4K).ok_or(MemoryError::NoFrames)?;
                slot.store(below.start().raw() | PRESENT | WRITABLE | USER, Ordering::Release);
            }
            table = Hpa::new(slot.load(Ordering::Relaxed) & ADDRESS);
        }
        self.generation.set(self.generation.get() + 1);
        drop(pool);
        self.translate(at).ok_or(MemoryError::NoFrames)
    }

    /// Gives every frame back; how many did not come back.
    pub(crate) fn free(self) -> u64 {
        self.free_table(self.root(), 39);
        self.pool.borrow_mut().free(self.root, PageSize::Size4K);
        self.pool.borrow().outstanding()
    }

    fn free_table(&self, table: Hpa, shift: u32) {
        for index in 0..512 {
            let value = entry(table, index).load(Ordering::Relaxed);
            let frame = Hpa::new(value & ADDRESS).frame();
            match (value & PRESENT != 0, value & LEAF != 0, shift) {
                (false, _, _) => {}
                (true, false, 12) => self.pool.borrow_mut().free(frame, PageSize::Size4K),
                (true, true, _) => self.pool.borrow_mut().free(frame, PageSize::Size2M),
                (true, false, _) => {
                    self.free_table(frame.start(), shift - 9);
                    self.pool.borrow_mut().free(frame, PageSize::Size4K);
                }
            }
        }
    }

    /// Runs `access` on the host's side of each piece of `bytes` bytes from `at` on.
    fn for_each_piece(
        &self,
        at: Gpa,
        bytes: u64,
        mut access: impl FnMut(*mut u8, core::ops::Range<usize>),
    ) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < bytes {
            let gpa = at.checked_add(done).ok_or(MemoryError::Outside(at))?;
            let length = (PAGE_SIZE - gpa.page_offset()).min(bytes - done);
            let host = paging::direct(self.populate(gpa)?);
            access(host, done as usize..(done + length) as usize);
            done += length;
        }
        Ok(())
    }
}

fn zeroed(pool: &mut Pool, size: PageSize) -> Option<Pfn> {
    let frame = pool.alloc(size)?;
    // SAFETY: the frame is nobody else's yet.
    unsafe { zero(paging::direct(frame.start()), size.bytes()) };
    Some(frame)
}

/// Fills with zeroes, eight bytes at a time.
///
/// # Safety
/// `bytes` writable bytes are at `start`; both are multiples of 8.
unsafe fn zero(start: *mut u8, bytes: u64) {
    // SAFETY: the caller's promise; the direction flag is clear in Rust code.
    unsafe {
        core::arch::asm!("rep stosq", inout("rdi") start => _, inout("rcx") bytes / 8 => _, in("rax") 0u64, options(nostack));
    }
}

impl GuestMemory for Memory {
    fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        self.for_each_piece(at, bytes.len() as u64, |host, range| {
            // SAFETY: the range's length of guest memory is at `host`, and the guest does not run.
            unsafe { host.copy_from_nonoverlapping(bytes[range.clone()].as_ptr(), range.len()) };
        })
    }

    fn zero(&mut self, at: Gpa, bytes: u64) -> Result<(), MemoryError> {
        self.for_each_piece(at, bytes, |host, range| {
            // SAFETY: as in `write`.
            unsafe { host.write_bytes(0, range.len()) };
        })
    }
}

impl vm::Memory for Memory {
    #[inline]
    fn fault(&self, fault: NestedFault) -> Resolved {
        match self.populate(fault.address) {
            Ok(_) => Resolved::Retry,
            Err(MemoryError::Outside(_)) => Resolved::NotMemory,
            Err(MemoryError::NoFrames) => Resolved::OutOfMemory,
        }
    }
}

impl PhysMem for Memory {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        // SAFETY: guest memory is mapped in the direct map; `at` is aligned; the guest's own accesses are atomic to this one.
        Some(unsafe { &*paging::direct(self.populate(at).ok()?).cast::<AtomicU64>() }.load(Ordering::Acquire))
    }

    fn read_u32(&self, at: Gpa) -> Option<u32> {
        // SAFETY: as in `read_u64`.
        Some(unsafe { &*paging::direct(self.populate(at).ok()?).cast::<AtomicU32>() }.load(Ordering::Acquire))
    }

    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        // SAFETY: as in `read_u64`.
        let entry = unsafe { &*paging::direct(self.populate(at).ok()?).cast::<AtomicU64>() };
        Some(entry.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        // SAFETY: as in `read_u64`.
        let entry = unsafe { &*paging::direct(self.populate(at).ok()?).cast::<AtomicU32>() };
        Some(entry.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    fn read(&self, at: Gpa, bytes: &mut [u8]) -> Option<()> {
        let host = paging::direct(self.populate(at).ok()?);
        // SAFETY: the bytes lie in one page, which is mapped.
        unsafe { host.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Some(())
    }

    fn write(&self, at: Gpa, bytes: &[u8]) -> Option<()> {
        let host = paging::direct(self.populate(at).ok()?);
        // SAFETY: as in `read`.
        unsafe { host.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Some(())
    }
}

impl SlotMem for Memory {
    type Slot = *const AtomicU64;

    fn slot(&self, at: Gpa) -> Option<Self::Slot> {
        Some(paging::direct(self.populate(at).ok()?).cast())
    }

    #[inline]
    fn load(&self, slot: Self::Slot) -> u64 {
        // SAFETY: slots point to guest memory, which stays mapped in the direct map.
        unsafe { &*slot }.load(Ordering::Acquire)
    }

    #[inline]
    fn load_u32(&self, slot: Self::Slot, offset: u64) -> u32 {
        let bytes = slot.wrapping_byte_add(offset as usize).cast::<[u8; 4]>();
        // SAFETY: as above, and the four bytes are in the same page. The guest may write them meanwhile: hence volatile.
        u32::from_le_bytes(unsafe { bytes.read_volatile() })
    }

    #[inline]
    fn generation(&self) -> u64 {
        self.generation.get()
    }
}
