//! A guest's local APICs (Intel SDM vol. 3, chapter 11; AMD APM vol. 2, chapter 16), as xAPIC and x2APIC.
//!
//! Each vCPU owns a [`LocalApic`], and shares a [`Posted`] with the other vCPUs: an interrupt to another vCPU is one atomic bit
//! there. There is no lock, and no vCPU waits for another. After posting, the sender must make the target look at its [`Posted`]:
//! it raises a [`Request`] to that vCPU.
//!
//! ```
//! use apic::{Clock, Effect, LocalApic, Posted, Register};
//! # struct Stopped; impl Clock for Stopped { fn nanoseconds(&self) -> u64 { 0 } }
//! let posted = [Posted::new(0), Posted::new(1)];
//! let mut apics = [LocalApic::new(0, &posted[0]), LocalApic::new(1, &posted[1])];
//! for (apic, posted) in apics.iter_mut().zip(&posted) {
//!     apic.write(Register::Spurious, 0x1ff, posted, &Stopped);
//! }
//! apics[0].write(Register::CommandHigh, 1 << 24, &posted[0], &Stopped);
//! let Effect::Send(ipi) = apics[0].write(Register::CommandLow, 0x4030, &posted[0], &Stopped) else { panic!() };
//! apic::deliver(ipi, 0, &posted, |vcpu| assert_eq!(vcpu, 1));
//! assert_eq!(apics[1].acknowledge(&posted[1]), Some(0x30));
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, loom))]
extern crate std;

#[cfg(all(any(test, fuzzing), not(loom)))]
pub mod fuzz;
mod ipi;
mod local;
#[cfg(all(test, loom))]
mod models;
mod posted;
mod register;
mod request;
mod rules;
#[cfg(all(test, not(loom)))]
mod tests;
mod timer;
mod x2apic;

pub use ipi::{Ipi, Message, Trigger, deliver};
pub use local::{Effect, LocalApic};
pub use posted::{Posted, Signals};
pub use register::Register;
pub use request::Request;
pub use timer::Due;
pub use x2apic::InvalidMsrAccess;

/// The clock of APIC timers. It is read only where the time is needed, because reading it may be slow.
pub trait Clock {
    /// Nanoseconds since a fixed moment: the timer's input clock runs at 1 GHz, as KVM's does.
    fn nanoseconds(&self) -> u64;
}
