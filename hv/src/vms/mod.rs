//! The VMs that the command line and the modules describe: built, run, judged.

mod console;
mod guest;
mod host;
mod memory;
mod seat;
mod verdicts;

use crate::boot;
use crate::console::report;
use crate::paging;
use crate::tables::{self, Machine};
use crate::timer;
use crate::verdict::{self, Verdict};
use alloc::sync::Arc;
use alloc::vec::Vec;
use backends::Backend;
use backends::svm::Svm;
use backends::vmx::Vmx;
use core::arch::asm;
use core::num::NonZeroU16;
use guest::Guest;
use loader::{BootInfo, Config, VmPlan};
use memory::Nested;
use rcu::Cpu;
use seat::Seat;
use verdicts::Why;

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

fn run_plans<B: Backend<Tables: Nested>>(backend: &B, boot: &BootInfo, plans: &[VmPlan]) -> ! {
    log::info!("backend: {backend}");
    emul::warm_up();
    let mut cpu = tables::register(0);
    let several = plans.len() > 1;
    let mut results: Vec<Option<(Verdict, Why)>> = plans.iter().map(|_| None).collect();
    let mut seats = Vec::new();
    let mut tags = (1..=u16::MAX).filter_map(NonZeroU16::new);
    let mut tag = || tags.next().unwrap_or(NonZeroU16::MAX);
    for (number, plan) in plans.iter().enumerate() {
        let name = several.then_some(plan.config.name);
        match Guest::new(backend, &mut cpu, boot, plan, number, name) {
            Ok(guest) => {
                let guest = Arc::new(guest);
                seats.extend((0..plan.config.vcpus).map(|index| Seat::new(backend, Arc::clone(&guest), index, tag())));
            }
            Err(result) => results[number] = Some(result),
        }
    }
    report!("start-to-guest: {} ticks", timer::tsc() - boot::start_tsc());
    run_seats(seats, &mut cpu, &mut results);
    let worst = results.iter().flatten().find(|result| result.0 != Verdict::Pass);
    let Some((verdict, why)) = worst.or(results[0].as_ref()) else { unreachable!("every VM has its verdict by now") };
    verdict::end(*verdict, format_args!("{why}"))
}

/// Lets the vCPUs of this CPU run in turn until the VM of each has ended.
fn run_seats<B: Backend<Tables: Nested>>(
    mut seats: Vec<Seat<B>>,
    cpu: &mut Cpu<'static, Machine>,
    results: &mut [Option<(Verdict, Why)>],
) {
    while !seats.is_empty() {
        for seat in &mut seats {
            seat.run(cpu);
        }
        while let Some(index) = seats.iter().position(Seat::is_over) {
            if let Some(guest) = seats.swap_remove(index).leave() {
                let number = guest.number;
                results[number] = Some(guest.end(cpu));
            }
        }
        if seats.iter().all(Seat::sleeps) && !seats.is_empty() {
            seats.iter().for_each(Seat::idles);
            // SAFETY: the host's own state is loaded; STI's shadow covers HLT, so no interrupt gets lost between them.
            cpu.idle(|| unsafe { asm!("sti", "hlt", "cli", options(nomem, nostack)) });
        }
    }
}
