//! What `xtask` types on COM1 for the guest `keys`, which compares it.

/// How many bytes: many times what a UART holds.
pub const BYTES: usize = 16 << 10;

/// The byte at this place, counted from 0. Each value occurs, and bytes that are lost, doubled or exchanged are noticed, however many.
#[must_use]
pub const fn byte(at: usize) -> u8 {
    (at ^ at >> 8).wrapping_mul(0x9d) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn each_value_occurs_and_no_shift_by_a_fifo_is_the_same() {
        let all: Vec<u8> = (0..BYTES).map(byte).collect();
        assert!((0..=255).all(|value| all.contains(&value)));
        for lost in 1..=1024 {
            assert!(all[lost..][..256] != all[..256], "{lost}");
        }
    }
}
