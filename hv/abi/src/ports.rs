//! I/O ports by which guests and the hypervisor speak to what runs them.

/// The first port of COM1, a 16550: the console.
pub const COM1: u16 = 0x3f8;

/// The registers of the two 8259s: of each the command and behind it the data, which are the masks when it runs.
pub const PICS: [u16; 2] = [0x20, 0xa0];

/// The first of the 8254's three channels; behind them is [`PIT_COMMAND`].
pub const PIT: u16 = 0x40;
/// The third channel's count.
pub const PIT_CHANNEL_2: u16 = PIT + 2;
/// The 8254's control words.
pub const PIT_COMMAND: u16 = PIT + 3;
/// What else the third channel has: its gate ([`PIT_GATE`]), the speaker ([`SPEAKER`]) and its output ([`PIT_OUTPUT`]).
pub const PORT_B: u16 = 0x61;
/// [`PORT_B`]: the third channel counts.
pub const PIT_GATE: u8 = 1 << 0;
/// [`PORT_B`]: the third channel's output goes to the speaker.
pub const SPEAKER: u8 = 1 << 1;
/// [`PORT_B`]: the third channel's output.
pub const PIT_OUTPUT: u8 = 1 << 5;

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
