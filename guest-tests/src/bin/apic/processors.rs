//! IPIs between processors, and their start.

use core::hint;
use core::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use guest::apic::{Apic, Delivery, Destination, Register};
use guest::boot::Boot;
use guest::interrupts::{self, NMI, handle};
use guest::ktap::Outcome;
use guest::processor::set_cr8;
use guest::smp::{self, Barrier, Cpu};
use guest::{check, check_eq, clock, skip_unless};

use crate::arrivals::{self, afresh, expect, log};

const VECTOR: u8 = 0x70;

fn second() -> Cpu {
    smp::cpus().nth(1).expect("the callers have seen two")
}

/// Sends an IPI from the first processor while all let interrupts in, and returns how many each has had: each has to have at
/// least its part, by `expected`.
fn deliver(delivery: Delivery, to: Destination, expected: impl Fn(Cpu) -> usize + Sync) -> Outcome {
    let ready = Barrier::new();
    afresh(|| {
        smp::run_on_all(|cpu| {
            interrupts::enable();
            ready.wait();
            if cpu.is_boot() {
                Apic::here().send(delivery, to);
            }
            let came = clock::wait_for(clock::seconds(20), || arrivals::count(cpu) >= expected(cpu));
            ready.wait();
            clock::wait(clock::microseconds(100));
            interrupts::disable();
            check!(came, "{delivery:?} to {to:x?} does not reach {cpu:?}");
            check_eq!(arrivals::count(cpu), expected(cpu), "{delivery:?} to {to:x?} at {cpu:?}");
            Ok(())
        })
    })
}

pub(crate) fn all_started(_: &Boot) -> Outcome {
    skip_unless!(smp::count() > 1, "one processor");
    smp::run_on_all(|cpu| {
        check_eq!(Cpu::current(), cpu);
        check_eq!(Apic::here().id(), cpu.apic_id());
        Ok(())
    })
}

pub(crate) fn physical_destination(_: &Boot) -> Outcome {
    skip_unless!(smp::count() > 1, "one processor");
    expect(VECTOR);
    for target in smp::cpus() {
        deliver(Delivery::Fixed(VECTOR), target.into(), |cpu| usize::from(cpu == target))?;
    }
    Ok(())
}

/// The flat model: one bit for each of the first eight.
pub(crate) fn logical_destination(_: &Boot) -> Outcome {
    skip_unless!((2..=8).contains(&smp::count()), "one processor, or too many for the flat model");
    expect(VECTOR);
    smp::run_on_all(|cpu| {
        Apic::here().join_logical(cpu.index() as u8);
        Ok(())
    })?;
    for mask in 1..1_usize << smp::count() {
        deliver(Delivery::Fixed(VECTOR), Destination::Logical(mask as u32), |cpu| mask >> cpu.index() & 1)?;
    }
    Ok(())
}

pub(crate) fn shorthands(_: &Boot) -> Outcome {
    skip_unless!(smp::count() > 1, "one processor");
    expect(VECTOR);
    deliver(Delivery::Fixed(VECTOR), Destination::Myself, |cpu| usize::from(cpu.is_boot()))?;
    deliver(Delivery::Fixed(VECTOR), Destination::All, |_| 1)?;
    deliver(Delivery::Fixed(VECTOR), Destination::AllButMyself, |cpu| usize::from(!cpu.is_boot()))
}

/// Among all of the flat model.
pub(crate) fn lowest_priority_is_one(_: &Boot) -> Outcome {
    skip_unless!((2..=8).contains(&smp::count()), "one processor, or too many for the flat model");
    expect(VECTOR);
    let everyone = Destination::Logical((1 << smp::count()) - 1);
    let ready = Barrier::new();
    let total = || smp::cpus().map(arrivals::count).sum::<usize>();
    afresh(|| {
        smp::run_on_all(|cpu| {
            Apic::here().join_logical(cpu.index() as u8);
            interrupts::enable();
            ready.wait();
            if cpu.is_boot() {
                Apic::here().send(Delivery::LowestPriority(VECTOR), everyone);
            }
            let came = clock::wait_for(clock::seconds(20), || total() > 0);
            clock::wait(clock::microseconds(100));
            ready.wait();
            interrupts::disable();
            check!(came, "it reaches no processor");
            check_eq!(total(), 1);
            Ok(())
        })
    })
}

