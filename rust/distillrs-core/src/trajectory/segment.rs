//! Sealed segments: safetensors files that hold whole trajectories and are never changed.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::digest::xxh3_64;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::codec::{CodecError, RecordKind};
use super::filesystem::{FileSystem, Mapping, at};
use super::frame::FORMAT_VERSION;
use super::manifest::StoredError;
use super::records::{Checked, Place, Records, corrupt};
use super::schema::{Column, Schema, check_key};
use crate::{Error, Result};

/// Longest header that safetensors readers take.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;
/// What every header begins with; 16 hex digits follow.
pub(super) const HEADER_START: &str = r#"{"__metadata__":{"distillrs.digest":""#;
pub(super) const DIGEST_HOLE: &str = "0000000000000000";
/// Name of the tensor at the end that repeats the header.
pub(super) const HEADER_COPY: &str = "distillrs.header";
/// Behind the copy: its length, its xxh3-64, this.
pub(super) const TRAILER_MAGIC: &[u8; 8] = b"DTLGHEAD";
pub(super) const TRAILER_BYTES: u64 = 24;

/// Suffixes of the tensors that a column has beside its data.
pub(super) const DIGESTS: &str = "xxh3";
pub(super) const OFFSETS: &str = "offsets";
pub(super) const BASES: &str = "base";

/// Name of a column's data tensor.
pub(super) fn data_tensor(key: &str, column: &Column) -> String {
    let suffix = match (column.ragged, column.is_raw()) {
        (true, _) => ".values",
        (false, true) => "",
        (false, false) => ".bytes",
    };
    format!("{key}/{}{suffix}", column.name)
}

/// Name of a tensor beside a column's data.
pub(super) fn side_tensor(key: &str, column: &Column, suffix: &str) -> String {
    format!("{key}/{}.{suffix}", column.name)
}

/// One trajectory in the header's metadata: key, steps, missing steps, codec errors by column.
pub(super) type TrajectoryForm<'a> = (Cow<'a, str>, u64, Vec<u64>, BTreeMap<Cow<'a, str>, StoredError>);

#[derive(Deserialize)]
struct MetadataForm<'a> {
    #[serde(borrow, rename = "distillrs.format_version")]
    format_version: Cow<'a, str>,
    #[serde(borrow, rename = "distillrs.minimum_reader")]
    minimum_reader: Cow<'a, str>,
    #[serde(borrow, rename = "distillrs.metadata")]
    metadata: Cow<'a, str>,
    #[serde(borrow, rename = "distillrs.replaces")]
    replaces: Cow<'a, str>,
    #[serde(borrow, rename = "distillrs.schema")]
    schema: Cow<'a, str>,
    #[serde(borrow, rename = "distillrs.trajectories")]
    trajectories: Cow<'a, str>,
}

#[derive(Deserialize)]
struct TensorForm<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub schema: Arc<Schema>,
    /// The user's, JSON.
    pub metadata: String,
    /// Segments that a repair put this one in the place of.
    pub replaces: Vec<String>,
    pub trajectories: Vec<SegmentTrajectory>,
    /// Digest of the header.
    pub digest: u64,
    /// Bytes of the file when it is whole.
    pub size: u64,
    header: Range<u64>,
    path: Arc<Path>,
    mapping: Arc<Mapping>,
    by_key: HashMap<String, usize>,
}

/// One trajectory of a segment.
#[derive(Debug)]
pub(super) struct SegmentTrajectory {
    key: String,
    steps: u64,
    /// Rising.
    pub missing: Vec<u64>,
    errors: Vec<CodecError>,
    columns: Vec<Spans>,
    path: Arc<Path>,
    mapping: Arc<Mapping>,
    checked: Checked,
}

/// Byte ranges of one column's tensors in the file.
#[derive(Debug)]
struct Spans {
    layout: Layout,
    data: Range<u64>,
    digests: Range<u64>,
}

#[derive(Debug)]
enum Layout {
    Fixed { bytes: u64 },
    Ragged { row_bytes: u64, offsets: Range<u64> },
    Coded { offsets: Range<u64>, bases: Range<u64> },
}

