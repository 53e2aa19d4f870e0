//! Frames of a log: a header of 64 bytes and a payload, both on 64-byte borders, little endian.
//!
//! The header carries a checksum of itself and the payload's; a record's payload begins with a table that carries the
//! checksum of every column. So the header vouches for the table and the table for the data, and a reader can check one
//! column without touching the others.

use crate::digest::{xxh3_64, xxh3_64_with_seed};

use super::codec::{CodecError, RecordKind};

/// Frames and columns begin at multiples of this.
pub const ALIGNMENT: u64 = 64;
/// Bytes of a frame's header, and of one column's entry in a record's table.
pub const HEADER_BYTES: usize = 64;
/// Version that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u16 = 0;

const MAGIC: [u8; 4] = *b"DTLG";

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Schema and metadata, JSON. The first frame.
    Header = 1,
    /// The key. The second frame; the key is in the first one too, so that one lost frame loses neither.
    Begin = 2,
    /// One record.
    Record = 3,
    /// The trajectory ended; the step is its length.
    Complete = 4,
    /// A step that a repair dropped.
    Missing = 5,
}

impl FrameKind {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Header, Self::Begin, Self::Record, Self::Complete, Self::Missing]
            .into_iter()
            .find(|kind| *kind as u8 == code)
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What follows.
    pub kind: FrameKind,
    /// Columns in a record's table.
    pub columns: u16,
    /// Number of the log; tells its frames from copies of other logs' in column data.
    pub log: u64,
    /// Where in the log the header lies, for the same reason.
    pub offset: u64,
    /// Step of a record; length of a complete trajectory.
    pub step: u64,
    /// Lowest step that a record's columns are a difference to; the own step if none.
    pub base: u64,
    /// Bytes of the payload without its padding.
    pub payload_length: u64,
    /// xxh3-64 of a record's table, or of the whole payload of another kind.
    pub payload_digest: u64,
}

/// Why 64 bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAHeader {
    /// Another magic or checksum.
    Damaged,
    /// A sound header of a later version.
    Version(u16),
}

fn u64_at(bytes: &[u8; HEADER_BYTES], position: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[position..position + 8]);
    u64::from_le_bytes(word)
}

impl FrameHeader {
    /// A header whose payload is `payload`: a record's table, the whole of another kind.
    pub fn new(kind: FrameKind, log: u64, offset: u64, step: u64, payload: &[u8]) -> Self {
        let payload_length = payload.len() as u64;
        Self { kind, columns: 0, log, offset, step, base: step, payload_length, payload_digest: xxh3_64(payload) }
    }

    /// The header as bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[6] = self.kind as u8;
        bytes[8..10].copy_from_slice(&self.columns.to_le_bytes());
        let words = [self.log, self.offset, self.step, self.base, self.payload_length];
        for (position, word) in words.into_iter().enumerate() {
            bytes[12 + 8 * position..20 + 8 * position].copy_from_slice(&word.to_le_bytes());
        }
        bytes[52..60].copy_from_slice(&self.payload_digest.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`NotAHeader`]; never for bytes that [`FrameHeader::encode`] gave.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, NotAHeader> {
        let checksum = u32::from_le_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]);
        if bytes[..4] != MAGIC || crc32fast::hash(&bytes[..60]) != checksum {
            return Err(NotAHeader::Damaged);
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version > FORMAT_VERSION {
            return Err(NotAHeader::Version(version));
        }
        let reserved = [bytes[7], bytes[10], bytes[11]];
        let kind = FrameKind::from_code(bytes[6]).filter(|_| reserved == [0; 3]).ok_or(NotAHeader::Damaged)?;
        Ok(Self {
            kind,
            columns: u16::from_le_bytes([bytes[8], bytes[9]]),
            log: u64_at(bytes, 12),
            offset: u64_at(bytes, 20),
            step: u64_at(bytes, 28),
            base: u64_at(bytes, 36),
            payload_length: u64_at(bytes, 44),
            payload_digest: u64_at(bytes, 52),
        })
    }

    /// Where the payload ends; `None` past the end of numbers.
    pub fn payload_end(&self) -> Option<u64> {
        self.offset.checked_add(HEADER_BYTES as u64)?.checked_add(self.payload_length)
    }
}

/// The next multiple of [`ALIGNMENT`].
pub fn align(offset: u64) -> Option<u64> {
    Some(offset.checked_add(ALIGNMENT - 1)? / ALIGNMENT * ALIGNMENT)
}

/// One column of a record, as its table says it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ColumnEntry {
    /// Bytes stored.
    pub length: u64,
    /// Rows of a ragged record; else 0.
    pub rows: u64,
    /// Whether it stands alone.
    pub kind: RecordKind,
    /// [`record_digest`] of the bytes.
    pub digest: u64,
    /// Code of the codec, to be compared with the schema's.
    pub codec: u8,
    /// Error of the codec over the trajectory up to this record.
    pub error: CodecError,
}

