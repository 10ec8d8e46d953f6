//! What the local APIC costs: its registers, and interrupts from their cause to their handler's first instruction.

use core::hint;
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use guest::apic::{self, Apic, Delivery, Destination, Mode, Register};
use guest::interrupts::{self, halt_until_interrupt};
use guest::ktap::Outcome;
use guest::raw_gva::RawGva;
use guest::smp::{self, Cpu};
use guest::{check, clock, skip_unless, timed, tsc};

use super::{Bench, Kind};

const STAMP: u8 = 0x50;
const ANSWER: u8 = 0x51;

/// When the last interrupt's handler began; 0 before.
static STAMPED: AtomicU64 = AtomicU64::new(0);

/// Tells the time. Little comes before it: the stub that saves the registers.
fn stamp(_: u8) {
    STAMPED.store(tsc::read(), Release);
    Apic::here().end_of_interrupt();
}

/// Sends the boot processor a [`STAMP`].
fn answer(_: u8) {
    let apic = Apic::here();
    apic.send(Delivery::Fixed(STAMP), Cpu::BOOT.into());
    apic.end_of_interrupt();
}

fn start() -> Option<Apic> {
    interrupts::handle(STAMP, stamp);
    interrupts::handle(ANSWER, answer);
    Apic::exists().then(Apic::start)
}

fn register(register: Register) -> RawGva {
    apic::page().plus(register.offset().into())
}

/// The version: a register that nothing changes.
pub(super) fn read_mmio(bench: &Bench<'_>) -> Outcome {
    skip_unless!(start().is_some(), "there is no local APIC");
    bench.measure(Kind::ApicReadMmio, || Some(timed::load(register(Register::Version))))
}

/// The task priority, which stays 0.
pub(super) fn write_mmio(bench: &Bench<'_>) -> Outcome {
    skip_unless!(start().is_some(), "there is no local APIC");
    bench.measure(Kind::ApicWriteMmio, || Some(timed::store_32(register(Register::TaskPriority), 0)))
}

/// The task priority by CR8, which stays 0.
pub(super) fn mov_to_cr8(bench: &Bench<'_>) -> Outcome {
    bench.measure(Kind::MovToCr8, || Some(timed::mov_to_cr8(0)))
}

pub(super) fn mov_from_cr8(bench: &Bench<'_>) -> Outcome {
    bench.measure(Kind::MovFromCr8, || Some(timed::mov_from_cr8()))
}

/// The same registers in x2APIC mode, which the last two cases leave behind.
pub(super) fn read_msr(bench: &Bench<'_>) -> Outcome {
    skip_unless!(Apic::has_x2apic(), "there is no x2APIC mode");
    Apic::switch(Mode::X2apic);
    bench.measure(Kind::ApicReadMsr, || Some(timed::rdmsr_of(msr(Register::Version))))
}

pub(super) fn write_msr(bench: &Bench<'_>) -> Outcome {
    skip_unless!(Apic::has_x2apic(), "there is no x2APIC mode");
    bench.measure(Kind::ApicWriteMsr, || Some(timed::wrmsr_of(msr(Register::TaskPriority), 0)))
}

fn msr(register: Register) -> u32 {
    0x800 + u32::from(register.offset() >> 4)
}

/// Waits for the stamp. The loop is one function, inlined nowhere: what a self-IPI costs on QEMU depends on how the loop is laid out.
#[inline(never)]
fn is_stamped_in_time() -> bool {
    clock::wait_for(clock::seconds(20), || STAMPED.load(Acquire) != 0)
}

/// From `cause` to the stamp. None if it does not come.
fn until_stamped(cause: impl FnOnce() -> u64) -> Option<u64> {
    STAMPED.store(0, Relaxed);
    interrupts::enable();
    let from = cause();
    let stamped = is_stamped_in_time();
    interrupts::disable();
    stamped.then(|| STAMPED.load(Relaxed).saturating_sub(from))
}

pub(super) fn self_ipi(bench: &Bench<'_>) -> Outcome {
    const SELF: u32 = 1 << 18;
    skip_unless!(start().is_some(), "there is no local APIC");
    let apic = Apic::here();
    bench.measure(Kind::SelfIpi, || {
        until_stamped(|| {
            // The one write: [`Apic::send`] waits for the last IPI first.
            let from = tsc::read();
            apic.write(Register::Command, SELF | u32::from(STAMP));
            from
        })
    })
}

