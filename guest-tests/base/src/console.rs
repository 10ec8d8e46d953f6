//! Text on COM1.

use core::fmt;
use core::hint;

use spin::{Mutex, MutexGuard};

use crate::uart;

/// A line, formatted as by `format!`.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::console::print_line(format_args!($($argument)*))
    };
}

struct Console;

static CONSOLE: Mutex<Console> = Mutex::new(Console);

/// How often a processor tries to get the console before it writes anyhow: the one that has it may be broken, or be this
/// one, in a panic amid a line.
const MOST_LOCK_TRIES: u32 = 100_000_000;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(uart::send);
        Ok(())
    }
}

/// Programs the UART.
pub fn init() {
    uart::init();
}

/// Prints `line` and ends it. Lines of several processors come one after the other. Not for interrupt handlers.
pub fn print_line(line: fmt::Arguments<'_>) {
    let _in_turn = take();
    // The console itself never fails; a `Display` that does has said so by stopping there.
    let _ = fmt::write(&mut Console, format_args!("{line}\n"));
}

fn take() -> Option<MutexGuard<'static, Console>> {
    (0..MOST_LOCK_TRIES).find_map(|_| {
        hint::spin_loop();
        CONSOLE.try_lock()
    })
}

/// Waits until all has left the UART, without which an emulator's last byte is lost.
pub fn drain() {
    uart::drain();
}
