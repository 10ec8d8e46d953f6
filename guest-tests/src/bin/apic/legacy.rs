//! The 8259's interrupts, by LINT0.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use guest::apic::{Apic, Delivery, Destination, LVT_EXT_INT, LVT_MASKED, Register};
use guest::boot::Boot;
use guest::interrupts::{self, count, open_for_one_instruction};
use guest::ktap::Outcome;
use guest::smp::Cpu;
use guest::uart::{self, IRQ};
use guest::{check, check_eq, clock, pic};

use crate::arrivals::{self, afresh, expect};

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

/// Whether the APIC's interrupt had come when the 8259's handler went on.
static HAD_COME: AtomicBool = AtomicBool::new(false);

/// An interrupt of either waits. The 8259's has no priority at the APIC: its handler lets the other in before it does anything that
/// a hypervisor has to know of.
pub(crate) fn its_handler_lets_the_apics_in(_: &Boot) -> Outcome {
    const VECTOR: u8 = 0x95;
    const LEGACY: u8 = pic::VECTOR_BASE + IRQ;
    expect(VECTOR);
    interrupts::handle(LEGACY, |_| {
        interrupts::enable();
        let has_come = || arrivals::count(Cpu::current()) != 0;
        clock::wait_for(clock::microseconds(20_000), has_come);
        interrupts::disable();
        HAD_COME.store(has_come(), Relaxed);
        uart::set_thre_interrupt(false);
        pic::end_of_interrupt(IRQ);
    });
    let apic = Apic::here();
    let lint0 = apic.read(Register::LvtLint0);
    uart::drain();
    pic::init();
    pic::unmask_only(IRQ);
    apic.write(Register::LvtLint0, LVT_EXT_INT);
    let outcome = afresh(|| {
        uart::set_thre_interrupt(true);
        apic.send(Delivery::Fixed(VECTOR), Destination::Myself);
        open_for_one_instruction();
        check!(HAD_COME.load(Relaxed));
        Ok(())
    });
    pic::mask_all();
    apic.write(Register::LvtLint0, lint0);
    interrupts::handle_no_more(LEGACY);
    outcome
}
