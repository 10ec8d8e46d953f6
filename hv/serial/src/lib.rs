//! One serial line for the hypervisor's words and every VM's output.
//!
//! Each source has queues of its own, allocated when it is made ([`ring`]). The [`Mux`] takes bytes out of them, line by line
//! and in turn, and sends them by whatever machine there is ([`Transmitter`]):
//!
//! ```text
//!   VM a ── output ──▶ ring ─┐
//!    hypervisor about a ▶ ring ─┤
//!   VM b ── output ──▶ ring ─┼─▶ Mux ──▶ Transmitter        a| booting
//!    hypervisor about b ▶ ring ─┤                            hv: info: 2 CPUs
//!   hypervisor ──────▶ ring ─┘                               b| KTAP version 1
//! ```
//!
//! - A line of the wire belongs wholly to one source. A source that begins a line while another's is open ends that one first, and
//!   the rest of it is marked when it comes ([`abi::wire`]), so that a reader can join the pieces.
//! - The hypervisor's own lines come first. VMs take turns of at most [`QUANTUM`] bytes, so a flood delays another VM's line by
//!   a turn of each other VM.
//! - A VM whose ring is full has to wait ([`Producer::room`]); what is put there regardless is dropped, counted, and told in a
//!   line of its own.
//! - With one VM alone its output goes out as it comes. With several, a line that has no end yet is kept back for [`HOLD`].
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
#[cfg(all(test, not(loom)))]
mod tests;

pub use attention::Attention;
pub use mux::{HOLD, Mux, QUANTUM, Transmitter, VmQueues};
pub use ring::Producer;
