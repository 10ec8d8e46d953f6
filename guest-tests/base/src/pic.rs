//! The pair of 8259A interrupt controllers.
//!
//! Intel 8259A data sheet, figures 7 to 9.

use abi::ports::{ELCRS, ELCRS_WRITABLE, PICS as COMMAND};

use crate::port;

/// The vector of line 0.
pub const VECTOR_BASE: u8 = 0x20;
/// Lines of both controllers.
pub const LINES: u8 = 16;

/// Edge or level register of the first controller: a bit for each line, 1 for level.
pub const ELCR: u16 = ELCRS[0];
/// Bits of [`ELCR`] that can be set.
pub const ELCR_WRITABLE: u8 = ELCRS_WRITABLE[0];

const DATA: [u16; 2] = [COMMAND[0] + 1, COMMAND[1] + 1];
const ICW1_INIT_WITH_ICW4: u8 = 0x11;
const ICW4_8086: u8 = 0x01;
/// The line of the first that the second hangs on.
const CASCADE: u8 = 2;
const OCW2_EOI: u8 = 0x20;
const OCW3_READ_IRR: u8 = 0x0a;
const OCW3_READ_ISR: u8 = 0x0b;

/// Starts both afresh, at vectors 0x20 to 0x2f, all lines masked.
pub fn init() {
    for (chip, icw3) in [1 << CASCADE, CASCADE].into_iter().enumerate() {
        port::write8(COMMAND[chip], ICW1_INIT_WITH_ICW4);
        port::write8(DATA[chip], VECTOR_BASE + 8 * chip as u8);
        port::write8(DATA[chip], icw3);
        port::write8(DATA[chip], ICW4_8086);
        port::write8(DATA[chip], 0xff);
    }
}

/// Lets through `line` of the first controller, and nothing else.
pub fn unmask_only(line: u8) {
    port::write8(DATA[0], !(1 << line));
    port::write8(DATA[1], 0xff);
}

/// Lets through `line` of the second controller, but masks the line of the first that it hangs on: its requests can be seen there.
pub fn unmask_only_second(line: u8) {
    port::write8(DATA[0], 0xff);
    port::write8(DATA[1], !(1 << (line - 8)));
}

/// Masks all lines.
pub fn mask_all() {
    DATA.into_iter().for_each(|data| port::write8(data, 0xff));
}

/// The masks, line 0 in bit 0.
pub fn masks() -> u16 {
    u16::from_le_bytes(DATA.map(port::read8))
}

/// The first controller's requests.
pub fn requested() -> u8 {
    read_back(OCW3_READ_IRR)
}

/// The first controller's lines in service.
pub fn in_service() -> u8 {
    read_back(OCW3_READ_ISR)
}

/// The end of `line`'s interrupt.
pub fn end_of_interrupt(line: u8) {
    if line >= 8 {
        port::write8(COMMAND[1], OCW2_EOI);
    }
    port::write8(COMMAND[0], OCW2_EOI);
}

fn read_back(which: u8) -> u8 {
    port::write8(COMMAND[0], which);
    port::read8(COMMAND[0])
}
