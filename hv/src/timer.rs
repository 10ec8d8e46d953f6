//! The hypervisor's time: the TSC, calibrated by the 8254's channel 2, and each CPU's local APIC timer, armed for one moment at
//! a time.

use crate::lapic;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use sched::Instant;
use x86::io::{inb, outb};
use x86::time::rdtsc;

/// The 8254's frequency in Hz.
const PIT_HZ: u64 = 1_193_182;
/// Periods of the 8254 for which the clocks are watched: 2 ms.
const CALIBRATION_COUNT: u16 = (PIT_HZ / 500) as u16;
/// The same in nanoseconds.
const CALIBRATION: u64 = CALIBRATION_COUNT as u64 * 1_000_000_000 / PIT_HZ;
/// What may be uncertain of a calibration, as a part of it: it is repeated if the processor was held up at one of its ends, as
/// those of emulators are. So often at most.
const CERTAINTY: u64 = 100;
const TRIES: usize = 10;

/// A number between two clocks: ticks of one are those of the other times `ratio`, in 1/2³².
struct Ratio(AtomicU64);

impl Ratio {
    const fn one() -> Self {
        Self(AtomicU64::new(1 << 32))
    }

    fn set(&self, to: u64, from: u64) {
        let ratio = (u128::from(to) << 32) / u128::from(from.max(1));
        self.0.store(u64::try_from(ratio).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn convert(&self, ticks: u64) -> u64 {
        let ticks = (u128::from(ticks) * u128::from(self.0.load(Ordering::Relaxed))) >> 32;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

/// TSC to nanoseconds and back, and to the APIC timer's ticks.
static TO_NANOSECONDS: Ratio = Ratio::one();
static FROM_NANOSECONDS: Ratio = Ratio::one();
static TO_APIC: Ratio = Ratio::one();

/// Calibrates the clocks.
///
/// # Safety
/// Once, on the boot CPU, with interrupts off, after [`lapic::init`].
pub(crate) unsafe fn init() {
    let mut best = watch_pit();
    for _ in 1..TRIES {
        if best.doubt < best.tsc / CERTAINTY {
            break;
        }
        let again = watch_pit();
        if again.doubt < best.doubt {
            best = again;
        }
    }
    lapic::disarm();
    TO_NANOSECONDS.set(CALIBRATION, best.tsc);
    FROM_NANOSECONDS.set(best.tsc, CALIBRATION);
    TO_APIC.set(best.apic, best.tsc);
}

/// How far the other clocks get while the 8254 counts [`CALIBRATION_COUNT`] down.
struct Watched {
    tsc: u64,
    apic: u64,
    /// By how much that may be wrong, in ticks of the TSC.
    doubt: u64,
}

/// Watches channel 2 (mode 0; port 61h: bit 0 is its gate, bit 1 the speaker, bit 5 its output).
fn watch_pit() -> Watched {
    let [low, high] = CALIBRATION_COUNT.to_le_bytes();
    // SAFETY: the timer and its gate are the hypervisor's.
    let gate = unsafe { inb(0x61) } & !3;
    for (port, value) in [(0x61, gate | 1), (0x43, 0xb0), (0x42, low)] {
        // SAFETY: as above.
        unsafe { outb(port, value) };
    }
    let before = tsc();
    // SAFETY: as above. It counts from here on.
    unsafe { outb(0x42, high) };
    lapic::count_freely();
    let start = tsc();
    let mut last = start;
    // SAFETY: as above. A machine without the timer reads ones, and is not waited for.
    while unsafe { inb(0x61) } & 1 << 5 == 0 {
        last = tsc();
    }
    let apic = u64::from(u32::MAX - lapic::count());
    let end = tsc();
    Watched { tsc: end - start, apic, doubt: (start - before) + (end - last) }
}

/// The time-stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: reading the TSC has no effect.
    unsafe { rdtsc() }
}

/// What `ticks` of the TSC are in nanoseconds.
pub(crate) fn nanoseconds(ticks: u64) -> u64 {
    TO_NANOSECONDS.convert(ticks)
}

/// What `nanoseconds` are in ticks of the TSC.
pub(crate) fn ticks(nanoseconds: u64) -> u64 {
    FROM_NANOSECONDS.convert(nanoseconds)
}

/// How many ticks of the TSC `duration` takes.
pub(crate) fn ticks_of(duration: Duration) -> u64 {
    ticks(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

/// The time.
pub(crate) fn now() -> Instant {
    Instant::new(tsc())
}

/// `delay` from now.
pub(crate) fn after(delay: Duration) -> Instant {
    now().after(ticks_of(delay))
}

/// Has this CPU's timer interrupt at `at`, or before; at once if that is past.
pub(crate) fn arm(at: Instant) {
    if lapic::has_deadline() {
        lapic::arm_deadline(at.ticks());
    } else {
        // One more: the quotient is rounded down, and a timer that is early is armed again for nothing.
        let count = TO_APIC.convert(at.since(now())).saturating_add(1);
        lapic::arm_count(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

/// Waits for `delay`.
pub(crate) fn wait(delay: Duration) {
    let end = after(delay);
    while now() < end {
        core::hint::spin_loop();
    }
}
