//! A VM's memory: nested page tables of the backend's format over frames that are given on first touch.
//!
//! [`VmMemory`] is what all vCPUs share. One vCPU on one CPU uses it by a [`View`], for as long as its slice lasts.
//!
//! Frames that are taken from a running guest wait for a grace period, as its tables do: another vCPU's CPU may be copying from
//! one, through the direct map. All of a [`View`]'s methods that take `&self` are within an RCU read section, because no
//! quiescent state can be reported before they end.

mod account;
mod shadow_paging;
mod test_calls;

use crate::frames;
use crate::paging;
use crate::rcu_domain::{self, Machine};
use crate::watchdog;
use abi::hypercall::{Refused, TestCall};
use abi::lines::Accounts;
use account::{Account, give_back};
use addr::{Gfn, Gpa, Gva, Hpa, PAGE_SIZE, PageSize, Pfn};
use backends::FixedPage;
use core::alloc::Layout;
use core::arch::asm;
use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loader::{GuestMemory, GuestRam, MemoryError, VmConfig};
use mmu::{BadEntry, Caps, Env, Fault, Format, Leaf, MapError, Report, Rights, Room, TableDesc, Tree, WriteError};
use rcu::{Cpu, Flush, Session, Space, Tlb};
use sched::Heart;
use shadow::{NoMemory, Writer};
use shadow_paging::{Own, Shadows};
use test_calls::{STEP, Unfinished};
use vm::{NestedFault, Resolved};
use walk::{Access, HandleMem, PhysMem};

/// What one poll between a guest's instructions fills with poison at most, in bytes, or one page more. It is little, as the
/// pages may be another VM's, which gives most of them back in its own time.
const POLL: u64 = 8 * PAGE_SIZE;
/// The same while the CPU has no guest to run.
const POLL_IDLE: u64 = 128 * PAGE_SIZE;

/// The surroundings of a VM's tables.
struct Surroundings<F> {
    descriptors: &'static [TableDesc],
    account: &'static Account,
    space: Space,
    format: PhantomData<fn() -> F>,
}

impl<F> Surroundings<F> {
    fn new(account: &'static Account) -> Self {
        Self { descriptors: rcu_domain::descriptors(), account, space: rcu_domain::new_space(), format: PhantomData }
    }
}

impl<F: Format> Surroundings<F> {
    const HAS_LOW_ROOT: bool = F::ROOT_END <= 1 << 32;
}

impl<F: Format<Table = [mmu::AtomicU64; 512], Input: fmt::Display>> Env for Surroundings<F> {
    type Format = F;
    type Platform = Machine;

    fn alloc_table(&self) -> Option<Pfn> {
        self.account.pool.lock().alloc(PageSize::Size4K)
    }

    fn alloc_root(&self) -> Option<Pfn> {
        if Self::HAS_LOW_ROOT { self.account.pool.lock().alloc_root() } else { self.alloc_table() }
    }

    fn free_table(&self, table: Pfn) {
        let mut pool = self.account.pool.lock();
        if Self::HAS_LOW_ROOT && frames::is_root(table) {
            pool.free_root(table);
        } else {
            pool.free(table, PageSize::Size4K);
        }
    }

    fn retire(&self, table: Pfn) {
        if let Some(desc) = self.desc(table) {
            self.account.retire(desc, PageSize::Size4K);
        }
    }

    #[inline]
    fn table(&self, pfn: Pfn) -> Option<&F::Table> {
        if pfn.raw() >= self.descriptors.len() as u64 {
            return None;
        }
        // SAFETY: a frame that the direct map covers, read and written as atomics by everybody who takes it for a table.
        Some(unsafe { &*paging::direct(pfn.start()).cast::<F::Table>() })
    }

    #[inline]
    fn desc(&self, pfn: Pfn) -> Option<&TableDesc> {
        self.descriptors.get(pfn.raw() as usize)
    }

    #[inline]
    fn space(&self) -> &Space {
        &self.space
    }

