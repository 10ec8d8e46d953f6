//! An external interrupt: the UART's, when its transmitter is empty, by line 4 of the PIC.

use guest::boot::Boot;
use guest::interrupts::{
    after_the_halt, after_the_one_instruction, count, halt_until_interrupt, last_rip, open_for_no_instruction,
    open_for_one_instruction,
};
use guest::ktap::Outcome;
use guest::uart::{IRQ, SOURCE_NONE, SOURCE_THRE};
use guest::{check_eq, cpuid, pic, uart};

/// Runs `body` with the interrupt pending, and takes everything back.
fn with_one_pending(body: impl FnOnce() -> Outcome) -> Outcome {
    uart::drain();
    pic::init();
    pic::unmask_only(IRQ);
    uart::set_thre_interrupt(true);
    let outcome = body();
    uart::set_thre_interrupt(false);
    pic::mask_all();
    outcome
}

/// The line's interrupts that `body` lets in.
fn arrived(body: impl FnOnce()) -> u64 {
    let before = count(IRQ);
    body();
    count(IRQ) - before
}

/// By polling alone, with all lines masked.
pub(crate) fn uart_tells_its_source(_: &Boot) -> Outcome {
    uart::drain();
    pic::init();
    check_eq!(uart::interrupt_source(), SOURCE_NONE);
    uart::set_thre_interrupt(true);
    let sources = [uart::interrupt_source(), uart::interrupt_source()];
    uart::set_thre_interrupt(false);
    check_eq!(sources, [SOURCE_THRE, SOURCE_NONE], "reading it takes it back");
    Ok(())
}

pub(crate) fn pic_keeps_its_masks(_: &Boot) -> Outcome {
    pic::init();
    check_eq!(pic::masks(), 0xffff);
    pic::unmask_only(IRQ);
    check_eq!(pic::masks(), 0xffef);
    pic::mask_all();
    check_eq!(pic::masks(), 0xffff);
    Ok(())
}

pub(crate) fn held_back_while_if_is_clear(_: &Boot) -> Outcome {
    with_one_pending(|| {
        let exits = || {
            for _ in 0..100 {
                cpuid::cpuid(0, 0);
            }
        };
        check_eq!(arrived(exits), 0);
        check_eq!(pic::requested() & 1 << IRQ, 1 << IRQ);
        check_eq!(arrived(|| open_for_one_instruction()), 1);
        check_eq!(uart::last_source(), SOURCE_THRE);
        check_eq!(pic::in_service(), 0, "after the end of interrupt");
        check_eq!(arrived(|| open_for_one_instruction()), 0, "it comes once");
        Ok(())
    })
}

/// The instruction behind STI comes first.
pub(crate) fn arrives_after_the_sti_shadow(_: &Boot) -> Outcome {
    with_one_pending(|| {
        check_eq!(arrived(|| open_for_one_instruction()), 1);
        check_eq!(last_rip(IRQ), after_the_one_instruction());
        Ok(())
    })
}

pub(crate) fn sti_cli_lets_none_in(_: &Boot) -> Outcome {
    with_one_pending(|| {
        check_eq!(arrived(open_for_no_instruction), 0);
        check_eq!(arrived(|| open_for_one_instruction()), 1);
        Ok(())
    })
}

/// The interrupt is pending before STI; HLT comes first, and does not outlast it.
pub(crate) fn pending_one_wakes_from_hlt(_: &Boot) -> Outcome {
    with_one_pending(|| {
        check_eq!(arrived(|| halt_until_interrupt()), 1);
        check_eq!(last_rip(IRQ), after_the_halt());
        Ok(())
    })
}
