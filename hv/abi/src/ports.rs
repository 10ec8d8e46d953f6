//! I/O ports by which guests and the hypervisor speak to what runs them.

/// The first port of COM1, a 16550: the console.
pub const COM1: u16 = 0x3f8;

/// The registers of the two 8259s: of each the command and behind it the data, which are the masks when it runs.
pub const PICS: [u16; 2] = [0x20, 0xa0];

/// The two 8259s' edge/level control registers: an input's bit is set if the input is sensitive to level.
pub const ELCRS: [u16; 2] = [0x4d0, 0x4d1];
/// The bits of [`ELCRS`] that can be set. The inputs of timer, keyboard, cascade, clock and coprocessor are always edge-triggered.
pub const ELCRS_WRITABLE: [u8; 2] = [0xf8, 0xde];

/// The keyboard controller's data.
pub const KEYBOARD_DATA: u16 = 0x60;
/// The keyboard controller's commands, and its status.
pub const KEYBOARD_COMMAND: u16 = 0x64;

/// The clock's and CMOS memory's register number, behind which is its content.
pub const RTC: u16 = 0x70;
/// The clock's register for the century.
pub const RTC_CENTURY: u8 = 0x32;

/// The first of the 8254's three channels; behind them is [`PIT_COMMAND`].
pub const PIT: u16 = 0x40;
/// The third channel's count.
pub const PIT_CHANNEL_2: u16 = PIT + 2;
/// The 8254's control words.
pub const PIT_COMMAND: u16 = PIT + 3;
/// A control word: the third channel's count follows, its low byte first, and its output rises at the count's end (mode 0).
pub const PIT_CHANNEL_2_ONCE: u8 = 0xb0;
/// A control word: the third channel's count is latched.
pub const PIT_CHANNEL_2_LATCH: u8 = 0x80;
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

/// PCI's configuration address, a dword (PCI 2.3, section 3.2.2.3.2).
pub const PCI_ADDRESS: u16 = 0xcf8;
/// PCI's configuration data, a dword.
pub const PCI_DATA: u16 = 0xcfc;

/// The reset control register, a byte of [`PCI_ADDRESS`]. [`RESET_NOW`] resets the machine.
pub const RESET_CONTROL: u16 = 0xcf9;
/// A hard reset, at once.
pub const RESET_NOW: u8 = 6;

/// Bochs' debug console (`port_e9_hack`): a byte that is written is printed, and a read gives [`DEBUG_CONSOLE_THERE`].
pub const DEBUG_CONSOLE: u16 = 0xe9;
/// What [`DEBUG_CONSOLE`] reads as.
pub const DEBUG_CONSOLE_THERE: u8 = 0xe9;

/// QEMU's `isa-debug-exit` where kvm-unit-tests has it: what is written ends the VM or the machine. A guest writes the number of its
/// [`GuestStatus`](crate::GuestStatus), the hypervisor that of its [`Verdict`](crate::Verdict).
pub const DEBUG_EXIT: u16 = 0xf4;
/// How many ports [`DEBUG_EXIT`] is.
pub const DEBUG_EXIT_SIZE: u16 = 4;
/// What a guest writes to [`DEBUG_EXIT`] if all is well: [`GuestStatus::Passed`](crate::GuestStatus::Passed).
pub const SUCCESS: u32 = crate::GuestStatus::Passed as u32;

/// QEMU's firmware configuration (docs/specs/fw_cfg): the number of an item, a word, of which [`fw_cfg`] has some.
pub const FW_CFG_SELECTOR: u16 = 0x510;
/// The next byte of the item.
pub const FW_CFG_DATA: u16 = 0x511;

/// Items of QEMU's firmware configuration.
pub mod fw_cfg {
    /// It is [`QEMU`].
    pub const SIGNATURE: u16 = 0x00;
    /// What [`SIGNATURE`] reads as.
    pub const QEMU: [u8; 4] = *b"QEMU";
    /// The features that the device has.
    pub const ID: u16 = 0x01;
    /// Bytes of RAM.
    pub const RAM_SIZE: u16 = 0x03;
    /// The number of processors.
    pub const NB_CPUS: u16 = 0x05;
    /// The most that the number of processors can become.
    pub const MAX_CPUS: u16 = 0x0f;
}

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
