//! What fuzzing and its corpus feed: arbitrary bytes as each kind of file. Nothing here may panic or allocate without bound.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::filesystem::{Existing, File, FileSystem, Mapping};
use super::frame::{ColumnEntry, FrameHeader, HEADER_BYTES};
use super::log::Log;
use super::manifest::Manifest;
use super::records::{Records, Verify};
use super::schema::Schema;
use super::segment::{Segment, Tolerance};

/// Headers of frames and entries of tables.
pub fn frame(bytes: &[u8]) {
    for chunk in bytes.chunks_exact(HEADER_BYTES) {
        let Ok(block) = chunk.try_into() else { continue };
        if let Ok(header) = FrameHeader::decode(block) {
            assert_eq!(header.encode(), *chunk, "a header that was read is written as it was");
            let _ = header.payload_end();
        }
        if let Some(entry) = ColumnEntry::decode(block, u64::MAX) {
            // Bytes without a meaning may change, so the reading is compared, by its bits: an error may be no number.
            let again = entry.encode();
            assert_eq!(ColumnEntry::decode(&again, u64::MAX).map(|entry| entry.encode()), Some(again));
        }
    }
}

/// A whole log, read record by record.
pub fn log(bytes: &[u8]) {
    let file: Arc<dyn File> = Arc::new(Memory(bytes.to_vec()));
    let stand_in = Schema::parse(r#"{"columns": [{"name": "a", "dtype": "F32", "shape": [2]}]}"#).ok().map(Arc::new);
    if let Ok(log) = Log::scan_file(file, Path::new("log"), stand_in.as_ref())
        && let Some(schema) = log.schema.clone()
    {
        read_all(&log, &schema);
    }
}

/// A manifest, written back and read again.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes, Path::new("manifest.json"))
        && let Ok(encoded) = manifest.encode()
    {
        let again = Manifest::parse(&encoded, Path::new("manifest.json"));
        assert!(again.is_ok_and(|again| again.schema == manifest.schema), "what was written cannot be read");
    }
}

/// A whole segment, as it is and as a repair reads it.
pub fn segment(bytes: &[u8]) {
    let fs = OneFile(bytes.to_vec());
    for tolerance in [Tolerance::Own, Tolerance::Remains] {
        if let Ok(segment) = Segment::open(&fs, Path::new("segment"), tolerance) {
            let _ = segment.check_copy();
            for trajectory in &segment.trajectories {
                read_all(trajectory, &segment.schema);
            }
        }
    }
}

fn read_all(records: &dyn Records, schema: &Schema) {
    for (index, column) in schema.columns().iter().enumerate() {
        let _ = records.codec_error(index);
        for step in 0..records.steps().min(64) {
            let Ok(Some(place)) = records.place(index, step) else { continue };
            let length = if column.is_raw() { place.length } else { column.bytes as u64 };
            // A file of a few bytes may declare records of terabytes; a caller would have to bring such a buffer.
            if length <= 1 << 20 {
                let mut out = vec![0; length as usize];
                let _ = super::records::read(records, schema, index, Verify::Never, &mut [(step, &mut out)]);
                let _ = super::records::read(records, schema, index, Verify::Always, &mut [(step, &mut out)]);
            }
        }
    }
}

#[derive(Debug)]
struct Memory(Vec<u8>);

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl File for Memory {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(self.0.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> io::Result<()> {
        refused()
    }

    fn set_length(&self, _length: u64) -> io::Result<()> {
        refused()
    }

    fn sync(&self) -> io::Result<()> {
        refused()
    }

    fn map(&self, length: usize) -> io::Result<Mapping> {
        Ok(Mapping::Copied(self.0.get(..length).ok_or(io::ErrorKind::UnexpectedEof)?.to_vec()))
    }

    fn lock(&self) -> io::Result<()> {
        refused()
    }

    fn try_lock(&self) -> io::Result<bool> {
        refused()
    }

    fn unlock(&self) -> io::Result<()> {
        refused()
    }
}

/// A file system in which every path is the same file.
#[derive(Debug)]
struct OneFile(Vec<u8>);

impl FileSystem for OneFile {
    fn create_directories(&self, _path: &Path) -> io::Result<()> {
        refused()
    }

    fn list(&self, _directory: &Path) -> io::Result<Vec<String>> {
        refused()
    }

    fn open(&self, _path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(Memory(self.0.clone())))
    }

    fn create(&self, _path: &Path, _existing: Existing) -> io::Result<Arc<dyn File>> {
        refused()
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        refused()
    }

    fn sync_directory(&self, _path: &Path) -> io::Result<()> {
        refused()
    }
}

/// Puts right the checksums of damaged bytes, so that what lies behind them is reached: a plain flip stops at the first.
pub fn with_checksums(kind: &str, bytes: &[u8]) -> Vec<u8> {
    use super::segment::{DIGEST_HOLE, HEADER_START, own_digest};
    use crate::digest::xxh3_64;
    let mut bytes = bytes.to_vec();
    match kind {
        "manifest" => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let marks = (text.find("{\"body\":"), text.rfind(",\"xxh3\":\""));
            if let (Some(start), Some(end)) = marks
                && let Some(body) = text.get(start + 8..end)
            {
                return format!("{{\"body\":{body},\"xxh3\":\"{:016x}\"}}", xxh3_64(body.as_bytes())).into_bytes();
            }
        }
        "segment" => {
            let length = bytes.first_chunk().map_or(0, |prefix| u64::from_le_bytes(*prefix));
            let end = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(8).min(bytes.len());
            if let Some(text) = bytes.get_mut(8..end) {
                let digest = format!("{:016x}", own_digest(text));
                let hole = HEADER_START.len()..HEADER_START.len() + DIGEST_HOLE.len();
                if let Some(hole) = text.get_mut(hole) {
                    hole.copy_from_slice(digest.as_bytes());
                }
            }
        }
        _ => {
            let mut offset = 0;
            while offset + HEADER_BYTES <= bytes.len() {
                let is_frame = bytes[offset..].starts_with(b"DTLG");
                if is_frame {
                    let columns = usize::from(u16::from_le_bytes([bytes[offset + 8], bytes[offset + 9]]));
                    let mut word = [0; 8];
                    word.copy_from_slice(&bytes[offset + 44..offset + 52]);
                    let payload = usize::try_from(u64::from_le_bytes(word)).unwrap_or(usize::MAX);
                    let covered = if bytes[offset + 6] == 3 { columns * HEADER_BYTES } else { payload };
                    let start = offset + HEADER_BYTES;
                    let end = start.saturating_add(covered).min(bytes.len());
                    let digest = xxh3_64(&bytes[start..end]);
                    bytes[offset + 52..offset + 60].copy_from_slice(&digest.to_le_bytes());
                    let checksum = crc32fast::hash(&bytes[offset..offset + 60]);
                    bytes[offset + 60..offset + 64].copy_from_slice(&checksum.to_le_bytes());
                }
                offset += HEADER_BYTES;
            }
        }
    }
    bytes
}

/// The path of the committed corpus of a target.
pub fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}
