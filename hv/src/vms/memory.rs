//! A VM's memory: nested page tables of the backend's format over frames that are given on first touch.
//!
//! [`VmMemory`] is what all vCPUs share. One vCPU on one CPU uses it by a [`View`], for as long as its slice lasts.

use crate::frames::Pool;
use crate::paging;
use crate::tables::{self, Machine};
use addr::{Gfn, Gpa, Hpa, PAGE_SIZE, PageSize, Pfn};
use alloc::sync::Arc;
use backends::FixedPage;
use core::arch::asm;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loader::{GuestMemory, GuestRam, MemoryError};
use mmu::{BadEntry, Caps, Env, Fault, Format, Leaf, MapError, Report, Rights, Room, TableDesc, Tree};
use rcu::{Cpu, Flush, Session, Space, Tlb};
use spin::Mutex;
use vm::{NestedFault, Resolved};
use walk::{PhysMem, SlotMem};

/// The surroundings of a VM's tables.
struct Surroundings<F> {
    descriptors: &'static [TableDesc],
    pool: Mutex<Pool>,
    space: Space,
    format: PhantomData<F>,
}

/// The tree's hold on them: they outlive it, so that frames can be counted after its end.
struct Shared<F>(Arc<Surroundings<F>>);

impl<F: Nested> Env for Shared<F> {
    type Format = F;
    type Platform = Machine;

    fn alloc_table(&self) -> Option<Pfn> {
        self.0.pool.lock().alloc(PageSize::Size4K)
    }

    fn free_table(&self, table: Pfn) {
        self.0.pool.lock().free(table, PageSize::Size4K);
    }

    #[inline]
    fn table(&self, pfn: Pfn) -> Option<&F::Table> {
        if pfn.raw() >= self.0.descriptors.len() as u64 {
            return None;
        }
        // SAFETY: a frame that the direct map covers, read and written as atomics by everybody who takes it for a table.
        Some(unsafe { &*paging::direct(pfn.start()).cast::<F::Table>() })
    }

    #[inline]
    fn desc(&self, pfn: Pfn) -> Option<&TableDesc> {
        self.0.descriptors.get(pfn.raw() as usize)
    }

    #[inline]
    fn space(&self) -> &Space {
        &self.0.space
    }

    fn bad(&self, entry: BadEntry<Gpa>) {
        log::error!("bad entry {:?} of level {:?} at {}", entry.pte, entry.level, entry.at);
    }
}

/// A format of nested tables.
pub(crate) trait Nested: Format<Input = Gpa, Table = [mmu::AtomicU64; 512]> {}

impl<F: Format<Input = Gpa, Table = [mmu::AtomicU64; 512]>> Nested for F {}

/// One VM's memory, shared by its vCPUs.
pub(crate) struct VmMemory<F: Nested> {
    tree: Tree<Shared<F>>,
    surroundings: Arc<Surroundings<F>>,
    ram: GuestRam,
    /// A page outside of it.
    fixed: Option<Gfn>,
}

/// A VM's memory as one vCPU sees it, on the CPU where its slice runs.
pub(crate) struct View<'v, F: Nested> {
    vm: &'v VmMemory<F>,
    cpu: Session<'v, 'static, Machine>,
}

/// What is left when a VM has ended.
pub(crate) struct Accounts {
    /// Frames that did not come back.
    pub(crate) missing: u64,
    /// The most frames that were in use at once.
    pub(crate) peak: u64,
}

impl<F: Nested> VmMemory<F> {
    /// Nothing mapped but `fixed`, which lies outside of `ram`. None if there are not even frames for that.
    pub(crate) fn new(
        cpu: &mut Cpu<'static, Machine>,
        ram: GuestRam,
        caps: Caps,
        fixed: Option<FixedPage>,
    ) -> Option<Self> {
        let surroundings = Arc::new(Surroundings {
            descriptors: tables::descriptors(),
            pool: Mutex::new(Pool::new()),
            space: tables::new_space(),
            format: PhantomData,
        });
        let tree = Tree::new(Shared(Arc::clone(&surroundings)), caps).ok()?;
        let memory = Self { tree, surroundings, ram, fixed: fixed.as_ref().map(|page| page.at.frame()) };
        let written =
            fixed.is_none_or(|page| memory.view(cpu, &mut Tlb::new()).write_bytes(page.at, &page.content).is_ok());
        if written {
            return Some(memory);
        }
        memory.free(cpu);
        None
    }

    /// The memory as the vCPU sees it whose tag `tlb` is the record of, on the CPU that `cpu` is.
    #[inline]
    pub(crate) fn view<'v>(&'v self, cpu: &'v mut Cpu<'static, Machine>, tlb: &'v mut Tlb) -> View<'v, F> {
        View { vm: self, cpu: cpu.session(&self.surroundings.space, tlb) }
    }

    /// Where the processor starts its walks.
    pub(crate) fn root(&self) -> Hpa {
        self.tree.root().start()
    }

    /// What the guest's memory consists of.
    pub(crate) fn report(&self, cpu: &Cpu<'static, Machine>) -> Report {
        self.tree.report(cpu.read())
    }

    /// Gives every frame back.
    pub(crate) fn free(self, cpu: &mut Cpu<'static, Machine>) -> Accounts {
        let env = self.tree.env();
        cpu.barrier(|table| env.free_table(table));
        let pool = &self.surroundings.pool;
        self.tree.free_pgtables(|_, size, leaf| pool.lock().free(leaf.pfn, size));
        let pool = pool.lock();
        Accounts { missing: pool.outstanding(), peak: pool.peak() }
    }

