//! One vCPU besides its registers.

use crate::cpuid::{CpuModel, HostCpuid, Table, Topology};
use crate::msr::Msrs;
use crate::shared::Vm;
use crate::stats::Stats;
use apic::{LocalApic, Posted};
use devices::{Clock, Sink};
use emul::interpreter::Extensions;
use emul::mmio::Memo;
use walk::{Features, FetchCache};

/// What the handlers of one vCPU keep from exit to exit. `S` is the handle of its memory ([`walk::HandleMem`]).
pub struct Context<S> {
    pub(crate) index: usize,
    pub(crate) cpuid: Table,
    pub(crate) features: Features,
    pub(crate) extensions: Extensions,
    /// The bits of CR4 that the guest may set.
    pub(crate) offered_cr4: u64,
    /// The bits of EFER that it may set.
    pub(crate) offered_efer: u64,
    pub(crate) code: FetchCache<S>,
    pub(crate) memo: Memo,
    pub(crate) stats: Stats,
    pub(crate) activity: Activity,
    pub(crate) apic: LocalApic,
    pub(crate) msrs: Msrs,
    /// How often in a row page faults had a table given up as such, to be written by an instruction that is not emulated.
    pub(crate) given_up: u32,
    /// How often in a row an instruction that accesses no memory itself was left to the processor again.
    pub(crate) tried_again: u32,
    /// It was said that the guest asks for long mode and is refused.
    pub(crate) told_of_long_mode: bool,
    /// So many NMIs wait to be delivered.
    pub(crate) nmis: u8,
    /// The guest is left soon, as the window for an interrupt [may be late](crate::Events::window_may_be_late).
    pub(crate) polls_window: bool,
    /// An ExtINT message asks for an interrupt of the 8259s.
    pub(crate) ext_int: bool,
    /// The number of the reset for which the vCPU has last left its guest.
    pub(crate) resets: u64,
}

/// What a vCPU does between its exits (Intel SDM vol. 3, section 25.4.2: the activity states).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It executes instructions.
    Running,
    /// HLT: an interrupt wakes it.
    Halted,
    /// HLT with interrupts off: only an NMI or INIT wakes it.
    Dead,
    /// After INIT, and an application processor after reset.
    AwaitingSipi,
}

impl Activity {
    /// Whether an interrupt ends it, or nothing is there to be ended.
    pub(crate) const fn is_wakeable(self) -> bool {
        matches!(self, Self::Running | Self::Halted)
    }
}

impl<S: Copy> Context<S> {
    /// vCPU `index` of `vm`; the first runs, the others wait to be started.
    pub fn new<O: Sink, C: Clock + Clone>(index: usize, vm: &Vm<O, C>, host: HostCpuid, model: CpuModel) -> Self {
        let cpuid = Table::new(host, Topology { index, vcpus: vm.vcpus() }).of_model(model);
        let posted = &vm.shared(index).posted;
        let features = cpuid.walk_features();
        Self {
            index,
            features,
            extensions: cpuid.extensions(),
            offered_cr4: cpuid.cr4_bits(),
            offered_efer: cpuid.efer_bits(),
            cpuid,
            code: FetchCache::new(),
            memo: Memo::new(),
            stats: Stats::default(),
            activity: if index == 0 { Activity::Running } else { Activity::AwaitingSipi },
            apic: LocalApic::new(index as u32, posted),
            msrs: Msrs::new(features.maxphyaddr),
            given_up: 0,
            tried_again: 0,
            told_of_long_mode: false,
            nmis: 0,
            polls_window: false,
            ext_int: false,
            resets: 0,
        }
    }

    /// As [`new`](Self::new) makes it, but for the account of its exits, and asleep: the boot vCPU is [started](Self::start) later.
    pub(crate) fn reset(&mut self, posted: &Posted) {
        let Self {
            index,
            cpuid,
            features,
            extensions: _,
            offered_cr4: _,
            offered_efer: _,
            code,
            memo,
            stats: _,
            activity,
            apic,
            msrs,
            given_up,
            tried_again,
            told_of_long_mode,
            nmis,
            polls_window,
            ext_int,
            resets: _,
        } = self;
        cpuid.set_apic(true);
        (*code, *memo) = (FetchCache::new(), Memo::new());
        *activity = Activity::AwaitingSipi;
        (*apic, *msrs) = (LocalApic::new(*index as u32, posted), Msrs::new(features.maxphyaddr));
        (*given_up, *tried_again, *told_of_long_mode, *nmis) = (0, 0, false, 0);
        (*ext_int, *polls_window) = (false, false);
    }

    /// The boot vCPU has something to do, after a reset for which [all have left](Vm::all_have_left) their guests.
    pub fn start(&mut self) {
        self.activity = Activity::Running;
    }

    /// Its number in its VM.
    pub fn index(&self) -> usize {
        self.index
    }

    /// What its CPUID says of paging.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The bits of CR4 that its CPUID offers.
    pub fn offered_cr4(&self) -> u64 {
        self.offered_cr4
    }

    /// What the exits have cost.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What it does.
    pub fn activity(&self) -> Activity {
        self.activity
    }
}
