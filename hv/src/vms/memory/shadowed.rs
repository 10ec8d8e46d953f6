//! Without nested paging: a shadow of the guest's own tables for each vCPU, over the VM's memory.

use super::{Nested, Surroundings, View, VmMemory};
use addr::{Gpa, Gva, PageSize};
use loader::MemoryError;
use mmu::{Caps, Fault, Pae};
use shadow::{Backing, Counts, NoMemory, Outcome, Registers, Vtlb};
use walk::Access;

pub(super) type Shadow = Vtlb<Surroundings<Pae<Gva>>>;

impl<F: Nested> VmMemory<F> {
    /// A shadow for each of `vcpus` vCPUs. False if there are no frames for them.
    pub(super) fn add_shadows(&mut self, vcpus: usize, caps: Caps) -> bool {
        self.shadows.reserve_exact(vcpus);
        (0..vcpus).all(|_| match Shadow::new(Surroundings::new(self.account()), caps) {
            Ok(shadow) => {
                self.shadows.push(shadow);
                true
            }
            Err(NoMemory) => false,
        })
    }

    /// What the shadows were asked for, all together. None with nested paging.
    pub(crate) fn shadow_counts(&self) -> Option<Counts> {
        self.shadows.iter().map(Shadow::counts).reduce(|all, counts| all + counts)
    }
}

impl<F: Nested> View<'_, F> {
    pub(super) fn resolve(&self, own: &Registers, at: Gva, access: Access) -> Result<Outcome, NoMemory> {
        match self.shadow {
            Some(shadow) => shadow.fault(&self.cpu, self, own, at, access),
            None => Ok(Outcome::Retry),
        }
    }

    /// When what waited for a grace period has come back.
    #[cold]
    pub(super) fn resolve_again(&mut self, own: &Registers, at: Gva, access: Access) -> Result<Outcome, NoMemory> {
        self.reclaim();
        self.resolve(own, at, access)
    }

    /// The guest's memory has other frames, or is to be written by nobody: no processor has what it had before.
    pub(super) fn forget(&self) {
        self.vm.shadows.iter().for_each(|shadow| shadow.forget(&self.cpu));
    }
}

impl<F: Nested> shadow::Memory for View<'_, F> {
    /// The dirty bits of the VM's own tables are set here, as no processor walks them: a page that is not dirty yet is not to be
    /// written without asking.
    fn backing(&self, at: Gpa, write: bool) -> Result<Option<Backing>, NoMemory> {
        loop {
            let found = match self.vm.tree.fault(self.cpu.read(), at, PageSize::Size4K) {
                Ok(Fault::Present(found)) => found,
                Ok(Fault::Room(_)) => match self.touch(at, write) {
                    Ok(()) => continue,
                    Err(MemoryError::Outside(_)) => return Ok(None),
                    Err(MemoryError::NoFrames) => return Err(NoMemory),
                },
                Err(mmu::OutOfRange) => return Ok(None),
            };
            let dirty = found.leaf.dirty && found.leaf.rights.write;
            if write && !dirty {
                match self.write_with(at, |_| {}) {
                    Ok(()) => continue,
                    Err(MemoryError::Outside(_)) => {}
                    Err(MemoryError::NoFrames) => return Err(NoMemory),
                }
            }
            return Ok(Some(Backing { pfn: found.hpa.frame(), write: dirty, size: found.size }));
        }
    }
}