    /// Fills the stock of zeroed frames: before the guest runs, and while it sleeps.
    pub(crate) fn fill_stock(&self) {
        loop {
            let Some(frame) = self.surroundings.pool.lock().alloc_for_stock() else { return };
            // SAFETY: the frame is nobody else's yet.
            unsafe { zero(paging::direct(frame.start()), PAGE_SIZE) };
            self.surroundings.pool.lock().stock(frame);
        }
    }

    /// Whether there is memory behind `at`.
    #[inline]
    fn backs(&self, at: Gpa) -> bool {
        self.ram.backs(at) || self.fixed == Some(at.frame())
    }
}

impl<F: Nested> View<'_, F> {
    /// What backs `at`; a frame is given to it if it has none.
    #[inline]
    fn populate(&self, at: Gpa) -> Result<Hpa, MemoryError> {
        loop {
            if let Some(found) = self.vm.tree.translate(self.cpu.read(), at) {
                return Ok(found.hpa);
            }
            self.touch(at)?;
        }
    }

    /// Maps the page at `at`, if that is memory and nothing is mapped.
    #[inline]
    fn touch(&self, at: Gpa) -> Result<(), MemoryError> {
        if !self.vm.backs(at) {
            return Err(MemoryError::Outside(at));
        }
        let large = at.align_down(PageSize::Size2M.bytes()).wrapping_add(PageSize::Size2M.bytes() - 1);
        let want = if self.vm.ram.backs(large) { PageSize::Size2M } else { PageSize::Size4K };
        match self.vm.tree.fault(self.cpu.read(), at, want) {
            Ok(Fault::Room(room)) => self.fill(room),
            Ok(Fault::Present(_)) => Ok(()),
            Err(mmu::OutOfRange) => Err(MemoryError::Outside(at)),
        }
    }

    #[inline]
    fn fill(&self, mut room: Room<'_, Shared<F>>) -> Result<(), MemoryError> {
        let mut frame = self.zeroed(room.size());
        if frame.is_none() {
            room = room.at_most(PageSize::Size4K);
            frame = self.zeroed(PageSize::Size4K);
        }
        let (frame, size) = (frame.ok_or(MemoryError::NoFrames)?, room.size());
        let result = room.install(Leaf::new(frame, Rights::ALL));
        if result.is_err() {
            self.vm.surroundings.pool.lock().free(frame, size);
        }
        match result {
            // Another CPU's page will do as well.
            Ok(()) | Err(MapError::Raced | MapError::Present) => Ok(()),
            Err(MapError::NoMemory | MapError::Invalid) => Err(MemoryError::NoFrames),
        }
    }

    /// A page of zeroes: from the stock, if it is a small one and the stock has any.
    #[inline]
    fn zeroed(&self, size: PageSize) -> Option<Pfn> {
        let mut pool = self.vm.surroundings.pool.lock();
        if size == PageSize::Size4K
            && let Some(frame) = pool.alloc_zeroed()
        {
            return Some(frame);
        }
        let frame = pool.alloc(size)?;
        drop(pool);
        // SAFETY: the frame is nobody else's yet.
        unsafe { zero(paging::direct(frame.start()), size.bytes()) };
        Some(frame)
    }

    fn write_bytes(&self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        self.for_each_piece(at, bytes.len() as u64, |host, range| {
            // SAFETY: the range's length of guest memory is at `host`, and the guest does not run.
            unsafe { host.copy_from_nonoverlapping(bytes[range.clone()].as_ptr(), range.len()) };
        })
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

/// Fills with zeroes, eight bytes at a time.
///
/// # Safety
/// `bytes` writable bytes are at `start`; both are multiples of 8.
#[inline]
unsafe fn zero(start: *mut u8, bytes: u64) {
    // SAFETY: the caller's promise; the direction flag is clear in Rust code.
    unsafe {
        asm!("rep stosq", inout("rdi") start => _, inout("rcx") bytes / 8 => _, in("rax") 0u64, options(nostack));
    }
}

impl<F: Nested> GuestMemory for View<'_, F> {
    fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        self.write_bytes(at, bytes)
    }

    fn zero(&mut self, at: Gpa, bytes: u64) -> Result<(), MemoryError> {
        self.for_each_piece(at, bytes, |host, range| {
            // SAFETY: as in `write`.
            unsafe { host.write_bytes(0, range.len()) };
        })
    }
}

impl<F: Nested> vm::Memory for View<'_, F> {
    #[inline]
    fn fault(&self, fault: NestedFault) -> Resolved {
        match self.touch(fault.address()) {
            Ok(()) => Resolved::Retry,
            Err(MemoryError::Outside(_)) => Resolved::NotMemory,
            Err(MemoryError::NoFrames) => Resolved::OutOfMemory,
        }
    }

    fn idle(&self) {
        self.vm.fill_stock();
    }

    #[inline]
    fn guest<R>(&mut self, enter: impl FnOnce(bool) -> R) -> R {
        self.cpu.guest(|flush| enter(flush == Flush::Needed))
    }
}

impl<F: Nested> PhysMem for View<'_, F> {
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

impl<F: Nested> SlotMem for View<'_, F> {
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
        let word: u32;
        // SAFETY: as above, and the four bytes are in the same page. They need not be aligned, and the guest may write them
        // meanwhile: a load of the processor's own minds neither.
        unsafe {
            asm!("mov {:e}, [{}]", out(reg) word, in(reg) slot.wrapping_byte_add(offset as usize),
                options(nostack, readonly, preserves_flags));
        }
        word
    }

    /// What once has memory keeps it until the VM's end: nothing takes pages away from a running guest yet.
    #[inline]
    fn generation(&self) -> u64 {
        0
    }
}
