//! A VM's memory as one vCPU sees it, for as long as its slice lasts.
//!
//! All of a [`View`]'s methods that take `&self` are within an RCU read section, because no quiescent state can be reported before
//! they end.

use crate::account::give_back_some;
use crate::host::HostMemory;
use crate::raw::{self, DirectPtr};
use crate::rules::Rule;
use crate::shadow_trees::VcpuTree;
use crate::test_calls::{STEP, Unfinished};
use crate::tree_env::{Nested, TreeEnv};
use crate::vm_memory::VmMemory;
use addr::{Gfn, Gpa, PAGE_SIZE, PageSize, Pfn};
use core::cell::Cell;
use core::fmt;
use core::num::NonZero;
use loader::MemoryError;
use mmu::{Fault, MapError, Room, Translation, WriteError};
use model::kept;
use rcu::{Cpu, Session, Tlb};
use sched::Heart;
use shadow::Writer;
use vm::{NestedFault, Resolved};
use walk::HandleMem;

/// A VM's memory as one vCPU sees it, on the CPU where its slice runs.
pub struct View<'v, 'm, F: Nested, H: HostMemory> {
    pub(crate) vm: &'v VmMemory<'m, F, H>,
    /// The vCPU's shadow tree, without nested paging.
    pub(crate) shadow: Option<VcpuTree<'v, 'm, H>>,
    pub(crate) state: &'v ViewState,
    pub(crate) cpu: Session<'v, 'm, H>,
    /// The CPU's.
    pub(crate) heart: &'m Heart,
}

/// What a vCPU keeps of its views from slice to slice.
pub struct ViewState {
    /// Where pages that it accessed lately are, by the lowest bits of their numbers. A place is used only as long as no flush has
    /// come since it was kept.
    places: [Cell<CachedPage>; PLACES],
    /// The test hypercall of which steps are left.
    pub(crate) unfinished: Cell<Option<Unfinished>>,
    /// The page that is to be mapped next.
    zeroing: Cell<Option<Zeroing>>,
    /// What found no frame is tried again until the VM has had so many pages back.
    awaited: Cell<Option<NonZero<u64>>>,
    /// Rises by each fault that finds its frames, up to [`MOST_CREDIT`], and falls each time that shadow tables make way.
    pub(crate) credit: Cell<u32>,
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

/// What a touch has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touched {
    /// The page is mapped.
    Mapped,
    /// A part of a large page is filled with zeroes: the next touch goes on.
    Begun,
    /// The page is mapped for software alone.
    Hidden,
}

/// So many bytes of a large page are filled with zeroes in one exit.
const ZEROED_AT_ONCE: u64 = 128 * PAGE_SIZE;

/// Where tables make way for each other again and again, the guest comes to its end when this is used up: what is left of the frames is
/// not enough for the tables that one instruction needs.
pub(crate) const MOST_CREDIT: u32 = 64;

/// Enough for the upper-level tables of a few address spaces.
const PLACES: usize = 16;

impl ViewState {
    /// Nothing was found or begun.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            places: [const { Cell::new(CachedPage::NONE) }; PLACES],
            unfinished: Cell::new(None),
            zeroing: Cell::new(None),
            awaited: Cell::new(None),
            credit: Cell::new(MOST_CREDIT),
        }
    }

    /// What needed a frame has one.
    #[inline]
    pub(crate) fn found_frames(&self) {
        self.awaited.set(None);
    }

    /// The large page that was begun to be filled with zeroes, if there is one. The caller has it then.
    pub(crate) fn take_zeroing(&self) -> Option<(Pfn, PageSize)> {
        self.zeroing.take().map(|begun| begun.frame)
    }
}

impl Default for ViewState {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a page of the guest's is in the direct map, as long as the VM's tables are of this generation ([`HandleMem`]).
#[derive(Clone, Copy)]
struct CachedPage {
    gfn: Gfn,
    generation: u64,
    host: DirectPtr,
}

impl CachedPage {
    const NONE: Self = Self { gfn: Gfn::new(0), generation: 0, host: DirectPtr::NONE };
}

/// The entries on the way to an address, as text.
pub struct Path<'p, 'v, 'm, F: Nested, H: HostMemory> {
    view: &'p View<'v, 'm, F, H>,
    at: Gpa,
}

