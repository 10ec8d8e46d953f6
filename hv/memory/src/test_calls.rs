//! The test hypercalls: operations on the caller's own tables, while its vCPUs use them.

use crate::account::{give_back, give_back_some};
use crate::host::HostMemory;
use crate::pool::PlannedFailures;
use crate::raw::{self, DirectPtr};
use crate::rules::Rule;
use crate::tree_env::Nested;
use crate::view::View;
use abi::hypercall::{AllocationFailures, FlushPoint, Mapped, Refused, Statistic, TestCall};
use addr::{Gpa, PAGE_SIZE, PageSize, Pfn};
use core::num::NonZero;
use core::ops::Range;
use mmu::{CollapseError, Page, RangeError, ReplaceError, SplitError};
use model::kept;
use shadow::Writer;

/// An error of the tables, as the guest is told.
trait Refusal {
    fn refused(self) -> Refused;
}

impl Refusal for RangeError {
    fn refused(self) -> Refused {
        match self {
            Self::NoMemory => Refused::NoMemory,
            Self::Invalid => Refused::Invalid,
        }
    }
}

impl Refusal for SplitError {
    fn refused(self) -> Refused {
        match self {
            Self::NoMemory => Refused::NoMemory,
            Self::NotLarge => Refused::Invalid,
        }
    }
}

impl Refusal for CollapseError {
    fn refused(self) -> Refused {
        match self {
            Self::Changed => Refused::Raced,
            Self::NoTable | Self::NotUniform | Self::NoSuchSize => Refused::Invalid,
        }
    }
}

/// Bytes of small pages that one step of a call is about. (Otherwise it is one large page.)
pub(crate) const STEP: u64 = 128 * PAGE_SIZE;

/// Bytes of memory that one step of a report counts: 32 tables of small pages.
const REPORT_STEP: u64 = 64 << 20;

const LARGE: u64 = PageSize::Size2M.bytes();

/// A call of which steps are left. Between them the guest's interrupts are delivered, and other VMs have their turn.
#[derive(Clone, Copy)]
pub(crate) struct Unfinished {
    call: TestCall,
    so_far: Progress,
}

/// How far a call on a range has come.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// Bytes of the dirty log's bitmap that are mapped.
    bitmap: u64,
    /// Bytes of the range that are done.
    done: u64,
    /// What the call returns of them.
    value: u64,
}

/// What has become of a step.
enum CallStatus {
    Last(u64),
    More(Progress),
}

impl<F: Nested, H: HostMemory> View<'_, '_, F, H> {
    /// Carries out `call`, or a step of it; None if more are left. Waits for CPUs that use this memory: to be called with no lock
    /// held.
    pub(crate) fn operate(&mut self, call: TestCall) -> Option<Result<u64, Refused>> {
        // Another call on a range, from an interrupt's handler, makes this one begin again; calls without steps leave it alone.
        let unfinished = if call.has_steps() { self.state.unfinished.take() } else { None };
        let unfinished = unfinished.filter(|unfinished| unfinished.call == call);
        let so_far = unfinished.map_or(Progress::default(), |unfinished| unfinished.so_far);
        let planned = self.vm.account().pool.lock().is_to_fail();
        let mut result = self.attempt(call, so_far);
        // No operation fails for want of a frame that only waits for its grace period, unless it is to fail.
        if matches!(result, Err(Refused::NoMemory)) && !planned {
            result = if self.hurry_back() { Ok(CallStatus::More(so_far)) } else { self.attempt(call, so_far) };
        } else {
            self.state.found_frames();
        }
        self.settle(2 * STEP);
        match result {
            Ok(CallStatus::Last(value)) => Some(Ok(value)),
            Ok(CallStatus::More(so_far)) => {
                if call.has_steps() {
                    self.state.unfinished.set(Some(Unfinished { call, so_far }));
                }
                None
            }
            Err(refused) => Some(Err(refused)),
        }
    }

    /// An attempt that finds no frame leaves all as it was before this step.
    fn attempt(&self, call: TestCall, so_far: Progress) -> Result<CallStatus, Refused> {
        match call {
            TestCall::Release { start, bytes } => return self.change_frames(|| self.release(start, bytes, so_far)),
            TestCall::Split { at } => self.split(at),
            TestCall::Collapse { at } => self.change_frames(|| self.collapse(at)),
            TestCall::LogDirty { start, bytes, bitmap } => {
                return self.change_frames(|| self.log_dirty(start, bytes, bitmap, so_far));
            }
            TestCall::Replace { at } => self.change_frames(|| self.replace(at)),
            TestCall::Report => return Ok(self.report(so_far)),
            TestCall::Stat(which) => Ok(self.stat(which)),
            TestCall::FailAllocations(failures) => Ok(self.fail_allocations(failures)),
            TestCall::SkipFlush(point) => self.skip_flush(point),
            TestCall::Misconfigure { at } => self.misconfigure(at),
        }
        .map(CallStatus::Last)
    }