/// How strictly a segment is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tolerance {
    /// Size and digest as the manifest has them.
    Exact { size: u64, digest: u64 },
    /// As the file itself says; for one that no manifest lists.
    Own,
    /// What is left of it, by either copy of the header; for repair and verify.
    Remains,
}

impl Segment {
    /// Maps a segment and reads its header.
    ///
    /// # Errors
    /// [`Error::StoreCorrupt`], [`Error::StoreVersion`], [`Error::Io`].
    pub fn open(fs: &dyn FileSystem, path: &Path, tolerance: Tolerance) -> Result<Self> {
        let file = fs.open(path).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                return corrupt(path, 0, "the segment is missing");
            }
            at(path, "opening")(error)
        })?;
        let length = file.length().map_err(at(path, "reading"))?;
        if let Tolerance::Exact { size, .. } = tolerance
            && size != length
        {
            let reason = format!("the segment has {length} bytes, the manifest says {size}");
            return Err(corrupt(path, length.min(size), reason));
        }
        let size =
            usize::try_from(length).map_err(|_| corrupt(path, 0, "the segment is larger than the address space"))?;
        let mapped = if size == 0 { Ok(Mapping::Copied(Vec::new())) } else { file.map(size) };
        let mapping = Arc::new(mapped.map_err(at(path, "mapping"))?);
        let whole = sound_header(&mapping, path);
        let header = match (whole, tolerance) {
            (Ok(header), _) => header,
            (Err(error), Tolerance::Remains) => copied_header(&mapping).ok_or(error)?,
            (Err(error), _) => return Err(error),
        };
        let digest = own_digest(&header.text);
        if let Tolerance::Exact { digest: expected, .. } = tolerance
            && digest != expected
        {
            return Err(corrupt(path, 8, "the segment's header is not the one that the manifest lists"));
        }
        let segment = Self::parse(&header.text, header.data_start, path, mapping.clone(), tolerance)?;
        if tolerance != Tolerance::Remains && segment.size != length {
            let reason = format!("the segment has {length} bytes, its header says {}", segment.size);
            return Err(corrupt(path, length.min(segment.size), reason));
        }
        Ok(segment)
    }

    /// Reads a header whose digest was compared already; `data_start` is where tensors begin.
    fn parse(text: &[u8], data_start: u64, path: &Path, mapping: Arc<Mapping>, tolerance: Tolerance) -> Result<Self> {
        let damaged = |reason: String| corrupt(path, 8, reason);
        let json = |error: serde_json::Error| damaged(format!("the segment's header is no sound JSON: {error}"));
        let fields: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_slice(text).map_err(json)?;
        let metadata = fields.get("__metadata__").ok_or_else(|| damaged("the header has no metadata".to_owned()))?;
        let metadata: MetadataForm<'_> = serde_json::from_str(metadata.get()).map_err(json)?;
        if metadata.minimum_reader.parse::<u32>().map_or(true, |reader| reader > u32::from(FORMAT_VERSION)) {
            let found = metadata.format_version.parse().unwrap_or(u32::MAX);
            let supported = format!("0 to {FORMAT_VERSION}");
            return Err(Error::StoreVersion { path: path.to_path_buf(), found, supported });
        }
        let schema = Schema::parse(&metadata.schema).map_err(|error| damaged(error.to_string()))?;
        let replaces = serde_json::from_str(&metadata.replaces).map_err(json)?;
        let forms: Vec<TrajectoryForm<'_>> = serde_json::from_str(&metadata.trajectories).map_err(json)?;
        let tensors = Tensors::read(&fields, data_start, path)?;
        let shared: Arc<Path> = Arc::from(path);
        let mut trajectories = Vec::with_capacity(forms.len());
        let mut by_key = HashMap::with_capacity(forms.len());
        for (key, steps, missing, errors) in forms {
            check_key(&key).map_err(|error| damaged(error.to_string()))?;
            let spans = schema.columns().iter().map(|column| tensors.spans(&key, steps, column));
            let columns = spans.collect::<Result<Vec<_>>>()?;
            if missing.iter().any(|&step| step >= steps) || !missing.is_sorted() {
                return Err(damaged(format!("the missing steps of {key:?} are no rising steps below {steps}")));
            }
            if by_key.insert(key.to_string(), trajectories.len()).is_some() {
                return Err(damaged(format!("trajectory {key:?} stands in the segment twice")));
            }
            // What follows allocates by the number of steps, so their digests have to lie in the file, not in its header
            // alone. Of a file that was cut short some do not; the rest is worth keeping.
            let length = mapping.len() as u64;
            let bounded = match tolerance {
                Tolerance::Remains => steps <= length,
                _ => columns.iter().all(|spans| spans.digests.end <= length),
            };
            if !bounded {
                return Err(corrupt(path, mapping.len() as u64, format!("the file ends before the index of {key:?}")));
            }
            let checked = Checked::new(usize::try_from(steps).unwrap_or(0), schema.columns().len());
            let error_of = |column: &Column| {
                let stored = errors.get(column.name.as_str());
                stored.map_or(CodecError::default(), |&(max, mean, records)| CodecError { max, mean, records })
            };
            trajectories.push(SegmentTrajectory {
                errors: schema.columns().iter().map(error_of).collect(),
                key: key.into_owned(),
                steps,
                missing,
                columns,
                path: shared.clone(),
                mapping: mapping.clone(),
                checked,
            });
        }
        let metadata = metadata.metadata.into_owned();
        let digest = own_digest(text);
        let header = 8..data_start;
        let (schema, size) = (Arc::new(schema), tensors.end);
        Ok(Self { schema, metadata, replaces, trajectories, digest, size, header, path: shared, mapping, by_key })
    }

    /// Compares the header with its copy, which a repair would need.
    pub fn check_copy(&self) -> Result<()> {
        let text = slice(&self.mapping, self.header.start, self.header.end - self.header.start);
        let copy = copied_header(&self.mapping);
        if copy.is_some_and(|copy| text == Some(&*copy.text)) {
            return Ok(());
        }
        let length = self.header.end - self.header.start + TRAILER_BYTES;
        Err(corrupt(&self.path, self.size.saturating_sub(length), "the copy of the segment's header does not match it"))
    }

    /// The mapped file.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The trajectory of `key`.
    pub fn trajectory(&self, key: &str) -> Option<&SegmentTrajectory> {
        self.by_key.get(key).map(|&index| &self.trajectories[index])
    }
}

