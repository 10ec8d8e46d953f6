//! How fast a PC's timers count.

/// The clock input of the 8254, a third of NTSC's colour subcarrier: what PCs have always had.
pub const PIT_HERTZ: u32 = 1_193_182;
/// ACPI's PM timer (ACPI specification 6.5, section 4.8.3.3).
pub const PM_TIMER_HERTZ: u32 = 3_579_545;
/// The bits of the PM timer that count everywhere: bits 31:24 are optional.
pub const PM_TIMER_MASK: u32 = 0xff_ffff;
