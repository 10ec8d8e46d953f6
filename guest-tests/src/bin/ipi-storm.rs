//! All processors send each other IPIs of all kinds; what was sent and what was received agree exactly.
//!
//! A request that is pending already merges with the next of its vector. So each processor has a vector of its own for each
//! kind, and sends it to a target only when that has had the last one: then every IPI counts. NMIs, which have no sender,
//! are sent by one processor at a time.
//!
//! Words: see [`guest::stress`]. A step is one IPI, or one to several.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::hint;
use core::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use guest::apic::{Apic, Delivery, Destination, Mode};
use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::interrupts::{self, NMI, halt_until_interrupt, handle};
use guest::ktap::Outcome;
use guest::smp::{self, Barrier, Cpu, PerCpu};
use guest::stress::{Stress, Worker};
use guest::{cases, check, check_eq, clock, skip_unless};

guest::main!(main);

/// Bases of 16 vectors each, to which the sender's number is added.
const SINGLE: u8 = 0x40;
const LOWEST: u8 = 0x50;
const PING: u8 = 0x60;
const PONG: u8 = 0x70;

/// How long an IPI may take: an emulator's processor may be kept waiting by the machine it runs on.
const DELIVERY_SECONDS: u64 = 10;

/// IPIs from each processor to each.
type Matrix = PerCpu<[AtomicU64; Cpu::MOST]>;

const fn matrix() -> Matrix {
    PerCpu::new([const { [const { AtomicU64::new(0) }; Cpu::MOST] }; Cpu::MOST])
}

/// Sent, by sender and target, and received, by target and sender.
static SENT: Matrix = matrix();
static RECEIVED: Matrix = matrix();
/// To whomever, by sender.
static LOWEST_SENT: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(0) }; Cpu::MOST]);
static LOWEST_RECEIVED: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(0) }; Cpu::MOST]);
/// By target.
static NMI_SENT: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(0) }; Cpu::MOST]);
static NMI_RECEIVED: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(0) }; Cpu::MOST]);
static NMI_TAKEN: AtomicBool = AtomicBool::new(false);
/// Pings sent, by sender, and answers received, by the same.
static PINGS: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(0) }; Cpu::MOST]);
static PONGS: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(0) }; Cpu::MOST]);

fn main(boot: &Boot) -> GuestStatus {
    for sender in 0..Cpu::MOST as u8 {
        handle(SINGLE + sender, |vector| count(&RECEIVED.here()[sender_of(vector, SINGLE)]));
        handle(LOWEST + sender, |vector| count(&LOWEST_RECEIVED.iter().as_slice()[sender_of(vector, LOWEST)]));
        handle(PING + sender, answer);
        handle(PONG + sender, |_| count(PONGS.here()));
    }
    handle(NMI, |_| _ = NMI_RECEIVED.here().fetch_add(1, SeqCst));
    Stress::new(boot, 2).run(cases![xapic, x2apic])
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Release);
    Apic::here().end_of_interrupt();
}

fn sender_of(vector: u8, base: u8) -> usize {
    usize::from(vector - base)
}

/// A ping is answered from its handler.
fn answer(vector: u8) {
    let sender = sender_of(vector, PING);
    let apic = Apic::here();
    apic.send(Delivery::Fixed(PONG + Cpu::current().index() as u8), Destination::Physical(sender as u32));
    apic.end_of_interrupt();
}

fn xapic(stress: &Stress<'_>) -> Outcome {
    storm(stress, Mode::Xapic)
}

fn x2apic(stress: &Stress<'_>) -> Outcome {
    skip_unless!(Apic::has_x2apic(), "no x2APIC mode");
    storm(stress, Mode::X2apic)
}

fn storm(stress: &Stress<'_>, mode: Mode) -> Outcome {
    let (ready, sent, received) = (Barrier::new(), Barrier::new(), Barrier::new());
    let logical: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(0) }; Cpu::MOST]);
    stress.on_all(|worker| {
        let cpu = worker.cpu;
        let apic = Apic::switch(mode);
        logical.of(cpu).store(apic.join_logical(cpu.index() as u8 % 8).into(), Relaxed);
        ready.wait();
        let mut outcome = Ok(());
        while outcome.is_ok() && worker.goes_on() {
            outcome = step(worker, apic, &logical);
            worker.did(1);
        }
        if outcome.is_err() {
            stress.stop();
        }
        sent.wait();
        clock::wait_for(clock::seconds(DELIVERY_SECONDS), || agree(cpu).is_ok());
        // What comes twice comes now.
        clock::wait(clock::microseconds(1_000));
        received.wait();
        outcome.and_then(|()| told(cpu))
    })
}

/// What `cpu` has received, and what was sent to it; of pings and of IPIs to whomever, what it has sent and what came of that.
fn agree(cpu: Cpu) -> Result<(), (&'static str, u64, u64)> {
    let same = |what, received: &AtomicU64, sent: &AtomicU64| match (received.load(SeqCst), sent.load(SeqCst)) {
        (received, sent) if received == sent => Ok(()),
        (received, sent) => Err((what, received, sent)),
    };
    for sender in smp::cpus() {
        same("fixed", &RECEIVED.of(cpu)[sender.index()], &SENT.of(sender)[cpu.index()])?;
    }
    same("lowest priority", LOWEST_RECEIVED.of(cpu), LOWEST_SENT.of(cpu))?;
    same("NMI", NMI_RECEIVED.of(cpu), NMI_SENT.of(cpu))?;
    same("ping", PONGS.of(cpu), PINGS.of(cpu))
}

