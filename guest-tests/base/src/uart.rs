//! The 16550 at COM1.
//!
//! PC16550D data sheet, table II.

use abi::ports::COM1 as BASE;
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::port;

const DATA: u16 = BASE;
const INTERRUPT_ENABLE: u16 = BASE + 1;
const INTERRUPT_ID: u16 = BASE + 2;
const FIFO_CONTROL: u16 = BASE + 2;
const LINE_CONTROL: u16 = BASE + 3;
const MODEM_CONTROL: u16 = BASE + 4;
const LINE_STATUS: u16 = BASE + 5;
/// The modem's lines, which nothing changes while it runs; it ignores what is written.
pub const MODEM_STATUS: u16 = BASE + 6;
/// A register without a function: it keeps what is written.
pub const SCRATCH: u16 = BASE + 7;

/// The line of the PIC.
pub const IRQ: u8 = 4;
/// Bytes that may be written once the transmitter is empty.
pub const FIFO: usize = 16;

const DIVISOR_LATCH: u8 = 0x80;
const EIGHT_BITS_NO_PARITY: u8 = 0x03;
const DIVISOR_115200: u8 = 1;
const FIFO_ENABLE_AND_CLEAR: u8 = 0x07;
/// DTR, RTS and OUT2; OUT2 connects the interrupt to the PIC.
const MODEM_READY: u8 = 0x0b;
const RTS: u8 = 0x02;
const DATA_INTERRUPT: u8 = 0x01;
const THRE_INTERRUPT: u8 = 0x02;
/// A byte was received.
pub const LSR_DATA_READY: u8 = 0x01;
/// A byte was lost, as there was no room for it.
pub const LSR_OVERRUN: u8 = 0x02;
const LSR_THR_EMPTY: u8 = 0x20;
const LSR_ALL_SENT: u8 = 0x40;

/// IIR bits that tell the source, and that of an empty transmitter.
const IIR_SOURCE: u8 = 0x0f;
/// The interrupt's source: the transmitter is empty.
pub const SOURCE_THRE: u8 = 0x02;
/// The interrupt's source in the bits of the mask: bytes were received, as many as interrupt or fewer.
pub const SOURCE_DATA: u8 = 0x04;
/// See [`SOURCE_DATA`].
pub const SOURCE_DATA_MASK: u8 = 0x07;
/// No interrupt is pending.
pub const SOURCE_NONE: u8 = 0x01;

static LAST_SOURCE: AtomicU8 = AtomicU8::new(SOURCE_NONE);

/// 115200 baud, 8N1, FIFOs on, no interrupt enabled.
pub fn init() {
    port::write8(INTERRUPT_ENABLE, 0);
    port::write8(LINE_CONTROL, DIVISOR_LATCH | EIGHT_BITS_NO_PARITY);
    port::write8(DATA, DIVISOR_115200);
    port::write8(DATA + 1, 0);
    port::write8(LINE_CONTROL, EIGHT_BITS_NO_PARITY);
    port::write8(FIFO_CONTROL, FIFO_ENABLE_AND_CLEAR);
    port::write8(MODEM_CONTROL, MODEM_READY);
}

/// Sends a byte when the transmitter can take one.
pub fn send(byte: u8) {
    while port::read8(LINE_STATUS) & LSR_THR_EMPTY == 0 {}
    port::write8(DATA, byte);
}

/// The line status register; reading it clears its error bits.
pub fn line_status() -> u8 {
    port::read8(LINE_STATUS)
}

/// The next byte that was received; there is one if [`LSR_DATA_READY`] is set.
pub fn read_data() -> u8 {
    port::read8(DATA)
}

/// Whether the other end may send.
pub fn set_rts(on: bool) {
    port::write8(MODEM_CONTROL, if on { MODEM_READY } else { MODEM_READY & !RTS });
}

/// Whether a byte that was received interrupts.
pub fn set_data_interrupt(on: bool) {
    port::write8(INTERRUPT_ENABLE, if on { DATA_INTERRUPT } else { 0 });
}

/// The port that takes bytes to send, for string instructions; [`drain`] first, then at most [`FIFO`] bytes.
pub const fn data_port() -> u16 {
    DATA
}

/// Waits until the last bit has left.
pub fn drain() {
    while port::read8(LINE_STATUS) & LSR_ALL_SENT == 0 {}
}

/// Whether an empty transmitter interrupts. It does so at once if it is empty already.
pub fn set_thre_interrupt(on: bool) {
    port::write8(INTERRUPT_ENABLE, if on { THRE_INTERRUPT } else { 0 });
}

/// Why it interrupts; reading [`SOURCE_THRE`] takes that interrupt back.
pub fn interrupt_source() -> u8 {
    let source = port::read8(INTERRUPT_ID) & IIR_SOURCE;
    LAST_SOURCE.store(source, Relaxed);
    source
}

/// What [`interrupt_source`] said last, in the interrupt handler for one.
pub fn last_source() -> u8 {
    LAST_SOURCE.load(Relaxed)
}
