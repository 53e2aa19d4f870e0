//! What the fuzzer runs: bytes that may be anything, read as a stream of codes.

use super::{decode_codes, encode_codes};

/// Decodes a stream whose bits (u8) and number of codes (u32, at most 2^20) lead the bytes.
///
/// # Panics
/// When a code of more bits comes out, or when the codes that came out are not those of their own stream.
pub fn codes(bytes: &[u8]) {
    let Some((head, stream)) = bytes.split_first_chunk::<5>() else { return };
    let count = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) & 0xF_FFFF;
    let bits = head[0];
    let mut out = vec![0xA5; count as usize];
    if decode_codes(stream, bits, &mut out, &|| Ok(())).is_err() {
        return;
    }
    assert!(out.iter().all(|&code| u32::from(code) >> bits == 0));
    let again = encode_codes(&out, bits, &|| Ok(())).and_then(|stream| {
        let mut again = vec![0; out.len()];
        decode_codes(&stream, bits, &mut again, &|| Ok(())).map(|()| again)
    });
    assert!(again.is_ok_and(|again| again == out), "codes that their own stream does not give back");
}
