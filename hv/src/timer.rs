//! The hypervisor's clock tick: the 8254's channel 0 by way of the first 8259. Every PC has them, and neither needs
//! calibrating.

use crate::cpu;
use core::time::Duration;
use x86::io::outb;

/// Ticks come every 65536 periods of the 8254's 1.193182 MHz: 54.9 ms.
const TICK: Duration = Duration::from_nanos(65_536 * 1_000_000_000 / 1_193_182);

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
    // Channel 0, both bytes, mode 2 (rate generator); a count of 0 is 65536.
    for (port, value) in [(0x43, 0x34), (0x40, 0), (0x40, 0)] {
        // SAFETY: the timer is the hypervisor's.
        unsafe { outb(port, value) };
    }
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
