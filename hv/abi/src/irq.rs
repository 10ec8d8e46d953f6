//! Interrupt lines of a PC, on which a VM's devices and its firmware's tables agree.

/// The interrupt of ACPI events (SCI).
pub const SCI: u8 = 9;
/// The PIT's interrupt.
pub const TIMER: u8 = 0;
/// The PIT's input of the I/O APIC, which a MADT tells by an interrupt source override. The 8259s' cascade has no use for it.
pub const TIMER_PIN: u8 = 2;
/// COM1's interrupt.
pub const COM1: u8 = 4;
/// The keyboard controller's interrupt.
pub const KEYBOARD: u8 = 1;
/// The clock's interrupt.
pub const RTC: u8 = 8;
