//! The 16550A (National Semiconductor, PC16550D data sheet, section 8) on a line that is infinitely fast: output is sent at once,
//! and the character time-out of the receive FIFO has always passed.
//!
//! What is at the other end sends while RTS is on, as with a cable that has RTS and CTS crossed: a guest that turns RTS off is sent
//! nothing. A driver that clears all of the modem control register does without such control, and is ready while it has the interrupt
//! for received data enabled.
//!
//! The line is always connected, and its modem never changes its signals: modem status changes in loopback alone. There are neither
//! framing or parity errors nor breaks, word length and parity have no effect, and the FIFOs' DMA signals go nowhere. As in QEMU,
//! OUT2 does not gate the interrupt output, unlike on a PC's board.

use crate::Sink;
use abi::uart::{DATA, FCR, FIFO, IER, IIR, LCR, LSR, MCR, MSR, SCRATCH, fcr, ier, iir, lcr, lsr, mcr, msr};

/// The bits that can be set of the interrupt enable register and of the modem control register.
const IER_WRITABLE: u8 = 0x0f;
const MCR_WRITABLE: u8 = 0x1f;

/// Both the holding and the shift register are empty, always.
const TRANSMITTER_EMPTY: u8 = lsr::TRANSMITTER_READY | lsr::TRANSMITTER_IDLE;

/// The inputs of a connected line.
const CONNECTED: u8 = msr::CARRIER_DETECT | msr::DATA_SET_READY | msr::CLEAR_TO_SEND;
/// The lower half of the modem status register tells which of the inputs have changed.
const CHANGES_SHIFT: u32 = 4;

#[derive(Debug)]
pub(crate) struct Uart {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: [u8; 2],
    overrun: bool,
    /// Inputs of the modem that have changed since the modem status register was read, as the lower half of its byte.
    modem_changes: u8,
    /// The transmitter's interrupt is pending: since the holding register became empty or the interrupt was enabled, until a read
    /// of the IIR shows it.
    transmitter_pending: bool,
    received: Fifo,
}

