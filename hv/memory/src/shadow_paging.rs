//! Without nested paging: shadows of the guest's own tables, over the VM's memory.

use super::{Nested, Surroundings, View, VmMemory};
use crate::rcu_domain::Machine;
use addr::{Gpa, Gva, PageSize, Pfn};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::alloc::Layout;
use loader::{MemoryError, Paging, VmConfig};
use mmu::{Caps, Fault, Pae};
use rcu::{Cpu, Space};
use shadow::{Backing, Counts, NoMemory, Outcome, Registers, Shadow, Vtlb, Writer};
use walk::Access;

type Env = Surroundings<Pae<Gva>>;

/// Frames of the guest's that may be noted as tables.
const NOTES: u32 = 4096;

/// A VM's shadows.
pub(super) enum Shadows {
    /// There is nested paging.
    None,
    /// One for each vCPU.
    Vtlb(Vec<Vtlb<Env>>),
    /// One for all, and each vCPU's view of it.
    Kept(Box<Shadow<Env>>, Vec<shadow::View>),
}

/// A vCPU's part of them.
#[derive(Clone, Copy)]
pub(super) enum Own<'v> {
    Vtlb(&'v Vtlb<Env>),
    Kept(&'v Shadow<Env>, &'v shadow::View),
}

impl Shadows {
    /// What a VM of this configuration has.
    pub(super) fn new(
        cpu: &Cpu<'static, Machine>,
        config: &VmConfig,
        caps: Caps,
        env: impl Fn() -> Env,
    ) -> Result<Self, NoMemory> {
        let trees = config.trees();
        Ok(match config.paging {
            Paging::Nested => Self::None,
            Paging::Vtlb => {
                let mut buffers = Vec::with_capacity(trees);
                while buffers.len() < trees {
                    match Vtlb::new(env(), caps) {
                        Ok(buffer) => buffers.push(buffer),
                        Err(error) => {
                            Self::Vtlb(buffers).free();
                            return Err(error);
                        }
                    }
                }
                Self::Vtlb(buffers)
            }
            Paging::Shadow => {
                let shadow = Shadow::new((0..trees).map(|_| env()), caps, NOTES)?;
                let views = (0..config.vcpus).map_while(|_| shadow.view(cpu).ok()).collect();
                Self::Kept(Box::new(shadow), views)
            }
        })
    }

    /// What [`new`](Self::new) allocates. It is all that shadows ever do.
    pub(super) fn allocations(config: &VmConfig) -> impl Iterator<Item = Layout> {
        let trees = config.trees();
        let kept = config.paging == Paging::Shadow;
        let shadow = kept.then(|| Shadow::<Env>::allocations(trees, NOTES)).into_iter().flatten();
        let own = match config.paging {
            Paging::Nested => [None; 2],
            Paging::Vtlb => [Layout::array::<Vtlb<Env>>(trees).ok(), None],
            Paging::Shadow => [Some(Layout::new::<Shadow<Env>>()), Layout::array::<shadow::View>(config.vcpus).ok()],
        };
        own.into_iter().flatten().chain(shadow)
    }

    /// vCPU `vcpu`'s part. None with nested paging.
    #[inline]
    pub(super) fn of(&self, vcpu: usize) -> Option<Own<'_>> {
        match self {
            Self::None => None,
            Self::Vtlb(buffers) => buffers.get(vcpu).map(Own::Vtlb),
            Self::Kept(shadow, views) => views.get(vcpu).map(|view| Own::Kept(shadow, view)),
        }
    }

    /// Kicks sent for their flushes.
    pub(super) fn kicks(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Vtlb(buffers) => buffers.iter().map(|buffer| buffer.space().kicks()).sum(),
            Self::Kept(shadow, _) => shadow.spaces().map(Space::kicks).sum(),
        }
    }

    /// Gives the tables back. No vCPU runs any more, and all have flushed since they did.
    pub(super) fn free(self) {
        match self {
            Self::None => {}
            Self::Vtlb(buffers) => buffers.into_iter().for_each(Vtlb::free),
            Self::Kept(shadow, _) => shadow.free(),
        }
    }

    /// What they were asked for, all together. None with nested paging.
    pub(super) fn counts(&self) -> Option<Counts> {
        match self {
            Self::None => None,
            Self::Vtlb(buffers) => buffers.iter().map(Vtlb::counts).reduce(|all, counts| all + counts),
            Self::Kept(shadow, _) => Some(shadow.counts()),
        }
    }
}

