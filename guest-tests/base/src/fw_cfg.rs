//! QEMU's firmware configuration by its two ports (QEMU, docs/specs/fw_cfg).

use abi::ports::fw_cfg::{NB_CPUS, QEMU, SIGNATURE};
use abi::ports::{FW_CFG_DATA, FW_CFG_SELECTOR};

use crate::port;

/// The number of processors; None where no fw_cfg device gives it.
pub fn cpus() -> Option<u16> {
    (item(SIGNATURE) == QEMU).then(|| u16::from_le_bytes(item(NB_CPUS)))
}

/// The first bytes of an item.
fn item<const N: usize>(key: u16) -> [u8; N] {
    port::write16(FW_CFG_SELECTOR, key);
    core::array::from_fn(|_| port::read8(FW_CFG_DATA))
}
