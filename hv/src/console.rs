//! The machine's console: COM1, polled, and `log` on top of it.
//!
//! Guests' output goes to the same port, line by line, so that no line of theirs is cut by one of ours.

use core::fmt::{self, Write};
use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;
use x86::io::{inb, outb};

/// COM1's first port: a 16550, or what the machine gives for one.
const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_READY: u8 = 1 << 5;
const TRANSMITTER_IDLE: u8 = 1 << 6;

/// The polled 16550. A port that never gets ready (there is none) is given up on, rather than waited for.
pub(crate) struct Uart {
    present: bool,
}

impl Uart {
    /// 115200 baud, 8 data bits, no parity, one stop bit, FIFOs on, no interrupts (PC16550D data sheet, section 8).
    fn program(&mut self) {
        const LINE_SETTINGS: [(u16, u8); 7] =
            [(1, 0x00), (3, 0x80), (0, 0x01), (1, 0x00), (3, 0x03), (2, 0xc7), (4, 0x03)];
        for (offset, value) in LINE_SETTINGS {
            // SAFETY: COM1's registers are the console's alone.
            unsafe { outb(COM1 + offset, value) };
        }
        // SAFETY: as above; the read has no effect but to clear error bits.
        self.present = unsafe { inb(LINE_STATUS) } != 0xff;
    }

    fn wait_for(&self, bit: u8) {
        // SAFETY: as in `program`.
        while self.present && unsafe { inb(LINE_STATUS) } & bit == 0 {
            core::hint::spin_loop();
        }
    }

    /// Sends `bytes` as they are.
    pub(crate) fn write_bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.wait_for(TRANSMITTER_READY);
            // SAFETY: as in `program`.
            unsafe { outb(COM1, byte) };
        }
    }
}

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    self.write_bytes(line.as_bytes());
                    self.write_bytes(b"\r\n");
                }
                None => self.write_bytes(line.as_bytes()),
            }
        }
        Ok(())
    }
}

static UART: Mutex<Uart> = Mutex::new(Uart { present: false });

struct ConsoleLog;

impl Log for ConsoleLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str();
            print(format_args!("hv: {}: {}\n", Lower(level), record.args()));
        }
    }

    fn flush(&self) {
        UART.lock().wait_for(TRANSMITTER_IDLE);
    }
}

/// A level's name as the command line spells it.
struct Lower(&'static str);

impl fmt::Display for Lower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| f.write_char(c.to_ascii_lowercase()))
    }
}

/// Programs the port and makes it `log`'s destination.
pub(crate) fn init(level: LevelFilter) {
    UART.lock().program();
    // The only error is a second logger: `init` is called once, at boot.
    let _ = log::set_logger(&ConsoleLog);
    log::set_max_level(level);
}

/// Runs `write` with the port held.
pub(crate) fn with_uart<R>(write: impl FnOnce(&mut Uart) -> R) -> R {
    write(&mut UART.lock())
}

/// Prints without a level: the reports that every run shows.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    with_uart(|uart| {
        // A `Uart` never returns an error.
        let _ = uart.write_fmt(text);
    });
}

/// Lets a dying hypervisor speak, whoever holds the port.
///
/// # Safety
/// No other CPU may be running the hypervisor any more, and the caller never returns to the holder.
pub(crate) unsafe fn seize() {
    // SAFETY: passed on to the caller.
    unsafe { UART.force_unlock() };
}

/// Waits until the last byte has left the port: an emulator that ends before loses it.
pub(crate) fn drain() {
    log::logger().flush();
}

/// A line of the hypervisor's report, marked as its own.
macro_rules! report {
    ($($arg:tt)*) => { $crate::console::print(format_args!("hv: {}\n", format_args!($($arg)*))) };
}
pub(crate) use report;
