//! The 16550 at COM1.
//!
//! PC16550D data sheet, table II.

use abi::ports::COM1;
use abi::uart::{DATA, IER, IIR, LSR, MCR, MSR, fcr, ier, iir, lsr, mcr, settings};
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::port;

pub use abi::uart::FIFO;
pub use abi::uart::iir::{NONE as SOURCE_NONE, RECEIVED, RECEIVED_MASK, TRANSMITTER as SOURCE_THRE};
pub use abi::uart::lsr::{DATA_READY as LSR_DATA_READY, OVERRUN as LSR_OVERRUN};

/// The modem's lines, which nothing changes while it runs; it ignores what is written.
pub const MODEM_STATUS: u16 = COM1 + MSR;
/// A register without a function: it keeps what is written.
pub const SCRATCH: u16 = COM1 + abi::uart::SCRATCH;

/// The line of the PIC.
pub const IRQ: u8 = abi::irq::COM1;

const MODEM_READY: u8 = mcr::DTR | mcr::RTS | mcr::OUT2;

static LAST_SOURCE: AtomicU8 = AtomicU8::new(SOURCE_NONE);

/// 115200 baud, 8N1, FIFOs on, no interrupt enabled.
pub fn init() {
    settings(fcr::TRIGGER_1, MODEM_READY)
        .into_iter()
        .for_each(|(register, value)| port::write8(COM1 + register, value));
}

/// Sends a byte when the transmitter can take one.
pub fn send(byte: u8) {
    while port::read8(COM1 + LSR) & lsr::TRANSMITTER_READY == 0 {}
    port::write8(COM1 + DATA, byte);
}

/// The line status register; reading it clears its error bits.
pub fn line_status() -> u8 {
    port::read8(COM1 + LSR)
}

/// The next byte that was received; there is one if [`LSR_DATA_READY`] is set.
pub fn read_data() -> u8 {
    port::read8(COM1 + DATA)
}

/// Whether the other end may send.
pub fn set_rts(on: bool) {
    port::write8(COM1 + MCR, if on { MODEM_READY } else { MODEM_READY & !mcr::RTS });
}

/// Whether a byte that was received interrupts.
pub fn set_data_interrupt(on: bool) {
    port::write8(COM1 + IER, if on { ier::DATA } else { 0 });
}

/// The port that takes bytes to send, for string instructions; [`drain`] first, then at most [`FIFO`] bytes.
pub const fn data_port() -> u16 {
    COM1 + DATA
}

/// Waits until the last bit has left.
pub fn drain() {
    while port::read8(COM1 + LSR) & lsr::TRANSMITTER_IDLE == 0 {}
}

/// Whether an empty transmitter interrupts. It does so at once if it is empty already.
pub fn set_thre_interrupt(on: bool) {
    port::write8(COM1 + IER, if on { ier::TRANSMITTER } else { 0 });
}

/// Why it interrupts; reading [`SOURCE_THRE`] takes that interrupt back.
pub fn interrupt_source() -> u8 {
    let source = port::read8(COM1 + IIR) & iir::SOURCE;
    LAST_SOURCE.store(source, Relaxed);
    source
}

/// What [`interrupt_source`] said last, in the interrupt handler for one.
pub fn last_source() -> u8 {
    LAST_SOURCE.load(Relaxed)
}
