//! Every processor arms its APIC timer in all modes, for times at random, and waits for it awake or in HLT.
//!
//! A one-shot and a deadline fire once each, never early; a periodic timer goes on, never faster than its period; a timer that
//! was stopped is silent. The processor that goes to sleep with its timer about to fire is woken by it: where there are
//! others, each checks the next one and reports it if it has overslept; otherwise the run ends by its time-out.
//!
//! Words: see [`guest::stress`]. A step is one timer.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use guest::apic::{Apic, DIVIDE_BY_1, Delivery, LVT_MASKED, Mode, Register};
use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::interrupts::{self, halt_until_interrupt, handle};
use guest::ktap::{NotPassed, Outcome};
use guest::smp::{self, Cpu, PerCpu};
use guest::stress::{Stress, Worker};
use guest::{cases, check, check_eq, clock, skip_unless, tsc};

guest::main!(main);

const TIMER: u8 = 0x90;
const RESCUE: u8 = 0x91;

/// Two milliseconds at 1 GHz.
const LONGEST: u64 = 2_000_000;
/// How late a timer may be: an emulator's processor may be kept waiting by the machine it runs on.
const DELAY_SECONDS: u64 = 10;

/// What is known of a processor's timer.
struct Timer {
    /// Times that it fired.
    fired: AtomicU64,
    /// When it did so last.
    at: AtomicU64,
    /// Since when the processor sleeps; 0 if it is awake.
    asleep: AtomicU64,
    /// Times that another had to wake it.
    rescued: AtomicU64,
}

static TIMERS: PerCpu<Timer> = PerCpu::new(
    [const {
        Timer { fired: AtomicU64::new(0), at: AtomicU64::new(0), asleep: AtomicU64::new(0), rescued: AtomicU64::new(0) }
    }; Cpu::MOST],
);

fn main(boot: &Boot) -> GuestStatus {
    handle(TIMER, |_| {
        let timer = TIMERS.here();
        timer.at.store(tsc::read(), Relaxed);
        timer.fired.fetch_add(1, Release);
        Apic::here().end_of_interrupt();
    });
    handle(RESCUE, |_| {
        TIMERS.here().rescued.fetch_add(1, Relaxed);
        Apic::here().end_of_interrupt();
    });
    Stress::new(boot, 2).run(cases![xapic, x2apic])
}

fn xapic(stress: &Stress<'_>) -> Outcome {
    storm(stress, Mode::Xapic)
}

fn x2apic(stress: &Stress<'_>) -> Outcome {
    skip_unless!(Apic::has_x2apic(), "no x2APIC mode");
    storm(stress, Mode::X2apic)
}

fn storm(stress: &Stress<'_>, mode: Mode) -> Outcome {
    Apic::switch(mode);
    let rate = Rate::measure(Apic::here())?;
    stress.on_all(|worker| {
        interrupts::disable();
        let storm = Storm { apic: Apic::switch(mode), timer: TIMERS.here(), rate };
        let mut outcome = Ok(());
        while outcome.is_ok() && worker.goes_on() {
            look_after_next(worker.cpu);
            outcome = storm.step(worker);
            worker.did(1);
        }
        storm.apic.stop_timer();
        outcome
    })
}

/// Wakes the next processor if it has slept for far too long.
fn look_after_next(me: Cpu) {
    let next = smp::cpus().nth((me.index() + 1) % smp::count()).filter(|next| *next != me);
    if let Some(next) = next {
        let since = TIMERS.of(next).asleep.load(Relaxed);
        if since != 0 && tsc::read().saturating_sub(since) > clock::seconds(DELAY_SECONDS) {
            Apic::here().send(Delivery::Fixed(RESCUE), next.into());
        }
    }
}

/// How fast the APIC's timer is, compared with the TSC.
#[derive(Clone, Copy)]
struct Rate {
    /// Ticks of the TSC in 2^20 of the timer.
    tsc_ticks: u64,
}

impl Rate {
    /// The smallest of several: what comes between the readings of the one clock and of the other makes it larger.
    fn measure(apic: Apic) -> Result<Self, NotPassed> {
        let once = || {
            apic.write(Register::Divide, DIVIDE_BY_1);
            apic.write(Register::LvtTimer, LVT_MASKED);
            apic.write(Register::InitialCount, u32::MAX);
            // The timer's span lies around the TSC's, so that it is rather counted too long than too short.
            let before = apic.read(Register::CurrentCount);
            let start = tsc::read();
            clock::wait(clock::microseconds(10_000));
            let span = tsc::read() - start;
            let counted = before - apic.read(Register::CurrentCount);
            (span << 20) / u64::from(counted.max(1))
        };
        let tsc_ticks = (0..5).map(|_| once()).min().unwrap_or_default();
        apic.stop_timer();
        check!(tsc_ticks > 0, "the timer is far too fast");
        Ok(Self { tsc_ticks })
    }

