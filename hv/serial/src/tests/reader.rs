//! A reader of the serial line.

use abi::wire::{END, Part, parse};
use std::vec::Vec;

/// What VM `name` wrote, by the lines on the wire. A last line without an end gets one.
pub(super) fn joined(wire: &[u8], name: Option<&str>) -> Vec<u8> {
    let mut all: Vec<u8> = Vec::new();
    for line in wire.split_inclusive(|&byte| byte == b'\n') {
        let Some((part, text)) = parse(line, name) else { continue };
        if part == Part::Rest {
            let cut = all.strip_suffix(END).expect("what goes on was cut").len();
            all.truncate(cut);
        }
        all.extend(text);
    }
    all
}