impl<'v> Own<'v> {
    /// Where the processor's walks start, below 4 GiB.
    pub(super) fn root(self) -> Pfn {
        match self {
            Self::Vtlb(buffer) => buffer.root(),
            Self::Kept(shadow, view) => shadow.root(view),
        }
    }

    /// What it enters.
    pub(super) fn space(self) -> &'v Space {
        match self {
            Self::Vtlb(buffer) => buffer.space(),
            Self::Kept(shadow, view) => shadow.space(view),
        }
    }

    pub(super) fn load(self, cpu: &Cpu<'static, Machine>, own: &Registers) {
        match self {
            Self::Vtlb(buffer) => buffer.load(cpu),
            Self::Kept(shadow, view) => shadow.load(cpu, view, own),
        }
    }

    pub(super) fn invlpg(self, cpu: &Cpu<'static, Machine>, at: Gva) {
        match self {
            Self::Vtlb(buffer) => buffer.invlpg(cpu, at),
            Self::Kept(shadow, view) => shadow.invlpg(cpu, view, at),
        }
    }
}

impl<F: Nested> VmMemory<F> {
    /// What the shadows were asked for. None with nested paging.
    pub(crate) fn shadow_counts(&self) -> Option<Counts> {
        self.shadows.counts()
    }
}

impl<F: Nested> View<'_, F> {
    /// What becomes of a page fault.
    #[inline]
    pub(super) fn resolve(&self, own: &Registers, at: Gva, access: Access) -> Result<Outcome, NoMemory> {
        match self.shadow {
            Some(Own::Vtlb(buffer)) => buffer.fault(&self.cpu, self, own, at, access),
            Some(Own::Kept(shadow, view)) => shadow.fault(&self.cpu, view, self, own, at, access),
            None => Ok(Outcome::Retry),
        }
    }

    /// When what waited for a grace period has come back.
    #[cold]
    pub(super) fn resolve_again(&mut self, own: &Registers, at: Gva, access: Access) -> Result<Outcome, NoMemory> {
        self.reclaim();
        self.resolve(own, at, access)
    }

    /// Runs `change`, which gives the guest's memory other frames or other rights to them. No processor uses any meanwhile.
    pub(super) fn change_frames<R>(&self, change: impl FnOnce() -> R) -> R {
        match &self.vm.shadows {
            Shadows::None => change(),
            Shadows::Vtlb(buffers) => {
                buffers.iter().for_each(|buffer| buffer.suspend(&self.cpu));
                let result = change();
                buffers.iter().for_each(Vtlb::resume);
                result
            }
            Shadows::Kept(shadow, _) => {
                shadow.suspend(&self.cpu);
                let result = change();
                shadow.resume();
                result
            }
        }
    }

    /// A table at `at` is written by an instruction that can't be emulated: it is read-only no more.
    pub(super) fn unshadow(&self, at: Gpa) {
        if let Shadows::Kept(shadow, _) = &self.vm.shadows {
            shadow.unshadow(&self.cpu, at);
        }
    }

    /// Runs `store`, which writes these bytes of the guest's memory: there may be tables there.
    #[inline]
    pub(super) fn stored<R>(&self, at: Gpa, bytes: usize, by: Writer, store: impl FnOnce() -> R) -> R {
        match &self.vm.shadows {
            Shadows::Kept(shadow, _) => shadow.write(&self.cpu, at, bytes, by, store),
            Shadows::None | Shadows::Vtlb(_) => store(),
        }
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