impl Uart {
    pub(crate) const fn new() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: mcr::OUT2,
            scr: 0,
            divisor: [0x0c, 0],
            overrun: false,
            modem_changes: 0,
            transmitter_pending: false,
            received: Fifo::new(),
        }
    }

    pub(crate) fn read(&mut self, register: u16) -> u8 {
        let divisor = self.lcr & lcr::DIVISOR_LATCH != 0;
        match register & 7 {
            DATA if divisor => self.divisor[0],
            IER if divisor => self.divisor[1],
            DATA => self.received.pop().unwrap_or(0),
            IER => self.ier,
            IIR => self.identify_interrupt(),
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => self.line_status(),
            MSR => self.modem_inputs() | core::mem::take(&mut self.modem_changes),
            _ => self.scr,
        }
    }

    pub(crate) fn write(&mut self, register: u16, value: u8, sink: &mut impl Sink) {
        let divisor = self.lcr & lcr::DIVISOR_LATCH != 0;
        match register & 7 {
            DATA if divisor => self.divisor[0] = value,
            IER if divisor => self.divisor[1] = value,
            DATA => self.transmit(value, sink),
            IER => self.enable_interrupts(value),
            FCR => self.control_fifos(value),
            LCR => self.lcr = value,
            MCR => self.control_modem(value),
            SCRATCH => self.scr = value,
            // Line and modem status are read-only, except for factory tests.
            _ => {}
        }
    }

    /// Whether a write of `register` sends a byte on the line.
    pub(crate) fn sends(&self, register: u16) -> bool {
        register & 7 == DATA && self.lcr & lcr::DIVISOR_LATCH == 0 && self.mcr & mcr::LOOPBACK == 0
    }

    /// Whether the guest is ready for a byte from the line. Before it is, its driver may clear what the receiver holds: Linux enables
    /// each interrupt for a moment as it looks for the UART, and RTS last of all.
    pub(crate) fn is_ready(&self) -> bool {
        let listens = self.mcr & mcr::RTS != 0 || self.mcr == 0 && self.ier & ier::DATA != 0;
        listens && self.mcr & mcr::LOOPBACK == 0 && self.received.length < self.capacity()
    }

    /// Takes a byte from the line, if there is room for it.
    pub(crate) fn receive(&mut self, byte: u8) -> bool {
        // "In loopback mode the receiver serial input is disconnected."
        self.mcr & mcr::LOOPBACK == 0 && self.received.push(byte, self.capacity())
    }

    /// The level of the interrupt output.
    pub(crate) fn interrupt(&self) -> bool {
        self.ier != 0 && self.cause() != iir::NONE
    }

    /// The pending interrupt of the highest priority (data sheet, table "Interrupt control functions").
    fn cause(&self) -> u8 {
        if self.ier & ier::LINE_STATUS != 0 && self.overrun {
            iir::LINE_STATUS
        } else if self.ier & ier::DATA != 0 && self.received.length > 0 {
            if self.received.length >= self.trigger_level() { iir::DATA } else { iir::TIMEOUT }
        } else if self.ier & ier::TRANSMITTER != 0 && self.transmitter_pending {
            iir::TRANSMITTER
        } else if self.ier & ier::MODEM_STATUS != 0 && self.modem_changes != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    /// "Reading the IIR (if source of interrupt)" resets the transmitter's interrupt.
    fn identify_interrupt(&mut self) -> u8 {
        let cause = self.cause();
        if cause == iir::TRANSMITTER {
            self.transmitter_pending = false;
        }
        if self.fifos_on() { cause | iir::FIFOS_ON } else { cause }
    }

    fn transmit(&mut self, byte: u8, sink: &mut impl Sink) {
        self.transmitter_pending = true;
        if self.mcr & mcr::LOOPBACK == 0 {
            sink.put(byte);
        } else if !self.received.push(byte, self.capacity()) {
            self.overrun = true;
            if !self.fifos_on() {
                self.received.replace_last(byte);
            }
        }
    }

    /// Enabling the transmitter's interrupt raises it, because the transmitter is always empty; disabling clears it.
    fn enable_interrupts(&mut self, value: u8) {
        if (self.ier ^ value) & ier::TRANSMITTER != 0 {
            self.transmitter_pending = value & ier::TRANSMITTER != 0;
        }
        self.ier = value & IER_WRITABLE;
    }

    /// Changing FCR0 clears the FIFOs, too.
    fn control_fifos(&mut self, value: u8) {
        if (self.fcr ^ value) & fcr::ENABLE != 0 || value & fcr::CLEAR_RECEIVER != 0 {
            self.received = Fifo::new();
        }
        // With bit 0 clear "no other bits will be programmed".
        self.fcr = if value & fcr::ENABLE != 0 { value } else { 0 };
    }

    /// Reading clears the error bits.
    fn line_status(&mut self) -> u8 {
        let data = if self.received.length > 0 { lsr::DATA_READY } else { 0 };
        let overrun = if core::mem::take(&mut self.overrun) { lsr::OVERRUN } else { 0 };
        data | overrun | TRANSMITTER_EMPTY
    }

    /// Of the ring indicator, only its end counts as a change.
    fn control_modem(&mut self, value: u8) {
        let before = self.modem_inputs();
        self.mcr = value & MCR_WRITABLE;
        let after = self.modem_inputs();
        let changes = (before ^ after) & !msr::RING | before & !after & msr::RING;
        self.modem_changes |= changes >> CHANGES_SHIFT;
    }

    /// In loopback the outputs are wired to the inputs: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
    fn modem_inputs(&self) -> u8 {
        if self.mcr & mcr::LOOPBACK == 0 {
            return CONNECTED;
        }
        let [dtr, rts] = [self.mcr & 1, self.mcr >> 1 & 1];
        rts << 4 | dtr << 5 | (self.mcr & 0x0c) << 4
    }

    fn fifos_on(&self) -> bool {
        self.fcr & fcr::ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.fifos_on() { FIFO } else { 1 }
    }

    fn trigger_level(&self) -> usize {
        if self.fifos_on() { [1, 4, 8, 14][usize::from(self.fcr >> fcr::TRIGGER_SHIFT)] } else { 1 }
    }
}

/// Received bytes, oldest first.
#[derive(Debug)]
struct Fifo {
    bytes: [u8; FIFO],
    first: usize,
    length: usize,
}

impl Fifo {
    const fn new() -> Self {
        Self { bytes: [0; FIFO], first: 0, length: 0 }
    }

    fn push(&mut self, byte: u8, capacity: usize) -> bool {
        let room = self.length < capacity;
        if room {
            self.bytes[(self.first + self.length) % FIFO] = byte;
            self.length += 1;
        }
        room
    }

    fn pop(&mut self) -> Option<u8> {
        let byte = self.bytes[self.first % FIFO];
        self.length = self.length.checked_sub(1)?;
        self.first = (self.first + 1) % FIFO;
        Some(byte)
    }

