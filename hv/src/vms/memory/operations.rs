//! The test hypercalls: operations on the caller's own tables, while its vCPUs use them.

use super::{Nested, View, give_back_some};
use crate::frames::Failures;
use crate::paging;
use addr::{Gpa, PAGE_SIZE, PageSize, Pfn};
use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::{AtomicU8, Ordering};
use mmu::{CollapseError, Page, RangeError, ReplaceError, SplitError};
use shadow::Writer;
use vm::hypercall::BASE;

/// Why a call was refused: Linux's numbers, and KVM's for a call that there is not.
#[derive(Clone, Copy)]
enum Refused {
    /// The range is not, or not all, RAM (EFAULT).
    NotRam = -14,
    /// The arguments make no sense, or there is nothing to do this to (EINVAL).
    Invalid = -22,
    /// No frame, and the tables are as before (ENOMEM).
    NoMemory = -12,
    /// Another CPU was faster (EAGAIN).
    Raced = -11,
    /// There is no such call (KVM_ENOSYS).
    NoSuchCall = -1000,
}

impl From<RangeError> for Refused {
    fn from(error: RangeError) -> Self {
        match error {
            RangeError::NoMemory => Self::NoMemory,
            RangeError::Invalid => Self::Invalid,
        }
    }
}

impl From<SplitError> for Refused {
    fn from(error: SplitError) -> Self {
        match error {
            SplitError::NoMemory => Self::NoMemory,
            SplitError::NotLarge => Self::Invalid,
        }
    }
}

impl From<CollapseError> for Refused {
    fn from(error: CollapseError) -> Self {
        match error {
            CollapseError::Changed => Self::Raced,
            CollapseError::NoTable | CollapseError::NotUniform | CollapseError::NoSuchSize => Self::Invalid,
        }
    }
}

/// The calls that are carried out in steps, by their numbers from [`BASE`] on.
const RELEASE: u64 = 2;
const LOG_DIRTY: u64 = 5;

/// Bytes of small pages that one step of a call is about. (Otherwise it is one large page.)
pub(super) const STEP: u64 = 128 * PAGE_SIZE;

const LARGE: u64 = PageSize::Size2M.bytes();

/// A call of which steps are left. Between them the guest's interrupts are delivered, and other VMs have their turn.
#[derive(Clone, Copy)]
pub(super) struct Unfinished {
    number: u64,
    args: [u64; 4],
    so_far: Progress,
}

/// How far a call on a range has come.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// Bytes of the range that are done.
    done: u64,
    /// What the call returns of them.
    value: u64,
}

/// What has become of a step.
enum Step {
    Last(u64),
    More(Progress),
}

