//! The devices of one VM behind its bus: what a guest written for a PC, or for KVM, expects to find.
//!
//! [`Board`] is plain data: no allocation after it is made, no formatting, no locks. vCPUs that share it need a lock around it. It has a
//! [`Sink`] for the guest's output and input, and a [`Clock`] for the devices that depend on time:
//!
//! ```
//! use devices::{Clock, Board, BoardConfig, Nanoseconds, Effect, Size};
//!
//! struct Tsc;
//! impl Clock for Tsc {
//!     fn now(&self) -> Nanoseconds {
//!         Nanoseconds(0) // since the VM's start
//!     }
//! }
//! let console = |byte: u8| print!("{}", byte.escape_ascii());
//! let config = BoardConfig { ram_bytes: 64 << 20, cpus: 1, boot_time: 1_700_000_000 };
//! let mut board = Board::new(config, console, Tsc);
//!
//! // An exit for OUT or IN; the value is in the low bits.
//! match board.write(0xf4, Size::Byte, 0) {
//!     Effect::Continue => {}
//!     Effect::Exit(verdict) => assert_eq!(verdict, 0),
//!     Effect::Reset | Effect::PowerOff => {}
//!     // The console is full: the instruction is to be executed again.
//!     Effect::Wait => {}
//! }
//! let value: u32 = board.read(0x4d0, Size::Byte);
//!
//! // An exit for an access to an address without memory. False: no device is there.
//! let is_device: bool = board.write_mmio(addr::Gpa::new(0xfec0_0000), &0x01u32.to_le_bytes());
//!
//! // After each access: the I/O APIC's messages go to the local APICs. They tell the end of level-triggered interrupts.
//! while let Some(message) = board.take_message() {
//!     let vector: u8 = message.vector;
//!     board.eoi(vector);
//! }
//!
//! // Before each entry: inject a pending interrupt of the 8259s. Acknowledge it only when it is really delivered.
//! if board.interrupt_pending() {
//!     let vector: u8 = board.acknowledge_interrupt();
//! }
//! // When the guest must exit at the latest; None if no timer will interrupt it. Call `advance` then, and at the end of a HLT.
//! let deadline = board.next_deadline();
//! board.advance();
//! # let _ = (value, deadline, is_device);
//! ```
//!
//! | port | device |
//! | --- | --- |
//! | 0x20, 0x21, 0xa0, 0xa1 | two 8259 interrupt controllers |
//! | 0x40 to 0x43, 0x61 | 8254 timer, its third channel's gate and output |
//! | 0x60, 0x64 | keyboard controller: no keyboard, reset by command 0xfe |
//! | 0x70, 0x71 | clock, with its interrupts on IRQ 8, and CMOS memory |
//! | 0x80, 0xed | delay ports |
//! | 0x92, 0xcf9 | A20 and reset, reset |
//! | 0xe0 to 0xe7 | QEMU's `pc-testdev`: scratch ports, flush port |
//! | 0xe9 | Bochs' debug console: printed |
//! | 0xf4 to 0xf7 | QEMU's `isa-debug-exit`: ends the guest with the value written |
//! | 0x3f8 to 0x3ff | COM1, a 16550A |
//! | 0x4d0, 0x4d1 | edge/level control registers (ELCR) |
//! | 0x510, 0x511 | QEMU's `fw_cfg`: signature, version, RAM size, number of CPUs |
//! | 0x600 to 0x605 | ACPI's PM1a event and control blocks; its interrupt is IRQ 9 |
//! | 0x608 to 0x60b | ACPI power management timer |
//! | 0xcf8, 0xcfc to 0xcff | PCI configuration: a host bridge, an ISA bridge, power management |
//! | 0x2000 to 0x2017 | `pc-testdev`: interrupt lines |
//!
//! | address | device |
//! | --- | --- |
//! | 0xfec0_0000 | I/O APIC of 24 inputs |
//! | 0xfed0_0000 | high precision event timer (HPET) |
//! | 0xff00_0000 | `pc-testdev`: 4 KiB of memory |
//!
//! The IRQs of an ISA bus go to the 8259s and to the I/O APIC's inputs of the same numbers, but that IRQ 0 goes to input 2.
//!
//! Any other port reads as ones and ignores writes, and is counted. An access of more than a byte to a device of bytes goes to
//! consecutive ports, lowest first, as on an ISA bus.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, doctest))]
extern crate std;

mod board;
mod bus;
mod calendar;
mod clock;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod fw_cfg;
mod hpet;
mod ioapic;
mod keyboard;
mod pci;
mod pic;
mod pit;
mod pm;
mod rtc;
mod sink;
mod testdev;
mod uart;

pub use board::{Board, BoardConfig, Effect, Size};
pub use clock::{Clock, Nanoseconds};
pub use hpet::HPET_CAPABILITIES;
pub use ioapic::{DeliveryMode, DestinationMode, InterruptMessage, Trigger};
pub use sink::Sink;
