//! Port I/O.

use guest::boot::Boot;
use guest::ktap::Outcome;
use guest::pic::{ELCR, ELCR_WRITABLE};
use guest::port::{read8, read16, read32, write8, write16, write32};
use guest::{check_eq, uart};

/// Four ports that no PC has a device at.
pub(crate) const UNCLAIMED: u16 = 0x2f0;

pub(crate) fn scratch_register_keeps_its_byte(_: &Boot) -> Outcome {
    for byte in [0x00, 0x5a, 0xa5, 0xff] {
        write8(uart::SCRATCH, byte);
        check_eq!(read8(uart::SCRATCH), byte);
    }
    Ok(())
}

pub(crate) fn elcr_keeps_its_bits(_: &Boot) -> Outcome {
    let before = read8(ELCR);
    for bits in [ELCR_WRITABLE, 0x20, 0] {
        write8(ELCR, bits);
        check_eq!(read8(ELCR), bits);
    }
    write8(ELCR, before);
    check_eq!(read8(ELCR), before);
    Ok(())
}

pub(crate) fn unclaimed_port_reads_ones(_: &Boot) -> Outcome {
    write8(UNCLAIMED, 0);
    check_eq!(read8(UNCLAIMED), 0xff);
    write16(UNCLAIMED, 0);
    check_eq!(read16(UNCLAIMED), 0xffff);
    write32(UNCLAIMED, 0);
    check_eq!(read32(UNCLAIMED), 0xffff_ffff);
    Ok(())
}

/// Two ports of one byte each, taken as one word: modem status, which ignores what is written, and scratch.
pub(crate) fn word_spans_two_ports(_: &Boot) -> Outcome {
    let modem = read8(uart::MODEM_STATUS);
    for scratch in [0x5a, 0xa5] {
        let word = u16::from_le_bytes([modem, scratch]);
        write16(uart::MODEM_STATUS, word);
        check_eq!(read8(uart::SCRATCH), scratch);
        check_eq!(read16(uart::MODEM_STATUS), word);
    }
    Ok(())
}
