//! One VM: made from its plan, and shared by its vCPUs.

use super::clock::TscClock;
use super::console::{self, About, Console};
use super::teardown::{self, Teardown};
use super::verdicts::Why;
use crate::boot;
use crate::rcu_domain::HostMachine;
use crate::timer;
use crate::verdict::Verdict;
use addr::Gpa;
use alloc::vec::Vec;
use backends::{Backend, Start};
use core::alloc::Layout;
use core::fmt;
use core::time::Duration;
use devices::BoardConfig;
use loader::{
    AcpiTables, BootInfo, GuestMemory, LoadError, MemoryError, Module, Paging, Platform, Rsdp, VmConfig, VmName, VmPlan,
};
use memory::{Nested, ViewState};
use rcu::{Cpu, Tlb};
use sched::{Instant, Placement};
use spin::Mutex;
use vm::cpuid::{CpuModel, Table, Topology};
use vm::{Stats, Vm};

/// A VM's memory on this machine.
type VmMemory<F> = memory::VmMemory<'static, F, HostMachine>;

/// A VM's place among the VMs.
pub(super) struct Place {
    pub(super) number: usize,
    pub(super) placement: Placement,
    /// On the console, if there are several VMs.
    pub(super) name: Option<VmName>,
}

/// What all vCPUs of a VM share.
pub(super) struct Guest<F: Nested> {
    /// Its place among the VMs.
    pub(super) number: usize,
    pub(super) placement: Placement,
    /// On the console, if there are several VMs.
    pub(super) name: Option<VmName>,
    pub(super) vm: Vm<Console, TscClock>,
    pub(super) clock: TscClock,
    pub(super) memory: VmMemory<F>,
    pub(super) paging: Paging,
    /// Its processors.
    pub(super) model: CpuModel,
    /// Where its boot vCPU starts.
    pub(super) start: Start,
    /// When the VM has to end.
    pub(super) limit: Instant,
    stats: Mutex<Stats>,
    about: About,
}

impl<F: Nested> Guest<F> {
    /// A VM of this plan, its image loaded.
    ///
    /// # Errors
    /// The verdict on a VM that can't even start.
    pub(super) fn new<B: Backend<Tables = F>>(
        backend: &B,
        cpu: &mut Cpu<'static, HostMachine>,
        boot: &BootInfo,
        plan: &VmPlan,
        place: Place,
    ) -> Result<Self, (Verdict, Why)> {
        let module = |index: usize| {
            let module = &boot.modules[index];
            Module { bytes: boot::contents(module), string: &module.string }
        };
        let config = &plan.config;
        let vcpus = config.vcpus;
        let model = CpuModel { long_mode: config.paging == Paging::Nested, hidden: config.cpuid.hidden };
        let shown = Table::new(crate::cpu::cpuid, Topology { index: 0, vcpus }).of_model(model);
        if let Some(feature) = shown.missing(config.cpuid.required) {
            return Err((Verdict::NoVirtualization, Why::NoFeature(feature.name)));
        }
        let caps = backend.caps(config.pages);
        let (fixed, shadows) = match config.paging {
            Paging::Nested => {
                backend.nested().map_err(|missing| (Verdict::NoVirtualization, Why::Lacking(missing)))?;
                (backend.fixed_page(), caps)
            }
            Paging::Vtlb | Paging::Shadow => (None, backend.shadow_caps(config.pages)),
        };
        let fixed = fixed.as_ref().map(|page| (page.at, &page.content));
        let memory =
            VmMemory::new(cpu, config, (caps, shadows), fixed).ok_or((Verdict::NoMemory, Why::NoFrames("tables")))?;
        let tables = firmware_tables(vcpus);
        let platform =
            Platform { ram: config.ram, long_mode: config.paging == Paging::Nested, acpi: Some(acpi(&tables)) };
        let modules: Vec<Module<'_>> = plan.modules.clone().map(module).collect();
        let (mut tlb, state) = (Tlb::new(), ViewState::new());
        let mut view = memory.view(cpu, &mut tlb, &state);
        let loaded = view
            .write(tables.range().start, tables.bytes())
            .map_err(LoadError::from)
            .and_then(|()| loader::load(module(plan.image), &modules, &platform, &mut view));
        memory.forget(&state);
        let entry = match loaded {
            Ok(entry) => entry,
            Err(error) => {
                memory.free(cpu);
                return Err(match error {
                    LoadError::Memory(MemoryError::NoFrames) => (Verdict::NoMemory, Why::NoFrames("image and modules")),
                    error => (Verdict::BadImage, Why::Refused(error)),
                });
            }
        };
        let clock = TscClock::new();
        let devices = BoardConfig { ram_bytes: config.ram.bytes(), cpus: vcpus as u16, boot_time: 0 };
        let (console, about) = console::console(place.name, config.input);
        let devices = devices::Board::new(devices, console, clock);
        Ok(Self {
            number: place.number,
            placement: place.placement,
            name: place.name,
            vm: Vm::new(devices, clock, vcpus),
            clock,
            memory,
            paging: config.paging,
            model,
            start: Start::Boot(entry),
            limit: config
                .limit
                .map_or(Instant::NEVER, |seconds| timer::after(Duration::from_secs(seconds.get().into()))),
            stats: Mutex::new(Stats::default()),
            about,
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
        self.about.report(text);
    }

    /// Adds what the exits of one vCPU have cost.
    pub(super) fn add_stats(&self, stats: &Stats) {
        self.stats.lock().add(stats);
    }

    /// Ends the VM, when no vCPU of it is left. It is still to be taken apart.
    pub(super) fn end(self) -> Teardown<F> {
        Teardown {
            number: self.number,
            name: self.name,
            about: self.about,
            vm: self.vm,
            stats: Some(self.stats.into_inner()),
            shadow: self.memory.shadow_counts(),
            memory: Some(self.memory.end()),
            patience: timer::after(teardown::GRACE_TIMEOUT),
            due: None,
            result: None,
        }
    }
}

/// The firmware's tables of a VM with so many vCPUs.
pub(super) fn firmware_tables(vcpus: usize) -> bios::Tables {
    let features = Table::new(crate::cpu::cpuid, Topology { index: 0, vcpus }).get(1, 0);
    bios::Tables::new(&bios::PcConfig {
        vcpus: vcpus as u8,
        processor: bios::Processor { signature: features.eax, features: features.edx },
        ioapic: true,
        hpet: Some(devices::HPET_CAPABILITIES),
        pci_gsis: [16, 17, 18, 19],
    })
}

/// Where the tables are, for boot protocols. They lie in what every map of memory shows as ROM.
fn acpi(tables: &bios::Tables) -> AcpiTables {
    let nowhere = Gpa::new(0)..Gpa::new(0);
    let rsdp = Rsdp { oem_id: bios::OEM_ID, rsdt: tables.rsdt().raw() as u32, xsdt: tables.xsdt().raw() };
    AcpiTables { rsdp_at: tables.rsdp(), rsdp, reclaimable: nowhere.clone(), nvs: nowhere }
}
