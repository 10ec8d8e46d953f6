//! Lines on standard output, each by one system call: those of several processes do not mix.

use core::fmt::{self, Write};

use crate::sys;

/// The longest line; what is longer is cut.
const LONGEST: usize = 240;

struct Line {
    text: [u8; LONGEST],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last byte is kept for the line's end.
        let count = text.len().min(LONGEST - 1 - self.length);
        self.text[self.length..self.length + count].copy_from_slice(&text.as_bytes()[..count]);
        self.length += count;
        Ok(())
    }
}

/// Prints a line.
pub(crate) fn print_line(text: fmt::Arguments<'_>) {
    let mut line = Line { text: [0; LONGEST], length: 0 };
    // `Line` returns no error; a `Display` that does leaves its part out.
    let _ = line.write_fmt(text);
    line.text[line.length] = b'\n';
    sys::write(1, &line.text[..=line.length]);
}

/// Prints a line in `format!`'s manner.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => {
        $crate::console::print_line(format_args!($($text)*))
    };
}
