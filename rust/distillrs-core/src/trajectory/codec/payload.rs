//! The 16 bytes in front of every encoded record, and what decoding says of bytes that contradict them.

use std::path::PathBuf;

use super::{Dtype, RecordKind};
use crate::Error;

/// Bytes in front of a payload's body.
pub const HEADER: usize = 16;

const VERSION: u8 = 0;

/// Bytes of an encoded record that contradict the format or the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Position in the chain of the payload at fault.
    pub index: usize,
    /// Byte in that payload.
    pub offset: usize,
    /// What contradicts what.
    pub reason: String,
}

/// Why a chain could not be decoded.
#[derive(Debug)]
pub enum DecodeError {
    /// A payload is damaged.
    Damaged(Damage),
    /// The caller asked for what the chain cannot give.
    Argument(Error),
}

impl From<Damage> for DecodeError {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

impl DecodeError {
    /// The core's error; `locate` gives the file of a payload by its position in the chain, and its first byte there.
    pub fn at(self, locate: impl FnOnce(usize) -> (PathBuf, u64)) -> Error {
        match self {
            Self::Argument(error) => error,
            Self::Damaged(Damage { index, offset, reason }) => {
                let (path, start) = locate(index);
                Error::StoreCorrupt { path, offset: start.saturating_add(offset as u64), reason }
            }
        }
    }
}

/// Appends a header: codec, kind, dtype, version, 4 zero bytes, elements (u64).
pub(super) fn write_header(out: &mut Vec<u8>, codec: u8, kind: RecordKind, dtype: Dtype, elements: usize) {
    out.extend_from_slice(&[codec, u8::from(kind.is_delta()), dtype.code(), VERSION, 0, 0, 0, 0]);
    out.extend_from_slice(&(elements as u64).to_le_bytes());
}

/// Splits a payload into kind (true: delta) and body after checking the header against the schema.
pub(super) fn split(
    payload: &[u8],
    index: usize,
    codec: u8,
    dtype: Dtype,
    elements: usize,
) -> Result<(bool, &[u8]), Damage> {
    let damage = |offset: usize, reason: String| Damage { index, offset, reason };
    let Some((header, body)) = payload.split_at_checked(HEADER) else {
        return Err(damage(payload.len(), format!("an encoded record of {} bytes has no header", payload.len())));
    };
    let expected = [(0, "codec", codec), (2, "dtype", dtype.code()), (3, "payload version", VERSION)];
    for (offset, what, value) in expected {
        if header[offset] != value {
            return Err(damage(offset, format!("{what} {} where the schema has {value}", header[offset])));
        }
    }
    if header[1] > 1 {
        return Err(damage(1, format!("record kind {} is neither keyframe nor delta", header[1])));
    }
    if let Some(position) = header[4..8].iter().position(|&byte| byte != 0) {
        return Err(damage(4 + position, "a reserved byte is not zero".into()));
    }
    let mut count = [0; 8];
    count.copy_from_slice(&header[8..]);
    let count = u64::from_le_bytes(count);
    if count != elements as u64 {
        return Err(damage(8, format!("{count} elements where the schema has {elements}")));
    }
    Ok((header[1] == 1, body))
}

/// Checks the length of the body behind a header.
pub(super) fn expect_body(body: &[u8], index: usize, due: usize) -> Result<(), Damage> {
    expect_raw(body, index, due).map_err(|damage| Damage { offset: HEADER + damage.offset, ..damage })
}

/// Checks the length of a record without a header.
pub(super) fn expect_raw(record: &[u8], index: usize, due: usize) -> Result<(), Damage> {
    if record.len() == due {
        return Ok(());
    }
    let reason = format!("a body of {} bytes where {due} are due", record.len());
    Err(Damage { index, offset: record.len().min(due), reason })
}
