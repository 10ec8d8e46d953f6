//! HLT, and what ends it. A wake-up that is lost leaves the processor asleep: the run then ends by its time-out.

use core::sync::atomic::{
    AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use guest::apic::{Apic, Delivery};
use guest::boot::Boot;
use guest::interrupts::{NMI, halt_until_interrupt, handle};
use guest::ktap::Outcome;
use guest::random::Random;
use guest::smp::{self, Cpu};
use guest::{check_eq, clock, processor, skip_unless};

use crate::arrivals::{afresh, count, expect, log};

const VECTOR: u8 = 0x80;
const ROUNDS: usize = 500;

/// The timer fires before, at or after the HLT.
pub(crate) fn from_hlt_by_the_timer(_: &Boot) -> Outcome {
    expect(VECTOR);
    let mut random = Random::new(1);
    afresh(|| {
        for round in 1..=ROUNDS {
            Apic::here().start_timer(VECTOR, false, 1 + random.below(20_000) as u32);
            while count(Cpu::BOOT) < round {
                halt_until_interrupt();
            }
        }
        check_eq!(count(Cpu::BOOT), ROUNDS);
        Ok(())
    })
}

/// Each IPI comes before, at or after the other's HLT.
pub(crate) fn from_hlt_by_an_ipi(_: &Boot) -> Outcome {
    skip_unless!(smp::count() > 1, "one processor");
    expect(VECTOR);
    afresh(|| {
        smp::run_on_all(|cpu| {
            let mut random = Random::new(2);
            let other = match cpu.index() {
                0 => 1,
                1 => 0,
                _ => return Ok(()),
            };
            let Some(other) = smp::cpus().nth(other) else { unreachable!("there are two") };
            for round in 1..=ROUNDS {
                if cpu.is_boot() {
                    Apic::here().send(Delivery::Fixed(VECTOR), other.into());
                }
                while count(cpu) < round {
                    halt_until_interrupt();
                }
                clock::wait(clock::microseconds(1 + random.below(20)));
                if !cpu.is_boot() {
                    Apic::here().send(Delivery::Fixed(VECTOR), other.into());
                }
            }
            check_eq!(count(cpu), ROUNDS);
            Ok(())
        })
    })
}

/// With interrupts off, where nothing else wakes. The NMIs go on until it is awake: one may come before the HLT.
pub(crate) fn from_hlt_by_an_nmi(_: &Boot) -> Outcome {
    skip_unless!(smp::count() > 1, "one processor");
    handle(NMI, log);
    let awake = AtomicUsize::new(0);
    afresh(|| {
        smp::run_on_all(|cpu| {
            for round in 1..=10 {
                match cpu.index() {
                    0 => {
                        while awake.load(Acquire) < round {
                            clock::wait(clock::microseconds(1_000));
                            Apic::here().send(Delivery::Nmi, smp::cpus().nth(1).map_or(cpu, |cpu| cpu).into());
                        }
                    }
                    1 => {
                        processor::halt();
                        awake.store(round, Release);
                    }
                    _ => {}
                }
            }
            Ok(())
        })?;
        check_eq!(awake.load(Relaxed), 10);
        Ok(())
    })
}
