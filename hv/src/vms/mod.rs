//! The VMs that the command line and the modules describe: built, run, judged.

mod host;
mod memory;

use crate::boot;
use crate::console::report;
use crate::paging;
use crate::tables;
use crate::timer;
use crate::verdict::{self, Verdict};
use alloc::string::ToString;
use alloc::vec::Vec;
use backends::svm::Svm;
use backends::vmx::Vmx;
use backends::{Backend, Start};
use core::fmt;
use devices::MachineConfig;
use host::{TickingHost, TscClock, console};
use loader::{BootInfo, Config, Module, VmPlan};
use memory::VmMemory;
use rcu::Tlb;
use vm::cpuid::{Leaf, Table};
use vm::{Machine, Stop, Vcpu};

/// Builds and runs what `config` describes, with the first backend that this machine has all for, and ends with the verdict.
pub(crate) fn run_all(boot: &BootInfo, config: &Config) -> ! {
    let plans = config
        .plan(boot.modules.len())
        .unwrap_or_else(|error| verdict::end(Verdict::Usage, format_args!("command line: {error}")));
    // SAFETY: this is the boot CPU, at ring 0 with interrupts off.
    let no_svm = match unsafe { Svm::enable(paging::physical) } {
        Ok(svm) => run_plans(&svm, boot, &plans),
        Err(missing) => missing,
    };
    // SAFETY: as above.
    let no_vmx = match unsafe { Vmx::enable(paging::physical) } {
        Ok(vmx) => run_plans(&vmx, boot, &plans),
        Err(missing) => missing,
    };
    verdict::end(Verdict::NoVirtualization, format_args!("this machine lacks {no_svm}; it lacks {no_vmx}"))
}

fn run_plans<B: Backend>(backend: &B, boot: &BootInfo, plans: &[VmPlan]) -> ! {
    log::info!("backend: {backend}");
    emul::warm_up();
    let [plan] = plans else {
        verdict::end(
            Verdict::Usage,
            format_args!("{} guests, but one at a time is what this hypervisor runs", plans.len()),
        );
    };
    let (verdict, why) = run(backend, boot, plan);
    verdict::end(verdict, format_args!("{why}"))
}

/// What a run has come to, for people.
enum Why {
    Stopped(Stop),
    Refused(loader::LoadError),
    Leaked(u64),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(stop) => describe(*stop, f),
            Self::Refused(error) => write!(f, "{error}"),
            Self::Leaked(frames) => write!(f, "{frames} frames of the VM did not come back"),
        }
    }
}

fn describe(stop: Stop, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match stop {
        Stop::Exited(0) => f.write_str("the guest reported success"),
        Stop::Exited(value) => write!(f, "the guest reported failure: it wrote {value} to the exit port"),
        Stop::TripleFault => f.write_str("triple fault in the guest"),
        Stop::Reset => f.write_str("the guest asked for a reset"),
        Stop::Halted => f.write_str("the guest halted with interrupts off: nothing can wake it"),
        Stop::OutOfMemory => f.write_str("no frame left for the guest's memory"),
        Stop::Limit => f.write_str("the guest ran past its limit"),
        Stop::Unhandled(what) => f.write_str(what),
    }
}

const fn judge(stop: Stop) -> Verdict {
    match stop {
        Stop::Exited(0) => Verdict::Pass,
        Stop::Exited(_) => Verdict::GuestFailed,
        Stop::TripleFault => Verdict::GuestTripleFault,
        Stop::Limit => Verdict::Hang,
        Stop::Reset | Stop::Halted | Stop::OutOfMemory | Stop::Unhandled(_) => Verdict::GuestKilled,
    }
}

/// One VM from its image to its end.
fn run<B: Backend>(backend: &B, boot: &BootInfo, plan: &VmPlan) -> (Verdict, Why) {
    let module = |index: usize| {
        let module = &boot.modules[index];
        Module { bytes: boot::contents(module), string: &module.string }
    };
    let (mut cpu, mut tlb) = (tables::register(0), Tlb::new());
    let caps = backend.caps(plan.config.pages);
    let Some(memory) = VmMemory::<B::Tables>::new(&mut cpu, plan.config.ram, caps, backend.fixed_page()) else {
        return (Verdict::GuestKilled, Why::Stopped(Stop::OutOfMemory));
    };
    memory.fill_stock();
    let modules: Vec<Module<'_>> = plan.modules.clone().map(module).collect();
    let mut view = memory.view(&mut cpu, &mut tlb);
    let entry = match loader::load(module(plan.image), &modules, plan.config.ram, &mut view) {
        Ok(entry) => entry,
        Err(error) => return (Verdict::BadImage, Why::Refused(error)),
    };
    let start = Start { eip: entry.eip, eax: entry.eax, ebx: entry.ebx };
    let mut vcpu = backend.vcpu(memory.root(), start);
    let devices = MachineConfig { ram_bytes: plan.config.ram.bytes(), cpus: 1, boot_time: 0 };
    let devices = devices::Machine::new(devices, console(), TscClock::new());
    let mut machine = Machine::new(view, devices, Table::new(host_cpuid));
    let mut host = TickingHost::new(plan.config.limit);
    report!("start-to-guest: {} ticks", timer::tsc() - boot::start_tsc());
    let stop = vm::run(&mut vcpu, &mut machine, &mut host);
    vcpu.leave();
    machine.console().flush();
    if !matches!(stop, Stop::Exited(_)) {
        report_lines(&Dump(&vcpu));
        match machine.code(&vcpu) {
            Some(code) => report!("code {:02x?}", code.bytes()),
            None => report!("code can't be fetched"),
        }
    }
    report_lines(machine.stats());
    drop(vcpu);
    report!("memory: {}", memory.report(&cpu));
    let accounts = memory.free(&mut cpu);
    report!("frames: {} at most, {} missing at the end", accounts.peak, accounts.missing);
    match accounts.missing {
        0 => (judge(stop), Why::Stopped(stop)),
        frames => (Verdict::Leak, Why::Leaked(frames)),
    }
}

/// A vCPU's registers, as [`Vcpu::dump`] writes them.
struct Dump<'a, V>(&'a V);

impl<V: Vcpu> fmt::Display for Dump<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.dump(f)
    }
}

/// Prints a text of several lines, each marked as the hypervisor's.
fn report_lines(text: &dyn fmt::Display) {
    text.to_string().lines().for_each(|line| report!("{line}"));
}

fn host_cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let result = raw_cpuid::cpuid!(leaf, subleaf);
    Leaf { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
}