/// A deadline so far away that it is not past before it is armed, also where instructions are counted.
const AHEAD: u64 = 40_000;

/// From the deadline to the handler, on a processor that executes.
pub(super) fn timer_expiry(bench: &Bench<'_>) -> Outcome {
    let apic = start();
    skip_unless!(apic.is_some() && Apic::has_tsc_deadline(), "there are no deadlines");
    bench.measure(Kind::TimerExpiry, || {
        until_stamped(|| {
            let deadline = tsc::read() + AHEAD;
            Apic::here().start_deadline(STAMP, deadline);
            while STAMPED.load(Acquire) == 0 {
                hint::spin_loop();
            }
            deadline
        })
    })
}

/// From arming a deadline to the handler: one 3000 ticks ahead, as KVM's unit tests have it, and one that is due.
pub(super) fn tscdeadline(bench: &Bench<'_>) -> Outcome {
    deadline_from_arming(bench, Kind::TscDeadline, 3000)
}

pub(super) fn tscdeadline_immed(bench: &Bench<'_>) -> Outcome {
    deadline_from_arming(bench, Kind::TscDeadlineImmediate, 0)
}

fn deadline_from_arming(bench: &Bench<'_>, kind: Kind, ahead: u64) -> Outcome {
    let apic = start();
    skip_unless!(apic.is_some() && Apic::has_tsc_deadline(), "there are no deadlines");
    Apic::here().start_deadline(STAMP, 0);
    bench.measure(kind, || {
        until_stamped(|| {
            let from = tsc::read();
            Apic::here().move_deadline(from + ahead);
            from
        })
    })
}

/// The same from HLT.
pub(super) fn hlt_wakeup(bench: &Bench<'_>) -> Outcome {
    let apic = start();
    skip_unless!(apic.is_some() && Apic::has_tsc_deadline(), "there are no deadlines");
    let outcome = bench.measure(Kind::HltWakeup, || {
        STAMPED.store(0, Relaxed);
        interrupts::disable();
        let deadline = tsc::read() + AHEAD;
        Apic::here().start_deadline(STAMP, deadline);
        while STAMPED.load(Acquire) == 0 {
            halt_until_interrupt();
        }
        Some(STAMPED.load(Relaxed).saturating_sub(deadline))
    });
    Apic::here().stop_timer();
    outcome
}

/// To another processor, whose handler sends one back.
pub(super) fn ipi_round_trip(bench: &Bench<'_>) -> Outcome {
    skip_unless!(start().is_some(), "there is no local APIC");
    let processors = smp::start_all(bench.boot);
    skip_unless!(processors > 1, "there is one processor");
    RECORDED.store(0, Relaxed);
    smp::run_on_all(|cpu| if cpu.is_boot() { record() } else { serve() })?;
    let mut recorded = TRIPS.iter().map(|trip| trip.load(Relaxed));
    bench.measure(Kind::IpiRoundTrip, || recorded.next())
}

/// Round trips, those for warming up first.
static TRIPS: [AtomicU64; super::WARM_UP + super::FEWEST_SAMPLES] =
    [const { AtomicU64::new(0) }; super::WARM_UP + super::FEWEST_SAMPLES];
/// How many there are. All: the others may go.
static RECORDED: AtomicU64 = AtomicU64::new(0);

fn record() -> Outcome {
    let other = smp::cpus().nth(1).map_or(Destination::AllButMyself, Destination::from);
    for trip in &TRIPS {
        let span = until_stamped(|| {
            let from = tsc::read();
            Apic::here().send(Delivery::Fixed(ANSWER), other);
            from
        });
        trip.store(span.unwrap_or(0), Relaxed);
        RECORDED.fetch_add(u64::from(span.is_some()), Release);
        if span.is_none() {
            break;
        }
    }
    let all = RECORDED.swap(u64::MAX, Release);
    check!(all == TRIPS.len() as u64, "round trip {all} does not come back");
    Ok(())
}

/// Answers until all are recorded.
fn serve() -> Outcome {
    interrupts::enable();
    while RECORDED.load(Acquire) != u64::MAX {
        hint::spin_loop();
    }
    interrupts::disable();
    Ok(())
}
