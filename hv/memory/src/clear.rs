//! A guest's memory is made what it was at the start, in steps, so that other VMs on the CPU have their time meanwhile.

use crate::host::HostMemory;
use crate::pool::PlannedFailures;
use crate::test_calls::STEP;
use crate::tree_env::Nested;
use crate::view::View;
use addr::{Gpa, PageSize};
use core::ops::Range;
use loader::GuestRam;
use mmu::RangeError;

const LARGE: u64 = PageSize::Size2M.bytes();

impl<F: Nested, H: HostMemory> View<'_, '_, F, H> {
    /// Takes a part of the guest's memory away, from `from` on, and gives where the next one begins; None when there is no more. To be
    /// called from address 0 on, when no vCPU enters its guest any more, and with no lock held: each page is zero when it is touched
    /// next, and no failure that a test has planned is left.
    pub fn clear(&mut self, from: Gpa) -> Option<Gpa> {
        if from.raw() == 0 {
            self.vm.account().pool.lock().fail(PlannedFailures::None);
            self.keep_flushes();
            self.vm.hidden.clear();
        }
        let part = part(self.vm.ram, from.raw())?;
        let end = part.end;
        let unmapped = self.change_frames(|| self.unmap(part));
        debug_assert_eq!(unmapped, Ok(()), "no page lies across an edge of the part");
        self.settle(STEP);
        Some(end)
    }

    /// Takes away what is mapped in `range`, and the tables that this leaves empty.
    fn unmap(&self, range: Range<Gpa>) -> Result<(), RangeError> {
        let mut pages = 0;
        self.vm.tree.unmap(&self.cpu, range, |page| {
            pages += 1;
            self.retire(page.leaf.pfn, page.size);
        })?;
        self.vm.account().count(pages);
        Ok(())
    }
}

/// The RAM from `from` on, up to what one table of the last level maps; None if there is none.
fn part(ram: GuestRam, from: u64) -> Option<Range<Gpa>> {
    let ranges = [0..ram.low_end(), GuestRam::ABOVE_4G..ram.high_end()];
    let range = ranges.into_iter().find(|range| !range.is_empty() && from < range.end)?;
    let start = from.max(range.start);
    let end = (start + 1).next_multiple_of(LARGE).min(range.end);
    Some(Gpa::new(start)..Gpa::new(end))
}