    fn bad(&self, entry: BadEntry<F::Input>) {
        log::error!("bad entry {:?} of level {:?} at {}", entry.pte, entry.level, entry.at);
    }
}

/// A format of nested tables.
pub(crate) trait Nested: Format<Input = Gpa, Table = [mmu::AtomicU64; 512]> {}

impl<F: Format<Input = Gpa, Table = [mmu::AtomicU64; 512]>> Nested for F {}

/// One VM's memory, shared by its vCPUs.
pub(crate) struct VmMemory<F: Nested> {
    tree: Tree<Surroundings<F>>,
    /// Where there are any, no processor walks `tree`: it is what the guest's memory is.
    shadows: Shadows,
    ram: GuestRam,
    /// A page outside of it.
    fixed: Option<Gfn>,
}

const _: () = {
    const fn shared<T: Sync + Send>() {}
    shared::<VmMemory<mmu::Npt>>();
    shared::<VmMemory<mmu::Ept>>();
};

/// A VM's memory as one vCPU sees it, on the CPU where its slice runs.
pub(crate) struct View<'v, F: Nested> {
    vm: &'v VmMemory<F>,
    /// The vCPU's own.
    shadow: Option<Own<'v>>,
    /// The vCPU's, from its other slices.
    state: &'v ViewState,
    cpu: Session<'v, 'static, Machine>,
    heart: &'static Heart,
}

/// What a vCPU keeps of its views from slice to slice.
pub(crate) struct ViewState {
    /// Where its walks found pages lately, by the lowest bits of their numbers. What is out of date does no harm.
    places: [Cell<Place>; PLACES],
    /// The test hypercall of which steps are left.
    unfinished: Cell<Option<Unfinished>>,
    /// The page that is to be mapped next.
    zeroing: Cell<Option<Zeroing>>,
}

/// A large page that no entry leads to yet, of which so many bytes are zero.
#[derive(Clone, Copy)]
struct Zeroing {
    frame: (Pfn, PageSize),
    done: u64,
}

/// How much of a large page is zero.
enum Zeroed {
    Partly,
    Wholly(Pfn),
}

/// So many bytes of a large page are filled with zeroes in one exit.
const ZEROED_AT_ONCE: u64 = 128 * PAGE_SIZE;

/// As many as the tables that a few address spaces have on top.
const PLACES: usize = 16;

impl ViewState {
    /// Nothing was found or begun.
    pub(crate) const fn new() -> Self {
        Self {
            places: [const { Cell::new(Place::NONE) }; PLACES],
            unfinished: Cell::new(None),
            zeroing: Cell::new(None),
        }
    }
}

/// Where a page of the guest's is in the direct map, as long as the VM's tables are of this generation ([`HandleMem`]).
#[derive(Clone, Copy)]
struct Place {
    gfn: Gfn,
    generation: u64,
    host: *mut u8,
}

impl Place {
    const NONE: Self = Self { gfn: Gfn::new(0), generation: 0, host: ptr::null_mut() };
}

/// What became of a VM's frames, when it has ended.
pub(crate) struct Freed {
    /// The account for tools. Frames for tables and for the guest are counted alike; the grace period is the longest of all CPUs' and
    /// VMs'.
    pub(crate) accounts: Accounts,
    /// The most frames that were in use at once.
    pub(crate) peak: u64,
}

/// Gives back what waited on this CPU for a grace period that has ended, of whichever VMs. To be called before the CPU sleeps, and
/// when it was interrupted, which a kick may have done for this.
pub(crate) fn poll_idle(cpu: &Cpu<'static, Machine>) {
    give_back_some(cpu, POLL_IDLE);
}

/// Gives back of what has waited long enough, until so many bytes are filled with poison.
fn give_back_some(cpu: &Cpu<'static, Machine>, most: u64) {
    let mut filled = 0;
    while filled < most && cpu.poll(1, |page| filled += give_back(page)) != 0 {}
}

