//! The timer.

use core::ops::RangeInclusive;

use guest::apic::{Apic, LVT_MASKED, Register};
use guest::boot::Boot;
use guest::ktap::Outcome;
use guest::msr::Msr;
use guest::smp::Cpu;
use guest::{check, check_eq, clock, skip_unless, tsc};

use crate::arrivals::{afresh, count, expect, here, let_in, let_in_until};

const VECTOR: u8 = 0x60;
/// A tenth of a millisecond at 1 GHz, the rate of KVM's, QEMU's and this hypervisor's.
const SHORT: u32 = 100_000;
/// Two seconds at 1 GHz.
const LONG: u32 = 2_000_000_000;

/// Divide by 16.
const DIVIDE_BY_16: u32 = 0b0011;

pub(crate) fn one_shot_fires_once(_: &Boot) -> Outcome {
    expect(VECTOR);
    afresh(|| {
        Apic::here().start_timer(VECTOR, false, SHORT);
        check!(let_in_until(1), "it does not fire");
        let_in();
        let_in();
        check_eq!(here(&mut [0; 16]), [VECTOR]);
        check_eq!(Apic::here().read(Register::CurrentCount), 0);
        Ok(())
    })
}

pub(crate) fn count_goes_down(_: &Boot) -> Outcome {
    let apic = Apic::here();
    apic.start_timer(VECTOR, false, LONG);
    let initial = apic.read(Register::InitialCount);
    let counts = core::array::from_fn::<_, 3, _>(|_| {
        clock::wait(clock::microseconds(100));
        apic.read(Register::CurrentCount)
    });
    apic.stop_timer();
    check_eq!(initial, LONG);
    check!(LONG > counts[0] && counts[0] > counts[1] && counts[1] > counts[2], "{counts:?}");
    check_eq!(apic.read(Register::CurrentCount), 0);
    Ok(())
}

pub(crate) fn masked_one_does_not_fire(_: &Boot) -> Outcome {
    let apic = Apic::here();
    expect(VECTOR);
    afresh(|| {
        apic.write(Register::LvtTimer, LVT_MASKED | u32::from(VECTOR));
        apic.write(Register::InitialCount, SHORT);
        check!(clock::wait_for(clock::seconds(20), || apic.read(Register::CurrentCount) == 0));
        let_in();
        apic.stop_timer();
        check_eq!(here(&mut [0; 16]), []);
        Ok(())
    })
}

pub(crate) fn stopped_one_does_not_fire(_: &Boot) -> Outcome {
    let apic = Apic::here();
    expect(VECTOR);
    afresh(|| {
        // A tenth of a second, at 1 GHz.
        let start = tsc::read();
        apic.start_timer(VECTOR, false, LONG / 20);
        apic.write(Register::InitialCount, 0);
        let in_time = tsc::read() - start < clock::microseconds(50_000);
        clock::wait(clock::microseconds(120_000));
        let_in();
        // On a busy machine it may have fired before it was stopped.
        check!(!in_time || count(Cpu::current()) == 0, "{:?}", here(&mut [0; 16]));
        Ok(())
    })
}

pub(crate) fn periodic_goes_on(_: &Boot) -> Outcome {
    let apic = Apic::here();
    expect(VECTOR);
    afresh(|| {
        apic.start_timer(VECTOR, true, 5 * SHORT);
        let went_on = let_in_until(5);
        apic.stop_timer();
        let_in();
        let stopped = count(Cpu::current());
        let_in();
        clock::wait(clock::microseconds(1_000));
        let_in();
        check!(went_on, "{stopped} interrupts");
        check_eq!(count(Cpu::current()), stopped, "after it was stopped");
        Ok(())
    })
}

pub(crate) fn divisor_slows_it_down(_: &Boot) -> Outcome {
    let fast = rate(guest::apic::DIVIDE_BY_1);
    let slow = rate(DIVIDE_BY_16);
    // A twentieth is for emulators whose clocks differ.
    let as_fast = 16 * slow.start() * 19 / 20..=16 * slow.end() * 21 / 20;
    check!(
        as_fast.start() <= fast.end() && fast.start() <= as_fast.end(),
        "{fast:?} and {slow:?} in a million of the TSC's"
    );
    Ok(())
}

/// Least and most counts of the timer in a million ticks of the TSC. They are as far apart as what came between a look at the
/// one and a look at the other: exits, and on a busy machine whatever else has its processors.
fn rate(divide: u32) -> RangeInclusive<u64> {
    let apic = Apic::here();
    apic.start_timer(VECTOR, false, u32::MAX);
    apic.write(Register::Divide, divide);
    let before = tsc::read();
    apic.write(Register::InitialCount, u32::MAX);
    let begun = tsc::read();
    clock::wait(clock::microseconds(20_000));
    let end = tsc::read();
    let counted = u64::from(u32::MAX - apic.read(Register::CurrentCount)) * 1_000_000;
    let after = tsc::read();
    apic.stop_timer();
    counted / (after - before)..=counted / (end - begun)
}

pub(crate) fn deadline_fires_once(_: &Boot) -> Outcome {
    skip_unless!(Apic::has_tsc_deadline(), "no TSC-deadline mode");
    let apic = Apic::here();
    expect(VECTOR);
    afresh(|| {
        let deadline = tsc::read() + clock::microseconds(100);
        apic.start_deadline(VECTOR, deadline);
        check!(let_in_until(1), "it does not fire");
        let now = tsc::read();
        // In the past: at once.
        apic.start_deadline(VECTOR, deadline);
        check!(let_in_until(2), "a deadline in the past does not fire");
        let_in();
        apic.stop_timer();
        check!(now >= deadline, "{} ticks early", deadline - now);
        check_eq!(here(&mut [0; 16]), [VECTOR, VECTOR]);
        Ok(())
    })
}

pub(crate) fn deadline_is_cleared_when_it_fires(_: &Boot) -> Outcome {
    skip_unless!(Apic::has_tsc_deadline(), "no TSC-deadline mode");
    let apic = Apic::here();
    expect(VECTOR);
    afresh(|| {
        let far = tsc::read() + clock::seconds(1_000);
        apic.start_deadline(VECTOR, far);
        check_eq!(Msr::TscDeadline.read(), far);
        apic.start_deadline(VECTOR, tsc::read());
        check!(let_in_until(1), "it does not fire");
        let after = Msr::TscDeadline.read();
        apic.stop_timer();
        check_eq!(after, 0);
        Ok(())
    })
}
