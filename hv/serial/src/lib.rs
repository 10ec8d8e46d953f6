//! Multiplexes the hypervisor's messages and the output of all VMs on one serial line.
//!
//! Each source has queues of its own, allocated when it is added (`ring`). The [`Mux`] takes bytes out of them, line by line
//! and in turn, and sends them by a [`Transmitter`], which is a UART:
//!
//! ```text
//!   VM a ── output ──▶ ring ─┐
//!    hypervisor, on a ─▶ ring ─┤
//!   VM b ── output ──▶ ring ─┼─▶ Mux ──▶ Transmitter        a| booting
//!    hypervisor, on b ─▶ ring ─┤                            hv: info: 2 CPUs
//!   hypervisor ──────▶ ring ─┘                               b| KTAP version 1
//! ```
//!
//! - A line on the wire belongs to one source. If a source begins a line while another source's line is open, the open line is
//!   ended first, and its rest is marked when it follows ([`abi::wire`]), so that a reader can join the pieces.
//! - The hypervisor's own lines come first. VMs take turns of at most [`QUANTUM`] bytes, so that a flood delays another VM's line
//!   by one turn of each other VM.
//! - A VM whose ring is full has to wait ([`Producer::room`]); bytes that are put without room are dropped and counted, and a line
//!   reports their number.
//! - A CPU that panics takes the line from all others ([`Takeover`]).
//! - The output of the only VM is sent at once. With several VMs, a line without an end is held back for [`HOLD`].
//!
//! ```
//! use serial::{Mux, Transmitter};
//!
//! struct Sent(Vec<u8>);
//! impl Transmitter for Sent {
//!     fn room(&mut self) -> usize {
//!         16
//!     }
//!     fn send(&mut self, byte: u8) {
//!         self.0.push(byte);
//!     }
//! }
//! let (mut mux, mut own) = Mux::new(256);
//! let mut vm = mux.add_vm(Some("a"), 256, 256);
//! own.write_lines("hv: ", &"two CPUs");
//! b"hello\n".iter().for_each(|&byte| assert!(vm.output.put(byte)));
//! let mut line = Sent(Vec::new());
//! while mux.burst(0, &mut line) != 0 {}
//! assert_eq!(line.0, b"hv: two CPUs\r\na| hello\n");
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

mod attention;
#[cfg(all(test, loom))]
mod models;
mod mux;
mod ring;
mod rules;
mod takeover;
#[cfg(all(test, not(loom)))]
mod tests;
mod uart;

pub use attention::Attention;
pub use mux::{BUDGET, Burst, HOLD, Mux, QUANTUM, Transmitter, VmQueues};
pub use ring::Producer;
pub use takeover::{Taken, Takeover};
pub use uart::{Receiver, Uart, UartPorts, line_status};
