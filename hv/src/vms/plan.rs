//! Whether the machine has the memory that the VMs need: told before the first of them is built.

use super::firmware::Firmware;
use super::guest::Guest;
use super::task::CpuTask;
use crate::frames::FRAMES;
use crate::verdict::{self, Verdict};
use alloc::vec::Vec;
use backends::Backend;
use loader::need::{self, Free, Remark};
use loader::rom::Rom;
use loader::{BootInfo, Need, OnReset, VmPlan};
use memory::Nested;

/// Ends the run if there is too little memory for some VM, sets aside what all need in common, and has the VMs use small pages
/// where there is too little for large ones. Returns the firmware's tables, which it has counted.
pub(super) fn check<B: Backend<Tables: Nested>>(boot: &BootInfo, plans: &mut [VmPlan]) -> Firmware {
    let firmware = Firmware::of(plans);
    let need = |plan: &VmPlan| (plan.config, need_of::<B>(boot, plan, firmware.tables(plan.config.vcpus)));
    let needs: Vec<_> = plans.iter().map(need).collect();
    let free = Free { frames: FRAMES.available() as u64, low: FRAMES.available_for_roots() as u64 };
    match need::admit(&needs, free, |roots| FRAMES.keep_roots(roots).is_some()) {
        Ok(remarks) => remarks.for_each(|remark| {
            log::info!("{remark}");
            if let Remark::SmallPages(_) = remark {
                need::use_small_pages(plans.iter_mut());
            }
        }),
        Err(refusal) => verdict::end(Verdict::NoMemory, format_args!("{refusal}")),
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