impl<F: Nested, H: HostMemory> fmt::Display for Path<'_, '_, '_, F, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let View { vm, cpu, .. } = self.view;
        let mut result = Ok(());
        vm.tree.path(cpu.read(), self.at, |level, pte, entry| {
            result = result.and_then(|()| writeln!(f, "{level:?} entry {:#018x}: {entry:?}", pte.raw()));
        });
        result
    }
}

impl<'v, 'm, F: Nested, H: HostMemory> View<'v, 'm, F, H> {
    /// The memory `vm` on CPU `cpu`; `shadow` is the vCPU's shadow tree, if its VM has such.
    pub(crate) fn new(
        vm: &'v VmMemory<'m, F, H>,
        shadow: Option<VcpuTree<'v, 'm, H>>,
        cpu: &'v mut Cpu<'m, H>,
        tlb: &'v mut Tlb,
        state: &'v ViewState,
    ) -> Self {
        let heart = vm.host().heart(cpu.index());
        let space = shadow.map_or(vm.tree.space(), VcpuTree::space);
        View { vm, shadow, state, cpu: cpu.session(space, tlb), heart }
    }

    /// The entries on the way to `at`, a line each: where a misconfigured one is found.
    pub fn path(&self, at: Gpa) -> Path<'_, 'v, 'm, F, H> {
        Path { view: self, at }
    }

    /// Where in the direct map `at` is, to be read; a frame is given to it if it has none.
    #[inline]
    pub(crate) fn host(&self, at: Gpa) -> Result<DirectPtr, MemoryError> {
        let gfn = at.frame();
        // The generation is read before the tree is walked: if the page is taken away in between, the entry is kept under an old
        // generation and is never used.
        let before = self.generation();
        let place = &self.state.places[gfn.raw() as usize % PLACES];
        let known = place.get();
        if known.gfn == gfn && known.generation == before {
            return Ok(known.host.add(at.page_offset()));
        }
        let host = self.find(at)?;
        let generation = if kept(Rule::GenerationFirst) { before } else { self.generation() };
        place.set(CachedPage { gfn, generation, host: host.sub(at.page_offset()) });
        Ok(host)
    }

    #[inline(never)]
    fn find(&self, at: Gpa) -> Result<DirectPtr, MemoryError> {
        loop {
            if let Some(found) = self.vm.tree.translate(self.cpu.read(), at) {
                return Ok(self.direct(found));
            }
            self.touch_for_software(at)?;
        }
    }

    /// Where in the direct map a byte of the guest's is.
    #[inline]
    fn direct(&self, found: Translation) -> DirectPtr {
        // SAFETY: the VM's tree has a page there, and its pages are from the VM's pool.
        unsafe { DirectPtr::new(self.vm.host(), found.hpa) }
    }

    /// Runs `write` on the place of `at` in the direct map. No collapse, no replacement and no dirty log misses what it writes
    /// to the page.
    pub(crate) fn write_with<R>(&self, at: Gpa, mut write: impl FnMut(DirectPtr) -> R) -> Result<R, MemoryError> {
        loop {
            match self.vm.tree.write(self.cpu.read(), at, |found| write(self.direct(found))) {
                Ok(result) => return Ok(result),
                Err(WriteError::NoPage) => self.touch_for_software(at)?,
                Err(WriteError::ReadOnly) => return Err(MemoryError::Outside(at)),
            }
        }
    }

    /// [`touch`](Self::touch) by software, which can't wait for a grace period: a second try after what can be had at once.
    ///
    /// Nor can it come back in the midst of a large page, so that the page is a small one. A walk of the guest's tables and the
    /// access behind it may touch five pages in one exit; five large ones would keep the CPU for as long as a slice.
    #[cold]
    fn touch_for_software(&self, at: Gpa) -> Result<(), MemoryError> {
        let touch = || self.touch_at_most(at, PageSize::Size4K, false).map(|_| ());
        match touch() {
            Err(MemoryError::NoFrames) => {
                self.give_back_at_once();
                touch()
            }
            result => result,
        }
    }

    /// Gives back what can be without waiting for a grace period.
    pub(crate) fn give_back_at_once(&self) {
        self.cpu.hurry();
        give_back_some(&self.cpu, STEP);
    }

    /// Maps the pages of these bytes with the largest size that there is room for, before the VM's guest runs.
    pub(crate) fn populate(&self, at: Gpa, bytes: u64) -> Result<(), MemoryError> {
        self.for_each_page(at, bytes, |gpa, _| {
            while self.touch(gpa, false)? == Touched::Begun {}
            Ok(())
        })
    }

    /// A step of [`populate`](Self::populate): a large page is cleared in several. Whether all is mapped.
    pub(crate) fn populate_some(&self, at: Gpa, bytes: u64) -> Result<bool, MemoryError> {
        let mut all = true;
        self.for_each_page(at, bytes, |gpa, _| {
            // To touch a page that is mapped would forget the one that was begun.
            let is_mapped = || self.vm.tree.translate(self.cpu.read(), gpa).is_some();
            all = all && (is_mapped() || self.touch(gpa, false)? == Touched::Mapped);
            Ok(())
        })?;
        Ok(all)
    }

    /// Has these bytes read as zeroes, before the VM's guest runs: those of pages that are not mapped do already, and stay as they are.
    pub(crate) fn zero_mapped(&self, at: Gpa, bytes: u64) -> Result<(), MemoryError> {
        self.for_each_page(at, bytes, |gpa, length| {
            if !self.vm.backs(gpa) {
                return Err(MemoryError::Outside(gpa));
            }
            match self.vm.tree.translate(self.cpu.read(), gpa) {
                Some(_) => self.zero_bytes(gpa, length),
                None => Ok(()),
            }
        })
    }

    /// Maps the page at `at`, if that is memory and nothing is mapped; lets a write through that the dirty log waits for.
    #[inline]
    pub(crate) fn touch(&self, at: Gpa, write: bool) -> Result<Touched, MemoryError> {
        self.touch_at_most(at, PageSize::Size2M, write)
    }

    #[inline]
    fn touch_at_most(&self, at: Gpa, most: PageSize, write: bool) -> Result<Touched, MemoryError> {
        if !self.vm.backs(at) {
            return Err(MemoryError::Outside(at));
        }
        let large = at.align_down(PageSize::Size2M.bytes()).wrapping_add(PageSize::Size2M.bytes() - 1);
        let want = if self.vm.ram.backs(large) { most } else { PageSize::Size4K };
        match self.vm.tree.fault(self.cpu.read(), at, want) {
            Ok(Fault::Room(room)) => self.fill(room),
            Ok(Fault::Present(found)) => {
                self.vm.forget(self.state);
                // Otherwise another CPU was faster, with this page or with this right.
                if write && found.leaf.logged {
                    self.unprotect(at);
                }
                Ok(if found.leaf.rights.user { Touched::Mapped } else { Touched::Hidden })
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

    /// A page for `room`. Another CPU's page will do as well.
    #[inline]
    pub(crate) fn fill(&self, mut room: Room<'_, TreeEnv<'m, F, H>>) -> Result<Touched, MemoryError> {
        let zeroed = match room.size() {
            PageSize::Size4K => None,
            size if self.vm.hidden.any_in(room.start().frame(), size) => None,
            size => self.zero_some(size),
        };
        let frame = match zeroed {
            Some(Zeroed::Partly) => return Ok(Touched::Begun),
            Some(Zeroed::Wholly(frame)) => frame,
            None => {
                room = room.at_most(PageSize::Size4K);
                self.zeroed().ok_or(MemoryError::NoFrames)?
            }
        };
        let size = room.size();
        let result = self.install(room, frame);
        if result.is_err() && kept(Rule::GiveBackLoser) {
            self.vm.tree.env().free(frame, size);
        }
        match result {
            Ok(()) | Err(MapError::Raced | MapError::Present) => Ok(Touched::Mapped),
            Err(MapError::NoMemory | MapError::Invalid) => Err(MemoryError::NoFrames),
        }
    }

    /// A small page of zeroes: a pre-zeroed one, if the pool has any.
    #[inline]
    fn zeroed(&self) -> Option<Pfn> {
        let host = self.vm.host();
        let mut pool = self.vm.account().pool.lock();
        pool.touch();
        if let Some(frame) = pool.alloc_prezeroed() {
            return Some(frame);
        }
        let frame = pool.alloc(host.frames(), PageSize::Size4K)?;
        drop(pool);
        if kept(Rule::ZeroFirst) {
            // SAFETY: the pool has given the frame out, and no entry leads to it yet.
            unsafe { raw::fill(host, frame, 0..PAGE_SIZE, 0) };
        }
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
        // SAFETY: the pool has given the page out, and no entry leads to it yet.
        unsafe { raw::fill(self.vm.host(), frame.0, done..done + part, 0) };
        if done + part == size.bytes() {
            return Some(Zeroed::Wholly(frame.0));
        }
        self.state.zeroing.set(Some(Zeroing { frame, done: done + part }));
        Some(Zeroed::Partly)
    }

    fn alloc_large(&self, size: PageSize) -> Option<Pfn> {
        let mut pool = self.vm.account().pool.lock();
        pool.touch();
        pool.alloc(self.vm.host().frames(), size)
    }

    /// [`touch`](Self::touch) again, after what can be had at once. The guest faults again as long as some of its pages wait for a
    /// grace period.
    #[cold]
    pub(crate) fn touch_again(&self, fault: NestedFault) -> Resolved {
        let waited = self.hurry_back();
        match self.touch(fault.address(), fault.is_write()) {
            Ok(_) => {
                self.state.found_frames();
                Resolved::Retry
            }
            Err(MemoryError::Outside(_)) => Resolved::NotMemory,
            Err(MemoryError::NoFrames) if waited => Resolved::Retry,
            Err(MemoryError::NoFrames) => Resolved::OutOfMemory,
        }
    }

    /// Gives back pages that wait on this CPU, if too many do, until `most` bytes are filled with poison. A guest that has its shadow tables zapped again and again
    /// does this at its own cost: between two slices the CPU gives back a few only, and the tables would take all of the machine's
    /// frames. A guest makes no more tables by a fault than this gives back.
    #[inline]
    pub(crate) fn bound_backlog(&mut self, most: u64) {
        if self.cpu.is_over_limit() {
            self.give_back_backlog(most);
        }
    }

    #[cold]
    fn give_back_backlog(&mut self, most: u64) {
        self.cpu.synchronize_expedited();
        give_back_some(&self.cpu, most);
    }

    /// Hurries the grace periods that this VM's pages wait for, and gives some of them back. Whether there were any: then what found
    /// no frame is to be tried again in another exit. To wait here until all are back would keep this CPU from its other guests.
    ///
    /// It goes on for the pages that waited the first time: another vCPU may make more of them wait for ever.
    pub fn hurry_back(&self) -> bool {
        let account = self.vm.account();
        // A page that is half zero can't be used for anything else.
        let had_page = self.vm.forget(self.state);
        let awaited = self.state.awaited.get().or(NonZero::new(account.deferred()));
        if awaited.is_none_or(|awaited| account.returned() >= awaited.get()) {
            self.state.found_frames();
            return had_page;
        }
        self.state.awaited.set(awaited);
        self.cpu.expedite();
        give_back_some(&self.cpu, STEP);
        true
    }

    pub(crate) fn write_bytes(&self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        self.for_each_piece(at, bytes.len() as u64, |host, range| host.write(&bytes[range]))
    }

    pub(crate) fn zero_bytes(&self, at: Gpa, bytes: u64) -> Result<(), MemoryError> {
        self.for_each_piece(at, bytes, |host, range| host.write_zeroes(range.len()))
    }

    /// Runs `write` on the host's side of each piece of `bytes` bytes from `at` on.
    fn for_each_piece(
        &self,
        at: Gpa,
        bytes: u64,
        mut write: impl FnMut(DirectPtr, core::ops::Range<usize>),
    ) -> Result<(), MemoryError> {
        let mut done = 0;
        self.for_each_page(at, bytes, |gpa, length| {
            let range = done..done + length as usize;
            done = range.end;
            let piece = |host: DirectPtr| write(host, range.clone());
            self.stored(gpa, length as usize, Writer::Software, || self.write_with(gpa, piece))
        })
    }

    /// Runs `act` on each part of `bytes` bytes from `at` on that is in one page: its address and its length.
    fn for_each_page(
        &self,
        at: Gpa,
        bytes: u64,
        mut act: impl FnMut(Gpa, u64) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < bytes {
            let gpa = at.checked_add(done).ok_or(MemoryError::Outside(at))?;
            let length = (PAGE_SIZE - gpa.page_offset()).min(bytes - done);
            act(gpa, length)?;
            done += length;
        }
        Ok(())
    }
}
