//! A guest's local APICs (Intel SDM vol. 3, chapter 11; AMD APM vol. 2, chapter 16), as xAPIC and x2APIC.
//!
//! Each vCPU owns a [`LocalApic`], and shows the others a [`Mailbox`]: an interrupt to another vCPU is one atomic bit there.
//! There is no lock, and nobody waits. Who posts something has to see to it that the other vCPU looks (`vm`'s doors do that).
//!
//! ```
//! use apic::{Clock, Effect, LocalApic, Mailbox, Register};
//! # struct Stopped; impl Clock for Stopped { fn nanoseconds(&self) -> u64 { 0 } }
//! let boxes = [Mailbox::new(0), Mailbox::new(1)];
//! let mut apics = [LocalApic::new(0, &boxes[0]), LocalApic::new(1, &boxes[1])];
//! for (apic, mailbox) in apics.iter_mut().zip(&boxes) {
//!     apic.write(Register::Spurious, 0x1ff, mailbox, &Stopped);
//! }
//! apics[0].write(Register::CommandHigh, 1 << 24, &boxes[0], &Stopped);
//! let Effect::Send(ipi) = apics[0].write(Register::CommandLow, 0x4030, &boxes[0], &Stopped) else { panic!() };
//! apic::deliver(ipi, 0, &boxes, |hit| assert_eq!(hit, 1));
//! assert_eq!(apics[1].accept(&boxes[1]), Some(0x30));
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, loom))]
extern crate std;

#[cfg(all(any(test, fuzzing), not(loom)))]
pub mod fuzz;
mod ipi;
mod local;
mod mailbox;
#[cfg(all(test, loom))]
mod models;
mod register;
mod rules;
#[cfg(all(test, not(loom)))]
mod tests;
mod timer;
mod x2apic;

pub use ipi::{Ipi, Message, deliver};
pub use local::{Effect, LocalApic};
pub use mailbox::{Mailbox, Signals};
pub use register::Register;
pub use timer::Due;
pub use x2apic::Refused;

/// What timers are measured by. Asked only by what needs it.
pub trait Clock {
    /// Nanoseconds since some moment: periods of the timer's clock, which runs at 1 GHz as KVM's does.
    fn nanoseconds(&self) -> u64;
}
