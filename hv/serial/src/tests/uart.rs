//! The driver of the UART, on a scripted one.

use crate::{Receiver, Transmitter, Uart, UartPorts};
use abi::uart::{DATA, FIFO, IIR, LCR, LSR, iir, lcr, lsr};
use core::cell::{Cell, RefCell};
use core::fmt::Write;
use std::collections::VecDeque;
use std::vec::Vec;

/// A UART whose transmitter is ready at each n-th look.
struct Script {
    ready_each: u32,
    has_fifo: bool,
    looks: Cell<u32>,
    sent: RefCell<Vec<u8>>,
    /// What is received: None is a break, whose bit the next look at the line status takes and whose zero is a byte.
    input: RefCell<VecDeque<Option<u8>>>,
    has_broken: Cell<bool>,
    latch: Cell<bool>,
    breaks: Cell<u32>,
    receiver: Receiver,
}

impl Script {
    fn new(ready_each: u32, has_fifo: bool, input: &[Option<u8>]) -> Self {
        Self {
            ready_each,
            has_fifo,
            looks: Cell::new(0),
            sent: RefCell::default(),
            input: RefCell::new(input.iter().copied().collect()),
            has_broken: Cell::new(false),
            latch: Cell::new(false),
            breaks: Cell::new(0),
            receiver: Receiver::new(),
        }
    }
}

impl UartPorts for &Script {
    fn read(&self, register: u16) -> u8 {
        match register {
            LSR => {
                self.looks.set(self.looks.get() + 1);
                let ready = self.looks.get() % self.ready_each == 0;
                let next = self.input.borrow().front().copied();
                let broken = next == Some(None) && !self.has_broken.replace(true);
                let bits = [
                    (ready, lsr::TRANSMITTER_READY | lsr::TRANSMITTER_IDLE),
                    (next.is_some(), lsr::DATA_READY),
                    (broken, lsr::BREAK),
                ];
                bits.into_iter().filter(|(is_set, _)| *is_set).fold(0, |bits, (_, bit)| bits | bit)
            }
            IIR => {
                if self.has_fifo {
                    iir::FIFOS_ON
                } else {
                    0
                }
            }
            DATA => {
                self.has_broken.set(false);
                self.input.borrow_mut().pop_front().flatten().unwrap_or(0)
            }
            _ => 0,
        }
    }

    fn write(&self, register: u16, value: u8) {
        match register {
            LCR => self.latch.set(value & lcr::DIVISOR_LATCH != 0),
            DATA if !self.latch.get() => self.sent.borrow_mut().push(value),
            _ => {}
        }
    }

    fn heed_break(&self) {
        self.breaks.set(self.breaks.get() + 1);
        self.receiver.expect_zero();
    }
}

/// A port that is not there.
struct Nothing;

impl UartPorts for Nothing {
    fn read(&self, _: u16) -> u8 {
        0xff
    }

    fn write(&self, _: u16, _: u8) {}

    fn heed_break(&self) {
        panic!("there is no line");
    }
}

#[test]
fn text_is_sent_as_lines_of_the_wire_when_the_transmitter_takes_it() {
    let script = Script::new(3, true, &[]);
    let mut uart = Uart::program(&script);
    write!(uart, "two\nlines").unwrap();
    assert_eq!(*script.sent.borrow(), b"two\r\nlines");
    assert!(script.looks.get() >= 3 * 10, "a look for each byte at least until it is taken");
    uart.drain();
    assert_eq!(script.looks.get() % 3, 0);
}

#[test]
fn there_is_room_for_a_fifo_or_for_one_byte() {
    for (has_fifo, room) in [(true, FIFO), (false, 1)] {
        let script = Script::new(2, has_fifo, &[]);
        let mut uart = Uart::program(&script);
        assert_eq!(
            [uart.room(), uart.room(), uart.room()],
            [room, 0, room],
            "with a look before, to see that it is there"
        );
    }
}

#[test]
fn a_port_that_is_not_there_takes_everything_and_sends_nothing() {
    let mut uart = Uart::program(Nothing);
    uart.write_bytes(b"text");
    uart.drain();
    assert_ne!(uart.room(), 0);
    assert_eq!(Receiver::new().receive(&Nothing), None);
}

#[test]
fn a_break_is_heeded_once_and_its_zero_is_no_byte() {
    let script = Script::new(1, true, &[Some(b'a'), None, Some(0), Some(b'b')]);
    let received: Vec<_> = (0..5).map(|_| script.receiver.receive(&&script)).collect();
    assert_eq!(received, [Some(b'a'), None, Some(0), Some(b'b'), None]);
    assert_eq!(script.breaks.get(), 1);
}

#[test]
fn a_zero_after_the_receiver_was_empty_is_a_byte() {
    let script = Script::new(1, true, &[]);
    // The break's zero was lost.
    (&script).heed_break();
    assert_eq!(script.receiver.receive(&&script), None);
    script.input.borrow_mut().push_back(Some(0));
    assert_eq!(script.receiver.receive(&&script), Some(0));
}