    /// Gives back what can be, until `most` bytes are filled with poison. A guest that makes pages wait faster than grace periods pass
    /// waits as well.
    pub(crate) fn settle(&mut self, most: u64) {
        self.cpu.quiescent();
        give_back_some(&self.cpu, most);
        self.bound_backlog(most);
    }

    /// Carries out a step of a call on `range`: `step` is given a part that no large page crosses, and tells what the call returns
    /// of it.
    fn step(
        &self,
        range: &Range<Gpa>,
        so_far: Progress,
        step: impl FnOnce(Range<Gpa>) -> Result<u64, Refused>,
    ) -> Result<CallStatus, Refused> {
        let start = range.start.wrapping_add(so_far.done);
        let found = self.vm.tree.translate(self.cpu.read(), start);
        let size = if found.is_some_and(|found| found.size == PageSize::Size2M) { LARGE } else { STEP };
        let end = start.align_down(size).wrapping_add(size).min(range.end);
        let value = so_far.value + step(start..end)?;
        Ok(match end < range.end {
            true => CallStatus::More(Progress { done: end.raw() - range.start.raw(), value, ..so_far }),
            false => CallStatus::Last(value),
        })
    }

    /// Splits the large page that `at` is inside of, if it is, so that what follows needs no table. Elsewhere it takes none: a
    /// guest that has no frame left can give pages back.
    fn split_at(&self, at: Gpa) -> Result<(), Refused> {
        let found = self.vm.tree.translate(self.cpu.read(), at);
        if at.is_aligned(LARGE) || found.is_none_or(|found| found.size == PageSize::Size4K) {
            return Ok(());
        }
        match self.vm.tree.split(self.cpu.read(), at) {
            Err(SplitError::NoMemory) => Err(Refused::NoMemory),
            Ok(()) | Err(SplitError::NotLarge) => Ok(()),
        }
    }