/// A header and where the tensors behind it begin.
struct Header<'a> {
    text: Cow<'a, [u8]>,
    data_start: u64,
}

/// xxh3-64 of a header with its own digest's digits as zeros.
pub(super) fn own_digest(text: &[u8]) -> u64 {
    let start = HEADER_START.len();
    let mut zeroed = text.to_vec();
    if let Some(hole) = zeroed.get_mut(start..start + DIGEST_HOLE.len()) {
        hole.copy_from_slice(DIGEST_HOLE.as_bytes());
    }
    xxh3_64(&zeroed)
}

fn digest_matches(text: &[u8]) -> bool {
    let start = HEADER_START.len();
    let written = text.get(start..start + DIGEST_HOLE.len()).and_then(|digits| std::str::from_utf8(digits).ok());
    text.starts_with(HEADER_START.as_bytes()) && written == Some(&format!("{:016x}", own_digest(text)))
}

fn u64_at(bytes: &[u8], position: u64) -> Option<u64> {
    let position = usize::try_from(position).ok()?;
    Some(u64::from_le_bytes(bytes.get(position..position.checked_add(8)?)?.try_into().ok()?))
}

fn slice(bytes: &[u8], start: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(start).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

fn sound_header<'a>(bytes: &'a [u8], path: &Path) -> Result<Header<'a>> {
    let length = u64_at(bytes, 0).ok_or_else(|| corrupt(path, bytes.len() as u64, "the segment has no header"))?;
    if length > MAX_HEADER_BYTES {
        return Err(corrupt(path, 0, format!("a header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed")));
    }
    let text = slice(bytes, 8, length)
        .ok_or_else(|| corrupt(path, bytes.len() as u64, "the segment ends inside its header"))?;
    if !digest_matches(text) {
        return Err(corrupt(path, 8, "the checksum of the segment's header does not match"));
    }
    Ok(Header { text: Cow::Borrowed(text), data_start: 8 + length })
}

