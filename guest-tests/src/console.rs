//! Text on COM1.

use core::fmt;

use crate::uart;

/// A line, formatted as by `format!`.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::console::print_line(format_args!($($argument)*))
    };
}

struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(uart::send);
        Ok(())
    }
}

/// Programs the UART.
pub(crate) fn init() {
    uart::init();
}

/// Prints `line` and ends it.
pub fn print_line(line: fmt::Arguments<'_>) {
    // The console itself never fails; a `Display` that does has said so by stopping there.
    let _ = fmt::write(&mut Console, format_args!("{line}\n"));
}

/// Waits until all has left the UART, without which an emulator's last byte is lost.
pub fn drain() {
    uart::drain();
}
