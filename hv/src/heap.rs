//! The hypervisor's heap: a buddy allocator, which grows by the machine's frames until the first guest starts.
//!
//! What the VMs need of it is [counted](crate::vms) before they are built. No guest can make the hypervisor allocate: the
//! allocations that are made while guests run are counted as well, and tests hold that to 0.

use crate::frames::FRAMES;
use crate::paging;
use crate::verdict::{self, Verdict};
use abi::lines::HeapUsage;
use addr::PAGE_SIZE;
use buddy_system_allocator::Heap;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loader::need::heap_block;
use spin::Mutex;

/// Enough for the boot information, until the frame allocator is set up.
const SIZE: usize = 1 << 20;

/// The largest block is 1 GiB.
const ORDERS: usize = 31;

/// What the heap grows by at least.
const GROWTH: usize = 256 << 10;

#[repr(C, align(4096))]
struct Arena(UnsafeCell<[u8; SIZE]>);

// SAFETY: `init` hands the arena over to the allocator, whose lock guards it from then on.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([0; SIZE]));

struct LockedHeap(Mutex<Heap<ORDERS>>);

#[global_allocator]
static HEAP: LockedHeap = LockedHeap(Mutex::new(Heap::empty()));

/// Whether guests run.
static GUESTS_RUN: AtomicBool = AtomicBool::new(false);
/// How many allocations there were while they did.
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// Makes the arena the heap.
///
/// # Safety
/// Once, before anything is allocated.
pub(crate) unsafe fn init() {
    // SAFETY: the arena is used by nothing else, and lives for ever.
    unsafe { HEAP.0.lock().init(ARENA.0.get() as usize, SIZE) };
}

/// Guests start: from now on allocations are counted, and the heap grows no more.
pub(crate) fn guests_start() {
    GUESTS_RUN.store(true, Ordering::Relaxed);
}

/// How the heap is used now.
pub(crate) fn usage() -> HeapUsage {
    let heap = HEAP.0.lock();
    HeapUsage {
        used_kib: heap.stats_alloc_actual() as u64 >> 10,
        total_kib: heap.stats_total_bytes() as u64 >> 10,
        allocations: ALLOCATIONS.load(Ordering::Relaxed) as u64,
    }
}

/// Adds frames for an allocation that found no room.
fn grow(layout: Layout) -> Option<()> {
    let bytes = heap_block(layout).max(GROWTH);
    let start = paging::direct(FRAMES.alloc_contiguous(bytes.div_ceil(PAGE_SIZE as usize))?.start()) as usize;
    // SAFETY: the direct map covers the frames, which are the heap's from now on.
    unsafe { HEAP.0.lock().add_to_heap(start, start + bytes) };
    Some(())
}

impl LockedHeap {
    fn try_alloc(&self, layout: Layout) -> Option<NonNull<u8>> {
        self.0.lock().alloc(layout).ok()
    }

    /// Another CPU may take what was added.
    #[cold]
    fn alloc_by_growing(&self, layout: Layout) -> NonNull<u8> {
        loop {
            if let Some(block) = self.try_alloc(layout) {
                return block;
            }
            if grow(layout).is_none() {
                let (bytes, left) = (heap_block(layout), FRAMES.available());
                let missing = format_args!("the hypervisor's heap lacks {bytes} bytes, and {left} frames are left");
                verdict::end(Verdict::NoMemory, missing);
            }
        }
    }
}

// SAFETY: the buddy allocator gives out disjoint blocks of at least the size and alignment asked for.
unsafe impl GlobalAlloc for LockedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !GUESTS_RUN.load(Ordering::Relaxed) {
            return self.alloc_by_growing(layout).as_ptr();
        }
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        self.try_alloc(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = NonNull::new(pointer) {
            // SAFETY: the caller's promise: `pointer` came from `alloc` with this layout.
            unsafe { self.0.lock().dealloc(pointer, layout) };
        }
    }
}
