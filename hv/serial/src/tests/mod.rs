//! Rules of the serial line, with a reader at its other end.

mod reader;
mod rules;

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

/// Sources, and what has been sent of theirs.
struct Machine {
    mux: Mux,
    own: Producer,
    vms: Vec<VmQueues>,
    line: Sent,
    now: u64,
}

const CAPACITY: usize = 1024;

impl Machine {
    /// VMs of these names; None among them is one without.
    fn new(names: &[Option<&str>]) -> Self {
        let (mut mux, own) = Mux::new(CAPACITY);
        let vms = names.iter().map(|name| mux.add_vm(*name, CAPACITY, CAPACITY)).collect();
        Self { mux, own, vms, line: Sent { room: 16, bytes: Vec::new() }, now: 0 }
    }

    /// What VM `vm` prints, as far as there is room.
    fn print(&mut self, vm: usize, bytes: &[u8]) -> usize {
        let output = &mut self.vms[vm].output;
        let room = output.room().min(bytes.len());
        bytes[..room].iter().for_each(|&byte| assert!(output.put(byte)));
        room
    }

    fn log(&mut self, text: &str) {
        self.own.write_lines("hv: ", &text);
    }

    /// Sends as much as there is for now.
    fn send(&mut self) -> &mut Self {
        while self.mux.burst(self.now, &mut self.line) != 0 {}
        self
    }

    /// The same when all that was kept back is due.
    fn send_all(&mut self) -> &mut Self {
        self.send().now += HOLD;
        self.send()
    }

    /// What was sent since this was last asked.
    fn sent(&mut self) -> std::string::String {
        std::string::String::from_utf8(core::mem::take(&mut self.line.bytes)).unwrap()
    }
}
