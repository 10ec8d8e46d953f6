//! The 16550A (National Semiconductor, PC16550D data sheet, section 8): its registers, each by its distance from the first port, and
//! their bits.

/// What is received, and what is sent. With [`lcr::DIVISOR_LATCH`] the divisor's low byte.
pub const DATA: u16 = 0;
/// Interrupt enable register: [`ier`]. With [`lcr::DIVISOR_LATCH`] the divisor's high byte.
pub const IER: u16 = 1;
/// Interrupt identification register, when read: [`iir`].
pub const IIR: u16 = 2;
/// FIFO control register, when written: [`fcr`].
pub const FCR: u16 = 2;
/// Line control register: [`lcr`].
pub const LCR: u16 = 3;
/// Modem control register: [`mcr`].
pub const MCR: u16 = 4;
/// Line status register: [`lsr`].
pub const LSR: u16 = 5;
/// Modem status register: [`msr`].
pub const MSR: u16 = 6;
/// A register without a function: it keeps what is written.
pub const SCRATCH: u16 = 7;

/// The bytes that each of the two FIFOs holds.
pub const FIFO: usize = 16;

/// The divisor for [`BAUD`].
pub const DIVISOR: u8 = 1;
/// Bits per second on the line, of which a byte takes ten: one to start, eight of data, one to stop.
pub const BAUD: u64 = 115_200;

/// Interrupt enable register.
pub mod ier {
    /// Bytes were received.
    pub const DATA: u8 = 1 << 0;
    /// The transmitter is empty.
    pub const TRANSMITTER: u8 = 1 << 1;
    /// The line status register has an error.
    pub const LINE_STATUS: u8 = 1 << 2;
    /// A modem's signal has changed.
    pub const MODEM_STATUS: u8 = 1 << 3;
}

/// Interrupt identification register.
pub mod iir {
    /// The bits that tell the source.
    pub const SOURCE: u8 = 0x0f;
    /// A modem's signal has changed.
    pub const MODEM_STATUS: u8 = 0x00;
    /// No interrupt is pending.
    pub const NONE: u8 = 0x01;
    /// The transmitter is empty. A read that tells it takes the interrupt back.
    pub const TRANSMITTER: u8 = 0x02;
    /// Bytes were received, as many as interrupt.
    pub const DATA: u8 = 0x04;
    /// The line status register has an error.
    pub const LINE_STATUS: u8 = 0x06;
    /// Bytes were received, fewer than interrupt, and none came for a while.
    pub const TIMEOUT: u8 = 0x0c;
    /// The bits that [`DATA`] and [`TIMEOUT`] have in common, and no other source.
    pub const RECEIVED: u8 = DATA & TIMEOUT;
    /// The bits of [`SOURCE`] that tell [`RECEIVED`] from the other sources.
    pub const RECEIVED_MASK: u8 = 0x07;
    /// The FIFOs are on.
    pub const FIFOS_ON: u8 = 0xc0;
}

/// FIFO control register.
pub mod fcr {
    /// The FIFOs are on.
    pub const ENABLE: u8 = 1 << 0;
    /// The receiver's FIFO is emptied.
    pub const CLEAR_RECEIVER: u8 = 1 << 1;
    /// The transmitter's FIFO is emptied.
    pub const CLEAR_TRANSMITTER: u8 = 1 << 2;
    /// How many received bytes interrupt, from here upwards: 1, 4, 8 or 14.
    pub const TRIGGER_SHIFT: u32 = 6;
    /// One received byte interrupts.
    pub const TRIGGER_1: u8 = 0 << TRIGGER_SHIFT;
    /// 14 received bytes interrupt.
    pub const TRIGGER_14: u8 = 3 << TRIGGER_SHIFT;
}

/// Line control register.
pub mod lcr {
    /// Eight data bits, no parity, one stop bit.
    pub const EIGHT_BITS: u8 = 0x03;
    /// Divisor latch access: the first two registers are the divisor.
    pub const DIVISOR_LATCH: u8 = 1 << 7;
}

/// Modem control register.
pub mod mcr {
    /// Data terminal ready.
    pub const DTR: u8 = 1 << 0;
    /// Request to send: the other end may send.
    pub const RTS: u8 = 1 << 1;
    /// On a PC it connects the interrupt to the 8259.
    pub const OUT2: u8 = 1 << 3;
    /// What is sent is received, and the outputs are the inputs.
    pub const LOOPBACK: u8 = 1 << 4;
}

/// Line status register.
pub mod lsr {
    /// A byte was received.
    pub const DATA_READY: u8 = 1 << 0;
    /// A byte was lost, as there was no room for it.
    pub const OVERRUN: u8 = 1 << 1;
    /// The line was held at zero for longer than a byte takes. A read clears it.
    pub const BREAK: u8 = 1 << 4;
    /// The holding register, or the transmitter's FIFO, is empty: it takes [`FIFO`](super::FIFO) bytes.
    pub const TRANSMITTER_READY: u8 = 1 << 5;
    /// The shift register is empty as well: all is sent.
    pub const TRANSMITTER_IDLE: u8 = 1 << 6;
}

/// Modem status register: the inputs.
pub mod msr {
    /// Clear to send.
    pub const CLEAR_TO_SEND: u8 = 1 << 4;
    /// Data set ready.
    pub const DATA_SET_READY: u8 = 1 << 5;
    /// Ring indicator.
    pub const RING: u8 = 1 << 6;
    /// Carrier detect.
    pub const CARRIER_DETECT: u8 = 1 << 7;
}

/// The registers and what is written to them, in this order, for [`BAUD`], eight data bits, no parity, one stop bit, empty FIFOs that
/// are on with this trigger level of [`fcr`], no interrupt, and `modem` in the modem control register.
#[must_use]
pub const fn settings(trigger: u8, modem: u8) -> [(u16, u8); 7] {
    [
        (IER, 0),
        (LCR, lcr::DIVISOR_LATCH),
        (DATA, DIVISOR),
        (IER, 0),
        (LCR, lcr::EIGHT_BITS),
        (FCR, fcr::ENABLE | fcr::CLEAR_RECEIVER | fcr::CLEAR_TRANSMITTER | trigger),
        (MCR, modem),
    ]
}
