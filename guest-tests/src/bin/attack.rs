//! Does one thing that costs its hypervisor dear, again and again, without an end: the hypervisor has to end it at its limit, and
//! what runs beside it has to get its time.
//!
//! Words: `kind=` and one of [`KINDS`]; `mib=N`, how much memory it gives back at once (all).
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::hint;

use guest::apic::{Apic, Delivery, Mode};
use guest::boot::Boot;
use guest::exit::Verdict;
use guest::hypercall::{self, Microhv, Refused};
use guest::interrupts::{self, NMI, halt_until_interrupt, handle};
use guest::msr::Msr;
use guest::place::NOWHERE;
use guest::port::{self, Direction};
use guest::ram;
use guest::smp::{self, Cpu};
use guest::{clock, console, cpuid, println, processor, tsc};

guest::main!(main);

/// It takes for ever, unless it is not possible here.
type Attack = fn(&Boot);

/// The attacks by their names.
const KINDS: [(&str, Attack); 16] = [
    ("idle", idle),
    ("spin", spin),
    ("hypercall", hypercall),
    ("timer", timer),
    ("deadline", deadline),
    ("nmi", nmi),
    ("ipi", ipi),
    ("console", console_flood),
    ("string-io", string_io),
    ("dirty-log", dirty_log),
    ("give-back", give_back),
    ("first-touch", first_touch),
    ("nowhere", nowhere),
    ("interrupted-sleep", interrupted_sleep),
    ("single-step", single_step),
    ("masked-timer", masked_timer),
];

const VECTOR: u8 = 0x90;
/// A port without a device.
const NO_DEVICE: u16 = 0x80;

fn main(boot: &Boot) -> Verdict {
    let wanted = boot.words().find_map(|word| word.strip_prefix("kind=")).unwrap_or_default();
    let Some((name, attack)) = KINDS.iter().find(|(name, _)| *name == wanted) else {
        println!("Bail out! kind={wanted}: there is no such attack");
        return Verdict::FAILED;
    };
    println!("# attack: {name}");
    console::drain();
    attack(boot);
    println!("Bail out! {name} is not possible here");
    Verdict::FAILED
}

/// STI and HLT, with nothing that would wake it.
fn idle(_: &Boot) {
    loop {
        halt_until_interrupt();
    }
}

/// Spins with interrupts off.
fn spin(_: &Boot) {
    processor::hang()
}

fn hypercall(_: &Boot) {
    let Some(instruction) = hypercall::instruction() else { return };
    interrupts::enable();
    loop {
        instruction.call(hypercall::NOP);
    }
}

/// A timer that fires again as soon as it has fired.
fn timer(_: &Boot) {
    handle(VECTOR, |_| Apic::here().end_of_interrupt());
    let apic = fastest_apic();
    apic.start_timer(VECTOR, true, 1);
    interrupts::enable();
    loop {
        hint::spin_loop();
    }
}

/// Sleeps beside a timer that is always due and wakes nothing.
fn masked_timer(_: &Boot) {
    fastest_apic().start_masked_timer(1);
    loop {
        halt_until_interrupt();
    }
}

/// A deadline that never comes, moved again and again.
fn deadline(_: &Boot) {
    if !Apic::has_tsc_deadline() {
        return;
    }
    let second = clock::seconds(1);
    fastest_apic().start_deadline(VECTOR, tsc::read() + second);
    interrupts::enable();
    loop {
        Msr::TscDeadline.write(tsc::read() + second);
    }
}

/// RFLAGS.TF over instructions that exit.
fn single_step(_: &Boot) {
    const DEBUG: u8 = 1;
    handle(DEBUG, |_| {});
    interrupts::enable();
    processor::single_step();
    loop {
        cpuid::vendor();
        port::write8(NO_DEVICE, 0);
    }
}

/// All processors send each other NMIs; one alone sends them to itself.
fn nmi(boot: &Boot) {
    handle(NMI, |_| {});
    storm(boot, Delivery::Nmi);
}

/// The same with interrupts.
fn ipi(boot: &Boot) {
    handle(VECTOR, |_| Apic::here().end_of_interrupt());
    storm(boot, Delivery::Fixed(VECTOR));
}

fn storm(boot: &Boot, delivery: Delivery) {
    let count = smp::start_all(boot);
    // It never returns from there, so there is no outcome.
    let _ = smp::run_on_all(|cpu| {
        let apic = fastest_apic();
        let next = Cpu::new((cpu.index() + 1) % count);
        interrupts::enable();
        loop {
            apic.send(delivery, next.into());
        }
    });
}

fn console_flood(_: &Boot) {
    interrupts::enable();
    loop {
        println!("# a line among many, as long as lines of a console usually are");
    }
}

/// REP OUTSB, each of 4096 bytes.
fn string_io(boot: &Boot) {
    let page = ram::fresh(boot).place(0);
    interrupts::enable();
    loop {
        port::rep_outsb(NO_DEVICE, page, 4096, Direction::Up);
    }
}

/// Asks which pages of all its memory were written, having written a few.
fn dirty_log(boot: &Boot) {
    let Some(hypervisor) = Microhv::here() else { return };
    let area = ram::largest_area(boot);
    // What is left is no more than the bitmap has bits for.
    let (bitmap, area) = (area.frame(0), area.part(1, (area.frames() - 1).min(8 * addr::PAGE_SIZE)));
    area.touch();
    interrupts::enable();
    while !is_refused(hypervisor.log_dirty(area, bitmap)) {
        area.part(0, 64).touch();
    }
}

/// Gives memory back, and touches it again.
fn give_back(boot: &Boot) {
    let Some(hypervisor) = Microhv::here() else { return };
    let area = ram::largest_area(boot);
    let most = boot.word("mib").map_or(area.frames(), |mib: u64| mib << 20 >> addr::PAGE_SHIFT);
    let area = area.part(0, most.min(area.frames()));
    interrupts::enable();
    while !is_refused(hypervisor.release(area)) {
        area.touch();
    }
}

/// Gives a single page back and touches it again: as many faults of nested paging as there can be.
fn first_touch(boot: &Boot) {
    let Some(hypervisor) = Microhv::here() else { return };
    let frame = ram::fresh(boot);
    interrupts::enable();
    while !is_refused(hypervisor.release(frame.into())) {
        frame.write(0, 1);
    }
}

/// Reads where there is neither memory nor a device: faults of nested paging that map nothing.
fn nowhere(_: &Boot) {
    interrupts::enable();
    loop {
        NOWHERE.read();
    }
}

/// Sleeps, for as short a time as there is.
fn interrupted_sleep(_: &Boot) {
    handle(VECTOR, |_| Apic::here().end_of_interrupt());
    let apic = fastest_apic();
    loop {
        apic.start_timer(VECTOR, false, 1);
        halt_until_interrupt();
    }
}

/// The one whose registers cost the fewest instructions.
fn fastest_apic() -> Apic {
    Apic::switch(if Apic::has_x2apic() { Mode::X2apic } else { Mode::Xapic })
}

/// Whether a call will never do what is asked. Others may be in its way, or its memory be used up, for a while.
fn is_refused<T>(result: Result<T, Refused>) -> bool {
    result.is_err_and(|refused| !matches!(refused, Refused::Raced | Refused::NoMemory))
}
