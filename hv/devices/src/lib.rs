//! The devices of one VM behind its port I/O bus: what a guest written for a PC, or for KVM, expects to find.
//!
//! [`Machine`] is plain data: no allocation, no formatting, no locks. Who shares it between vCPUs locks it. It is given a
//! [`Sink`] for what the guest prints and a [`Clock`] for the devices that tell time:
//!
//! ```
//! use devices::{Clock, Machine, MachineConfig, Nanoseconds, Outcome, Size};
//!
//! struct Tsc;
//! impl Clock for Tsc {
//!     fn now(&self) -> Nanoseconds {
//!         Nanoseconds(0) // since the VM's start
//!     }
//! }
//! let console = |byte: u8| print!("{}", byte.escape_ascii());
//! let config = MachineConfig { ram_bytes: 64 << 20, cpus: 1, boot_time: 1_700_000_000 };
//! let mut machine = Machine::new(config, console, Tsc);
//!
//! // An exit for OUT or IN; the value is in the low bits.
//! match machine.write(0xf4, Size::Byte, 0) {
//!     Outcome::Continue => {}
//!     Outcome::Exit(verdict) => assert_eq!(verdict, 0),
//!     Outcome::Reset => {}
//!     // The console is full: the instruction is to be executed again.
//!     Outcome::Wait => {}
//! }
//! let value: u32 = machine.read(0x4d0, Size::Byte);
//!
//! // Before each entry: is there an interrupt to inject? Acknowledge only when it is really delivered.
//! if machine.interrupt_pending() {
//!     let vector: u8 = machine.acknowledge_interrupt();
//! }
//! // When the guest must be left at the latest, None if no timer will interrupt it; then, and on waking from HLT:
//! let deadline = machine.next_deadline();
//! machine.advance();
//! # let _ = (value, deadline);
//! ```
//!
//! | port | device |
//! | --- | --- |
//! | 0x20, 0x21, 0xa0, 0xa1 | two 8259 interrupt controllers |
//! | 0x40 to 0x43, 0x61 | 8254 timer, its third channel's gate and output |
//! | 0x60, 0x64 | keyboard controller: no keyboard, reset by command 0xfe |
//! | 0x70, 0x71 | clock and CMOS memory |
//! | 0x80, 0xed | written for delay |
//! | 0x92, 0xcf9 | A20 and reset, reset |
//! | 0xe9 | Bochs' debug console: printed |
//! | 0xf4 | QEMU's `isa-debug-exit`: ends the guest with the value written |
//! | 0x3f8 to 0x3ff | COM1, a 16550A |
//! | 0x4d0, 0x4d1 | edge or level (ELCR) |
//! | 0x510, 0x511 | QEMU's `fw_cfg`: signature, version, RAM size, number of CPUs |
//! | 0x608 | ACPI power management timer |
//! | 0xcf8, 0xcfc to 0xcff | PCI configuration: no devices |
//!
//! Any other port reads as ones and ignores writes, and is counted. An access of more than a byte to a device of bytes goes to
//! consecutive ports, lowest first, as on an ISA bus.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, doctest))]
extern crate std;

mod clock;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod fw_cfg;
mod keyboard;
mod machine;
mod pic;
mod pit;
mod rtc;
mod sink;
mod uart;

pub use clock::{Clock, Nanoseconds};
pub use machine::{Machine, MachineConfig, Outcome, Size};
pub use sink::Sink;
