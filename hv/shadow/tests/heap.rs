//! What a shadow takes of the heap: as much as it says beforehand, and nothing afterwards.
#![cfg(not(shuttle))]

use addr::{Gpa, Gva, PageSize, Pfn};
use core::alloc::{GlobalAlloc, Layout};
use core::cell::{Cell, RefCell};
use mmu::pool::{Memory, Pool, domain};
use mmu::{Caps, NoMemory, Pae};
use shadow::{Backing, Counter, Registers, Shadow, Writer};
use std::alloc::System;
use walk::{Access, Features, Kind, PhysMem, Privilege};

const ROOM: usize = 256;
const FEATURES: Features = Features { maxphyaddr: 40, pages_1g: false, pse36: true, pml4e_bit8_reserved: false };
const WRITE: Access = Access { kind: Kind::Write, privilege: Privilege::Supervisor { ac: false } };

thread_local! {
    /// What this thread has allocated since it began to note that: sizes and alignments.
    static NOTED: RefCell<[(usize, usize); ROOM]> = const { RefCell::new([(0, 0); ROOM]) };
    static COUNT: Cell<Option<usize>> = const { Cell::new(None) };
}

struct Noting;

#[global_allocator]
static ALLOCATOR: Noting = Noting;

// SAFETY: `System` does what is promised, and nothing here allocates.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(count) = COUNT.get() {
            NOTED.with_borrow_mut(|noted| noted[count] = (layout.size(), layout.align()));
            COUNT.set(Some(count + 1));
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What `act` returns, and what it allocates, in order of size.
fn noting<R>(act: impl FnOnce() -> R) -> (R, Vec<(usize, usize)>) {
    COUNT.set(Some(0));
    let result = act();
    let count = COUNT.take().unwrap_or_default();
    let mut noted = NOTED.with_borrow(|noted| noted[..count].to_vec());
    noted.sort_unstable();
    (result, noted)
}

/// Guest memory that reads as zeroes, with the frame of each page the one of its number.
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
    fn backing(&self, at: Gpa, write: bool) -> Result<Option<Backing>, NoMemory> {
        Ok(Some(Backing { pfn: Pfn::new(at.frame().raw()), write, size: PageSize::Size4K }))
    }
}

#[test]
fn a_shadow_allocates_what_it_says_and_nothing_later() {
    const TREES: usize = 5;
    const NOTES: u32 = 16;
    let memory = Memory::<Pae<Gva>>::new(256);
    let domain = domain::<_, 1>(&memory);
    let cpu = domain.register(0).unwrap();
    let caps = Caps::new(40, PageSize::Size2M, true);

    let envs = (0..TREES).map(|_| Pool::new(&memory, &domain));
    let (shadow, allocated) = noting(|| Shadow::new(envs, caps, NOTES).unwrap());
    let said = Shadow::<Pool<Pae<Gva>>>::allocations(TREES, NOTES);
    let mut said: Vec<_> = said.map(|layout| (layout.size(), layout.align())).collect();
    said.sort_unstable();
    assert_eq!(allocated, said);

    let view = shadow.view(&cpu).unwrap();
    let registers = Registers::new(FEATURES);
    let ((), later) = noting(|| {
        // More pages than there are notes: they are used up and begun anew meanwhile.
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
    shadow.free();
}