impl<F: Nested> VmMemory<F> {
    /// Nothing mapped but `fixed`, which lies outside of the RAM. `caps`: what the tables can have, and those of the shadows.
    /// None if there are not even frames for that.
    pub(crate) fn new(
        cpu: &mut Cpu<'static, Machine>,
        config: &VmConfig,
        (caps, shadow_caps): (Caps, Caps),
        fixed: Option<FixedPage>,
    ) -> Option<Self> {
        let account = Account::open(config)?;
        let Ok(tree) = Tree::new(Surroundings::new(account), caps) else {
            account.close();
            return None;
        };
        let shadows = Shadows::new(cpu, config, shadow_caps, || Surroundings::new(account));
        let has_shadows = shadows.is_ok();
        let shadows = shadows.unwrap_or(Shadows::None);
        let memory = Self { tree, shadows, ram: config.ram, fixed: fixed.as_ref().map(|page| page.at.frame()) };
        let complete = has_shadows
            && fixed.is_none_or(|page| {
                memory.view(cpu, &mut Tlb::new(), &ViewState::new()).write_bytes(page.at, &page.content).is_ok()
            });
        if complete {
            return Some(memory);
        }
        memory.free(cpu);
        None
    }

    /// What [`new`](Self::new) allocates. It is all that a VM's memory ever does.
    pub(crate) fn allocations(config: &VmConfig) -> impl Iterator<Item = Layout> {
        account::allocations(config).chain(Shadows::allocations(config))
    }

    /// The memory as nobody's, on the CPU that `cpu` is.
    pub(crate) fn view<'v>(
        &'v self,
        cpu: &'v mut Cpu<'static, Machine>,
        tlb: &'v mut Tlb,
        state: &'v ViewState,
    ) -> View<'v, F> {
        let heart = watchdog::heart(cpu.index());
        View { vm: self, shadow: None, state, cpu: cpu.session(self.tree.space(), tlb), heart }
    }

    /// The memory as vCPU `vcpu` sees it, whose tag `tlb` is the record of, and whose `state` is, on the CPU that `cpu` is.
    pub(crate) fn view_of<'v>(
        &'v self,
        vcpu: usize,
        cpu: &'v mut Cpu<'static, Machine>,
        tlb: &'v mut Tlb,
        state: &'v ViewState,
    ) -> View<'v, F> {
        let heart = watchdog::heart(cpu.index());
        let shadow = self.shadows.of(vcpu);
        let space = shadow.map_or(self.tree.space(), Own::space);
        View { vm: self, shadow, state, cpu: cpu.session(space, tlb), heart }
    }

    /// Where the processor starts its walks for vCPU `vcpu`.
    pub(crate) fn root(&self, vcpu: usize) -> Hpa {
        self.shadows.of(vcpu).map_or(self.tree.root(), Own::root).start()
    }

    /// What the guest's memory consists of.
    pub(crate) fn report(&self, cpu: &Cpu<'static, Machine>) -> Report {
        self.tree.report(cpu.read())
    }

    /// Gives every frame back. To be called when none of the VM's vCPUs will enter the guest again; CPUs whose pages this waits
    /// for are kicked, and have to [`poll_idle`] then, or their views to poll.
    pub(crate) fn free(self, cpu: &mut Cpu<'static, Machine>) -> Freed {
        let account = self.account();
        let kicks = self.tree.space().kicks() + self.shadows.kicks();
        cpu.barrier(|page| {
            give_back(page);
        });
        self.shadows.free();
        self.tree.free_pgtables(|_, size, leaf| account.pool.lock().free(leaf.pfn, size));
        let operations = account.operations();
        let pool = account.pool.lock();
        let (freed, left, peak) = (pool.freed(), pool.outstanding(), pool.peak());
        let accounts = Accounts {
            allocated: freed + left,
            freed,
            left,
            deferred: account.deferred(),
            peak_backlog: account.peak_backlog(),
            longest_grace_period: cpu.domain().stats().longest_grace_period,
            kicks,
            operations,
        };
        drop(pool);
        account.close();
        Freed { accounts, peak }
    }

    #[inline]
    fn account(&self) -> &'static Account {
        self.tree.env().account
    }

    /// Fills the stock of zeroed frames, before the guest runs and while it sleeps, until the CPU is `wanted`.
    pub(crate) fn fill_stock(&self, wanted: impl Fn() -> bool) {
        while !wanted() {
            let Some(frame) = self.account().pool.lock().alloc_for_stock() else { return };
            // SAFETY: the frame is nobody else's yet.
            unsafe { fill(paging::direct(frame.start()), PAGE_SIZE, 0) };
            self.account().pool.lock().stock(frame);
        }
    }

    /// Gives back the page that a vCPU has begun to fill with zeroes, if it has one: another vCPU was faster, or it ends.
    pub(crate) fn forget(&self, state: &ViewState) {
        if let Some(Zeroing { frame: (frame, size), .. }) = state.zeroing.take() {
            self.account().pool.lock().free(frame, size);
        }
    }

    /// Whether there is memory behind `at`.
    #[inline]
    fn backs(&self, at: Gpa) -> bool {
        self.ram.backs(at) || self.fixed == Some(at.frame())
    }
}

