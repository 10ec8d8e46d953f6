//! One VM: made from its plan, and shared by its vCPUs.

use super::clock::TscClock;
use super::console::{self, Console, VmLog};
use super::firmware::cpuid;
use super::teardown::Teardown;
use super::vm_id::VmId;
use crate::boot;
use crate::rcu_domain::{self, HostMachine};
use crate::timer;
use abi::reasons::EXITS_SO_FAR;
use alloc::vec::Vec;
use arch::Entry;
use arch::features::{Feature, FeatureChoice, FeatureSet};
use backends::{Backend, Start};
use core::alloc::Layout;
use core::fmt;
use core::time::Duration;
use devices::BoardConfig;
use loader::rom::{Recorder, Rom};
use loader::{BootInfo, GuestMemory, LoadError, Module, OnReset, Paging, Platform, VmConfig, VmPlan};
use memory::{Nested, ViewState};
use rcu::{Cpu, Tlb};
use sched::Instant;
use spin::Mutex;
use vm::cpuid::CpuModel;
use vm::{EndReason, Stats, Stop, Vm};

/// A VM's memory on this machine.
type VmMemory<F> = memory::VmMemory<'static, F, HostMachine>;

/// What all vCPUs of a VM share.
pub(super) struct Guest<F: Nested> {
    pub(super) id: VmId,
    pub(super) vm: Vm<Console, TscClock>,
    pub(super) clock: TscClock,
    pub(super) memory: VmMemory<F>,
    pub(super) paging: Paging,
    /// Its processors.
    pub(super) model: CpuModel,
    /// Where its boot vCPU starts.
    pub(super) start: Start,
    /// What its memory holds at its start, if it begins anew when it is reset.
    pub(super) rom: Option<Rom<'static>>,
    /// When the VM has to end.
    pub(super) limit: Instant,
    stats: Mutex<Stats>,
    so_far: Mutex<SoFar>,
    log: VmLog,
}

/// What the exits have cost when a report is asked for, as each vCPU adds its own.
#[derive(Default)]
struct SoFar {
    /// The number of the report.
    report: u32,
    /// How many vCPUs have added to it.
    vcpus: usize,
    stats: Stats,
}

