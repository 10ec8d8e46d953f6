//! Whether the machine has the memory that the VMs need: told before the first of them is built.

use super::firmware::Firmware;
use super::guest::Guest;
use super::task::CpuTask;
use crate::frames::FRAMES;
use crate::verdict::{self, Verdict};
use abi::reasons::OVERCOMMITTED;
use addr::PageSize;
use backends::Backend;
use loader::need::{self, Free};
use loader::rom::Rom;
use loader::{BootInfo, Need, OnReset, VmPlan};
use memory::Nested;

/// Ends the run if there is too little memory for some VM, sets aside what all need in common, and has the VMs use small pages
/// where there is too little for large ones. Returns the firmware's tables, which it has counted.
pub(super) fn check<B: Backend<Tables: Nested>>(boot: &BootInfo, plans: &mut [VmPlan]) -> Firmware {
    let firmware = Firmware::of(plans);
    let free = Free { frames: FRAMES.available() as u64, low: FRAMES.available_for_roots() as u64 };
    let needs = || plans.iter().map(|plan| need_of::<B>(boot, plan, firmware.tables(plan.config.vcpus)));
    let configs = || plans.iter().map(|plan| plan.config);
    if let Err(shortage) = need::check(configs().zip(needs()), free) {
        verdict::end(Verdict::NoMemory, format_args!("{shortage}"));
    }
    let roots = configs().map(|config| config.trees()).sum();
    if roots != 0 && FRAMES.keep_roots(roots).is_none() {
        let missing = format_args!("{roots} frames in a row below 4 GiB, for the roots of shadow tables");
        verdict::end(Verdict::NoMemory, format_args!("the machine lacks {missing}"));
    }
    if let Some(missing) = need::overcommitted(configs(), free.frames) {
        log::info!("the VMs have {missing} {OVERCOMMITTED}: one that finds none left ends");
    }
    if !need::has_room_for_large_pages(needs(), free) {
        log::info!("the VMs get small pages: {} frames are too few for large ones", free.frames);
        plans.iter_mut().for_each(|plan| plan.config.pages = PageSize::Size4K);
    }
    firmware
}

fn need_of<B: Backend<Tables: Nested>>(boot: &BootInfo, plan: &VmPlan, firmware: &bios::Tables) -> Need {
    let modules = plan.modules.clone().chain([plan.image]).map(|module| &boot.modules[module].range);
    let files = modules.map(|range| range.end.raw() - range.start.raw());
    let vcpus = (0..plan.config.vcpus).flat_map(|_| CpuTask::<B>::allocations());
    let restarts = plan.config.on_reset == OnReset::Restart;
    let rom = restarts.then(|| Rom::allocations(firmware.bytes().len())).into_iter().flatten();
    plan.config.need(
        files.chain([firmware.bytes().len() as u64]),
        Guest::<B::Tables>::allocations(&plan.config).chain(vcpus).chain(rom),
    )
}
