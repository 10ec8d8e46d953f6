//! QEMU's firmware configuration by its two ports (QEMU, docs/specs/fw_cfg).

use crate::port;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;

const KEY_SIGNATURE: u16 = 0;
const KEY_CPUS: u16 = 5;

/// The number of processors; None where no fw_cfg device gives it.
pub fn cpus() -> Option<u16> {
    (item(KEY_SIGNATURE) == *b"QEMU").then(|| u16::from_le_bytes(item(KEY_CPUS)))
}

/// The first bytes of an item.
fn item<const N: usize>(key: u16) -> [u8; N] {
    port::write16(SELECTOR, key);
    core::array::from_fn(|_| port::read8(DATA))
}