/// The entries on the way to an address, as text.
pub(crate) struct Path<'v, F: Nested> {
    view: &'v View<'v, F>,
    at: Gpa,
}

impl<F: Nested> fmt::Display for Path<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let View { vm, cpu, .. } = self.view;
        let mut result = Ok(());
        vm.tree.path(cpu.read(), self.at, |level, pte, entry| {
            result = result.and_then(|()| writeln!(f, "{level:?} entry {:#018x}: {entry:?}", pte.raw()));
        });
        result
    }
}

impl<F: Nested> View<'_, F> {
    /// The entries on the way to `at`, a line each: where a misconfigured one is found.
    pub(crate) fn path(&self, at: Gpa) -> Path<'_, F> {
        Path { view: self, at }
    }

    /// Where in the direct map `at` is, to be read; a frame is given to it if it has none.
    #[inline]
    fn host(&self, at: Gpa) -> Result<*mut u8, MemoryError> {
        let gfn = at.frame();
        // Asked for first: should the page be taken away meanwhile, what is kept is out of date already.
        let generation = self.generation();
        let place = &self.state.places[gfn.raw() as usize % PLACES];
        let known = place.get();
        if known.gfn == gfn && known.generation == generation {
            return Ok(known.host.wrapping_byte_add(at.page_offset() as usize));
        }
        let host = self.find(at)?;
        place.set(Place { gfn, generation, host: host.wrapping_byte_sub(at.page_offset() as usize) });
        Ok(host)
    }

    #[inline(never)]
    fn find(&self, at: Gpa) -> Result<*mut u8, MemoryError> {
        loop {
            if let Some(found) = self.vm.tree.translate(self.cpu.read(), at) {
                return Ok(paging::direct(found.hpa));
            }
            self.touch_for_software(at)?;
        }
    }

    /// Runs `write` on the place of `at` in the direct map. No collapse, no replacement and no dirty log misses what it writes
    /// to the page.
    fn write_with<R>(&self, at: Gpa, mut write: impl FnMut(*mut u8) -> R) -> Result<R, MemoryError> {
        loop {
            match self.vm.tree.write(self.cpu.read(), at, |found| write(paging::direct(found.hpa))) {
                Ok(result) => return Ok(result),
                Err(WriteError::NoPage) => self.touch_for_software(at)?,
                Err(WriteError::ReadOnly) => return Err(MemoryError::Outside(at)),
            }
        }
    }

    fn exchange_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        let exchange = |host: *mut u8| {
            // SAFETY: guest memory is mapped in the direct map; `at` is aligned; the guest's own accesses are atomic to this one.
            let entry = unsafe { &*host.cast::<AtomicU64>() };
            entry.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        self.write_with(at, exchange).ok()
    }

    fn exchange_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        let exchange = |host: *mut u8| {
            // SAFETY: as in `exchange_u64`.
            let entry = unsafe { &*host.cast::<AtomicU32>() };
            entry.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        self.write_with(at, exchange).ok()
    }

    /// [`touch`](Self::touch) by software, which can't wait for a grace period: a second try after what can be had at once.
    #[cold]
    fn touch_for_software(&self, at: Gpa) -> Result<(), MemoryError> {
        match self.touch(at, false) {
            Err(MemoryError::NoFrames) => {
                self.cpu.hurry();
                give_back_some(&self.cpu, STEP);
                self.touch(at, false)
            }
            result => result,
        }
    }

    /// Maps the page at `at`, if that is memory and nothing is mapped; lets a write through that the dirty log waits for.
    #[inline]
    fn touch(&self, at: Gpa, write: bool) -> Result<(), MemoryError> {
        if !self.vm.backs(at) {
            return Err(MemoryError::Outside(at));
        }
        let large = at.align_down(PageSize::Size2M.bytes()).wrapping_add(PageSize::Size2M.bytes() - 1);
        let want = if self.vm.ram.backs(large) { PageSize::Size2M } else { PageSize::Size4K };
        match self.vm.tree.fault(self.cpu.read(), at, want) {
            Ok(Fault::Room(room)) => self.fill(room),
            Ok(Fault::Present(found)) => {
                self.vm.forget(self.state);
                // Otherwise another CPU was faster, with this page or with this right.
                if write && found.leaf.logged {
                    self.unprotect(at);
                }
                Ok(())
            }
            Err(mmu::OutOfRange) => Err(MemoryError::Outside(at)),
        }
    }

    #[cold]
    fn unprotect(&self, at: Gpa) {
        if self.vm.tree.unprotect(self.cpu.read(), at) {
            self.vm.account().count(1);
        }
    }

    #[inline]
    fn fill(&self, mut room: Room<'_, Surroundings<F>>) -> Result<(), MemoryError> {
        let zeroed = match room.size() {
            PageSize::Size4K => None,
            size => self.zero_some(size),
        };
        let frame = match zeroed {
            Some(Zeroed::Partly) => return Ok(()),
            Some(Zeroed::Wholly(frame)) => frame,
            None => {
                room = room.at_most(PageSize::Size4K);
                self.zeroed().ok_or(MemoryError::NoFrames)?
            }
        };
        let size = room.size();
        let result = room.install(Leaf::new(frame, Rights::ALL));
        if result.is_err() {
            self.vm.account().pool.lock().free(frame, size);
        }
        match result {
            // Another CPU's page will do as well.
            Ok(()) | Err(MapError::Raced | MapError::Present) => Ok(()),
            Err(MapError::NoMemory | MapError::Invalid) => Err(MemoryError::NoFrames),
        }
    }

    /// A small page of zeroes: from the stock, if that has any.
    #[inline]
    fn zeroed(&self) -> Option<Pfn> {
        let mut pool = self.vm.account().pool.lock();
        pool.touch();
        if let Some(frame) = pool.alloc_zeroed() {
            return Some(frame);
        }
        let frame = pool.alloc(PageSize::Size4K)?;
        drop(pool);
        // SAFETY: no other CPU knows the frame yet.
        unsafe { fill(paging::direct(frame.start()), PAGE_SIZE, 0) };
        Some(frame)
    }

    /// A part of a larger page is filled with zeroes; the rest follows when the access has faulted again. None if there is no
    /// such page.
    ///
    /// All at once takes hundreds of microseconds, for which other VMs would wait.
    fn zero_some(&self, size: PageSize) -> Option<Zeroed> {
        let Zeroing { frame, done } = match self.state.zeroing.take().filter(|begun| begun.frame.1 == size) {
            Some(begun) => begun,
            None => Zeroing { frame: (self.alloc_large(size)?, size), done: 0 },
        };
        let part = ZEROED_AT_ONCE.min(size.bytes() - done);
        // SAFETY: no other CPU knows the frame yet.
        unsafe { fill(paging::direct(frame.0.start()).wrapping_add(done as usize), part, 0) };
        if done + part == size.bytes() {
            return Some(Zeroed::Wholly(frame.0));
        }
        self.state.zeroing.set(Some(Zeroing { frame, done: done + part }));
        Some(Zeroed::Partly)
    }

    fn alloc_large(&self, size: PageSize) -> Option<Pfn> {
        let mut pool = self.vm.account().pool.lock();
        pool.touch();
        pool.alloc(size)
    }

    /// [`touch`](Self::touch) again, when what waited for a grace period has come back.
    #[cold]
    fn touch_again(&mut self, fault: NestedFault) -> Resolved {
        self.reclaim();
        match self.touch(fault.address(), fault.is_write()) {
            Ok(()) => Resolved::Retry,
            Err(MemoryError::Outside(_)) => Resolved::NotMemory,
            Err(MemoryError::NoFrames) => Resolved::OutOfMemory,
        }
    }

    /// Waits until all that this VM has waiting for a grace period has come back.
    fn reclaim(&mut self) {
        if self.vm.account().backlog() != 0 {
            self.cpu.barrier(|page| {
                give_back(page);
            });
        }
    }

    fn write_bytes(&self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        self.for_each_piece(at, bytes.len() as u64, |host, range| {
            // SAFETY: the range's length of guest memory is at `host`.
            unsafe { host.copy_from_nonoverlapping(bytes[range.clone()].as_ptr(), range.len()) };
        })
    }

    fn zero_bytes(&self, at: Gpa, bytes: u64) -> Result<(), MemoryError> {
        self.for_each_piece(at, bytes, |host, range| {
            // SAFETY: as in `write_bytes`.
            unsafe { host.write_bytes(0, range.len()) };
        })
    }

    /// Runs `write` on the host's side of each piece of `bytes` bytes from `at` on.
    fn for_each_piece(
        &self,
        at: Gpa,
        bytes: u64,
        mut write: impl FnMut(*mut u8, core::ops::Range<usize>),
    ) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < bytes {
            let gpa = at.checked_add(done).ok_or(MemoryError::Outside(at))?;
            let length = (PAGE_SIZE - gpa.page_offset()).min(bytes - done);
            let piece = |host: *mut u8| write(host, done as usize..(done + length) as usize);
            self.stored(gpa, length as usize, Writer::Software, || self.write_with(gpa, piece))?;
            done += length;
        }
        Ok(())
    }
}

