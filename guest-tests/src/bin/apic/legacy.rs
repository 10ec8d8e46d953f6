//! The 8259's interrupts, by LINT0.

use guest::apic::{Apic, LVT_EXT_INT, LVT_MASKED, Register};
use guest::boot::Boot;
use guest::interrupts::{count, open_for_one_instruction};
use guest::ktap::Outcome;
use guest::uart::{self, IRQ};
use guest::{check_eq, pic};

/// Let through as external interrupt, with the 8259's vector and no end of interrupt at the APIC; held back by the mask, and
/// not by the task's priority.
pub(crate) fn through_lint0(_: &Boot) -> Outcome {
    let apic = Apic::here();
    let lint0 = apic.read(Register::LvtLint0);
    uart::drain();
    pic::init();
    pic::unmask_only(IRQ);
    let before = count(IRQ);
    apic.write(Register::LvtLint0, LVT_EXT_INT | LVT_MASKED);
    uart::set_thre_interrupt(true);
    open_for_one_instruction();
    let masked = count(IRQ) - before;
    apic.set_task_priority(0xf);
    apic.write(Register::LvtLint0, LVT_EXT_INT);
    open_for_one_instruction();
    let open = count(IRQ) - before;
    uart::set_thre_interrupt(false);
    pic::mask_all();
    apic.set_task_priority(0);
    apic.write(Register::LvtLint0, lint0);
    check_eq!((masked, open), (0, 1));
    check_eq!((0..8).map(|index| apic.read_nth(Register::InService, index)).sum::<u32>(), 0);
    Ok(())
}
