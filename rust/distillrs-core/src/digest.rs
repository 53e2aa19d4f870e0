//! The XXH3 digests of files, frames and names.

use twox_hash::{XxHash3_64, XxHash3_128};

/// 64 bits of XXH3 without a seed.
pub(crate) fn xxh3_64(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// 64 bits of XXH3 with a seed.
pub(crate) fn xxh3_64_with_seed(bytes: &[u8], seed: u64) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

/// 128 bits of XXH3 without a seed.
pub(crate) fn xxh3_128(bytes: &[u8]) -> u128 {
    XxHash3_128::oneshot(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Files and random draws depend on these values; they are those of xxHash 0.8's `xxhsum -H3` and `-H2`.
    #[test]
    fn digests_are_those_of_the_reference() {
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(xxh3_64(b"xxhash"), 0xaa4c_2b42_ae6b_13de);
        let long: Vec<u8> = (0..5).flat_map(|_| 0..=255).collect();
        assert_eq!(xxh3_64_with_seed(&long, 7), 0xc7f6_83f9_f97c_c6e6);
        assert_eq!(xxh3_128(b"expert-0"), 0x1ee2_0ff1_c5ef_20ec_f640_0544_8ce9_eee6);
        assert_eq!(xxh3_64_with_seed(b"", 0), xxh3_64(b""));
        assert_eq!(xxh3_128(b""), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
    }
}
