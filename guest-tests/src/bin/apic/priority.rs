//! Self-IPIs, and which of them come when.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use guest::apic::{Apic, Delivery, Destination, Register};
use guest::boot::Boot;
use guest::check_eq;
use guest::interrupts::{disable, enable, handle};
use guest::ktap::Outcome;
use guest::processor::{cr8, set_cr8};

use crate::arrivals::{self, afresh, expect, here, let_in, log};

fn send(vectors: &[u8]) {
    for vector in vectors {
        Apic::here().send(Delivery::Fixed(*vector), Destination::Myself);
    }
}

pub(crate) fn self_ipi_arrives_once(_: &Boot) -> Outcome {
    expect(0x41);
    afresh(|| {
        send(&[0x41]);
        check_eq!(here(&mut [0; 16]), [], "with interrupts off");
        let_in();
        check_eq!(here(&mut [0; 16]), [0x41]);
        Ok(())
    })
}

/// A vector of the task's own class is held back as well.
pub(crate) fn task_priority_holds_back(_: &Boot) -> Outcome {
    let apic = Apic::here();
    [0x4f, 0x51, 0x61].into_iter().for_each(expect);
    afresh(|| {
        apic.set_task_priority(5);
        send(&[0x4f, 0x51, 0x61]);
        let_in();
        let (mut room, mut later) = ([0; 16], [0; 16]);
        let high = here(&mut room);
        let waiting = [0x4f, 0x51, 0x61].map(|vector| apic.has(Register::Requested, vector));
        apic.set_task_priority(4);
        let_in();
        apic.set_task_priority(0);
        let_in();
        check_eq!(high, [0x61]);
        check_eq!(waiting, [true, true, false]);
        check_eq!(here(&mut later), [0x61, 0x51, 0x4f]);
        Ok(())
    })
}

/// By CR8, whose fall lets them in at once: nothing else happens on the processor meanwhile that could.
pub(crate) fn cr8_holds_back(_: &Boot) -> Outcome {
    [0x4f, 0x51, 0x61].into_iter().for_each(expect);
    afresh(|| {
        set_cr8(15);
        send(&[0x4f, 0x51, 0x61]);
        enable();
        let arrived = [5, 4, 0].map(|class| {
            set_cr8(class);
            spin(1000);
            here(&mut [0; 16]).len()
        });
        disable();
        check_eq!(arrived, [1, 2, 3]);
        check_eq!(here(&mut [0; 16]), [0x61, 0x51, 0x4f]);
        check_eq!(cr8(), 0);
        Ok(())
    })
}

/// So many turns of a loop.
fn spin(turns: u32) {
    (0..turns).for_each(|_| spin_loop());
}

/// Writes of CR8 while an interrupt waits for IF alone. (QEMU's SVM, as of 7.2, would end there.)
pub(crate) fn cr8_while_interrupts_are_off(_: &Boot) -> Outcome {
    expect(0x63);
    afresh(|| {
        send(&[0x63]);
        for class in [3, 6, 2] {
            set_cr8(class);
            check_eq!(cr8(), class);
        }
        check_eq!(here(&mut [0; 16]), []);
        let_in();
        set_cr8(0);
        check_eq!(here(&mut [0; 16]), [0x63]);
        Ok(())
    })
}

/// The class that CR8 holds back is that of what comes, too, and in a handler CR8 is the interrupted code's.
pub(crate) fn cr8_in_a_handler(_: &Boot) -> Outcome {
    static SEEN: AtomicU32 = AtomicU32::new(u32::MAX);
    expect(0x85);
    handle(0x65, |vector| {
        SEEN.store(cr8() as u32, Relaxed);
        // Higher than the one that is served, which ends first: 85h waits for CR8 alone.
        set_cr8(8);
        send(&[0x85]);
        log(vector);
        Apic::here().end_of_interrupt();
    });
    afresh(|| {
        set_cr8(3);
        send(&[0x65]);
        let_in();
        let held = here(&mut [0; 16]).len();
        enable();
        set_cr8(7);
        spin(1000);
        disable();
        let priority = Apic::here().read(Register::TaskPriority);
        set_cr8(0);
        check_eq!((held, SEEN.load(Relaxed), priority), (1, 3, 0x70));
        check_eq!(here(&mut [0; 16]), [0x65, 0x85]);
        Ok(())
    })
}

pub(crate) fn highest_vector_first(_: &Boot) -> Outcome {
    let vectors = [0x51, 0xe3, 0x50, 0x92, 0x93, 0x31];
    vectors.into_iter().for_each(expect);
    afresh(|| {
        send(&vectors);
        let_in();
        check_eq!(here(&mut [0; 16]), [0xe3, 0x93, 0x92, 0x51, 0x50, 0x31]);
        Ok(())
    })
}

/// 0x95 comes in the midst of 0x75's handler; 0x7f, of 0x75's class, only after it.
pub(crate) fn higher_class_interrupts_the_handler(_: &Boot) -> Outcome {
    static PRIORITY: AtomicU32 = AtomicU32::new(0);
    [0x7f, 0x95].into_iter().for_each(expect);
    handle(0x75, |vector| {
        let apic = Apic::here();
        PRIORITY.store(apic.read(Register::ProcessorPriority), Relaxed);
        send(&[0x7f, 0x95]);
        enable();
        while apic.has(Register::Requested, 0x95) {}
        disable();
        log(vector);
        apic.end_of_interrupt();
    });
    afresh(|| {
        send(&[0x75]);
        let_in();
        check_eq!(here(&mut [0; 16]), [0x95, 0x75, 0x7f]);
        check_eq!(PRIORITY.load(Relaxed) & 0xf0, 0x70);
        Ok(())
    })
}

pub(crate) fn requested_then_in_service_then_neither(_: &Boot) -> Outcome {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    const VECTOR: u8 = 0xa7;
    let state = || {
        let apic = Apic::here();
        u32::from(apic.has(Register::Requested, VECTOR)) << 1 | u32::from(apic.has(Register::InService, VECTOR))
    };
    handle(VECTOR, |vector| {
        let apic = Apic::here();
        let in_handler = [Register::Requested, Register::InService].map(|register| apic.has(register, VECTOR));
        SEEN.store(u32::from(in_handler == [false, true]), Relaxed);
        log(vector);
        apic.end_of_interrupt();
    });
    afresh(|| {
        check_eq!(state(), 0);
        send(&[VECTOR]);
        check_eq!(state(), 0b10, "requested");
        let_in();
        check_eq!(SEEN.load(Relaxed), 1, "in service in the handler");
        check_eq!(state(), 0);
        check_eq!(arrivals::here(&mut [0; 16]), [VECTOR]);
        Ok(())
    })
}

/// A request that is pending is not counted, but one in service may be requested again.
pub(crate) fn same_vector_merges(_: &Boot) -> Outcome {
    expect(0x48);
    static AGAIN: AtomicU32 = AtomicU32::new(0);
    handle(0x49, |vector| {
        if AGAIN.fetch_add(1, Relaxed) == 0 {
            send(&[0x49, 0x49]);
        }
        log(vector);
        Apic::here().end_of_interrupt();
    });
    afresh(|| {
        send(&[0x48, 0x48, 0x48]);
        let_in();
        send(&[0x49]);
        let_in();
        check_eq!(here(&mut [0; 16]), [0x48, 0x49, 0x49]);
        Ok(())
    })
}