impl<F: Nested> View<'_, F> {
    /// Carries out test hypercall `number`, or a step of it; None if more are left. Waits for CPUs that use this memory: to be
    /// called with no lock held.
    pub(super) fn operate(&mut self, number: u64, args: [u64; 4]) -> Option<i64> {
        // Another call on a range, from an interrupt's handler, makes this one begin again; calls without steps leave it alone.
        let has_steps = matches!(number.wrapping_sub(BASE), RELEASE | LOG_DIRTY);
        let unfinished = if has_steps { self.state.unfinished.take() } else { None };
        let unfinished = unfinished.filter(|call| (call.number, call.args) == (number, args));
        let so_far = unfinished.map_or(Progress::default(), |call| call.so_far);
        let planned = self.vm.account().pool.lock().is_to_fail();
        let mut result = self.attempt(number, args, so_far);
        // No operation fails for want of a frame that only waits for its grace period, unless it is to fail.
        if matches!(result, Err(Refused::NoMemory)) && !planned && self.vm.account().backlog() != 0 {
            self.reclaim();
            result = self.attempt(number, args, so_far);
        }
        self.settle();
        match result {
            Ok(Step::Last(value)) => Some(value.cast_signed()),
            Ok(Step::More(so_far)) => {
                self.state.unfinished.set(Some(Unfinished { number, args, so_far }));
                None
            }
            Err(refused) => Some(refused as i64),
        }
    }

    /// An attempt that finds no frame leaves all as it was before this step.
    fn attempt(&self, number: u64, args: [u64; 4], so_far: Progress) -> Result<Step, Refused> {
        let [first, second, third, _] = args;
        match number.wrapping_sub(BASE) {
            RELEASE => return self.change_frames(|| self.release(first, second, so_far)),
            3 => self.split(first),
            4 => self.change_frames(|| self.collapse(first)),
            LOG_DIRTY => return self.change_frames(|| self.log_dirty(first, second, third, so_far)),
            6 => self.change_frames(|| self.replace(first)),
            7 => Ok(self.report()),
            8 => self.stat(first),
            9 => Ok(self.fail_alloc(first)),
            10 => self.skip_flush(first),
            11 => self.spoil(first),
            _ => Err(Refused::NoSuchCall),
        }
        .map(Step::Last)
    }

    /// Gives back what can be. A guest that makes pages wait faster than grace periods pass waits as well.
    fn settle(&mut self) {
        self.cpu.quiescent();
        give_back_some(&self.cpu, 2 * STEP);
        if self.cpu.is_over_limit() {
            self.cpu.synchronize_expedited();
            give_back_some(&self.cpu, 2 * STEP);
        }
    }

    /// Carries out a step of a call on `range`: `step` is given a part that no large page crosses, and tells what the call returns
    /// of it.
    fn step(
        &self,
        range: &Range<Gpa>,
        so_far: Progress,
        step: impl FnOnce(Range<Gpa>) -> Result<u64, Refused>,
    ) -> Result<Step, Refused> {
        let start = range.start.wrapping_add(so_far.done);
        let found = self.vm.tree.translate(self.cpu.read(), start);
        let size = if found.is_some_and(|found| found.size == PageSize::Size2M) { LARGE } else { STEP };
        let end = start.align_down(size).wrapping_add(size).min(range.end);
        let value = so_far.value + step(start..end)?;
        Ok(match end < range.end {
            true => Step::More(Progress { done: end.raw() - range.start.raw(), value }),
            false => Step::Last(value),
        })
    }

    /// Splits the large page that `at` is inside of, so that what follows fails for no want of a table.
    fn split_at(&self, at: Gpa) -> Result<(), Refused> {
        let inside = !at.is_aligned(LARGE);
        match self.vm.tree.split(self.cpu.read(), at) {
            Err(SplitError::NoMemory) if inside => Err(Refused::NoMemory),
            _ => Ok(()),
        }
    }

    /// The pages of a range that the guest named, all of them RAM.
    fn ram_range(&self, start: u64, bytes: u64) -> Result<Range<Gpa>, Refused> {
        if !start.is_multiple_of(PAGE_SIZE) || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(Refused::Invalid);
        }
        let end = start.checked_add(bytes).filter(|&end| end <= self.vm.ram.bytes()).ok_or(Refused::NotRam)?;
        Ok(Gpa::new(start)..Gpa::new(end))
    }

    fn ram_page(&self, at: u64) -> Result<Gpa, Refused> {
        self.ram_range(at, PAGE_SIZE).map(|page| page.start)
    }

    /// A page of the guest's that no entry leads to any more is to be given back.
    fn retire(&self, page: Pfn, size: PageSize) {
        let env = self.vm.tree.env();
        if let Some(desc) = env.descriptors.get(page.raw() as usize) {
            env.account.retire(desc, size);
            // Whether too many wait is looked at when the operation is done.
            let _ = self.cpu.call_rcu(page);
        }
    }

    fn release(&self, start: u64, bytes: u64, so_far: Progress) -> Result<Step, Refused> {
        let range = self.ram_range(start, bytes)?;
        if so_far.done == 0 {
            self.split_at(range.end)?;
        }
        self.step(&range, so_far, |part| self.zap(part))
    }

    /// Takes away what is mapped in `range`; how many frames that were.
    fn zap(&self, range: Range<Gpa>) -> Result<u64, Refused> {
        let (mut frames, mut pages) = (0, 0);
        self.vm.tree.zap(&self.cpu, range, |page| {
            frames += page.size.frames();
            pages += 1;
            self.retire(page.leaf.pfn, page.size);
        })?;
        self.vm.account().count(pages);
        Ok(frames)
    }

    fn split(&self, at: u64) -> Result<u64, Refused> {
        self.vm.tree.split(self.cpu.read(), self.ram_page(at)?)?;
        self.vm.account().count(1);
        Ok(0)
    }

    fn collapse(&self, at: u64) -> Result<u64, Refused> {
        let at = self.ram_page(at)?;
        let new = self.alloc(PageSize::Size2M)?;
        let copy = |index: usize, leaf: mmu::Leaf| {
            // SAFETY: nobody writes the old page, nobody else knows the new one; the direct map covers both.
            unsafe { copy_page(leaf.pfn, new.add(index as u64)) };
        };
        let back = |page: Page<Gpa>| self.retire(page.leaf.pfn, page.size);
        let collapsed = self.vm.tree.collapse_into(&self.cpu, at, PageSize::Size2M, new, copy, back);
        self.used(new, PageSize::Size2M, collapsed)
    }

    fn replace(&self, at: u64) -> Result<u64, Refused> {
        let at = self.ram_page(at)?;
        let new = self.alloc(PageSize::Size4K)?;
        let replaced = loop {
            // SAFETY: as in `collapse`.
            let copy = |old: mmu::Leaf| unsafe { copy_page(old.pfn, new) };
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
                break Err(error.into());
            }
        };
        self.used(new, PageSize::Size4K, replaced)
    }

    fn alloc(&self, size: PageSize) -> Result<Pfn, Refused> {
        self.vm.account().pool.lock().alloc(size).ok_or(Refused::NoMemory)
    }

    /// What became of `new`: if nothing, it goes back.
    fn used<E: Into<Refused>>(&self, new: Pfn, size: PageSize, result: Result<(), E>) -> Result<u64, Refused> {
        match result {
            Ok(()) => {
                self.vm.account().count(1);
                Ok(0)
            }
            Err(error) => {
                self.vm.account().pool.lock().free(new, size);
                Err(error.into())
            }
        }
    }

    fn log_dirty(&self, start: u64, bytes: u64, bitmap: u64, so_far: Progress) -> Result<Step, Refused> {
        let range = self.ram_range(start, bytes)?;
        let bitmap = match bitmap {
            0 => None,
            at => Some(self.ram_range(at, (bytes / PAGE_SIZE).div_ceil(8).next_multiple_of(PAGE_SIZE))?.start),
        };
        if let Some(bitmap) = bitmap.filter(|_| so_far.done == 0) {
            self.zero_bytes(bitmap, (bytes / PAGE_SIZE).div_ceil(8)).map_err(|_| Refused::NoMemory)?;
        }
        self.step(&range, so_far, |part| self.log_dirty_part(&range, part, bitmap))
    }

    /// Logs and write-protects the dirty pages of `part`; their bits count from `range`'s start. How many bits were set.
    fn log_dirty_part(&self, range: &Range<Gpa>, part: Range<Gpa>, bitmap: Option<Gpa>) -> Result<u64, Refused> {
        let (mut set, mut protected) = (Ok(0), 0);
        self.vm.tree.dirty_log(&self.cpu, part.clone(), |page| {
            protected += 1;
            let Some(bitmap) = bitmap else { return };
            let first = page.at.max(part.start).raw() - range.start.raw();
            let last = page.at.wrapping_add(page.size.bytes()).min(part.end).raw() - range.start.raw();
            set = set.and_then(|set| Ok(set + self.set_bits(bitmap, first / PAGE_SIZE..last / PAGE_SIZE)?));
        })?;
        self.vm.account().count(1 + protected);
        set
    }

    /// Sets these bits of the bitmap at `bitmap`; their number.
    fn set_bits(&self, bitmap: Gpa, bits: Range<u64>) -> Result<u64, Refused> {
        let mut at = bits.start;
        while at < bits.end {
            let end = bits.end.min((at | 7) + 1);
            let mask = (at..end).fold(0, |mask, bit| mask | 1 << (bit & 7));
            let set = |host: *mut u8| {
                // SAFETY: a byte of guest memory, in the direct map, which the guest may access as well.
                unsafe { &*host.cast::<AtomicU8>() }.fetch_or(mask, Ordering::Relaxed);
            };
            // It was there when it was cleared: another vCPU has released it since.
            let byte = bitmap.wrapping_add(at / 8);
            self.stored(byte, 1, Writer::Software, || self.write_with(byte, set)).map_err(|_| Refused::Raced)?;
            at = end;
        }
        Ok(bits.end - bits.start)
    }

    /// Small pages in the low half, 2 MiB pages in the high one.
    fn report(&self) -> u64 {
        let report = self.vm.tree.report(self.cpu.read());
        report.pages(PageSize::Size4K) | report.pages(PageSize::Size2M) << 32
    }

    fn stat(&self, index: u64) -> Result<u64, Refused> {
        let (account, space) = (self.vm.account(), self.vm.tree.space());
        Ok(match index {
            0 => account.operations(),
            1 => account.backlog(),
            2 => account.peak_backlog(),
            3 => self.cpu.domain().stats().grace_periods,
            4 => space.kicks(),
            5 => account.pool.lock().outstanding(),
            6 => space.flushes(),
            _ => return Err(Refused::Invalid),
        })
    }

    fn fail_alloc(&self, n: u64) -> u64 {
        let failures = match n {
            0 => Failures::None,
            u64::MAX => Failures::All,
            n => Failures::Nth(n),
        };
        self.vm.account().pool.lock().fail(failures);
        0
    }

    /// A split does no flush: both forms of the page mean the same.
    #[cfg(feature = "sabotage")]
    fn skip_flush(&self, which: u64) -> Result<u64, Refused> {
        let after = match which {
            0 => None,
            1 => Some(mmu::After::Zap),
            2 => Some(mmu::After::DirtyLog),
            3 => Some(mmu::After::Replace),
            4 => Some(mmu::After::Collapse),
            _ => return Err(Refused::Invalid),
        };
        self.vm.tree.skip_flush(after);
        Ok(0)
    }

    /// Takes a page away, and puts an entry that makes no sense in its place.
    #[cfg(feature = "sabotage")]
    fn spoil(&self, at: u64) -> Result<u64, Refused> {
        let page = self.ram_page(at)?;
        self.zap(page..page.wrapping_add(PAGE_SIZE))?;
        if self.vm.tree.spoil(self.cpu.read(), page) { Ok(0) } else { Err(Refused::Raced) }
    }

    #[cfg(not(feature = "sabotage"))]
    fn spoil(&self, _: u64) -> Result<u64, Refused> {
        Err(Refused::NoSuchCall)
    }

    #[cfg(not(feature = "sabotage"))]
    fn skip_flush(&self, _: u64) -> Result<u64, Refused> {
        Err(Refused::NoSuchCall)
    }
}

/// Copies 4 KiB.
///
/// # Safety
/// The direct map covers both frames, nobody writes `from`, and nobody else uses `to`.
unsafe fn copy_page(from: Pfn, to: Pfn) {
    let (from, to) = (paging::direct(from.start()), paging::direct(to.start()));
    // SAFETY: the caller's promise; the direction flag is clear in Rust code.
    unsafe {
        asm!("rep movsq", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") PAGE_SIZE / 8 => _, options(nostack));
    }
}