    /// The pages of a range that the guest named, all of them RAM.
    fn ram_range(&self, start: u64, bytes: u64) -> Result<Range<Gpa>, Refused> {
        if !start.is_multiple_of(PAGE_SIZE) || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(Refused::Invalid);
        }
        self.vm.ram.range(start, bytes).ok_or(Refused::NotRam)
    }

    fn ram_page(&self, at: u64) -> Result<Gpa, Refused> {
        self.ram_range(at, PAGE_SIZE).map(|page| page.start)
    }

    /// A page of the guest's that no entry leads to any more is to be given back.
    pub(crate) fn retire(&self, page: Pfn, size: PageSize) {
        let env = self.vm.tree.env();
        if let Some(desc) = env.descriptors.get(page.raw() as usize) {
            env.account.retire(desc, size);
            if kept(Rule::RetireLate) {
                // Whether too many wait is looked at when the operation is done.
                let _ = self.cpu.call_rcu(page);
            } else {
                give_back(env.host, page);
            }
        }
    }

    fn release(&self, start: u64, bytes: u64, so_far: Progress) -> Result<CallStatus, Refused> {
        let range = self.ram_range(start, bytes)?;
        if so_far.done == 0 {
            self.split_at(range.end)?;
        }
        self.step(&range, so_far, |part| self.zap(part))
    }

    /// Takes away what is mapped in `range`; how many frames that were.
    fn zap(&self, range: Range<Gpa>) -> Result<u64, Refused> {
        let (mut frames, mut pages) = (0, 0);
        let zapped = self.vm.tree.zap(&self.cpu, range, |page| {
            frames += page.size.frames();
            pages += 1;
            self.retire(page.leaf.pfn, page.size);
        });
        zapped.map_err(Refusal::refused)?;
        self.vm.account().count(pages);
        Ok(frames)
    }

    fn split(&self, at: u64) -> Result<u64, Refused> {
        self.vm.tree.split(self.cpu.read(), self.ram_page(at)?).map_err(Refusal::refused)?;
        self.vm.account().count(1);
        Ok(0)
    }

    fn collapse(&self, at: u64) -> Result<u64, Refused> {
        let at = self.ram_page(at)?;
        let new = self.alloc(PageSize::Size2M)?;
        let host = self.vm.host();
        let copy = |index: usize, leaf: mmu::Leaf| {
            // SAFETY: both pages are the VM's; the old one's entry is frozen, and no entry leads to the new one yet.
            unsafe { raw::copy_page(host, leaf.pfn, new.add(index as u64)) };
        };
        let back = |page: Page<Gpa>| self.retire(page.leaf.pfn, page.size);
        let collapsed = self.vm.tree.collapse_into(&self.cpu, at, PageSize::Size2M, new, copy, back);
        self.used(new, PageSize::Size2M, collapsed.map_err(Refusal::refused))
    }

    fn replace(&self, at: u64) -> Result<u64, Refused> {
        let at = self.ram_page(at)?;
        let new = self.alloc(PageSize::Size4K)?;
        let replaced = loop {
            // SAFETY: as in `collapse`.
            let copy = |old: mmu::Leaf| unsafe { raw::copy_page(self.vm.host(), old.pfn, new) };
            match self.vm.tree.replace(&self.cpu, at, PageSize::Size4K, new, copy) {
                Ok(old) => {
                    self.retire(old.pfn, PageSize::Size4K);
                    break Ok(());
                }
                Err(ReplaceError::Changed) => break Err(Refused::Raced),
                Err(ReplaceError::Invalid) => break Err(Refused::Invalid),
                Err(ReplaceError::NoPage) => {}
            }
            // It may be a part of a large page.
            if let Err(error) = self.vm.tree.split(self.cpu.read(), at) {
                break Err(error.refused());
            }
        };
        self.used(new, PageSize::Size4K, replaced)
    }

    fn alloc(&self, size: PageSize) -> Result<Pfn, Refused> {
        self.vm.tree.env().alloc(size).ok_or(Refused::NoMemory)
    }

    /// What became of `new`: if nothing, it goes back.
    fn used(&self, new: Pfn, size: PageSize, result: Result<(), Refused>) -> Result<u64, Refused> {
        match result {
            Ok(()) => {
                self.vm.account().count(1);
                Ok(0)
            }
            Err(error) => {
                self.vm.tree.env().free(new, size);
                Err(error)
            }
        }
    }

    fn log_dirty(
        &self,
        start: u64,
        bytes: u64,
        bitmap: Option<NonZero<u64>>,
        mut so_far: Progress,
    ) -> Result<CallStatus, Refused> {
        let range = self.ram_range(start, bytes)?;
        let bitmap_bytes = (bytes / PAGE_SIZE).div_ceil(8).next_multiple_of(PAGE_SIZE);
        let bitmap = bitmap.map(|at| self.ram_range(at.get(), bitmap_bytes)).transpose()?;
        // All pages of the bitmap are mapped before anything is logged: a log whose bits have no place would be lost.
        if let Some(bitmap) = bitmap.as_ref().filter(|_| so_far.bitmap < bitmap_bytes) {
            let start = bitmap.start.wrapping_add(so_far.bitmap);
            so_far.bitmap = bitmap_bytes.min(so_far.bitmap + STEP);
            self.map_for_writing(&(start..bitmap.start.wrapping_add(so_far.bitmap)))?;
            if so_far.bitmap < bitmap_bytes {
                return Ok(CallStatus::More(so_far));
            }
        }
        let bitmap = bitmap.map(|range| range.start);
        self.step(&range, so_far, |part| self.log_dirty_part(&range, part, bitmap))
    }

    /// Maps these pages, for software to write them.
    fn map_for_writing(&self, range: &Range<Gpa>) -> Result<(), Refused> {
        let pages = (range.start.raw()..range.end.raw()).step_by(PAGE_SIZE as usize).map(Gpa::new);
        for page in pages {
            self.write_with(page, |_| {}).map_err(|_| Refused::NoMemory)?;
        }
        Ok(())
    }

    /// Logs and write-protects the dirty pages of `part`; their bits count from `range`'s start. How many bits were set.
    fn log_dirty_part(&self, range: &Range<Gpa>, part: Range<Gpa>, bitmap: Option<Gpa>) -> Result<u64, Refused> {
        let (mut set, mut protected) = (Ok(0), 0);
        let bit = |at: Gpa| (at.raw() - range.start.raw()) / PAGE_SIZE;
        if let Some(bitmap) = bitmap {
            // The bytes that begin in this part: a byte that begins in the part before was cleared with it.
            let bytes = bit(part.start).div_ceil(8)..bit(part.end).div_ceil(8);
            let first = bitmap.wrapping_add(bytes.start);
            self.zero_bytes(first, bytes.end - bytes.start).map_err(|_| Refused::NoMemory)?;
        }
        let logged = self.vm.tree.dirty_log(&self.cpu, part.clone(), |page| {
            protected += 1;
            let Some(bitmap) = bitmap else { return };
            let first = bit(page.at.max(part.start));
            let last = bit(page.at.wrapping_add(page.size.bytes()).min(part.end));
            set = set.and_then(|set| Ok(set + self.set_bits(bitmap, first..last)?));
        });
        logged.map_err(Refusal::refused)?;
        self.vm.account().count(1 + protected);
        set
    }

    /// Sets these bits of the bitmap at `bitmap`; their number.
    fn set_bits(&self, bitmap: Gpa, bits: Range<u64>) -> Result<u64, Refused> {
        let mut at = bits.start;
        while at < bits.end {
            let end = bits.end.min((at | 7) + 1);
            let mask = (at..end).fold(0, |mask, bit| mask | 1 << (bit & 7));
            let set = |host: DirectPtr| host.set_bits(mask);
            // The byte was mapped when the bitmap was cleared. If the write fails, another vCPU has released the page.
            let byte = bitmap.wrapping_add(at / 8);
            self.stored(byte, 1, Writer::Software, || self.write_with(byte, set)).map_err(|_| Refused::Raced)?;
            at = end;
        }
        Ok(bits.end - bits.start)
    }

    /// What of its RAM is mapped. The counts fit: a VM has 64 GiB at most.
    fn report(&self, so_far: Progress) -> CallStatus {
        let start = Gpa::new(so_far.done);
        let end = start.wrapping_add(REPORT_STEP);
        let report = self.vm.tree.report_range(self.cpu.read(), start..end).unwrap_or_default();
        let mapped =
            Mapped { small: report.pages(PageSize::Size4K) as u32, large: report.pages(PageSize::Size2M) as u32 };
        let value = so_far.value + u64::from(mapped);
        match end < self.vm.ram.end() {
            true => CallStatus::More(Progress { done: end.raw(), value, ..so_far }),
            false => CallStatus::Last(value),
        }
    }

    fn stat(&self, which: Statistic) -> u64 {
        let (account, space) = (self.vm.account(), self.vm.tree.space());
        match which {
            Statistic::Operations => account.operations(),
            Statistic::Backlog => account.backlog(),
            Statistic::PeakBacklog => account.peak_backlog(),
            Statistic::GracePeriods => self.cpu.domain().stats().grace_periods,
            Statistic::Kicks => space.kicks(),
            Statistic::FramesInUse => account.pool.lock().outstanding(),
            Statistic::Flushes => space.flushes(),
        }
    }

    fn fail_allocations(&self, failures: AllocationFailures) -> u64 {
        let failures = match failures {
            AllocationFailures::None => PlannedFailures::None,
            AllocationFailures::All => PlannedFailures::All,
            AllocationFailures::Nth(n) => PlannedFailures::Nth(n.get()),
        };
        self.vm.account().pool.lock().fail(failures);
        0
    }

    #[cfg(feature = "fault-injection")]
    fn skip_flush(&self, point: Option<FlushPoint>) -> Result<u64, Refused> {
        self.vm.tree.skip_flush(point.map(|point| match point {
            FlushPoint::Release => mmu::After::Zap,
            FlushPoint::LogDirty => mmu::After::DirtyLog,
            FlushPoint::Replace => mmu::After::Replace,
            FlushPoint::Collapse => mmu::After::Collapse,
        }));
        Ok(0)
    }

    /// No flush is left out any more.
    pub(crate) fn keep_flushes(&self) {
        #[cfg(feature = "fault-injection")]
        self.vm.tree.skip_flush(None);
    }

    /// Takes a page away, and puts an entry that makes no sense in its place.
    #[cfg(feature = "fault-injection")]
    fn misconfigure(&self, at: u64) -> Result<u64, Refused> {
        let page = self.ram_page(at)?;
        self.zap(page..page.wrapping_add(PAGE_SIZE))?;
        if self.vm.tree.misconfigure(self.cpu.read(), page) { Ok(0) } else { Err(Refused::Raced) }
    }

    #[cfg(not(feature = "fault-injection"))]
    fn misconfigure(&self, _: u64) -> Result<u64, Refused> {
        Err(Refused::NoSuchCall)
    }

    #[cfg(not(feature = "fault-injection"))]
    fn skip_flush(&self, _: Option<FlushPoint>) -> Result<u64, Refused> {
        Err(Refused::NoSuchCall)
    }
}