impl<F: Nested> Guest<F> {
    /// A VM of this plan, its image loaded.
    ///
    /// # Errors
    /// Why the VM can't even start.
    pub(super) fn new<B: Backend<Tables = F>>(
        backend: &B,
        cpu: &mut Cpu<'static, HostMachine>,
        boot: &BootInfo,
        plan: &VmPlan,
        firmware: &bios::Tables,
        id: VmId,
    ) -> Result<Self, EndReason> {
        let module = |index: usize| {
            let module = &boot.modules[index];
            Module { bytes: boot::contents(module), string: &module.string }
        };
        let config = &plan.config;
        let vcpus = config.vcpus;
        let model = CpuModel { long_mode: config.paging == Paging::Nested, hidden: config.cpuid.hidden };
        if let Some(feature) = missing_feature(config, model) {
            return Err(EndReason::NoFeature(feature.name));
        }
        let caps = backend.caps(config.pages);
        let (fixed, shadows) = match config.paging {
            Paging::Nested => {
                backend.nested().map_err(|missing| EndReason::Lacking(missing.0))?;
                (backend.fixed_page(), caps)
            }
            Paging::Vtlb | Paging::Shadow => (None, backend.shadow_caps(config.pages)),
        };
        let fixed = fixed.as_ref().map(|page| (page.at, &page.content));
        let memory = VmMemory::new(cpu, config, (caps, shadows), fixed).ok_or(EndReason::NoFrames("tables"))?;
        let platform =
            Platform { ram: config.ram, long_mode: config.paging == Paging::Nested, acpi: Some(firmware.into()) };
        let modules: Vec<Module<'_>> = plan.modules.clone().map(module).collect();
        let (mut tlb, state) = (Tlb::new(), ViewState::new());
        let mut view = memory.view(cpu, &mut tlb, &state);
        let load = |memory: &mut dyn GuestMemory| load(firmware, module(plan.image), &modules, &platform, memory);
        let restarts = config.on_reset == OnReset::Restart;
        let loaded = if restarts {
            let files: Vec<&'static [u8]> =
                plan.modules.clone().chain([plan.image]).map(|index| boot::contents(&boot.modules[index])).collect();
            let mut recorder = Recorder::new(&mut view, &files);
            load(&mut recorder).map(|entry| (entry, Some(recorder.finish())))
        } else {
            load(&mut view).map(|entry| (entry, None))
        };
        memory.forget(&state);
        let (entry, rom) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                memory.free(cpu);
                return Err(error.into());
            }
        };
        let clock = TscClock::new();
        let devices = BoardConfig { ram_bytes: config.ram.bytes(), cpus: vcpus as u16, boot_time: 0 };
        let (console, log) = console::console(id.name, config.input);
        let devices = devices::Board::new(devices, console, clock);
        let vm = Vm::new(devices, clock, vcpus);
        Ok(Self {
            id,
            vm: if restarts { vm.with_restart() } else { vm },
            clock,
            memory,
            paging: config.paging,
            model,
            start: Start::Boot(entry),
            rom,
            limit: config
                .limit
                .map_or(Instant::NEVER, |seconds| timer::after(Duration::from_secs(seconds.get().into()))),
            stats: Mutex::new(Stats::default()),
            so_far: Mutex::default(),
            log,
        })
    }

    /// What a VM of this configuration allocates, but for its vCPUs. None of it does so once they run.
    pub(super) fn allocations(config: &VmConfig) -> impl Iterator<Item = Layout> {
        // Reference counts stand before what they count.
        let vm = Vm::<Console, TscClock>::allocations(config.vcpus);
        let shared = [Layout::new::<(usize, usize, Self)>()].into_iter().chain(vm).chain(console::allocations());
        shared.chain(VmMemory::<F>::allocations(config))
    }

    /// Prints `text`, line by line, as the hypervisor's words about this VM.
    pub(super) fn report(&self, text: &dyn fmt::Display) {
        self.log.report(text);
    }

    /// Ends the VM for this reason, which is no exit's. False if it has ended already.
    pub(super) fn end_now(&self, why: Stop) -> bool {
        self.vm.end(why, |vcpu| self.kick(vcpu))
    }

    /// Has the CPU of a vCPU look at the request that was raised.
    pub(super) fn kick(&self, vcpu: usize) {
        rcu_domain::kick_if_away(self.id.placement.cpu_of(vcpu));
    }

    /// Adds what the exits of one vCPU have cost.
    pub(super) fn add_stats(&self, stats: &Stats) {
        self.stats.lock().add(stats);
    }

    /// Adds what the exits of one vCPU have cost so far to the report of this number, which is printed with the last vCPU's.
    #[cold]
    #[inline(never)]
    pub(super) fn add_so_far(&self, report: u32, stats: &Stats) {
        let mut so_far = self.so_far.lock();
        // A vCPU that is late would begin the report before anew.
        if report < so_far.report {
            return;
        }
        if so_far.report != report {
            *so_far = SoFar { report, ..SoFar::default() };
            self.vm.raise_all(|vcpu| self.kick(vcpu));
        }
        so_far.vcpus += 1;
        so_far.stats.add(stats);
        if so_far.vcpus == self.vm.vcpus() {
            self.report(&format_args!("{EXITS_SO_FAR}\n{}", so_far.stats));
        }
    }

    /// Ends the VM, when no vCPU of it is left. It is still to be taken apart.
    pub(super) fn end(self) -> Teardown<F> {
        Teardown {
            id: self.id,
            log: self.log,
            vm: self.vm,
            stats: Some(self.stats.into_inner()),
            shadow: self.memory.shadow_counts(),
            memory: Some(self.memory.end()),
            due: None,
            result: None,
        }
    }
}

/// Loads what the guest's memory holds at its start.
fn load(
    firmware: &bios::Tables,
    image: Module<'_>,
    modules: &[Module<'_>],
    platform: &Platform,
    mut memory: &mut dyn GuestMemory,
) -> Result<Entry, LoadError> {
    memory.write(firmware.range().start, firmware.bytes())?;
    loader::load(image, modules, platform, &mut memory)
}

/// A feature that the VM must have, and can't have on this machine.
fn missing_feature(config: &VmConfig, model: CpuModel) -> Option<&'static Feature> {
    let FeatureChoice { required, .. } = config.cpuid;
    // To make the table takes dozens of CPUID instructions, which most VMs need not wait for.
    (required != FeatureSet::EMPTY).then(|| cpuid(config.vcpus).of_model(model).missing(required)).flatten()
}
