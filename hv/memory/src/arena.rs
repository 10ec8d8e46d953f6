//! A machine's memory in a piece of the host's: for tests, fuzzing and examples.

use crate::account::VmAccounts;
use crate::frames::FrameAllocator;
use crate::host::HostMemory;
use addr::{Hpa, PAGE_SIZE, Pfn};
use buddy::Buddy;
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};
use mmu::TableDesc;
use rcu::{CpuData, Domain, Head, Platform};
use sched::{Heart, Watchdog};
use std::alloc::{alloc, dealloc, handle_alloc_error};
use std::boxed::Box;

/// How many CPUs an arena has.
pub const CPUS: usize = 2;

/// Pages that may wait for a grace period on one CPU before it hurries.
const BACKLOG_LIMIT: u64 = 64;

/// What frames hold before they are used.
const GARBAGE: u8 = 0x5a;

/// The first frame that the allocator has.
const FIRST: u64 = 1;

/// A machine of [`CPUS`] CPUs whose frames are a piece of the heap. Its direct map is that piece: physical addresses count from its
/// beginning.
pub struct Arena {
    descriptors: Box<[TableDesc]>,
    frames: FrameAllocator,
    accounts: VmAccounts,
    watchdog: Watchdog<CPUS>,
    kicked: [AtomicBool; CPUS],
    #[cfg(shuttle)]
    tables: Box<[std::sync::OnceLock<Box<[mmu::AtomicU64; 512]>>]>,
    /// Dropped after `frames`, whose bits are in it.
    memory: Block,
}

impl Arena {
    /// The CPUs of a machine with `frames` frames, all free but the first, and all filled with garbage.
    ///
    /// # Panics
    /// There are fewer than two.
    #[must_use]
    pub fn domain(frames: usize) -> Domain<Self, [CpuData; CPUS]> {
        Domain::new(Self::new(frames), BACKLOG_LIMIT)
    }

    fn new(frames: usize) -> Self {
        let page = PAGE_SIZE as usize;
        let words = Buddy::words(frames);
        let memory = Block::new(frames * page + words * size_of::<u64>());
        // SAFETY: the block has this many words behind its frames, at an aligned address and filled; nothing else refers to them,
        // and the block is dropped after the allocator that this reference is in.
        let bits =
            unsafe { core::slice::from_raw_parts_mut(memory.start().wrapping_add(frames * page).cast::<u64>(), words) };
        let allocator = FrameAllocator::new();
        allocator.init(Buddy::new(frames, bits).expect("it has as many words as it asks for"));
        allocator.add(Pfn::new(FIRST).start()..Pfn::new(frames as u64).start());
        Self {
            descriptors: (0..frames).map(|_| TableDesc::new()).collect(),
            frames: allocator,
            accounts: VmAccounts::new(),
            watchdog: Watchdog::new(),
            kicked: [const { AtomicBool::new(false) }; CPUS],
            #[cfg(shuttle)]
            tables: (0..frames).map(|_| std::sync::OnceLock::new()).collect(),
            memory,
        }
    }

    /// Whether CPU `cpu` was kicked since this was last asked.
    pub fn take_kick(&self, cpu: usize) -> bool {
        self.kicked[cpu].swap(false, Ordering::Relaxed)
    }
}

impl Platform for Arena {
    fn head(&self, page: Pfn) -> &Head {
        self.descriptors[page.raw() as usize].head()
    }

    fn kick(&self, cpu: usize) {
        self.kicked[cpu].store(true, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        0
    }
}

// SAFETY: the block has a page for each descriptor, one behind the other, and lives as long as the arena; the allocator has these
// frames alone, and nothing else uses them; `head` is the descriptor's.
unsafe impl HostMemory for Arena {
    #[inline]
    fn direct(&self, at: Hpa) -> *mut u8 {
        self.memory.start().wrapping_add(at.raw() as usize)
    }

    fn descriptors(&self) -> &[TableDesc] {
        &self.descriptors
    }

    fn frames(&self) -> &FrameAllocator {
        &self.frames
    }

    fn accounts(&self) -> &VmAccounts {
        &self.accounts
    }

    fn heart(&self, cpu: usize) -> &Heart {
        self.watchdog.heart(cpu)
    }

    #[cfg(shuttle)]
    fn table(&self, table: Pfn) -> Option<&[mmu::AtomicU64; 512]> {
        let new = || Box::new(core::array::from_fn(|_| mmu::AtomicU64::new(0)));
        Some(self.tables.get(table.raw() as usize)?.get_or_init(new))
    }
}

/// A piece of the heap, aligned to a page.
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is memory, which knows no thread.
unsafe impl Send for Block {}
// SAFETY: as above; what is done by its pointer is for the user to order.
unsafe impl Sync for Block {}

impl Block {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, PAGE_SIZE as usize).expect("it fits the address space");
        assert_ne!(bytes, 0, "there are no frames");
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        // SAFETY: the block is this large.
        unsafe { start.write_bytes(GARBAGE, bytes) };
        Self { start, layout }
    }

    const fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
