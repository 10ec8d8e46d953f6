//! QEMU's `fw_cfg` by its two ports (QEMU, docs/specs/fw_cfg): the few items that guests without firmware ask for.
//!
//! Writing a word to 0x510 selects an item; its bytes are then read one by one from 0x511. An item that is not there, and
//! what comes after an item's end, reads as zeros. There is no DMA interface.

use crate::BoardConfig;
use abi::ports::fw_cfg::{self as key, QEMU};

/// Feature bits of the ID item: the traditional interface, and no DMA.
const ID: u32 = 1;

#[derive(Debug)]
pub(crate) struct FwCfg {
    ram_bytes: u64,
    cpus: u16,
    /// What is still to be read of the selected item, the next byte lowest.
    rest: u64,
}

impl FwCfg {
    pub(crate) const fn new(config: &BoardConfig) -> Self {
        Self { ram_bytes: config.ram_bytes, cpus: config.cpus, rest: 0 }
    }

    /// Selects an item.
    pub(crate) fn select(&mut self, key: u16) {
        self.rest = match key {
            key::SIGNATURE => u32::from_le_bytes(QEMU).into(),
            key::ID => ID.into(),
            key::RAM_SIZE => self.ram_bytes,
            key::NB_CPUS | key::MAX_CPUS => self.cpus.into(),
            _ => 0,
        };
    }

    /// Reads the item's next byte.
    pub(crate) fn read(&mut self) -> u8 {
        let byte = self.rest as u8;
        self.rest >>= 8;
        byte
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: u16) -> [u8; 10] {
        let mut fw_cfg = FwCfg::new(&BoardConfig { ram_bytes: 0x1_2345_6000, cpus: 0x102, boot_time: 0 });
        fw_cfg.select(key);
        core::array::from_fn(|_| fw_cfg.read())
    }

    #[test]
    fn items_are_little_endian_and_end_in_zeros() {
        assert_eq!(&item(0), b"QEMU\0\0\0\0\0\0");
        assert_eq!(item(1), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(item(3), [0x00, 0x60, 0x45, 0x23, 0x01, 0, 0, 0, 0, 0]);
        assert_eq!(item(5), [2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(item(0x19), [0; 10], "no files");
    }
}
