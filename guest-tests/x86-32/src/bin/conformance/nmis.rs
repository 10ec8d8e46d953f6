//! NMIs: while one is handled, one more is kept (Intel SDM vol. 3, section 6.7.1), and comes right behind IRET.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use guest32::apic::{Apic, Delivery, Destination};
use guest32::boot::Boot;
use guest32::check_eq;
use guest32::interrupts::{self, NMI};
use guest32::ktap::Outcome;

static HANDLED: AtomicU32 = AtomicU32::new(0);
/// How many the handler of the first one sends.
static SENDS: AtomicU32 = AtomicU32::new(0);

fn send() {
    Apic::here().send(Delivery::Nmi, Destination::Physical(Apic::here().id()));
}

fn handler(_: u8) {
    if HANDLED.fetch_add(1, Relaxed) == 0 {
        (0..SENDS.load(Relaxed)).for_each(|_| send());
    }
}

/// Sends one, with interrupts off, and waits without an instruction that exits. How many came.
fn send_one(sends: u32) -> u32 {
    const PATIENCE: u32 = 200_000;
    HANDLED.store(0, Relaxed);
    SENDS.store(sends, Relaxed);
    interrupts::handle(NMI, handler);
    Apic::start();
    send();
    (0..PATIENCE).for_each(|_| core::hint::black_box(()));
    HANDLED.load(Relaxed)
}

pub(crate) fn one_that_comes_while_another_is_handled(_: &Boot) -> Outcome {
    check_eq!(send_one(1), 2);
    Ok(())
}

pub(crate) fn three_that_come_while_another_is_handled(_: &Boot) -> Outcome {
    check_eq!(send_one(3), 2);
    Ok(())
}

/// Each is taken before the next one is sent, but for the last.
pub(crate) fn two_at_once(_: &Boot) -> Outcome {
    send_one(0);
    send();
    check_eq!(HANDLED.load(Relaxed), 2);
    Ok(())
}
