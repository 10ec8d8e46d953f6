//! One VM's memory, shared by its vCPUs.

use crate::account::{self, Account};
use crate::ending::{Ending, EndingStep, Freed};
use crate::hidden_pages::HiddenPages;
use crate::host::HostMemory;
use crate::raw;
use crate::shadow_trees::{ShadowTrees, VcpuTree};
use crate::tree_env::{Nested, TreeEnv};
use crate::view::{View, ViewState};
use addr::{Gfn, Gpa, Hpa, PAGE_SIZE};
use core::alloc::Layout;
use loader::{GuestRam, VmConfig};
use mmu::{Caps, Report, Tree};
use model::sync::relax;
use rcu::{Cpu, Tlb};

/// One VM's memory, shared by its vCPUs. It has to be ended by [`end`](Self::end) or [`free`](Self::free).
///
/// `F` is the format of the nested tables, `H` the machine, which lives for `'m`.
pub struct VmMemory<'m, F: Nested, H: HostMemory> {
    pub(crate) tree: Tree<TreeEnv<'m, F, H>>,
    /// Where there are any, no processor walks `tree`: it is what the guest's memory is.
    pub(crate) shadows: ShadowTrees<'m, H>,
    pub(crate) ram: GuestRam,
    pub(crate) hidden: HiddenPages,
    /// A page outside of it.
    fixed: Option<Gfn>,
}

impl<'m, F: Nested, H: HostMemory> VmMemory<'m, F, H> {
    /// Memory in which nothing is mapped but `fixed`, a page outside of its RAM for the processor to read (address, content): VMX's
    /// page tables for a guest without paging, say. `caps` are what the processor can do with nested tables, and with shadow
    /// tables. None if the machine lacks the frames for that, those that are promised to the VM, or an account.
    pub fn new(
        cpu: &mut Cpu<'m, H>,
        config: &VmConfig,
        (caps, shadow_caps): (Caps, Caps),
        fixed: Option<(Gpa, &[u8; PAGE_SIZE as usize])>,
    ) -> Option<Self> {
        let domain = cpu.domain();
        let host = domain.platform();
        let account = Account::open(host, config)?;
        let Ok(tree) = Tree::new(TreeEnv::new(domain, account), caps) else {
            account.close(host);
            return None;
        };
        let shadows = ShadowTrees::new(cpu, config, shadow_caps, || TreeEnv::new(domain, account));
        let has_shadows = shadows.is_ok();
        let shadows = shadows.unwrap_or(ShadowTrees::None);
        let memory =
            Self { tree, shadows, ram: config.ram, hidden: HiddenPages::new(), fixed: fixed.map(|(at, _)| at.frame()) };
        let complete = has_shadows
            && fixed.is_none_or(|(at, content)| {
                memory.view(cpu, &mut Tlb::new(), &ViewState::new()).write_bytes(at, content).is_ok()
            });
        if complete {
            return Some(memory);
        }
        memory.free(cpu);
        None
    }

    /// What [`new`](Self::new) allocates on the heap. Nothing later does.
    pub fn allocations(config: &VmConfig) -> impl Iterator<Item = Layout> {
        account::allocations(config).chain(ShadowTrees::<'m, H>::allocations(config))
    }

    /// The memory as software sees it that is no vCPU, on CPU `cpu`.
    pub fn view<'v>(&'v self, cpu: &'v mut Cpu<'m, H>, tlb: &'v mut Tlb, state: &'v ViewState) -> View<'v, 'm, F, H> {
        View::new(self, None, cpu, tlb, state)
    }

    /// The memory as vCPU `vcpu` sees it on CPU `cpu`. `tlb` is the record of the vCPU's tag, `state` what it keeps of its
    /// views from slice to slice.
    pub fn view_of<'v>(
        &'v self,
        vcpu: usize,
        cpu: &'v mut Cpu<'m, H>,
        tlb: &'v mut Tlb,
        state: &'v ViewState,
    ) -> View<'v, 'm, F, H> {
        View::new(self, self.shadows.of(vcpu), cpu, tlb, state)
    }

    /// Where the processor starts its walks for vCPU `vcpu`.
    pub fn root(&self, vcpu: usize) -> Hpa {
        self.shadows.of(vcpu).map_or(self.tree.root(), VcpuTree::root).start()
    }

    /// What the guest's memory consists of.
    pub fn report(&self, cpu: &Cpu<'m, H>) -> Report {
        self.tree.report(cpu.read())
    }

    /// Ends it, when none of the VM's vCPUs will enter the guest again: every frame goes back, step by step.
    pub fn end(self) -> Ending<'m, F, H> {
        let kicks = self.tree.space().kicks() + self.shadows.kicks();
        Ending::new(self.tree.tear_down(), self.shadows.into_trees(), kicks)
    }

    /// Ends it at once.
    pub fn free(self, cpu: &mut Cpu<'m, H>) -> Freed {
        let mut ending = self.end();
        loop {
            match ending.step(cpu, || false) {
                EndingStep::Done => return ending.finish(cpu),
                EndingStep::Preempted => {}
                EndingStep::WaitsForGracePeriod => relax(),
            }
        }
    }

    #[inline]
    pub(crate) fn host(&self) -> &'m H {
        self.tree.env().host
    }

    #[inline]
    pub(crate) fn account(&self) -> &'m Account {
        self.tree.env().account
    }

    /// Pre-zeroes frames, before the guest runs and while it sleeps, until there are enough or the CPU is `wanted`.
    pub fn prezero(&self, wanted: impl Fn() -> bool) {
        let host = self.host();
        while !wanted() {
            let Some(frame) = self.account().pool.lock().alloc_to_prezero(host.frames()) else { return };
            // SAFETY: the pool has given the frame out, and no entry leads to it.
            unsafe { raw::fill(host, frame, 0..PAGE_SIZE, 0) };
            self.account().pool.lock().add_prezeroed(host.frames(), frame);
        }
    }

    /// Gives back the large page that a vCPU has begun to fill with zeroes, if it has one: another vCPU was faster, or the vCPU
    /// ends. Whether it had one.
    pub fn forget(&self, state: &ViewState) -> bool {
        let begun = state.take_zeroing();
        if let Some((frame, size)) = begun {
            self.tree.env().free(frame, size);
        }
        begun.is_some()
    }

    /// What the shadow trees were asked for. None with nested paging.
    pub fn shadow_counts(&self) -> Option<shadow::Counts> {
        self.shadows.counts()
    }

    /// Whether there is memory behind `at`.
    #[inline]
    pub(crate) fn backs(&self, at: Gpa) -> bool {
        self.ram.backs(at) || self.fixed == Some(at.frame())
    }
}