    fn replace_last(&mut self, byte: u8) {
        self.bytes[(self.first + self.length + FIFO - 1) % FIFO] = byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const LSR_IDLE: u8 = 0x60;

    fn write(uart: &mut Uart, register: u16, value: u8) -> Vec<u8> {
        let mut out = Vec::new();
        uart.write(register, value, &mut |byte| out.push(byte));
        out
    }

    #[test]
    fn output_leaves_at_once() {
        let mut uart = Uart::new();
        assert_eq!(write(&mut uart, 0, b'x'), [b'x']);
        assert_eq!(uart.read(5), LSR_IDLE);
        assert!(!uart.interrupt());
    }

    #[test]
    fn dlab_shows_the_divisor_in_place_of_data_and_ier() {
        let mut uart = Uart::new();
        write(&mut uart, 3, 0x83);
        assert_eq!([write(&mut uart, 0, 0x01), write(&mut uart, 1, 0x02)].concat(), []);
        assert_eq!([uart.read(0), uart.read(1)], [1, 2]);
        write(&mut uart, 3, 0x03);
        assert_eq!([uart.read(0), uart.read(1), uart.read(3)], [0, 0, 3]);
    }

    #[test]
    fn enabling_the_transmitter_interrupt_raises_it_once() {
        let mut uart = Uart::new();
        write(&mut uart, 1, 0x02);
        assert!(uart.interrupt());
        assert_eq!(uart.read(2), 0x02);
        assert!(!uart.interrupt(), "reading IIR resets it");
        assert_eq!(uart.read(2), 0x01);
        write(&mut uart, 1, 0x02);
        assert!(!uart.interrupt(), "it was enabled already");
        write(&mut uart, 0, b'x');
        assert!(uart.interrupt(), "the holding register got empty again");
        write(&mut uart, 1, 0x00);
        assert!(!uart.interrupt());
    }

    #[test]
    fn iir_tells_the_highest_priority_first() {
        let mut uart = Uart::new();
        write(&mut uart, 4, 0x10);
        write(&mut uart, 0, b'a');
        write(&mut uart, 0, b'b');
        write(&mut uart, 1, 0x07);
        assert_eq!(uart.read(2), 0x06, "line status: overrun");
        assert_eq!(uart.read(5), LSR_IDLE | 0x03);
        assert_eq!(uart.read(5), LSR_IDLE | 0x01, "reading LSR clears the error");
        assert_eq!(uart.read(2), 0x04, "received data");
        assert_eq!(uart.read(0), b'b', "an overrun destroys the older character when FIFOs are off");
        assert_eq!(uart.read(2), 0x02, "transmitter empty");
        assert_eq!(uart.read(2), 0x01);
    }

    #[test]
    fn reading_iir_keeps_a_transmitter_interrupt_that_it_did_not_tell() {
        let mut uart = Uart::new();
        write(&mut uart, 1, 0x03);
        assert!(uart.receive(b'x'));
        assert_eq!(uart.read(2), 0x04);
        uart.read(0);
        assert_eq!(uart.read(2), 0x02);
    }

    #[test]
    fn the_receive_fifo_holds_16_and_interrupts_at_its_trigger_level() {
        let mut uart = Uart::new();
        write(&mut uart, 1, 0x01);
        write(&mut uart, 2, 0x81);
        assert_eq!(uart.read(2), 0xc1, "FIFOs on");
        let taken = (0..20).filter(|&byte| uart.receive(byte)).count();
        assert_eq!(taken, 16);
        assert_eq!(uart.read(2), 0xc4);
        (0..9).for_each(|byte| assert_eq!(uart.read(0), byte));
        assert_eq!(uart.read(2), 0xcc, "seven are below the level of eight: character time-out");
        (9..16).for_each(|byte| assert_eq!(uart.read(0), byte));
        assert_eq!(uart.read(2), 0xc1);
        assert_eq!(uart.read(5), LSR_IDLE);
    }

    #[test]
    fn an_overrun_of_the_fifo_keeps_what_is_in_it() {
        let mut uart = Uart::new();
        write(&mut uart, 2, 0x01);
        write(&mut uart, 4, 0x10);
        (0..17).for_each(|byte| drop(write(&mut uart, 0, byte)));
        assert_eq!(uart.read(5), LSR_IDLE | 0x03);
        (0..16).for_each(|byte| assert_eq!(uart.read(0), byte));
    }

    #[test]
    fn fcr_clears_the_receiver() {
        let mut uart = Uart::new();
        for clear in [0x03, 0x00] {
            write(&mut uart, 2, 0x01);
            assert!(uart.receive(1));
            write(&mut uart, 2, clear);
            assert_eq!(uart.read(5), LSR_IDLE);
        }
    }

    #[test]
    fn the_line_sends_while_rts_is_on_and_there_is_room() {
        let mut uart = Uart::new();
        assert!(!uart.is_ready(), "no driver is there yet");
        for (mcr, ready) in [(0x12, false), (0x03, true), (0x13, false), (0x01, false), (0x02, true)] {
            write(&mut uart, 4, mcr);
            assert_eq!(uart.is_ready(), ready, "{mcr:#x}");
        }
        assert!(uart.receive(1));
        assert!(!uart.is_ready(), "without FIFOs there is room for one");
        write(&mut uart, 2, 0x01);
        (0..16).for_each(|byte| assert!(uart.is_ready() && uart.receive(byte)));
        assert!(!uart.is_ready());
        uart.read(0);
        assert!(uart.is_ready());
    }

    #[test]
    fn a_driver_without_modem_control_is_ready_when_it_enables_the_interrupt() {
        let mut uart = Uart::new();
        write(&mut uart, 1, 0x0f);
        assert!(!uart.is_ready(), "Linux looks for the UART");
        for (mcr, ier, ready) in [(0x00, 0x02, false), (0x00, 0x01, true), (0x09, 0x01, false), (0x10, 0x01, false)] {
            write(&mut uart, 4, mcr);
            write(&mut uart, 1, ier);
            assert_eq!(uart.is_ready(), ready, "{mcr:#x}, {ier:#x}");
        }
    }

    #[test]
    fn loopback_wires_outputs_to_inputs_and_keeps_the_line_out() {
        let mut uart = Uart::new();
        assert_eq!(uart.read(6), 0xb0);
        for (mcr, msr) in [(0x10, 0x00), (0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80), (0x1f, 0xf0)] {
            write(&mut uart, 4, mcr);
            assert_eq!(uart.read(6) & 0xf0, msr);
        }
        assert_eq!(write(&mut uart, 0, b'x'), []);
        assert!(!uart.receive(b'y'));
        assert_eq!(uart.read(0), b'x');
    }

    #[test]
    fn modem_status_tells_changes_once_and_interrupts_last() {
        let mut uart = Uart::new();
        write(&mut uart, 4, 0x1f);
        assert_eq!(
            uart.read(6),
            0xf0,
            "carrier, data set and clear to send are as they were; a ring that begins is no change"
        );
        write(&mut uart, 1, 0x0a);
        write(&mut uart, 4, 0x10);
        assert_eq!(uart.read(2), 0x02, "the transmitter's comes first");
        assert!(uart.interrupt());
        assert_eq!([uart.read(2), uart.read(2)], [0x00, 0x00], "IIR does not reset it");
        assert_eq!(uart.read(6), 0x0f);
        assert!(!uart.interrupt());
        assert_eq!([uart.read(2), uart.read(6)], [0x01, 0x00]);
    }

    #[test]
    fn the_settings_of_our_drivers_are_those_of_the_data_sheet() {
        let mut uart = Uart::new();
        for (register, value) in abi::uart::settings(fcr::TRIGGER_14, mcr::DTR | mcr::RTS) {
            assert_eq!(write(&mut uart, register, value), []);
        }
        assert_eq!([1, 2, 3, 4, 5].map(|register| uart.read(register)), [0x00, 0xc1, 0x03, 0x03, LSR_IDLE]);
        assert_eq!((uart.divisor, uart.trigger_level(), uart.is_ready()), ([0x01, 0x00], 14, true));
    }

    /// The steps of Linux's `autoconfig` and `autoconfig_16550a` (drivers/tty/serial/8250/8250_port.c) that tell a 16550A from
    /// others.
    #[test]
    fn linux_finds_a_16550a() {
        let mut uart = Uart::new();
        write(&mut uart, 1, 0x00);
        assert_eq!(uart.read(1) & 0x0f, 0);
        write(&mut uart, 1, 0x0f);
        assert_eq!(uart.read(1) & 0x0f, 0x0f);
        write(&mut uart, 1, 0x00);
        write(&mut uart, 4, 0x1a);
        assert_eq!(uart.read(6) & 0xf0, 0x90, "loopback");
        write(&mut uart, 4, 0x08);
        write(&mut uart, 2, 0x01);
        assert_eq!(uart.read(2) >> 6, 3, "FIFOs that work");
        for lcr in [0x80, 0xbf] {
            write(&mut uart, 3, lcr);
            assert_ne!(uart.read(2), 0, "no extended features");
        }
        write(&mut uart, 3, 0x00);
        write(&mut uart, 2, 0x21);
        assert_eq!(uart.read(2) >> 5, 6, "no FIFO of 64 bytes");
        write(&mut uart, 1, 0x40);
        assert_eq!(uart.read(1), 0, "no bit for the unit");
    }

    /// Linux's test in `serial8250_do_startup`: a UART that does not raise the transmitter's interrupt again is polled by a timer.
    #[test]
    fn the_transmitter_interrupt_comes_back_when_it_is_enabled_again() {
        let mut uart = Uart::new();
        for _ in 0..2 {
            write(&mut uart, 1, 0x02);
            assert_eq!(uart.read(2), 0x02);
            write(&mut uart, 1, 0x00);
        }
    }

    #[test]
    fn scratch_keeps_what_it_is_given_and_status_does_not() {
        let mut uart = Uart::new();
        for register in [5, 6, 7] {
            write(&mut uart, register, 0xff);
        }
        assert_eq!([uart.read(5), uart.read(6), uart.read(7)], [LSR_IDLE, 0xb0, 0xff]);
    }
}