/// It comes when CR8 falls, not before, also to a processor that does nothing else meanwhile.
pub(crate) fn cr8_holds_back_what_others_send(_: &Boot) -> Outcome {
    skip_unless!(smp::count() > 1, "one processor");
    expect(VECTOR);
    let (ready, sent) = (Barrier::new(), AtomicBool::new(false));
    afresh(|| {
        smp::run_on_all(|cpu| {
            if cpu.is_boot() {
                ready.wait();
                Apic::here().send(Delivery::Fixed(VECTOR), Destination::AllButMyself);
                sent.store(true, Release);
                return Ok(());
            }
            set_cr8(u64::from(VECTOR >> 4));
            interrupts::enable();
            ready.wait();
            let was_sent = clock::wait_for(clock::seconds(20), || sent.load(Acquire));
            clock::wait(clock::microseconds(100));
            let before = arrivals::count(cpu);
            set_cr8(0);
            let came = clock::wait_for(clock::seconds(20), || arrivals::count(cpu) > 0);
            interrupts::disable();
            check!(was_sent && came, "{cpu:?} gets none");
            check_eq!((before, arrivals::count(cpu)), (0, 1));
            Ok(())
        })
    })
}

/// With interrupts off, too.
pub(crate) fn nmi(_: &Boot) -> Outcome {
    skip_unless!(smp::count() > 1, "one processor");
    handle(NMI, log);
    let sent = AtomicBool::new(false);
    afresh(|| {
        smp::run_on_all(|cpu| {
            if cpu.is_boot() {
                Apic::here().send(Delivery::Nmi, Destination::AllButMyself);
                sent.store(true, Relaxed);
                return Ok(());
            }
            check!(clock::wait_for(clock::seconds(20), || arrivals::count(cpu) > 0), "{cpu:?} gets none");
            check_eq!(arrivals::count(cpu), 1);
            Ok(())
        })
    })
}

/// It would begin anew, and with what it was given to do.
pub(crate) fn sipi_to_a_running_one_is_ignored(boot: &Boot) -> Outcome {
    skip_unless!(smp::count() > 1, "one processor");
    let page = smp::page_number(smp::trampoline_frame(boot));
    let (begun, sent) = (AtomicUsize::new(0), AtomicBool::new(false));
    smp::run_on_all(|cpu| {
        if cpu.is_boot() {
            check!(clock::wait_for(clock::seconds(20), || begun.load(Relaxed) > 0));
            Apic::here().send(Delivery::StartUp(page), second().into());
            clock::wait(clock::microseconds(5_000));
            sent.store(true, Relaxed);
        } else if cpu == second() {
            begun.fetch_add(1, Relaxed);
            while !sent.load(Relaxed) {
                hint::spin_loop();
            }
        }
        Ok(())
    })?;
    check_eq!(begun.load(Relaxed), 1);
    Ok(())
}

/// Out of an endless loop with interrupts off, and out of HLT; and it works as before.
pub(crate) fn started_anew_by_init(boot: &Boot) -> Outcome {
    skip_unless!(smp::count() > 1, "one processor");
    for halted in [false, true] {
        let is_there = AtomicBool::new(false);
        smp::run_on_all(|cpu| {
            if cpu.is_boot() {
                check!(clock::wait_for(clock::seconds(20), || is_there.load(Relaxed)));
                clock::wait(clock::microseconds(1_000));
                check!(smp::start(boot, second()), "halted: {halted}");
            } else if cpu == second() {
                is_there.store(true, Relaxed);
                if halted { guest::processor::halt_for_ever() } else { guest::processor::hang() }
            }
            Ok(())
        })?;
        check!(smp::is_up(second()));
        expect(VECTOR);
        deliver(Delivery::Fixed(VECTOR), second().into(), |cpu| usize::from(cpu == second()))?;
        smp::run_on_all(|_| {
            check_eq!(Apic::here().read(Register::TaskPriority), 0);
            Ok(())
        })?;
    }
    Ok(())
}
