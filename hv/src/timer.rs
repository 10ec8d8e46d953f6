//! The hypervisor's time: the TSC, calibrated by the 8254's channel 2 and ACPI's PM timer, and each CPU's local APIC timer, armed
//! for one moment at a time.

use crate::lapic;
use abi::ports::{
    PIT_CHANNEL_2, PIT_CHANNEL_2_LATCH, PIT_CHANNEL_2_ONCE, PIT_COMMAND, PIT_GATE, PIT_OUTPUT, PORT_B, SPEAKER,
};
use clock::{Calibration, PIT_RELOAD, Pit, Ratio};
use core::time::Duration;
use log::Level;
use raw_cpuid::{CpuId, CpuIdReaderNative};
use sched::Instant;
use x86::io::{inb, inl, outb};
use x86::time::rdtsc;

const NANOSECONDS: u64 = 1_000_000_000;

/// TSC to nanoseconds and back, and to the APIC timer's ticks.
static TO_NANOSECONDS: Ratio = Ratio::one();
static FROM_NANOSECONDS: Ratio = Ratio::one();
static TO_APIC: Ratio = Ratio::one();

/// Calibrates the clocks. `pm_timer` is the PM timer's port.
///
/// # Safety
/// Once, on the boot CPU, with interrupts off, after [`lapic::init`].
#[cold]
pub(crate) unsafe fn init(pm_timer: Option<u16>) {
    let calibration = clock::calibrate(&mut Clocks { pm_timer });
    lapic::disarm();
    let Calibration { tsc_hertz, apic, .. } = calibration;
    TO_NANOSECONDS.set(NANOSECONDS, tsc_hertz);
    FROM_NANOSECONDS.set(tsc_hertz, NANOSECONDS);
    if let Some((count, ticks)) = apic {
        TO_APIC.set(count, ticks);
    }
    log::log!(if calibration.is_certain() { Level::Debug } else { Level::Warn }, "{calibration}");
}

/// The machine's clocks, to be calibrated.
struct Clocks {
    pm_timer: Option<u16>,
}

impl clock::Timers for Clocks {
    fn tsc(&mut self) -> u64 {
        tsc()
    }

    fn start(&mut self) {
        let [low, high] = PIT_RELOAD.to_le_bytes();
        // SAFETY: the timer and its gate are the hypervisor's.
        let closed = unsafe { inb(PORT_B) } & !(PIT_GATE | SPEAKER);
        for (port, value) in [
            (PORT_B, closed | PIT_GATE),
            (PIT_COMMAND, PIT_CHANNEL_2_ONCE),
            (PIT_CHANNEL_2, low),
            (PIT_CHANNEL_2, high),
        ] {
            // SAFETY: as above.
            unsafe { outb(port, value) };
        }
        lapic::count_freely();
    }

    fn pit(&mut self) -> Pit {
        // SAFETY: as in `start`.
        unsafe { outb(PIT_COMMAND, PIT_CHANNEL_2_LATCH) };
        // SAFETY: as above.
        let low = unsafe { inb(PIT_CHANNEL_2) };
        // SAFETY: as above.
        let high = unsafe { inb(PIT_CHANNEL_2) };
        // SAFETY: as above. A machine without the timer reads ones.
        let is_over = unsafe { inb(PORT_B) } & PIT_OUTPUT != 0;
        Pit { count: u16::from_le_bytes([low, high]), is_over }
    }

    fn pm_timer(&mut self) -> Option<u32> {
        // SAFETY: the port is the one that ACPI names, and reading it has no effect.
        self.pm_timer.map(|port| unsafe { inl(port) })
    }

    fn apic(&mut self) -> u32 {
        lapic::count()
    }

    fn hint(&self) -> Option<u64> {
        CpuId::with_cpuid_reader(CpuIdReaderNative).get_tsc_info()?.tsc_frequency()
    }
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

/// The time since `start` in nanoseconds, of which 64 bits last for 584 years.
pub(crate) fn nanoseconds_since(start: Instant) -> u64 {
    TO_NANOSECONDS.convert_modulo(now().since(start))
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
        lapic::arm_count(TO_APIC.timer_count(at.since(now())));
    }
}

/// Waits for `delay`.
pub(crate) fn wait(delay: Duration) {
    let end = after(delay);
    while now() < end {
        core::hint::spin_loop();
    }
}
