//! Without nested paging: shadow trees of the guest's own tables, over the VM's memory.

use crate::host::HostMemory;
use crate::tree_env::TreeEnv;
use addr::{Gva, PAGE_SIZE, Pfn};
use alloc::boxed::Box;
use alloc::vec::{self, Vec};
use core::alloc::Layout;
use loader::{Paging, VmConfig};
use mmu::{Caps, Pae, Tree};
use rcu::{Cpu, Space};
use shadow::{Capacity, Counts, NoMemory, Registers, Shadow, Vtlb};

pub(crate) type Env<'m, H> = TreeEnv<'m, Pae<Gva>, H>;

/// How much the shadow of a VM of this configuration knows at once. One exit zaps all of its tables when frames change.
fn capacity(config: &VmConfig) -> Capacity {
    Capacity::of(config.ram.bytes() / PAGE_SIZE, config.trees())
}

/// The most tables that each virtual TLB of a VM of this configuration has: together as many as a shadow, since a change of the VM's
/// frames zaps all of them in one exit.
fn vtlb_tables(config: &VmConfig) -> u32 {
    (capacity(config).tables / config.trees().max(1)) as u32
}

/// A VM's shadow trees.
pub(crate) enum ShadowTrees<'m, H: HostMemory> {
    /// There is nested paging.
    None,
    /// One for each vCPU.
    Vtlb(Vec<Vtlb<Env<'m, H>>>),
    /// One for all, and each vCPU's view of it.
    Kept(Box<Shadow<Env<'m, H>>>, Vec<shadow::View>),
}

/// The tree that a vCPU's processor walks.
pub(crate) enum VcpuTree<'v, 'm, H: HostMemory> {
    Vtlb(&'v Vtlb<Env<'m, H>>),
    Kept(&'v Shadow<Env<'m, H>>, &'v shadow::View),
}

/// The shadow trees of a VM that has ended.
pub(crate) struct EndedTrees<'m, H: HostMemory> {
    buffers: vec::IntoIter<Vtlb<Env<'m, H>>>,
    trees: vec::IntoIter<Tree<Env<'m, H>>>,
}

impl<'m, H: HostMemory> Iterator for EndedTrees<'m, H> {
    type Item = Tree<Env<'m, H>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.buffers.next().map(Vtlb::into_tree).or_else(|| self.trees.next())
    }
}

impl<H: HostMemory> Clone for VcpuTree<'_, '_, H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H: HostMemory> Copy for VcpuTree<'_, '_, H> {}

impl<'m, H: HostMemory> ShadowTrees<'m, H> {
    /// What a VM of this configuration has.
    pub(crate) fn new(
        cpu: &Cpu<'m, H>,
        config: &VmConfig,
        caps: Caps,
        env: impl Fn() -> Env<'m, H>,
    ) -> Result<Self, NoMemory> {
        let trees = config.trees();
        Ok(match config.paging {
            Paging::Nested => Self::None,
            Paging::Vtlb => {
                let most = vtlb_tables(config);
                let mut buffers = Vec::with_capacity(trees);
                while buffers.len() < trees {
                    match Vtlb::new(env(), caps, most) {
                        Ok(buffer) => buffers.push(buffer),
                        Err(error) => {
                            Self::Vtlb(buffers).into_trees().for_each(|tree| tree.free_pgtables(|_, _, _| {}));
                            return Err(error);
                        }
                    }
                }
                Self::Vtlb(buffers)
            }
            Paging::Shadow => {
                let seed = cpu.domain().platform().now();
                let shadow = Shadow::new((0..trees).map(|_| env()), caps, capacity(config), seed)?;
                let views = (0..config.vcpus).map_while(|_| shadow.view(cpu).ok()).collect();
                Self::Kept(Box::new(shadow), views)
            }
        })
    }

    /// What [`new`](Self::new) allocates on the heap. Nothing later does.
    pub(crate) fn allocations(config: &VmConfig) -> impl Iterator<Item = Layout> {
        let trees = config.trees();
        let kept = config.paging == Paging::Shadow;
        let shadow = kept.then(|| Shadow::<Env<'m, H>>::allocations(trees, capacity(config))).into_iter().flatten();
        let own = match config.paging {
            Paging::Nested => [None; 2],
            Paging::Vtlb => [Layout::array::<Vtlb<Env<'m, H>>>(trees).ok(), None],
            Paging::Shadow => {
                [Some(Layout::new::<Shadow<Env<'m, H>>>()), Layout::array::<shadow::View>(config.vcpus).ok()]
            }
        };
        own.into_iter().flatten().chain(shadow)
    }

    /// vCPU `vcpu`'s tree. None with nested paging.
    #[inline]
    pub(crate) fn of(&self, vcpu: usize) -> Option<VcpuTree<'_, 'm, H>> {
        match self {
            Self::None => None,
            Self::Vtlb(buffers) => buffers.get(vcpu).map(VcpuTree::Vtlb),
            Self::Kept(shadow, views) => views.get(vcpu).map(|view| VcpuTree::Kept(shadow, view)),
        }
    }

    /// Kicks sent for their flushes.
    pub(crate) fn kicks(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Vtlb(buffers) => buffers.iter().map(|buffer| buffer.space().kicks()).sum(),
            Self::Kept(shadow, _) => shadow.spaces().map(Space::kicks).sum(),
        }
    }

    /// Ends them: their trees, to be freed. No vCPU runs any more, and all have flushed since they did.
    pub(crate) fn into_trees(self) -> EndedTrees<'m, H> {
        let (buffers, trees) = match self {
            Self::None => (Vec::new(), Vec::new()),
            Self::Vtlb(buffers) => (buffers, Vec::new()),
            Self::Kept(shadow, _) => (Vec::new(), shadow.into_trees()),
        };
        EndedTrees { buffers: buffers.into_iter(), trees: trees.into_iter() }
    }

    /// What they were asked for, all together. None with nested paging.
    pub(crate) fn counts(&self) -> Option<Counts> {
        match self {
            Self::None => None,
            Self::Vtlb(buffers) => buffers.iter().map(Vtlb::counts).reduce(|all, counts| all + counts),
            Self::Kept(shadow, _) => Some(shadow.counts()),
        }
    }
}

impl<'v, 'm, H: HostMemory> VcpuTree<'v, 'm, H> {
    /// Where the processor's walks start, below 4 GiB.
    pub(crate) fn root(self) -> Pfn {
        match self {
            Self::Vtlb(buffer) => buffer.root(),
            Self::Kept(shadow, view) => shadow.root(view),
        }
    }

    /// The address space of its walks.
    pub(crate) fn space(self) -> &'v Space {
        match self {
            Self::Vtlb(buffer) => buffer.space(),
            Self::Kept(shadow, view) => shadow.space(view),
        }
    }

    /// The vCPU loads a new context: its tree is another from now on, or empty.
    pub(crate) fn load(self, cpu: &Cpu<'m, H>, own: &Registers) {
        match self {
            Self::Vtlb(buffer) => buffer.load(cpu),
            Self::Kept(shadow, view) => shadow.load(cpu, view, own),
        }
    }

    /// The vCPU runs INVLPG.
    pub(crate) fn invlpg(self, cpu: &Cpu<'m, H>, at: Gva) {
        match self {
            Self::Vtlb(buffer) => buffer.invlpg(cpu, at),
            Self::Kept(shadow, view) => shadow.invlpg(cpu, view, at),
        }
    }
}
