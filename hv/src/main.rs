//! The hypervisor: a thin image around the libraries below `hv/`.
//!
//! `boot/entry.s` comes from the loader to [`hv_main`], which brings the machine up, builds the VMs that the command line and
//! the modules describe, runs them, and ends with a verdict.
#![no_std]
#![no_main]

extern crate alloc;

mod acpi_tables;
mod boot;
mod console;
mod cpu;
mod cpus;
mod frames;
mod heap;
mod lapic;
mod paging;
mod panic;
mod rcu_domain;
mod selftest;
mod smp;
mod timer;
mod verdict;
mod vms;
mod watchdog;

use frames::FRAMES;
use loader::{BootInfo, Config};
use verdict::Verdict;
use watchdog::Hooks;

/// Where `boot/entry.s` leads, in long mode on the boot stack, with what the loader left in EAX and EBX.
#[unsafe(no_mangle)]
extern "C" fn hv_main(magic: u32, info: u32) -> ! {
    // SAFETY: this is the only call, and nothing was allocated yet.
    unsafe { heap::init() };
    console::init(log::LevelFilter::Info);
    let boot = boot::read(magic, info).unwrap_or_else(|error| verdict::end(Verdict::Usage, format_args!("{error}")));
    let config = Config::parse(&boot.command_line)
        .unwrap_or_else(|error| verdict::end(Verdict::Usage, format_args!("command line: {error}")));
    log::set_max_level(config.log);
    bring_up(&boot);
    let hooks = Hooks { is_away: rcu_domain::is_away, stuck: panic::stuck, report };
    watchdog::start(config.watchdog, hooks);
    if let Some(how) = config.selftest {
        selftest::fail(how);
    }
    vms::run_all(&boot, &config)
}

/// What the watchdog has done at each check.
fn report() {
    rcu_domain::warn_of_stalls();
    panic::report_strays();
    console::look_for_break();
}

/// Takes the processor and the machine's memory over from the loader.
fn bring_up(boot: &BootInfo) {
    // SAFETY: this is the boot CPU, and interrupts have been off since the loader.
    unsafe { cpu::init() };
    for malformed in &boot.malformed {
        log::warn!("boot information: {malformed}");
    }
    take_frames(boot);
    let topology = acpi_tables::read();
    match &topology {
        Some(topology) => log::info!("{topology}"),
        None => log::info!("no ACPI tables"),
    }
    // SAFETY: as above.
    unsafe { lapic::find(topology.as_ref().and_then(|topology| topology.local_apic)) };
    // SAFETY: as above.
    unsafe { lapic::init() };
    // SAFETY: as above.
    unsafe { timer::init(topology.as_ref().and_then(|topology| topology.pm_timer)) };
    // SAFETY: as above.
    unsafe { smp::start(boot, topology.as_ref()) };
    log::info!("{} CPUs", cpus::online());
    rcu_domain::open_domain();
}

/// Fills the frame allocator; what the boot tables do not map only after the hypervisor's own tables are in place.
fn take_frames(boot: &BootInfo) {
    let mut usable = boot.usable_ranges(&paging::image());
    let top = usable.iter().map(|range| range.end).max().unwrap_or(paging::BOOT_MAP);
    // SAFETY: this is the only call, and nothing has used the ranges yet.
    if unsafe { frames::init(&mut usable, top) }.is_none() {
        verdict::end(
            Verdict::NoMemory,
            format_args!("not enough memory below 4 GiB to manage the machine's page frames"),
        );
    }
    FRAMES.add_below(&usable, paging::BOOT_MAP);
    // SAFETY: the boot tables are in use, and what the loader left in the lower half was copied.
    if let Err(error) = unsafe { paging::install(&boot.memory_ranges(), frames::alloc) } {
        verdict::end(Verdict::NoMemory, format_args!("{error}"));
    }
    FRAMES.add_above(&usable, paging::BOOT_MAP);
    // SAFETY: `paging::install` was just now, and this is the only call.
    if unsafe { rcu_domain::init(top) }.is_none() {
        verdict::end(Verdict::NoMemory, format_args!("not enough memory for the descriptors of page frames"));
    }
    let bytes: u64 = usable.iter().map(|range| range.end.raw() - range.start.raw()).sum();
    log::info!("{} MiB of memory in {} ranges", bytes >> 20, usable.len());
}
