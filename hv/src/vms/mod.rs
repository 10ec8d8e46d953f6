//! The VMs that the command line and the modules describe: built on the boot CPU, run on all, judged.
//!
//! ```text
//!           CPU 0         CPU 1         CPU 2         CPU 3
//!   vm0     vCPU 0        vCPU 1
//!   vm1                                 vCPU 0        vCPU 1        vcpus=2 each, on four CPUs
//!           VcpuTask          VcpuTask          VcpuTask          VcpuTask          a vCPU, bound to its CPU
//! ```
//!
//! What they need of the machine's memory is counted first; then they are built, and all CPUs make their vCPUs; then the first
//! guest starts. A plan, a VM or a CPU that lacks something ends before that.
//!
//! The n-th vCPU of all is bound to CPU n modulo the number of CPUs; those of one CPU take turns. The CPU of the last
//! vCPU of a VM to leave takes the VM apart, in slices of its own; the VMs know nothing of each other.

mod clock;
mod console;
mod firmware;
mod guest;
mod host;
mod plan;
mod task;
mod teardown;
mod vcpu_task;
mod vm_id;
mod work;

use crate::boot;
use crate::console::{report, share};
use crate::cpus;
use crate::paging;
use crate::rcu_domain::{self, HostMachine};
use crate::timer;
use crate::verdict::{self, Verdict};
use abi::lines::StartToGuest;
use alloc::sync::Arc;
use alloc::vec::Vec;
use backends::Backend;
use backends::svm::Svm;
use backends::vmx::Vmx;
use guest::Guest;
use loader::{BootInfo, Config, VmPlan};
use memory::Nested;
use rcu::Cpu;
use sched::Placement;
use vm::Ended;
use vm_id::VmId;
use work::CpuPlan;

/// Builds and runs what `config` describes, with the first backend that this machine has all for, and ends with the verdict.
pub(crate) fn run_all(boot: &BootInfo, config: &Config) -> ! {
    let mut plans = config
        .plan(boot.modules.len())
        .unwrap_or_else(|error| verdict::end(Verdict::Usage, format_args!("command line: {error}")));
    // SAFETY: this is the boot CPU, at ring 0 with interrupts off.
    let no_svm = match unsafe { Svm::enable(paging::physical) } {
        Ok(svm) => run_plans(svm, boot, &mut plans),
        Err(missing) => missing,
    };
    // SAFETY: as above.
    let no_vmx = match unsafe { Vmx::enable(paging::physical) } {
        Ok(vmx) => run_plans(vmx, boot, &mut plans),
        Err(missing) => missing,
    };
    verdict::end(Verdict::NoVirtualization, format_args!("this machine lacks {no_svm}; it lacks {no_vmx}"))
}

fn run_plans<B: Backend<Tables: Nested> + 'static>(backend: B, boot: &BootInfo, plans: &mut [VmPlan]) -> ! {
    log::info!("backend: {backend}");
    let guest_cpus = backend.guest_cpus(cpus::online());
    if guest_cpus.start > 0 {
        log::info!("CPU 0 runs no guests: this processor loses flags of the boot CPU");
    }
    // The decoder's tables, which all VMs share, are on the heap before what the VMs need of it is counted.
    emul::warm_up();
    let firmware = plan::check::<B>(boot, plans);
    let mut cpu = rcu_domain::register(0);
    work::expect(plans.len());
    let mut jobs = CpuPlan::for_cpus(cpus::online());
    let placements = Placement::deal(plans.iter().map(|plan| plan.config.vcpus), guest_cpus);
    let mut guests = Vec::with_capacity(plans.len());
    let names = loader::console_names(plans);
    for (((number, plan), placement), name) in plans.iter().enumerate().zip(placements).zip(names) {
        match Guest::new(
            &backend,
            &mut cpu,
            boot,
            plan,
            firmware.tables(plan.config.vcpus),
            VmId { number, placement, name },
        ) {
            Ok(guest) => guests.push(Arc::new(guest)),
            Err(reason) => work::ended(number, Ended { name, reason }),
        }
    }
    // After all VMs are built: pre-zeroed frames must not take those that a later VM needs to start.
    guests.iter().for_each(|guest| guest.memory.prezero(|| false));
    guests.into_iter().for_each(|guest| deal(&mut jobs, guest));
    report!("{}", StartToGuest(timer::tsc() - boot::start_tsc()));
    share();
    let own = work::hand_out::<B>(jobs);
    run_own(own, backend, cpu)
}

/// Gives each of a VM's vCPUs to its CPU.
fn deal<F: Nested>(jobs: &mut [CpuPlan<F>], guest: Arc<Guest<F>>) {
    for index in 0..guest.vm.vcpus() {
        let cpu = guest.id.placement.cpu_of(index);
        jobs[cpu].add(Arc::clone(&guest), index);
    }
}

fn run_own<B: Backend<Tables: Nested>>(job: CpuPlan<B::Tables>, backend: B, mut cpu: Cpu<'static, HostMachine>) -> ! {
    job.run(&backend, &mut cpu);
    work::wait_for_all(&mut cpu)
}
