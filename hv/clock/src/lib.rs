//! How fast the TSC and the local APIC's timer are, by the clocks whose frequency is known: the 8254 and ACPI's PM timer.
//!
//! A measurement can be held up at any moment: by an SMI, or because the machine is an emulator's and shares its processors.
//! So each value is read between two readings of the TSC, which bound the moment at which it was true, and each window of time
//! gives an interval that contains the TSC's frequency, however long the hold-ups were. The intervals by two references have to
//! overlap, and to do so closely ([`TOLERANCE`]); else a longer window is tried. What is still in doubt at the end is used, but
//! [told](Quality::Doubtful).
//!
//! ```text
//!         before  value  after                                  before  value  after
//!   TSC  ───┼───────┼──────┼──────────────────────────────────────┼───────┼──────┼───
//!                          ◀──────────── at least ────────────────▶
//!           ◀────────────────────────── at most ─────────────────────────────────▶
//! ```
//!
//! An emulator whose reference clocks are all made from one clock of its host (QEMU's are) can't contradict itself: there the
//! agreement shows that the readings are sound, not that the host's clock is.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod calibration;
mod interval;
mod ratio;
#[cfg(test)]
mod tests;

pub use calibration::{Calibration, Machine, PIT_RELOAD, Pit, Quality, Reference, TOLERANCE, calibrate};
pub use ratio::Ratio;
