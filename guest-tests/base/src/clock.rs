//! Time, by the TSC.
//!
//! How fast the TSC is, is measured by the third channel of the PIT, once. CPUID leaves 0x15 and 0x16 are not asked: few of
//! the machines that guests run on have them, and an emulator's don't tell the truth.

use core::hint;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use abi::ports::{PIT_CHANNEL_2, PIT_CHANNEL_2_ONCE, PIT_COMMAND, PIT_GATE, PIT_OUTPUT, PORT_B, SPEAKER};
use abi::timers::PIT_HERTZ;

use crate::{port, tsc};

/// Counts of the PIT in one measurement: 2 ms. That is less than what a hypervisor gives a processor at a time, so that
/// measurements lie in between.
const SPAN: u16 = 2_386;
/// Measurements, of which the shortest counts: whatever comes in between makes one longer.
const MEASUREMENTS: usize = 10;

/// Ticks of the TSC in a second. Too high by what an exit or two take, if anything: a wait is never too short.
pub fn ticks_per_second() -> u64 {
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    match KNOWN.load(Relaxed) {
        0 => {
            let ticks = (0..MEASUREMENTS).map(|_| ticks_in_span()).min().unwrap_or_default();
            let rate = ticks * u64::from(PIT_HERTZ) / u64::from(SPAN);
            KNOWN.store(rate, Relaxed);
            rate
        }
        known => known,
    }
}

/// Ticks of the TSC in so many microseconds.
pub fn microseconds(count: u64) -> u64 {
    ticks_per_second() * count / 1_000_000
}

/// Ticks of the TSC in so many seconds.
pub fn seconds(count: u64) -> u64 {
    ticks_per_second() * count
}

/// Spins for `ticks`.
pub fn wait(ticks: u64) {
    wait_for(ticks, || false);
}

/// Spins until `condition` holds, for `ticks` at most. Whether it came to hold.
pub fn wait_for(ticks: u64, mut condition: impl FnMut() -> bool) -> bool {
    let start = tsc::read();
    loop {
        if condition() {
            return true;
        }
        if tsc::read().wrapping_sub(start) >= ticks {
            return false;
        }
        hint::spin_loop();
    }
}

fn ticks_in_span() -> u64 {
    let closed = port::read8(PORT_B) & !(PIT_GATE | SPEAKER);
    port::write8(PORT_B, closed);
    port::write8(PIT_COMMAND, PIT_CHANNEL_2_ONCE);
    let [low, high] = SPAN.to_le_bytes();
    port::write8(PIT_CHANNEL_2, low);
    port::write8(PIT_CHANNEL_2, high);
    let start = tsc::read();
    port::write8(PORT_B, closed | PIT_GATE);
    while port::read8(PORT_B) & PIT_OUTPUT == 0 {}
    tsc::read() - start
}