    /// Ticks of the TSC that `count` of the timer take at least: less a part for what the measurement may be off by.
    fn at_least(self, count: u64) -> u64 {
        let ticks = (count * self.tsc_ticks) >> 20;
        (ticks - ticks / 20).saturating_sub(clock::microseconds(20))
    }
}

struct Storm {
    apic: Apic,
    timer: &'static Timer,
    rate: Rate,
}

impl Storm {
    fn step(&self, worker: &mut Worker<'_>) -> Outcome {
        // Most of them so short that they fire about when the processor goes to sleep.
        let count = 1 + match worker.random.below(8) {
            0 => worker.random.below(LONGEST),
            1..=3 => worker.random.below(LONGEST / 20),
            _ => worker.random.below(LONGEST / 200),
        };
        let asleep = !worker.random.one_in(3);
        match worker.random.below(8) {
            0 => self.periodic(count.max(LONGEST / 20)),
            1 => self.stopped(count),
            2..=4 if Apic::has_tsc_deadline() => self.deadline(count, asleep),
            _ => self.one_shot(count, asleep),
        }
    }

    fn one_shot(&self, count: u64, asleep: bool) -> Outcome {
        let before = self.timer.fired.load(Acquire);
        let start = tsc::read();
        self.apic.start_timer(TIMER, false, count as u32);
        self.wait_for(before + 1, asleep)?;
        let span = self.timer.at.load(Relaxed).wrapping_sub(start);
        check!(span >= self.rate.at_least(count), "a timer of {count} has fired after {span} ticks of the TSC");
        Ok(())
    }

    fn deadline(&self, count: u64, asleep: bool) -> Outcome {
        let before = self.timer.fired.load(Acquire);
        let deadline = tsc::read() + count;
        self.apic.start_deadline(TIMER, deadline);
        self.wait_for(before + 1, asleep)?;
        let at = self.timer.at.load(Relaxed);
        check!(at >= deadline, "{} ticks before its deadline", deadline - at);
        Ok(())
    }

    /// Its requests may merge, so it may fire less often than time would have it; never more often.
    fn periodic(&self, count: u64) -> Outcome {
        const TIMES: u64 = 4;
        let before = self.timer.fired.load(Acquire);
        let start = tsc::read();
        self.apic.start_timer(TIMER, true, count as u32);
        interrupts::enable();
        let went_on =
            clock::wait_for(clock::seconds(DELAY_SECONDS), || self.timer.fired.load(Acquire) >= before + TIMES);
        interrupts::disable();
        self.apic.stop_timer();
        let span = tsc::read() - start;
        self.let_in();
        let times = self.timer.fired.load(Acquire) - before;
        check!(went_on, "a timer of {count} has fired {times} times in {span} ticks of the TSC");
        check!(span >= self.rate.at_least(times * count), "{times} times {count} in {span} ticks of the TSC");
        Ok(())
    }

    /// Before it fires; it may have fired already if it is short.
    fn stopped(&self, count: u64) -> Outcome {
        let before = self.timer.fired.load(Acquire);
        self.apic.start_timer(TIMER, false, count as u32);
        self.apic.write(Register::InitialCount, 0);
        self.let_in();
        let after = self.timer.fired.load(Acquire);
        check!(after <= before + 1, "{} times", after - before);
        clock::wait(clock::microseconds(50));
        self.let_in();
        check_eq!(self.timer.fired.load(Acquire), after, "a timer of {count} that was stopped");
        Ok(())
    }

    /// Until the timer has fired that often, and not more often.
    fn wait_for(&self, times: u64, asleep: bool) -> Outcome {
        let fired = || self.timer.fired.load(Acquire);
        let rescued = self.timer.rescued.load(Relaxed);
        if asleep {
            self.timer.asleep.store(tsc::read(), SeqCst);
            while fired() < times && self.timer.rescued.load(Relaxed) == rescued {
                halt_until_interrupt();
            }
            self.timer.asleep.store(0, SeqCst);
        } else {
            interrupts::enable();
            clock::wait_for(clock::seconds(DELAY_SECONDS), || fired() >= times);
            interrupts::disable();
        }
        check_eq!(self.timer.rescued.load(Relaxed), rescued, "the processor has slept on");
        check_eq!(fired(), times, "asleep: {asleep}");
        Ok(())
    }

    /// Lets in what is pending.
    fn let_in(&self) {
        interrupts::open_for_one_instruction();
    }
}
