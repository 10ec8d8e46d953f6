//! Measures the frequency of the TSC and of the local APIC's timer by clocks of known frequency: the 8254 and ACPI's PM timer.
//!
//! A measurement can be delayed at any moment: by an SMI, or by the host of an emulator, which runs other processes. Therefore each
//! value is read between two readings of the TSC, which bound the moment at which it was valid, and each window of time gives an
//! interval that contains the TSC's frequency, however long the delays were. The intervals by two references must overlap closely
//! ([`TOLERANCE`]); otherwise a longer window is tried. If they never do, the best result is used, and marked as
//! [doubtful](Quality::Doubtful).
//!
//! ```text
//!         before  value  after                                  before  value  after
//!   TSC  ───┼───────┼──────┼──────────────────────────────────────┼───────┼──────┼───
//!                          ◀──────────── at least ────────────────▶
//!           ◀────────────────────────── at most ─────────────────────────────────▶
//! ```
//!
//! If an emulator derives all reference clocks from one clock of its host, as QEMU does, the references always agree with each
//! other: the agreement then shows that the readings are right, not that the host's clock is.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod calibration;
mod interval;
mod ratio;
#[cfg(test)]
mod tests;

pub use calibration::{Calibration, PIT_RELOAD, Pit, Quality, Reference, TOLERANCE, Timers, calibrate};
pub use ratio::Ratio;