impl ColumnEntry {
    /// The entry as bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let (is_delta, base) = match self.kind {
            RecordKind::Keyframe => (0, 0),
            RecordKind::Delta { base } => (1, base),
        };
        let words = [
            self.length,
            self.rows,
            base,
            self.digest,
            u64::from(self.codec) | is_delta << 8,
            self.error.max.to_bits(),
            self.error.mean.to_bits(),
            self.error.records,
        ];
        let mut bytes = [0; HEADER_BYTES];
        for (target, word) in bytes.chunks_exact_mut(8).zip(words) {
            target.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads an entry of the record of `step`; `None` if it contradicts itself.
    pub fn decode(bytes: &[u8; HEADER_BYTES], step: u64) -> Option<Self> {
        let base = u64_at(bytes, 16);
        let flags = u64_at(bytes, 32);
        let kind = match flags >> 8 {
            0 if base == 0 => RecordKind::Keyframe,
            1 if base < step => RecordKind::Delta { base },
            _ => return None,
        };
        Some(Self {
            length: u64_at(bytes, 0),
            rows: u64_at(bytes, 8),
            kind,
            digest: u64_at(bytes, 24),
            codec: (flags & 0xff) as u8,
            error: CodecError {
                max: f64::from_bits(u64_at(bytes, 40)),
                mean: f64::from_bits(u64_at(bytes, 48)),
                records: u64_at(bytes, 56),
            },
        })
    }
}

/// Checksum of one column of one record: xxh3-64 of its bytes, seeded with where they belong.
///
/// The seed is xxh3-64 of step, rows, and base + 1 (0 for a keyframe) as three little-endian u64. So bytes of another
/// step, or with a changed number of rows or base, do not pass.
pub fn record_digest(bytes: &[u8], step: u64, rows: u64, kind: RecordKind) -> u64 {
    let base = match kind {
        RecordKind::Keyframe => 0,
        RecordKind::Delta { base } => base.wrapping_add(1),
    };
    let mut place = [0; 24];
    for (target, word) in place.chunks_exact_mut(8).zip([step, rows, base]) {
        target.copy_from_slice(&word.to_le_bytes());
    }
    xxh3_64_with_seed(bytes, xxh3_64(&place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> FrameHeader {
        FrameHeader {
            kind: FrameKind::Record,
            columns: 2,
            log: 7,
            offset: 128,
            step: 3,
            base: 1,
            payload_length: 1000,
            payload_digest: 99,
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let bytes = header().encode();
        assert_eq!(FrameHeader::decode(&bytes), Ok(header()));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&flipped), Err(NotAHeader::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let mut bytes = header().encode();
        bytes[4] = 9;
        let checksum = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(FrameHeader::decode(&bytes), Err(NotAHeader::Version(9)));
    }

    #[test]
    fn ends_past_the_range_of_numbers_are_none() {
        assert_eq!(FrameHeader { payload_length: u64::MAX, ..header() }.payload_end(), None);
        assert_eq!(align(u64::MAX), None);
        assert_eq!((align(0), align(1), align(64)), (Some(0), Some(64), Some(64)));
    }

    #[test]
    fn a_digest_belongs_to_its_place() {
        let bytes = [1, 2, 3, 4];
        let digests = [
            record_digest(&bytes, 0, 0, RecordKind::Keyframe),
            record_digest(&bytes, 1, 0, RecordKind::Keyframe),
            record_digest(&bytes, 1, 1, RecordKind::Keyframe),
            record_digest(&bytes, 1, 0, RecordKind::Delta { base: 0 }),
        ];
        for (index, digest) in digests.iter().enumerate() {
            assert!(!digests[..index].contains(digest));
        }
    }

    proptest! {
        #[test]
        fn entries_read_back(length: u64, rows: u64, digest: u64, codec: u8, base in 0u64..9, delta: bool, max: f64, records: u64) {
            let kind = if delta { RecordKind::Delta { base } } else { RecordKind::Keyframe };
            let error = CodecError { max: max.abs(), mean: 0.5, records };
            let entry = ColumnEntry { length, rows, kind, digest, codec, error };
            prop_assert_eq!(ColumnEntry::decode(&entry.encode(), 9), Some(entry));
            let refused = ColumnEntry::decode(&entry.encode(), base);
            prop_assert_eq!(refused.is_none(), delta);
        }

        #[test]
        fn any_bytes_decode_without_a_panic(bytes in prop::array::uniform32(any::<u8>()), step: u64) {
            let mut block = [0; HEADER_BYTES];
            block[..32].copy_from_slice(&bytes);
            block[32..].copy_from_slice(&bytes);
            let _ = (FrameHeader::decode(&block), ColumnEntry::decode(&block, step));
        }
    }
}
