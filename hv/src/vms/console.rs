//! VMs on the hypervisor's console: whole lines, which say of which VM they are if there are several.

use crate::console::{print, with_uart};
use alloc::boxed::Box;
use alloc::string::ToString;
use core::fmt;
use devices::LineBuffer;
use loader::VmName;

/// A guest's console.
pub(super) type Console = LineBuffer<256, Box<dyn FnMut(&[u8]) + Send>>;

/// A console whose lines are marked as `name`'s, if there is a need to.
pub(super) fn console(name: Option<VmName>) -> Console {
    LineBuffer::new(Box::new(move |line| {
        with_uart(|uart| {
            if let Some(name) = name {
                uart.write_bytes(name.as_str().as_bytes());
                uart.write_bytes(b"| ");
            }
            uart.write_bytes(line);
        });
    }))
}

/// Prints a text of several lines, each marked as the hypervisor's.
pub(super) fn report(name: Option<VmName>, text: &dyn fmt::Display) {
    for line in text.to_string().lines() {
        match name {
            Some(name) => print(format_args!("hv: {}: {line}\n", name.as_str())),
            None => print(format_args!("hv: {line}\n")),
        }
    }
}
