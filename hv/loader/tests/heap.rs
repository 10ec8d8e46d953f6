//! What an allocation takes of the hypervisor's heap, by the allocator that the image has.

use buddy_system_allocator::Heap;
use loader::need::heap_block;
use std::alloc::Layout;

#[test]
fn an_allocation_takes_a_block_of_the_heap() {
    let mut memory = vec![0u8; 1 << 20];
    let mut heap = Heap::<33>::new();
    // SAFETY: the memory outlives the heap, and nothing else uses it.
    unsafe { heap.init(memory.as_mut_ptr() as usize, memory.len()) };
    for (size, align) in [(1, 1), (8, 8), (24, 8), (4096, 4096), (100, 512), (70_000, 16)] {
        let layout = Layout::from_size_align(size, align).unwrap();
        let before = heap.stats_alloc_actual();
        let block = heap.alloc(layout).unwrap();
        assert_eq!(heap.stats_alloc_actual() - before, heap_block(layout), "{layout:?}");
        // SAFETY: it was allocated just now, with this layout.
        unsafe { heap.dealloc(block, layout) };
    }
}