/// Fills with `word`, eight bytes at a time.
///
/// # Safety
/// `bytes` writable bytes are at `start`; both are multiples of 8.
#[inline]
unsafe fn fill(start: *mut u8, bytes: u64, word: u64) {
    // SAFETY: the caller's promise; the direction flag is clear in Rust code.
    unsafe {
        asm!("rep stosq", inout("rdi") start => _, inout("rcx") bytes / 8 => _, in("rax") word, options(nostack));
    }
}

impl<F: Nested> GuestMemory for View<'_, F> {
    fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        self.write_bytes(at, bytes)
    }

    fn zero(&mut self, at: Gpa, bytes: u64) -> Result<(), MemoryError> {
        self.zero_bytes(at, bytes)
    }
}

impl<F: Nested> vm::Memory for View<'_, F> {
    #[inline]
    fn fault(&mut self, fault: NestedFault) -> Resolved {
        match self.touch(fault.address(), fault.is_write()) {
            Ok(()) => Resolved::Retry,
            Err(MemoryError::Outside(_)) => Resolved::NotMemory,
            Err(MemoryError::NoFrames) => self.touch_again(fault),
        }
    }

    #[inline]
    fn guest<R>(&mut self, enter: impl FnOnce(bool) -> R) -> R {
        self.cpu.guest(|flush| enter(flush == Flush::Needed))
    }

    #[inline]
    fn poll(&self) {
        self.heart.beat();
        give_back_some(&self.cpu, POLL);
    }

    #[cold]
    fn test_call(&mut self, call: TestCall) -> Option<Result<u64, Refused>> {
        self.operate(call)
    }

    fn load_shadow(&mut self, own: &shadow::Registers) -> Hpa {
        let Some(shadow) = self.shadow else { return Hpa::new(0) };
        shadow.load(&self.cpu, own);
        self.cpu.switch(shadow.space());
        shadow.root().start()
    }

    #[inline]
    fn shadow_fault(&mut self, own: &shadow::Registers, at: Gva, access: Access) -> Result<shadow::Outcome, NoMemory> {
        match self.resolve(own, at, access) {
            Err(NoMemory) => self.resolve_again(own, at, access),
            result => result,
        }
    }

    fn unshadow(&mut self, at: Gpa) {
        View::unshadow(self, at);
    }

    fn shadow_invlpg(&mut self, at: Gva) {
        if let Some(shadow) = self.shadow {
            shadow.invlpg(&self.cpu, at);
        }
    }
}

