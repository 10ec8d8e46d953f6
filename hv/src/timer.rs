//! The hypervisor's time: a tick from the 8254's channel 0 by way of the first 8259, which every PC has and which needs no
//! calibrating, and the TSC, calibrated by the 8254's channel 2.

use crate::cpu;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use x86::io::{inb, outb};
use x86::time::rdtsc;

/// The 8254's frequency in Hz.
const PIT_HZ: u64 = 1_193_182;
/// Periods of the 8254 from tick to tick: 10 ms.
const TICK_COUNT: u16 = (PIT_HZ / 100) as u16;
const TICK: Duration = Duration::from_nanos(TICK_COUNT as u64 * 1_000_000_000 / PIT_HZ);
/// Periods of the 8254 for which the TSC is watched: 2 ms.
const CALIBRATION_COUNT: u16 = (PIT_HZ / 500) as u16;

/// TSC ticks per [`CALIBRATION_COUNT`] periods of the 8254.
static CALIBRATION: AtomicU64 = AtomicU64::new(1);

/// Where the 8259s deliver, in 8 vectors each (data sheet: initialization command words).
const PIC_PORTS: [u16; 2] = [0x20, 0xa0];

/// Programs the tick and lets no other line through.
///
/// # Safety
/// Once, on the boot CPU, with interrupts off.
pub(crate) unsafe fn init() {
    let first = cpu::FIRST_IRQ;
    let words: [[u8; 4]; 2] = [
        // Edge-triggered, cascaded; vectors; the slave's line; 8086 mode.
        [0x11, first, 1 << 2, 0x01],
        [0x11, first + 8, 2, 0x01],
    ];
    for (port, [icw1, icw2, icw3, icw4]) in PIC_PORTS.into_iter().zip(words) {
        // SAFETY: the interrupt controllers are the hypervisor's.
        unsafe { outb(port, icw1) };
        for word in [icw2, icw3, icw4] {
            // SAFETY: as above.
            unsafe { outb(port + 1, word) };
        }
    }
    // SAFETY: as above: all lines masked but the first one's timer.
    unsafe { outb(PIC_PORTS[0] + 1, 0xfe) };
    // SAFETY: as above.
    unsafe { outb(PIC_PORTS[1] + 1, 0xff) };
    let [low, high] = TICK_COUNT.to_le_bytes();
    // Channel 0, both bytes, mode 2 (rate generator).
    for (port, value) in [(0x43, 0x34), (0x40, low), (0x40, high)] {
        // SAFETY: the timer is the hypervisor's.
        unsafe { outb(port, value) };
    }
    CALIBRATION.store(calibrate().max(1), Ordering::Relaxed);
}

/// How far the TSC gets while channel 2 counts [`CALIBRATION_COUNT`] down (mode 0; port 61h: bit 0 is its gate, bit 1 the
/// speaker, bit 5 its output).
fn calibrate() -> u64 {
    let [low, high] = CALIBRATION_COUNT.to_le_bytes();
    // SAFETY: the timer and its gate are the hypervisor's.
    let gate = unsafe { inb(0x61) } & !3;
    for (port, value) in [(0x61, gate | 1), (0x43, 0xb0), (0x42, low), (0x42, high)] {
        // SAFETY: as above.
        unsafe { outb(port, value) };
    }
    let start = tsc();
    // SAFETY: as above. A machine without the timer reads ones, and is not waited for.
    while unsafe { inb(0x61) } & 1 << 5 == 0 {
        core::hint::spin_loop();
    }
    tsc() - start
}

/// The time-stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: reading the TSC has no effect.
    unsafe { rdtsc() }
}

/// What `ticks` of the TSC are in nanoseconds.
pub(crate) fn nanoseconds(ticks: u64) -> u64 {
    let span = u128::from(CALIBRATION_COUNT) * 1_000_000_000 / u128::from(PIT_HZ);
    (u128::from(ticks) * span / u128::from(CALIBRATION.load(Ordering::Relaxed))) as u64
}

/// A moment in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Deadline(u64);

impl Deadline {
    /// The first tick that comes at least `delay` from now.
    pub(crate) fn after(delay: Duration) -> Self {
        let ticks = delay.as_nanos().div_ceil(TICK.as_nanos()) as u64;
        Self(cpu::ticks().saturating_add(ticks + 1))
    }

    /// Whether it is past.
    pub(crate) fn is_past(self) -> bool {
        cpu::ticks() >= self.0
    }
}
