//! Rules of the serial line, checked by a reader at its other end.

mod reader;
mod rules;
mod takeover;
mod uart;

use crate::{HOLD, Mux, Producer, Transmitter, VmQueues};
use std::vec::Vec;

/// A line that takes `room` bytes at a time.
struct Sent {
    room: usize,
    bytes: Vec<u8>,
}

impl Transmitter for Sent {
    fn room(&mut self) -> usize {
        self.room
    }

    fn send(&mut self, byte: u8) {
        self.bytes.push(byte);
    }
}

/// A multiplexer, its sources, and the bytes on the wire.
struct Console {
    mux: Mux,
    own: Producer,
    vms: Vec<VmQueues>,
    line: Sent,
    now: u64,
}

const CAPACITY: usize = 1024;

impl Console {
    /// A console with VMs of these names; None is a VM without a name.
    fn new(names: &[Option<&str>]) -> Self {
        let (mut mux, own) = Mux::new(CAPACITY);
        let vms = names.iter().map(|name| mux.add_vm(*name, CAPACITY, CAPACITY)).collect();
        Self { mux, own, vms, line: Sent { room: 16, bytes: Vec::new() }, now: 0 }
    }

    /// VM `vm` prints `bytes`, as far as there is room. Returns the number of bytes.
    fn print(&mut self, vm: usize, bytes: &[u8]) -> usize {
        let output = &mut self.vms[vm].output;
        let room = output.room().min(bytes.len());
        bytes[..room].iter().for_each(|&byte| assert!(output.put(byte)));
        room
    }

    fn log(&mut self, text: &str) {
        self.own.write_lines("hv: ", &text);
    }

    /// Sends all bytes that are due.
    fn send(&mut self) -> &mut Self {
        while self.mux.burst(self.now, &mut self.line) != 0 {}
        self
    }

    /// Sends all bytes, also those that are held back.
    fn send_all(&mut self) -> &mut Self {
        self.send().now += HOLD;
        self.send()
    }

    /// The bytes that were sent since the last call.
    fn sent(&mut self) -> std::string::String {
        std::string::String::from_utf8(core::mem::take(&mut self.line.bytes)).unwrap()
    }
}
