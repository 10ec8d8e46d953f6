//! Seeds that follow from a seed.

/// Seed number `number` of those that follow from `seed`: by SplitMix64's output function, so that neighbours have nothing in common.
pub(crate) fn derive(seed: u32, number: u32) -> u32 {
    let mut z = (u64::from(seed) << 32 | u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ z >> 31) as u32
}
