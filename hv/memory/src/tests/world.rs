//! A machine with one CPU and one VM on it.

use crate::account::give_back;
use crate::arena::{Arena, CPUS};
use crate::pool::PlannedFailures;
use crate::{Freed, HostMemory, View, ViewState, VmMemory};
use abi::hypercall::{Refused, TestCall};
use addr::{Gpa, PAGE_SIZE, PageSize};
use core::iter;
use loader::{GuestRam, Paging, VmConfig};
use mmu::{Caps, Npt};
use rcu::{Cpu, CpuData, Domain, Tlb};
use std::string::{String, ToString};
use vm::{Memory, NestedFault, Resolved};
use walk::PhysMem;

pub(super) const LARGE: u64 = PageSize::Size2M.bytes();

/// A VM's configuration, with so many bytes of RAM.
pub(super) fn config(bytes: u64, paging: Paging) -> VmConfig {
    VmConfig { ram: GuestRam::new(bytes).unwrap(), paging, ..VmConfig::nth(0) }
}

/// One vCPU, on the CPU that it is bound to.
pub(super) struct World<'m> {
    pub(super) memory: VmMemory<'m, Npt, Arena>,
    pub(super) cpu: Cpu<'m, Arena>,
    pub(super) tlb: Tlb,
    pub(super) state: ViewState,
    pub(super) domain: &'m Domain<Arena, [CpuData; CPUS]>,
    /// Frames that were free before the VM.
    free: usize,
}

impl<'m> World<'m> {
    pub(super) fn new(domain: &'m Domain<Arena, [CpuData; CPUS]>, config: &VmConfig) -> Self {
        let frames = domain.platform().frames();
        if config.trees() != 0 {
            frames.keep_roots(config.trees()).unwrap();
        }
        let free = frames.available();
        let mut cpu = domain.register(0).unwrap();
        let caps = Caps::new(40, config.pages, true);
        let memory = VmMemory::new(&mut cpu, config, (caps, caps), None).unwrap();
        Self { memory, cpu, tlb: Tlb::new(), state: ViewState::new(), domain, free }
    }

    pub(super) fn view(&mut self) -> View<'_, 'm, Npt, Arena> {
        self.memory.view_of(0, &mut self.cpu, &mut self.tlb, &self.state)
    }

    /// A fault by a write at `at`, again and again while large pages are filled with zeroes.
    pub(super) fn fault(&mut self, at: u64) -> Resolved {
        let fault = NestedFault::new(Gpa::new(at), true, false, false);
        for _ in 0..LARGE / PAGE_SIZE {
            let resolved = self.view().fault(fault);
            if resolved != Resolved::Retry || self.is_mapped(at) {
                return resolved;
            }
        }
        panic!("the page at {at:#x} does not come");
    }

    pub(super) fn is_mapped(&self, at: u64) -> bool {
        self.memory.tree.translate(self.cpu.read(), Gpa::new(at)).is_some()
    }

    pub(super) fn write(&mut self, at: u64, value: u64) {
        self.view().write(Gpa::new(at), &value.to_le_bytes()).unwrap();
    }

    pub(super) fn read(&mut self, at: u64) -> u64 {
        self.view().read_u64(Gpa::new(at)).unwrap()
    }

    /// All steps of a test call.
    pub(super) fn call(&mut self, call: TestCall) -> Result<u64, Refused> {
        let mut view = self.view();
        iter::repeat_with(|| view.test_call(call)).find_map(|result| result).expect("it ends")
    }

    pub(super) fn fail(&mut self, failures: PlannedFailures) {
        self.memory.account().pool.lock().fail(failures);
    }

    /// Whether the failure that was planned is still to come.
    pub(super) fn is_to_fail(&self) -> bool {
        self.memory.account().pool.lock().is_to_fail()
    }

    /// Frames that the VM has, but for those that wait for a grace period.
    pub(super) fn outstanding(&mut self) -> u64 {
        let Self { memory, cpu, .. } = self;
        cpu.barrier(|page| _ = give_back(memory.host(), page));
        self.memory.account().pool.lock().outstanding()
    }

    /// What the VM's memory consists of.
    pub(super) fn report(&self) -> String {
        self.memory.report(&self.cpu).to_string()
    }

    /// The VM ends, and all frames are free again.
    pub(super) fn end(self) -> Freed {
        let Self { memory, mut cpu, state, domain, free, .. } = self;
        memory.forget(&state);
        let freed = memory.free(&mut cpu);
        assert_eq!(freed.accounts.left, 0, "{}", freed.accounts);
        assert_eq!(domain.platform().frames().available(), free, "the frames that are free");
        freed
    }
}
