//! A vCPU's page faults without nested paging, and what its shadow tree has to be told.

use crate::host::HostMemory;
use crate::shadow_trees::{ShadowTrees, VcpuTree};
use crate::tree_env::Nested;
use crate::view::{MOST_CREDIT, Touched, View};
use addr::{Gpa, Gva, PageSize};
use loader::MemoryError;
use mmu::Fault;
use shadow::{Backing, BackingPage, FaultOutcome, NoMemory, Registers, Vtlb, Writer};
use walk::Access;

/// How many faults have to do without tables that make way, for each that does not.
const MAPPED: u32 = 8;

impl<F: Nested, H: HostMemory> View<'_, '_, F, H> {
    /// What becomes of a page fault.
    #[inline]
    pub(crate) fn resolve(&self, own: &Registers, at: Gva, access: Access) -> Result<FaultOutcome, NoMemory> {
        match self.shadow {
            Some(VcpuTree::Vtlb(buffer)) => buffer.fault(&self.cpu, self, own, at, access),
            Some(VcpuTree::Kept(shadow, view)) => shadow.fault(&self.cpu, view, self, own, at, access),
            None => Ok(FaultOutcome::Retry),
        }
    }

    /// [`resolve`](Self::resolve) again, after what can be had at once. The guest faults again as long as some of its pages wait
    /// for a grace period, and then as long as it gets on by shadow tables that make way.
    #[cold]
    pub(crate) fn resolve_again(&self, own: &Registers, at: Gva, access: Access) -> Result<FaultOutcome, NoMemory> {
        let waited = self.hurry_back();
        match self.resolve(own, at, access) {
            Err(NoMemory) if waited || self.make_way() => Ok(FaultOutcome::Retry),
            Err(NoMemory) => Err(NoMemory),
            Ok(outcome) => {
                self.resolved();
                Ok(outcome)
            }
        }
    }

    /// Zaps shadow tables for their frames. False if there are none, or the guest does not get on so: each time has to be followed by
    /// [`MAPPED`] faults that do without.
    fn make_way(&self) -> bool {
        let credit = &self.state.credit;
        let Some(left) = credit.get().checked_sub(MAPPED) else { return false };
        credit.set(left);
        match (self.shadow, &self.vm.shadows) {
            (Some(VcpuTree::Kept(shadow, view)), _) => shadow.make_way(&self.cpu, view),
            // First of all the vCPU's own.
            (Some(VcpuTree::Vtlb(own)), ShadowTrees::Vtlb(all)) => {
                core::iter::once(own).chain(all).any(|buffer| buffer.make_way(&self.cpu))
            }
            _ => false,
        }
    }

    /// A fault has found the frames that it needs.
    #[inline]
    pub(crate) fn resolved(&self) {
        self.state.found_frames();
        let credit = &self.state.credit;
        if credit.get() < MOST_CREDIT {
            credit.set(credit.get() + 1);
        }
    }

    /// Runs `change`, which gives the guest's memory other frames or other rights to them. In the meantime no processor uses any
    /// through a shadow tree.
    pub(crate) fn change_frames<R>(&self, change: impl FnOnce() -> R) -> R {
        match &self.vm.shadows {
            ShadowTrees::None => change(),
            ShadowTrees::Vtlb(buffers) => {
                buffers.iter().for_each(|buffer| buffer.suspend(&self.cpu));
                let result = change();
                buffers.iter().for_each(Vtlb::resume);
                result
            }
            ShadowTrees::Kept(shadow, _) => {
                shadow.suspend(&self.cpu);
                let result = change();
                shadow.resume();
                result
            }
        }
    }

    /// A table at `at` is written by an instruction that can't be emulated: the guest may write it from now on.
    pub(crate) fn unshadow(&self, at: Gpa) {
        if let ShadowTrees::Kept(shadow, _) = &self.vm.shadows {
            shadow.unshadow(&self.cpu, at);
        }
    }

    /// Runs `store`, which writes these bytes of the guest's memory: there may be tables there.
    #[inline]
    pub(crate) fn stored<R>(&self, at: Gpa, bytes: usize, by: Writer, store: impl FnOnce() -> R) -> R {
        match &self.vm.shadows {
            ShadowTrees::Kept(shadow, _) => shadow.write(&self.cpu, at, bytes, by, store),
            ShadowTrees::None | ShadowTrees::Vtlb(_) => store(),
        }
    }
}

impl<F: Nested, H: HostMemory> shadow::Memory for View<'_, '_, F, H> {
    /// The dirty bits of the VM's own tables are set here, as no processor walks them: a page that is not dirty yet is not to be
    /// written without asking.
    fn backing(&self, at: Gpa, write: bool) -> Result<Backing, NoMemory> {
        loop {
            let found = match self.vm.tree.fault(self.cpu.read(), at, PageSize::Size4K) {
                Ok(Fault::Present(found)) if !found.leaf.rights.user => return Ok(Backing::None),
                Ok(Fault::Present(found)) => found,
                Ok(Fault::Room(_)) => match self.touch(at, write) {
                    Ok(Touched::Mapped | Touched::Hidden) => continue,
                    Ok(Touched::Begun) => return Ok(Backing::Pending),
                    Err(MemoryError::Outside(_)) => return Ok(Backing::None),
                    Err(MemoryError::NoFrames) => return Err(NoMemory),
                },
                Err(mmu::OutOfRange) => return Ok(Backing::None),
            };
            let dirty = found.leaf.dirty && found.leaf.rights.write;
            if write && !dirty {
                match self.write_with(at, |_| {}) {
                    Ok(()) => continue,
                    Err(MemoryError::Outside(_)) => {}
                    Err(MemoryError::NoFrames) => return Err(NoMemory),
                }
            }
            return Ok(Backing::Page(BackingPage { pfn: found.hpa.frame(), write: dirty, size: found.size }));
        }
    }
}
