//! What the fuzzer runs: bytes that may be anything, read as a chain of payloads.

use super::{CodecSpec, DecodeError, Dtype, decode};

/// Decodes all payloads of a chain whose description leads the bytes: codec (2 bits), `f64` (1 bit), elements (u16),
/// size of the first tensor (u16), then payloads, each behind its length (u16).
///
/// # Panics
/// When decoding reports damage in a payload that the chain does not have, or refuses arguments that are sound.
pub fn codec(bytes: &[u8]) {
    let Some((head, mut rest)) = bytes.split_first_chunk::<5>() else { return };
    let every = CodecSpec::DeltaInt8 { keyframe_every: 4 };
    let specs = [every, CodecSpec::HalfDelta, CodecSpec::Lossless { keyframe_every: 4 }, CodecSpec::Raw];
    let spec = &specs[usize::from(head[0] & 3)];
    let dtype = if head[0] & 4 == 0 { Dtype::F32 } else { Dtype::F64 };
    let elements = usize::from(u16::from_le_bytes([head[1], head[2]]));
    let first = usize::from(u16::from_le_bytes([head[3], head[4]])).min(elements);
    let mut chain = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(behind.len());
        let (payload, behind) = behind.split_at(length);
        chain.push(payload);
        rest = behind;
    }
    let mut out = vec![vec![0; elements * dtype.size()]; chain.len()];
    let mut wanted: Vec<(usize, &mut [u8])> = out.iter_mut().map(Vec::as_mut_slice).enumerate().collect();
    match decode(spec, dtype, elements, &[first, elements - first], &chain, &mut wanted) {
        Ok(()) => {}
        Err(DecodeError::Damaged(damage)) => assert!(damage.index < chain.len()),
        Err(DecodeError::Argument(error)) => panic!("{error}"),
    }
}