fn told(cpu: Cpu) -> Outcome {
    check_eq!(agree(cpu), Ok(()), "kind, received and sent by {cpu:?}");
    Ok(())
}

fn step(worker: &mut Worker<'_>, apic: Apic, logical: &PerCpu<AtomicU64>) -> Outcome {
    let cpus = smp::count() as u64;
    let me = worker.cpu;
    let Some(target) = smp::cpus().nth(worker.random.below(cpus) as usize) else { unreachable!("below the count") };
    match worker.random.below(16) {
        0..=5 => fixed(apic, me, target.into(), |cpu| cpu == target),
        6 => fixed(apic, me, Destination::Myself, |cpu| cpu == me),
        7 => fixed(apic, me, Destination::All, |_| true),
        8 => fixed(apic, me, Destination::AllButMyself, |cpu| cpu != me),
        9 | 10 => {
            // In the flat model and in one cluster of x2APIC's, bits name processors; not all of them can be named together.
            let chosen = worker.random.below(1 << cpus.min(8));
            let is_chosen = |cpu: Cpu| cpu.index() < 8 && chosen >> cpu.index() & 1 != 0;
            let mask = smp::cpus().filter(|cpu| is_chosen(*cpu)).map(|cpu| logical.of(cpu).load(Relaxed));
            let mask = mask.fold(0, |mask, bit| mask | bit) as u32;
            fixed(apic, me, Destination::Logical(mask), |cpu| {
                mask != 0 && logical.of(cpu).load(Relaxed) as u32 & mask != 0
            })
        }
        11 | 12 => {
            let mask = logical.of(me).load(Relaxed) | logical.of(target).load(Relaxed);
            lowest_priority(apic, me, Destination::Logical(mask as u32))
        }
        13 => non_maskable(apic, target),
        _ => ping(apic, me, target),
    }
}

/// One to each of `targets`, by one command to `to`.
fn fixed(apic: Apic, me: Cpu, to: Destination, targets: impl Fn(Cpu) -> bool) -> Outcome {
    let targets = smp::cpus().filter(|cpu| targets(*cpu));
    for target in targets.clone() {
        let sent = &SENT.of(me)[target.index()];
        let received = &RECEIVED.of(target)[me.index()];
        let came = wait_for(|| received.load(Acquire) >= sent.load(Relaxed));
        check!(came, "the last IPI from {me:?} to {target:?} is lost");
        check_eq!(received.load(Acquire), sent.load(Relaxed), "from {me:?} to {target:?}");
        sent.fetch_add(1, SeqCst);
    }
    if targets.count() > 0 {
        apic.send(Delivery::Fixed(SINGLE + me.index() as u8), to);
    }
    Ok(())
}

fn lowest_priority(apic: Apic, me: Cpu, to: Destination) -> Outcome {
    let (sent, received) = (LOWEST_SENT.of(me), LOWEST_RECEIVED.of(me));
    let came = wait_for(|| received.load(Acquire) >= sent.load(Relaxed));
    check!(came, "the last IPI of lowest priority from {me:?} is lost");
    check_eq!(received.load(Acquire), sent.load(Relaxed), "from {me:?}");
    sent.fetch_add(1, SeqCst);
    apic.send(Delivery::LowestPriority(LOWEST + me.index() as u8), to);
    Ok(())
}

fn non_maskable(apic: Apic, target: Cpu) -> Outcome {
    if NMI_TAKEN.swap(true, Acquire) {
        return Ok(());
    }
    let sent = NMI_SENT.of(target).fetch_add(1, SeqCst) + 1;
    apic.send(Delivery::Nmi, target.into());
    let came = wait_for(|| NMI_RECEIVED.of(target).load(SeqCst) >= sent);
    NMI_TAKEN.store(false, Release);
    check!(came, "an NMI to {target:?} is lost");
    Ok(())
}

/// There and back, asleep meanwhile: other IPIs may wake it, too.
fn ping(apic: Apic, me: Cpu, target: Cpu) -> Outcome {
    let sent = PINGS.of(me).fetch_add(1, SeqCst) + 1;
    apic.send(Delivery::Fixed(PING + me.index() as u8), target.into());
    interrupts::disable();
    while PONGS.of(me).load(Acquire) < sent {
        halt_until_interrupt();
    }
    interrupts::enable();
    check_eq!(PONGS.of(me).load(Acquire), sent);
    Ok(())
}

fn wait_for(mut condition: impl FnMut() -> bool) -> bool {
    // Most often it holds already.
    (0..100).any(|_| {
        hint::spin_loop();
        condition()
    }) || clock::wait_for(clock::seconds(DELIVERY_SECONDS), condition)
}
