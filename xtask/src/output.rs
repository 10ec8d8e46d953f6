//! The one place that prints.
//!
//! `println!` panics where its stream is closed or full: with `| head -1`, or on a full disk, a run would end by an abort in
//! place of its verdict. What can't be printed is dropped here, and the status tells how it went. Clippy refuses the standard
//! macros elsewhere (`main.rs`).

use std::fmt::Arguments;
use std::io::Write;

/// Prints a line to the standard output, as `println!` does, but never panics.
macro_rules! outln {
    ($($words:tt)*) => { $crate::output::line(&mut std::io::stdout(), format_args!($($words)*)) };
}

/// Prints a line to the standard error, as `eprintln!` does, but never panics.
macro_rules! errln {
    ($($words:tt)*) => { $crate::output::line(&mut std::io::stderr(), format_args!($($words)*)) };
}

pub(crate) use {errln, outln};

/// What the macros expand to.
pub(crate) fn line(to: &mut impl Write, text: Arguments<'_>) {
    let _ = writeln!(to, "{text}");
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    #[test]
    fn a_full_device_is_no_panic() {
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        super::line(&mut full, format_args!("dropped"));
    }
}
