//! What costs a hypervisor dear and is the same for guests of 64 and of 32 bits, done again and again, without an end.

use abi::options::guest::key;
use core::hint;

use crate::apic::{Apic, Delivery, Mode};
use crate::boot::Boot;
use crate::exit::{self, GuestStatus};
use crate::hypercall::{self, Microhv, Refused};
use crate::interrupts::{self, NMI, handle};
use crate::ram::{self, Area};
use crate::raw_gva::NOWHERE;
use crate::reset;
use crate::smp::{self, Cpu, run_on_all};
use crate::{clock, console, println, tsc};

/// It takes for ever, unless it is not possible here.
pub type Attack = fn(&Boot);

/// An attack and its name.
pub type Kind = (&'static str, Attack);

/// Those that are the same in each mode.
pub const KINDS: [Kind; 16] = [
    ("idle", idle),
    ("spin", spin),
    ("hypercall", hypercall),
    ("timer", timer),
    ("masked-timer", masked_timer),
    ("interrupted-sleep", interrupted_sleep),
    ("deadline", deadline),
    ("nmi", nmi),
    ("ipi", ipi),
    ("console", console_flood),
    ("dirty-log", dirty_log),
    ("give-back", give_back),
    ("collapse", collapse),
    ("first-touch", first_touch),
    ("nowhere", nowhere),
    ("reset", reset),
];

const VECTOR: u8 = 0x90;

/// Carries out the attack that the word `kind=` names: one of [`KINDS`], or of the guest's `own`.
pub fn run(boot: &Boot, own: &[Kind]) -> GuestStatus {
    let wanted = boot.text_word(key::KIND).unwrap_or_default();
    let Some((name, attack)) = KINDS.iter().chain(own).find(|(name, _)| *name == wanted) else {
        println!("Bail out! {}={wanted}: there is no such attack", key::KIND);
        return GuestStatus::Failed;
    };
    println!("# attack: {name}");
    console::drain();
    attack(boot);
    println!("Bail out! {name} is not possible here");
    GuestStatus::Failed
}

/// STI and HLT, with nothing that would wake it.
fn idle(_: &Boot) {
    loop {
        interrupts::halt_until_interrupt();
    }
}

/// Spins with interrupts off.
fn spin(_: &Boot) {
    exit::hang()
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
        interrupts::halt_until_interrupt();
    }
}

/// Sleeps, for as short a time as there is.
fn interrupted_sleep(_: &Boot) {
    handle(VECTOR, |_| Apic::here().end_of_interrupt());
    let apic = fastest_apic();
    loop {
        apic.start_timer(VECTOR, false, 1);
        interrupts::halt_until_interrupt();
    }
}

/// A deadline that never comes, moved again and again.
fn deadline(_: &Boot) {
    if !Apic::has_tsc_deadline() {
        return;
    }
    let (apic, second) = (fastest_apic(), clock::seconds(1));
    apic.start_deadline(VECTOR, tsc::read() + second);
    interrupts::enable();
    loop {
        apic.move_deadline(tsc::read() + second);
    }
}

/// All processors send each other NMIs; one alone sends them to itself.
fn nmi(_: &Boot) {
    handle(NMI, |_| {});
    storm(Delivery::Nmi);
}

/// The same with interrupts.
fn ipi(_: &Boot) {
    handle(VECTOR, |_| Apic::here().end_of_interrupt());
    storm(Delivery::Fixed(VECTOR));
}

fn storm(delivery: Delivery) {
    // It never returns from there, so there is no outcome.
    let _ = run_on_all(|cpu| {
        let apic = fastest_apic();
        let next = Cpu::new((cpu.index() + 1) % smp::count());
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

/// Gives memory back, and touches it again. Word: `mib=N`, how much at once (all).
fn give_back(boot: &Boot) {
    let Some(hypervisor) = Microhv::here() else { return };
    let area = ram::largest_area(boot);
    let most = boot.word(key::MIB).map_or(area.frames(), |mib: u64| mib << 20 >> addr::PAGE_SHIFT);
    let area = area.part(0, most.min(area.frames()));
    interrupts::enable();
    while !is_refused(hypervisor.release(area)) {
        area.touch();
    }
}

/// Has a large page made of 512 small ones, which copies it, and split again.
fn collapse(boot: &Boot) {
    let (Some(hypervisor), Some(block)) = (Microhv::here(), ram::free_block(boot)) else { return };
    Area::from(block).touch();
    interrupts::enable();
    // With small pages alone it is split already.
    let _ = hypervisor.split(block);
    while !is_refused(hypervisor.collapse(block)) {
        let _ = hypervisor.split(block);
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

/// Reads where there is neither memory nor a device: faults that map nothing.
fn nowhere(_: &Boot) {
    interrupts::enable();
    loop {
        NOWHERE.read();
    }
}

/// Resets its machine as soon as it has touched all of its memory, which has to be zero again each time.
fn reset(boot: &Boot) {
    interrupts::enable();
    ram::largest_area(boot).touch();
    reset::by_reset_control();
    exit::halt_for_ever()
}

/// The one whose registers cost the fewest instructions.
fn fastest_apic() -> Apic {
    Apic::switch(if Apic::has_x2apic() { Mode::X2apic } else { Mode::Xapic })
}

/// Whether a call will never do what is asked. Others may be in its way, or its memory be used up, for a while.
fn is_refused<T>(result: Result<T, Refused>) -> bool {
    result.is_err_and(|refused| !matches!(refused, Refused::Raced | Refused::NoMemory))
}