/// The header from its copy at the file's end.
fn copied_header(bytes: &[u8]) -> Option<Header<'static>> {
    let end = (bytes.len() as u64).checked_sub(TRAILER_BYTES)?;
    let length = u64_at(bytes, end)?;
    let text = slice(bytes, end.checked_sub(length)?, length)?;
    let sound = slice(bytes, end + 16, 8)? == TRAILER_MAGIC && u64_at(bytes, end + 8)? == xxh3_64(text);
    (sound && digest_matches(text)).then(|| Header { text: Cow::Owned(text.to_vec()), data_start: 8 + length })
}

/// The tensors of a header, by name.
struct Tensors<'a> {
    by_name: HashMap<&'a str, TensorForm<'a>>,
    start: u64,
    end: u64,
    path: &'a Path,
}

impl<'a> Tensors<'a> {
    fn read(fields: &'a HashMap<Cow<'_, str>, &'a RawValue>, start: u64, path: &'a Path) -> Result<Self> {
        let damaged = |reason: String| corrupt(path, 8, reason);
        let mut by_name = HashMap::with_capacity(fields.len());
        let mut ranges = Vec::with_capacity(fields.len());
        for (name, value) in fields {
            if name == "__metadata__" {
                continue;
            }
            let form: TensorForm<'_> =
                serde_json::from_str(value.get()).map_err(|error| damaged(format!("tensor {name:?}: {error}")))?;
            ranges.push(form.data_offsets);
            by_name.insert(name.as_ref(), form);
        }
        ranges.sort_unstable();
        let mut end = 0;
        for (from, to) in ranges {
            if from != end || to < from {
                return Err(damaged(format!("tensors do not follow each other at byte {from} of the data")));
            }
            end = to;
        }
        let end = start.checked_add(end).ok_or_else(|| damaged("tensors end past the range of numbers".to_owned()))?;
        Ok(Self { by_name, start, end, path })
    }

    fn find(&self, name: &str, dtype: &str, shape: &[Option<u64>]) -> Result<Range<u64>> {
        let damaged = |reason: String| corrupt(self.path, 8, reason);
        let form = self.by_name.get(name).ok_or_else(|| damaged(format!("the header has no tensor {name:?}")))?;
        let same = form.shape.len() == shape.len()
            && form.shape.iter().zip(shape).all(|(found, due)| due.is_none_or(|due| due == *found));
        if form.dtype != dtype || !same {
            return Err(damaged(format!("tensor {name:?} is {} {:?}", form.dtype, form.shape)));
        }
        // `read` checked that the sum of start and every offset fits.
        Ok(self.start + form.data_offsets.0..self.start + form.data_offsets.1)
    }

    fn spans(&self, key: &str, steps: u64, column: &Column) -> Result<Spans> {
        let data_name = data_tensor(key, column);
        let side = |suffix: &str, dtype: &str, count: Option<u64>| {
            let name = side_tensor(key, column, suffix);
            let range = self.find(&name, dtype, &[count])?;
            let bytes = count.and_then(|count| count.checked_mul(8));
            self.expect_length(&name, &range, bytes)?;
            Ok(range)
        };
        let digests = side(DIGESTS, "U64", Some(steps))?;
        let (layout, data) = if !column.is_raw() {
            let offsets = side(OFFSETS, "I64", steps.checked_add(1))?;
            let bases = side(BASES, "I64", Some(steps))?;
            (Layout::Coded { offsets, bases }, self.find(&data_name, "U8", &[None])?)
        } else {
            let first = if column.ragged { None } else { Some(steps) };
            let shape: Vec<_> = [first].into_iter().chain(column.shape.iter().copied().map(Some)).collect();
            let data = self.find(&data_name, column.dtype.name(), &shape)?;
            if column.ragged {
                let offsets = side(OFFSETS, "I64", steps.checked_add(1))?;
                (Layout::Ragged { row_bytes: column.bytes as u64, offsets }, data)
            } else {
                self.expect_length(&data_name, &data, (column.bytes as u64).checked_mul(steps))?;
                (Layout::Fixed { bytes: column.bytes as u64 }, data)
            }
        };
        Ok(Spans { layout, data, digests })
    }

