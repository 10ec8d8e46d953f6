//! I/O ports by which guests and the hypervisor speak to what runs them.

/// The first port of COM1, a 16550: the console.
pub const COM1: u16 = 0x3f8;

/// ACPI's fixed registers, where QEMU's PIIX4 has them (ACPI specification 6.5, section 4.8): status and enable words of the PM1
/// events.
pub const PM1_EVENT: u16 = 0x600;
/// The word of PM1 control. [`S5`] with `SLP_EN` switches the machine off.
pub const PM1_CONTROL: u16 = 0x604;
/// The PM timer: 32 bits wide, of which 24 count.
pub const PM_TIMER: u16 = 0x608;
/// The sleep type that [`PM1_CONTROL`] knows as S5, soft off (the PIIX4's SUS_TYP).
pub const S5: u8 = 0;

/// The reset control register. [`RESET_NOW`] resets the machine.
pub const RESET_CONTROL: u16 = 0xcf9;
/// A hard reset, at once.
pub const RESET_NOW: u8 = 6;

/// Bochs' debug console (`port_e9_hack`): a byte that is written is printed, and a read gives [`DEBUG_CONSOLE_THERE`].
pub const DEBUG_CONSOLE: u16 = 0xe9;
/// What [`DEBUG_CONSOLE`] reads as.
pub const DEBUG_CONSOLE_THERE: u8 = 0xe9;

/// QEMU's `isa-debug-exit` where kvm-unit-tests has it: what is written ends the VM or the machine. A guest writes [`SUCCESS`] or
/// anything else, the hypervisor the number of its [`Verdict`](crate::Verdict).
pub const DEBUG_EXIT: u16 = 0xf4;
/// How many ports [`DEBUG_EXIT`] is.
pub const DEBUG_EXIT_SIZE: u16 = 4;
/// What a guest writes to [`DEBUG_EXIT`] if all is well.
pub const SUCCESS: u32 = 0;

/// QEMU's exit status when `value` is written to [`DEBUG_EXIT`] (hw/misc/debugexit.c). QEMU passes 32 bits to `exit`, of which the
/// system keeps 8.
///
/// ```
/// assert_eq!(abi::ports::exit_status(3), 7);
/// ```
#[must_use]
pub const fn exit_status(value: u32) -> i32 {
    (value << 1 | 1).cast_signed()
}

/// What was written to [`DEBUG_EXIT`], by QEMU's exit status. None: QEMU ended for another reason.
///
/// ```
/// assert_eq!(abi::ports::exit_value(7), Some(3));
/// assert_eq!(abi::ports::exit_value(0), None);
/// ```
#[must_use]
pub const fn exit_value(status: i32) -> Option<u32> {
    if status > 0 && status & 1 == 1 { Some(status.cast_unsigned() >> 1) } else { None }
}

/// Bochs ends when [`SHUTDOWN`] was written here, byte by byte (iodev/unmapped.cc).
pub const BOCHS_SHUTDOWN: u16 = 0x8900;
/// What [`BOCHS_SHUTDOWN`] waits for.
pub const SHUTDOWN: &[u8; 8] = b"Shutdown";
