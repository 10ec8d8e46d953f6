//! The hypervisor's heap: a buddy allocator on a piece of the image. Nothing on a common exit's path allocates from it.

use buddy_system_allocator::Heap;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use spin::Mutex;

/// Enough for every CPU's tables, every VM's control structures, and the lists of frames.
const SIZE: usize = 8 << 20;

#[repr(C, align(4096))]
struct Arena(UnsafeCell<[u8; SIZE]>);

// SAFETY: `init` hands the arena over to the allocator, whose lock guards it from then on.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([0; SIZE]));

struct LockedHeap(Mutex<Heap<{ SIZE.ilog2() as usize + 1 }>>);

#[global_allocator]
static HEAP: LockedHeap = LockedHeap(Mutex::new(Heap::empty()));

/// Makes the arena the heap.
///
/// # Safety
/// Once, before anything is allocated.
pub(crate) unsafe fn init() {
    // SAFETY: the arena is used by nothing else, and lives for ever.
    unsafe { HEAP.0.lock().init(ARENA.0.get() as usize, SIZE) };
}

// SAFETY: the buddy allocator gives out disjoint blocks of at least the size and alignment asked for.
unsafe impl GlobalAlloc for LockedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().alloc(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = NonNull::new(pointer) {
            // SAFETY: the caller's promise: `pointer` came from `alloc` with this layout.
            unsafe { self.0.lock().dealloc(pointer, layout) };
        }
    }
}
