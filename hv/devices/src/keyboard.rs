//! The keyboard controller (Intel 8042, with IBM's commands), without a keyboard. It answers commands, and can reset the machine.

/// Status: the output buffer is full; the self-test passed; not locked.
mod status {
    pub(super) const OUTPUT_FULL: u8 = 1 << 0;
    pub(super) const SELF_TESTED: u8 = 1 << 2;
    pub(super) const COMMAND: u8 = 1 << 3;
    pub(super) const UNLOCKED: u8 = 1 << 4;
}

/// Commands, written to port 0x64.
mod command {
    pub(super) const READ_MODE: u8 = 0x20;
    pub(super) const WRITE_MODE: u8 = 0x60;
    pub(super) const SELF_TEST: u8 = 0xaa;
    pub(super) const TEST_KEYBOARD: u8 = 0xab;
    pub(super) const READ_OUTPUT_PORT: u8 = 0xd0;
    pub(super) const WRITE_OUTPUT_PORT: u8 = 0xd1;
    /// 0xf0 to 0xff pulse those of the output port's lowest four bits that are clear in the command.
    pub(super) const PULSE: u8 = 0xf0;
}

/// The output port: bit 0 low resets the processor, bit 1 is A20.
const OUTPUT_PORT_RESET: u8 = 1 << 0;
const OUTPUT_PORT: u8 = 0x03;

#[derive(Debug)]
pub(crate) struct Keyboard {
    mode: u8,
    output: Option<u8>,
    /// The command whose data byte is awaited at port 0x60.
    awaits_data: Option<u8>,
    last_was_command: bool,
}

/// Whether the board is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resets(pub(crate) bool);

impl Keyboard {
    pub(crate) const fn new() -> Self {
        Self { mode: 0x03, output: None, awaits_data: None, last_was_command: false }
    }

    /// Reads port 0x64.
    pub(crate) fn status(&self) -> u8 {
        let full = if self.output.is_some() { status::OUTPUT_FULL } else { 0 };
        let command = if self.last_was_command { status::COMMAND } else { 0 };
        full | command | status::SELF_TESTED | status::UNLOCKED
    }

    /// Reads port 0x60.
    pub(crate) fn read_data(&mut self) -> u8 {
        self.output.take().unwrap_or(0)
    }

    /// Writes port 0x60.
    pub(crate) fn write_data(&mut self, value: u8) -> Resets {
        self.last_was_command = false;
        match self.awaits_data.take() {
            Some(command::WRITE_MODE) => self.mode = value,
            Some(command::WRITE_OUTPUT_PORT) => return Resets(value & OUTPUT_PORT_RESET == 0),
            // Data for the keyboard is ignored.
            _ => {}
        }
        Resets(false)
    }

    /// Writes port 0x64.
    pub(crate) fn write_command(&mut self, value: u8) -> Resets {
        self.last_was_command = true;
        self.awaits_data = None;
        match value {
            command::READ_MODE => self.output = Some(self.mode),
            command::SELF_TEST => self.output = Some(0x55),
            command::TEST_KEYBOARD => self.output = Some(0x00),
            command::READ_OUTPUT_PORT => self.output = Some(OUTPUT_PORT),
            command::WRITE_MODE | command::WRITE_OUTPUT_PORT => self.awaits_data = Some(value),
            command::PULSE.. => return Resets(value & OUTPUT_PORT_RESET == 0),
            _ => {}
        }
        Resets(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_never_busy() {
        let mut keyboard = Keyboard::new();
        for value in 0..=255 {
            let _ = keyboard.write_command(value);
            assert_eq!(keyboard.status() & 0x02, 0);
            let _ = keyboard.write_data(value);
            assert_eq!(keyboard.status() & 0x02, 0);
        }
    }

    #[test]
    fn answers_fill_the_output_buffer_until_read() {
        let mut keyboard = Keyboard::new();
        assert_eq!(keyboard.status() & 1, 0);
        for (command, answer) in [(0xaa, 0x55), (0xab, 0x00), (0xd0, 0x03), (0x20, 0x03)] {
            assert_eq!(keyboard.write_command(command), Resets(false));
            assert_eq!(keyboard.status() & 1, 1);
            assert_eq!(keyboard.read_data(), answer);
            assert_eq!(keyboard.status() & 1, 0);
        }
    }

    #[test]
    fn the_mode_is_what_was_written() {
        let mut keyboard = Keyboard::new();
        let _ = keyboard.write_command(0x60);
        let _ = keyboard.write_data(0x45);
        let _ = keyboard.write_command(0x20);
        assert_eq!(keyboard.read_data(), 0x45);
    }

    #[test]
    fn a_pulse_of_bit_0_resets() {
        let mut keyboard = Keyboard::new();
        for value in 0..=255 {
            assert_eq!(keyboard.write_command(value).0, value >= 0xf0 && value & 1 == 0, "{value:#x}");
        }
    }

    #[test]
    fn the_output_port_resets_by_a_low_bit_0() {
        let mut keyboard = Keyboard::new();
        for (value, resets) in [(0x03, false), (0x02, true)] {
            let _ = keyboard.write_command(0xd1);
            assert_eq!(keyboard.write_data(value), Resets(resets));
            assert_eq!(keyboard.write_data(value), Resets(false), "only once");
        }
    }
}