    fn expect_length(&self, name: &str, range: &Range<u64>, bytes: Option<u64>) -> Result<()> {
        if bytes == Some(range.end - range.start) {
            return Ok(());
        }
        Err(corrupt(self.path, 8, format!("tensor {name:?} has {} bytes", range.end - range.start)))
    }
}

impl SegmentTrajectory {
    fn word(&self, range: &Range<u64>, index: u64) -> Result<u64> {
        let position = range.start.saturating_add(index.saturating_mul(8));
        u64_at(&self.mapping, position).ok_or_else(|| corrupt(&self.path, position, "the file ends before its index"))
    }

    /// Start and length between two neighbouring offsets.
    fn between(&self, offsets: &Range<u64>, step: u64, unit: u64, data: &Range<u64>) -> Result<(u64, u64)> {
        let (from, to) = (self.word(offsets, step)?, self.word(offsets, step + 1)?);
        let within = |offset: u64| {
            let byte = offset.checked_mul(unit)?.checked_add(data.start)?;
            (byte <= data.end).then_some(byte)
        };
        match (within(from), within(to)) {
            (Some(start), Some(end)) if from <= to => Ok((start, end - start)),
            _ => {
                let reason = format!("the offsets of {:?} around step {step} are {from} and {to}", self.key);
                Err(corrupt(&self.path, offsets.start.saturating_add(step.saturating_mul(8)), reason))
            }
        }
    }

    /// The mapped file and the bytes of a record in it, for a view without a copy.
    pub fn mapped(&self, place: &Place) -> Option<(Arc<Mapping>, Range<usize>)> {
        let start = usize::try_from(place.offset).ok()?;
        let end = start.checked_add(usize::try_from(place.length).ok()?)?;
        (end <= self.mapping.len()).then(|| (self.mapping.clone(), start..end))
    }

    fn slice(&self, place: &Place) -> Result<&[u8]> {
        slice(&self.mapping, place.offset, place.length)
            .ok_or_else(|| corrupt(&self.path, self.mapping.len() as u64, "the file ends inside a record"))
    }
}

impl Records for SegmentTrajectory {
    fn key(&self) -> &str {
        &self.key
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn place(&self, column: usize, step: u64) -> Result<Option<Place>> {
        if self.missing.binary_search(&step).is_ok() {
            return Ok(None);
        }
        let Spans { layout, data, digests } = &self.columns[column];
        let digest = self.word(digests, step)?;
        let place = match layout {
            Layout::Fixed { bytes } => {
                let offset = data.start + step * bytes;
                Place { offset, length: *bytes, rows: 0, kind: RecordKind::Keyframe, digest }
            }
            Layout::Ragged { row_bytes, offsets } => {
                let (offset, length) = self.between(offsets, step, *row_bytes, data)?;
                let rows = self.word(offsets, step + 1)? - self.word(offsets, step)?;
                Place { offset, length, rows, kind: RecordKind::Keyframe, digest }
            }
            Layout::Coded { offsets, bases } => {
                let (offset, length) = self.between(offsets, step, 1, data)?;
                let kind = match self.word(bases, step)? {
                    u64::MAX => RecordKind::Keyframe,
                    base if base < step => RecordKind::Delta { base },
                    base => {
                        let reason = format!("step {step} of {:?} is a difference to step {base}", self.key);
                        return Err(corrupt(&self.path, bases.start + 8 * step, reason));
                    }
                };
                Place { offset, length, rows: 0, kind, digest }
            }
        };
        Ok(Some(place))
    }

    fn bytes(&self, place: &Place) -> Result<Cow<'_, [u8]>> {
        self.slice(place).map(Cow::Borrowed)
    }

    fn bytes_into(&self, place: &Place, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(self.slice(place)?);
        Ok(())
    }

    fn codec_error(&self, column: usize) -> CodecError {
        self.errors.get(column).copied().unwrap_or_default()
    }

    fn checked(&self) -> &Checked {
        &self.checked
    }
}