impl<F: Nested> PhysMem for View<'_, F> {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        // SAFETY: guest memory is mapped in the direct map; `at` is aligned; the guest's own accesses are atomic to this one.
        Some(unsafe { &*self.host(at).ok()?.cast::<AtomicU64>() }.load(Ordering::Acquire))
    }

    fn read_u32(&self, at: Gpa) -> Option<u32> {
        // SAFETY: as in `read_u64`.
        Some(unsafe { &*self.host(at).ok()?.cast::<AtomicU32>() }.load(Ordering::Acquire))
    }

    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        self.stored(at, 8, Writer::Software, || self.exchange_u64(at, old, new))
    }

    fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        self.stored(at, 4, Writer::Software, || self.exchange_u32(at, old, new))
    }

    fn mark_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        self.stored(at, 8, Writer::Walk, || self.exchange_u64(at, old, new))
    }

    fn mark_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        self.stored(at, 4, Writer::Walk, || self.exchange_u32(at, old, new))
    }

    fn read(&self, at: Gpa, bytes: &mut [u8]) -> Option<()> {
        let host = self.host(at).ok()?;
        // SAFETY: the bytes lie in one page, which is mapped.
        unsafe { host.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Some(())
    }

    fn write(&self, at: Gpa, bytes: &[u8]) -> Option<()> {
        // SAFETY: as in `read`.
        let copy = |host: *mut u8| unsafe { host.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.stored(at, bytes.len(), Writer::Software, || self.write_with(at, copy).ok())
    }
}

impl<F: Nested> HandleMem for View<'_, F> {
    type Handle = *const AtomicU64;

    fn handle(&self, at: Gpa) -> Option<Self::Handle> {
        Some(self.host(at).ok()?.cast_const().cast())
    }

    #[inline]
    fn load(&self, handle: Self::Handle) -> u64 {
        // SAFETY: handles point to frames, which the direct map covers whoever's they are.
        unsafe { &*handle }.load(Ordering::Acquire)
    }

    #[inline]
    fn load_u32(&self, handle: Self::Handle, offset: u64) -> u32 {
        let word: u32;
        // SAFETY: as above, and the four bytes are in the same page. They need not be aligned, and the guest may write them
        // meanwhile: a load of the processor's own minds neither.
        unsafe {
            asm!("mov {:e}, [{}]", out(reg) word, in(reg) handle.wrapping_byte_add(offset as usize),
                options(nostack, readonly, preserves_flags));
        }
        word
    }

    /// Whatever takes a page away flushes, and a flush has a new number before any CPU has done it. Between the two there is no
    /// handle to be had: the entry is gone, or frozen. And who still sees the old number holds up the frame's grace period.
    #[inline]
    fn generation(&self) -> u64 {
        self.vm.tree.space().generation().number()
    }
}
