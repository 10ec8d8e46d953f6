//! A shadow's use of the heap: the allocations that [`Shadow::allocations`] predicts when it is made, and none afterwards.
#![cfg(not(any(loom, shuttle)))]

use addr::{Gpa, Gva, PageSize, Pfn};
use core::alloc::{GlobalAlloc, Layout};
use core::cell::{Cell, RefCell};
use mmu::pool::{Memory, Pool, domain};
use mmu::{Caps, NoMemory, Pae};
use shadow::{Backing, BackingPage, Capacity, Counter, Registers, Shadow, Writer};
use std::alloc::System;
use walk::{Access, AccessKind, Features, PhysMem, Privilege};

const ROOM: usize = 256;
const FEATURES: Features = Features { maxphyaddr: 40, pages_1g: false, pse36: true, pml4e_bit8_reserved: false };
const WRITE: Access = Access { kind: AccessKind::Write, privilege: Privilege::Supervisor { ac: false } };

thread_local! {
    /// The allocations of this thread since it began to record them: sizes and alignments.
    static RECORDED: RefCell<[(usize, usize); ROOM]> = const { RefCell::new([(0, 0); ROOM]) };
    static COUNT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The system's allocator, which records allocations.
struct Recorder;

#[global_allocator]
static ALLOCATOR: Recorder = Recorder;

// SAFETY: `System` keeps the trait's contract, and recording does not allocate.
unsafe impl GlobalAlloc for Recorder {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(count) = COUNT.get() {
            RECORDED.with_borrow_mut(|recorded| recorded[count] = (layout.size(), layout.align()));
            COUNT.set(Some(count + 1));
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The result of `act`, and its allocations in order of size.
fn recording<R>(act: impl FnOnce() -> R) -> (R, Vec<(usize, usize)>) {
    COUNT.set(Some(0));
    let result = act();
    let count = COUNT.take().unwrap_or_default();
    let mut recorded = RECORDED.with_borrow(|recorded| recorded[..count].to_vec());
    recorded.sort_unstable();
    (result, recorded)
}

/// Guest memory that reads as zeros. The frame of each page has the page's number.
struct Zeroes;

impl PhysMem for Zeroes {
    fn read_u64(&self, _: Gpa) -> Option<u64> {
        Some(0)
    }
    fn read_u32(&self, _: Gpa) -> Option<u32> {
        Some(0)
    }
    fn cmpxchg_u64(&self, _: Gpa, _: u64, _: u64) -> Option<bool> {
        Some(true)
    }
    fn cmpxchg_u32(&self, _: Gpa, _: u32, _: u32) -> Option<bool> {
        Some(true)
    }
    fn read(&self, _: Gpa, bytes: &mut [u8]) -> Option<()> {
        bytes.fill(0);
        Some(())
    }
    fn write(&self, _: Gpa, _: &[u8]) -> Option<()> {
        Some(())
    }
}

impl shadow::Memory for Zeroes {
    fn backing(&self, at: Gpa, write: bool) -> Result<Backing, NoMemory> {
        Ok(Backing::Page(BackingPage { pfn: Pfn::new(at.frame().raw()), write, size: PageSize::Size4K }))
    }
}

#[test]
fn a_shadow_allocates_what_it_predicts_and_nothing_later() {
    const ROOTS: usize = 5;
    const CAPACITY: Capacity = Capacity { tables: 16, uses: 16, mappings: 64 };
    let memory = Memory::<Pae<Gva>>::new(256);
    let domain = domain::<_, 1>(&memory);
    let cpu = domain.register(0).unwrap();
    let caps = Caps::new(40, PageSize::Size2M, true);

    let make = |roots| Shadow::new((0..roots).map(|_| Pool::new(&memory, &domain)), caps, CAPACITY, 1).unwrap();
    let free = |shadow: Shadow<_>| shadow.into_trees().into_iter().for_each(|tree| tree.free_pgtables(|_, _, _| {}));
    // What is allocated once for all shadows, as by `cargo xtask mutants`, belongs to none.
    free(make(1));
    let (shadow, allocated) = recording(|| make(ROOTS));
    let predicted = Shadow::<Pool<Pae<Gva>>>::allocations(ROOTS, CAPACITY);
    let mut predicted: Vec<_> = predicted.map(|layout| (layout.size(), layout.align())).collect();
    predicted.sort_unstable();
    assert_eq!(allocated, predicted);

    let view = shadow.view(&cpu).unwrap();
    let registers = Registers::new(FEATURES);
    let ((), later) = recording(|| {
        // More pages than the metadata has room for, so that some make way for others.
        for page in 0..200 {
            let gva = Gva::new(page << 12);
            let _ = shadow.fault(&cpu, &view, &Zeroes, &registers, gva, WRITE);
            shadow.write(&cpu, Gpa::new(page << 12), 8, Writer::Software, || ());
        }
        shadow.suspend(&cpu);
        shadow.resume();
    });
    assert_eq!(later, []);
    assert_eq!(shadow.counts().get(Counter::Faults), 200);
    assert_ne!(shadow.counts().get(Counter::Mapped), 0);
    assert_ne!(shadow.counts().get(Counter::Evicted), 0);
    free(shadow);
}
