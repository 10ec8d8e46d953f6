//! The polled 16550 at the line's end.

use crate::mux::Transmitter;
use abi::uart::{DATA, FIFO, IIR, LSR, fcr, iir, lsr, mcr, settings};
use abi::wire;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

/// Access to the UART's registers, each by its distance from the first port. What it says of a break, it does at once.
pub trait UartPorts {
    /// Reads a register.
    fn read(&self, register: u16) -> u8;
    /// Writes a register.
    fn write(&self, register: u16, value: u8);
    /// A break was received.
    fn heed_break(&self);
}

/// What a line status register reads as where there is none.
const ABSENT: u8 = 0xff;

/// The polled 16550. A port that never gets ready (there is none) is given up on, rather than waited for.
///
/// Bytes are sent by one CPU at a time, as `&mut self` says; they are received by any ([`Receiver`]).
#[derive(Debug)]
pub struct Uart<P> {
    ports: P,
    present: bool,
    fifo: usize,
}

impl<P: UartPorts> Uart<P> {
    /// 115200 baud, 8 data bits, no parity, one stop bit, FIFOs on, no interrupts.
    pub fn program(ports: P) -> Self {
        for (register, value) in settings(fcr::TRIGGER_14, mcr::DTR | mcr::RTS) {
            ports.write(register, value);
        }
        let present = ports.read(LSR) != ABSENT;
        let has_fifo = ports.read(IIR) & iir::FIFOS_ON == iir::FIFOS_ON;
        Self { ports, present, fifo: if has_fifo { FIFO } else { 1 } }
    }

    fn has(&self, status: u8) -> bool {
        !self.present || line_status(&self.ports) & status != 0
    }

    /// Waits until the last byte has left the port.
    pub fn drain(&self) {
        self.wait_for(lsr::TRANSMITTER_IDLE);
    }

    fn wait_for(&self, status: u8) {
        while !self.has(status) {
            core::hint::spin_loop();
        }
    }

    /// Waits for each byte of `bytes` to be taken.
    pub fn write_bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.wait_for(lsr::TRANSMITTER_READY);
            self.send(byte);
        }
    }
}

impl<P: UartPorts> Transmitter for Uart<P> {
    fn room(&mut self) -> usize {
        if self.has(lsr::TRANSMITTER_READY) { self.fifo } else { 0 }
    }

    fn send(&mut self, byte: u8) {
        self.ports.write(DATA, byte);
    }
}

/// Ends of lines are sent as on the wire. It never returns an error.
impl<P: UartPorts> fmt::Write for Uart<P> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    self.write_bytes(line.as_bytes());
                    self.write_bytes(wire::END);
                }
                None => self.write_bytes(line.as_bytes()),
            }
        }
        Ok(())
    }
}

/// The line status. A read clears the bit of a break, which therefore each reader heeds. A port that is not there reads as ones.
pub fn line_status(ports: &impl UartPorts) -> u8 {
    let status = ports.read(LSR);
    if status != ABSENT && status & lsr::BREAK != 0 {
        ports.heed_break();
    }
    status
}

/// The bytes that are received. It needs no lock: transmission uses other registers, and a read of the line status takes nothing from
/// another reader but error bits.
#[derive(Debug)]
pub struct Receiver {
    /// How many zeroes are in the receiver's FIFO that stand for breaks, and are not for a guest. (QEMU shows a break in the line status
    /// before its zero is the next byte.)
    zeroes: AtomicU32,
}

impl Receiver {
    /// No break was received.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is for a static: only a constant function will do")]
    pub const fn new() -> Self {
        Self { zeroes: AtomicU32::new(0) }
    }

    /// A break was received: the zero that stands for it is not to be taken for a byte.
    pub fn expect_zero(&self) {
        self.zeroes.fetch_add(1, Ordering::Relaxed);
    }

    /// A byte that was received.
    pub fn receive(&self, ports: &impl UartPorts) -> Option<u8> {
        let status = line_status(ports);
        let ready = status != ABSENT && status & lsr::DATA_READY != 0;
        let byte = ready.then(|| ports.read(DATA));
        match byte {
            None => self.zeroes.store(0, Ordering::Relaxed),
            Some(0) if self.zeroes.load(Ordering::Relaxed) != 0 => {
                self.zeroes.fetch_sub(1, Ordering::Relaxed);
                return None;
            }
            Some(_) => {}
        }
        byte
    }
}
