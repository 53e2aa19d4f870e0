//! Logs: the append-only file of one trajectory, as it is found on disk.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::xxh3_64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::codec::CodecError;
use super::filesystem::{File, FileSystem, at};
use super::frame::{ALIGNMENT, ColumnEntry, FORMAT_VERSION, FrameHeader, FrameKind, HEADER_BYTES, NotAHeader, align};
use super::records::{Checked, Place, Records, corrupt};
use super::schema::{MAX_COLUMNS, MAX_KEY_BYTES, Schema, check_key};
use crate::{Error, Result};

/// Longest schema and metadata together, as JSON.
pub const MAX_TEXT_BYTES: u64 = 64 << 20;

const SEARCH_BLOCK: usize = 1 << 20;

/// Content of a log's first frame.
#[derive(Serialize, Deserialize)]
struct LogHeader<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    schema: &'a RawValue,
    #[serde(borrow)]
    metadata: &'a RawValue,
}

/// The first two frames of a log.
pub(super) fn log_prefix(number: u64, key: &str, schema: &Schema, metadata: &str) -> Result<Vec<u8>> {
    let failed = |error: serde_json::Error| Error::argument("metadata", error, "a JSON object");
    let schema = RawValue::from_string(schema.to_json()).map_err(failed)?;
    let metadata = RawValue::from_string(metadata.to_owned()).map_err(failed)?;
    let content = LogHeader { key: key.into(), schema: &schema, metadata: &metadata };
    let text = serde_json::to_vec(&content).map_err(failed)?;
    if text.len() as u64 > MAX_TEXT_BYTES {
        let allowed = format!("at most {MAX_TEXT_BYTES} bytes with the schema");
        return Err(Error::argument("metadata", format_args!("{} bytes", text.len()), allowed));
    }
    let mut bytes = Vec::new();
    for (kind, payload) in [(FrameKind::Header, text.as_slice()), (FrameKind::Begin, key.as_bytes())] {
        bytes.extend_from_slice(&FrameHeader::new(kind, number, bytes.len() as u64, 0, payload).encode());
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
    }
    Ok(bytes)
}

/// One column of a record: where its bytes lie, and what the table says of them.
pub(super) type Located = (u64, ColumnEntry);

/// What a log has for one step.
#[derive(Debug)]
pub(super) enum Step {
    Present { columns: Box<[Located]>, end: u64 },
    Missing { end: u64 },
    Damaged { offset: u64 },
}

/// A stretch of a log that is no sound frame although sound frames follow, or that contradicts those before it.
#[derive(Debug, Clone)]
pub(super) struct LogDamage {
    pub offset: u64,
    pub reason: String,
}

/// A log as a scan of its frames' headers and tables found it. Column data is checked when it is read.
#[derive(Debug)]
pub(super) struct Log {
    pub path: PathBuf,
    source: Source,
    /// Number in every frame; 0 if there is no sound frame.
    pub number: u64,
    /// `None` if every frame that had it is lost.
    pub key: Option<String>,
    pub schema: Option<Arc<Schema>>,
    /// JSON; `None` if the header frame is lost.
    pub metadata: Option<String>,
    pub steps: Vec<Step>,
    pub complete: bool,
    /// Where the first record's frame goes; 0 if the frames before it are lost.
    pub start: u64,
    /// Where the next frame goes.
    pub end: u64,
    /// Bytes of the file when it was scanned.
    pub length: u64,
    pub damage: Vec<LogDamage>,
    checked: Checked,
}

/// How the column data is reached.
#[derive(Debug)]
enum Source {
    Open(Arc<dyn File>),
    /// Opened for each read: a farm has more unfinished trajectories than a process may have open files.
    Closed(Arc<dyn FileSystem>),
}

struct Frame {
    header: FrameHeader,
    columns: Box<[Located]>,
    text: Vec<u8>,
}

struct Scanner<'a> {
    path: &'a Path,
    file: &'a dyn File,
    length: u64,
    number: Option<u64>,
    schema: Option<Arc<Schema>>,
}

impl Scanner<'_> {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_at(buffer, offset).map_err(|error| read_error(self.path, offset, error))
    }

    /// The sound frame at `offset`, if there is one. Column data is not looked at beyond its bounds.
    fn frame(&self, offset: u64) -> Result<Option<Frame>> {
        if self.length.saturating_sub(offset) < HEADER_BYTES as u64 {
            return Ok(None);
        }
        let mut bytes = [0; HEADER_BYTES];
        self.read(offset, &mut bytes)?;
        let header = match FrameHeader::decode(&bytes) {
            Ok(header) => header,
            Err(NotAHeader::Damaged) => return Ok(None),
            Err(NotAHeader::Version(version)) => {
                return Err(Error::StoreVersion {
                    path: self.path.to_path_buf(),
                    found: u32::from(version),
                    supported: format!("0 to {FORMAT_VERSION}"),
                });
            }
        };
        let foreign = header.offset != offset || self.number.is_some_and(|number| number != header.log);
        let end = header.payload_end().filter(|&end| end <= self.length);
        let data = offset + HEADER_BYTES as u64;
        if foreign || end.is_none() || (header.kind == FrameKind::Header) != (offset == 0) {
            return Ok(None);
        }
        let (bound, part) = match header.kind {
            FrameKind::Header => (MAX_TEXT_BYTES, header.payload_length),
            FrameKind::Begin | FrameKind::Complete => (MAX_KEY_BYTES as u64, header.payload_length),
            FrameKind::Missing => (0, header.payload_length),
            FrameKind::Record => ((MAX_COLUMNS * HEADER_BYTES) as u64, u64::from(header.columns) * HEADER_BYTES as u64),
        };
        if part > bound || part > header.payload_length {
            return Ok(None);
        }
        let mut text = vec![0; usize::try_from(part).unwrap_or(0)];
        self.read(data, &mut text)?;
        if xxh3_64(&text) != header.payload_digest {
            return Ok(None);
        }
        let mut columns = Box::default();
        if header.kind == FrameKind::Record {
            match self.columns(&header, &text) {
                Some(found) => columns = found,
                None => return Ok(None),
            }
        }
        Ok(Some(Frame { header, columns, text }))
    }

    /// The table of a record, held against the schema and the frame's bounds.
    fn columns(&self, header: &FrameHeader, table: &[u8]) -> Option<Box<[Located]>> {
        let schema = self.schema.as_ref()?;
        if schema.columns().len() != usize::from(header.columns) {
            return None;
        }
        let mut offset = header.offset.checked_add(HEADER_BYTES as u64)?.checked_add(table.len() as u64)?;
        let mut end = offset;
        let mut located = Vec::with_capacity(schema.columns().len());
        for (column, bytes) in schema.columns().iter().zip(table.chunks_exact(HEADER_BYTES)) {
            let entry = ColumnEntry::decode(bytes.try_into().ok()?, header.step)?;
            if entry.codec != column.codec.code() || !column.stored_length_is_possible(entry.length, entry.rows) {
                return None;
            }
            located.push((offset, entry));
            if entry.length > 0 {
                end = offset.checked_add(entry.length)?;
                offset = align(end)?;
            }
        }
        (header.payload_end() == Some(end)).then(|| located.into_boxed_slice())
    }

    /// The first sound frame at a border from `start` on.
    fn search(&self, start: u64) -> Result<Option<Frame>> {
        let mut block = Vec::new();
        let mut position = start;
        while self.length.saturating_sub(position) >= HEADER_BYTES as u64 {
            let size = (self.length - position).min(SEARCH_BLOCK as u64);
            block.resize(usize::try_from(size).unwrap_or(SEARCH_BLOCK), 0);
            self.read(position, &mut block)?;
            for (index, bytes) in block.chunks_exact(HEADER_BYTES).enumerate() {
                let looks_like_one = bytes.try_into().is_ok_and(|bytes| FrameHeader::decode(bytes).is_ok());
                if looks_like_one && let Some(frame) = self.frame(position + (index * HEADER_BYTES) as u64)? {
                    return Ok(Some(frame));
                }
            }
            position += SEARCH_BLOCK as u64;
        }
        Ok(None)
    }
}

fn read_error(path: &Path, offset: u64, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return corrupt(path, offset, "the file ends inside a record");
    }
    at(path, "reading")(error)
}

impl Log {
    /// Reads the headers and tables of a log. `schema` stands in for a lost header frame.
    pub fn scan(fs: &dyn FileSystem, path: &Path, schema: Option<&Arc<Schema>>) -> Result<Self> {
        let file = fs.open(path).map_err(at(path, "opening"))?;
        Self::scan_file(file, path, schema)
    }

    pub fn scan_file(file: Arc<dyn File>, path: &Path, schema: Option<&Arc<Schema>>) -> Result<Self> {
        let length = file.length().map_err(at(path, "reading"))?;
        let mut scanner = Scanner { path, file: &*file, length, number: None, schema: schema.cloned() };
        let mut found = Found::default();
        let mut offset = 0;
        while offset < length {
            let frame = match scanner.frame(offset)? {
                Some(frame) => frame,
                None => match scanner.search(offset + ALIGNMENT)? {
                    Some(frame) => {
                        let until = frame.header.offset;
                        found.damage(offset, format!("no sound frame from byte {offset} to byte {until}"));
                        frame
                    }
                    None => break,
                },
            };
            scanner.number = Some(frame.header.log);
            offset = frame.header.payload_end().and_then(align).unwrap_or(length);
            found.take(frame, &mut scanner.schema, path, offset)?;
            found.end = offset;
        }
        let columns = scanner.schema.as_ref().map_or(0, |schema| schema.columns().len());
        let number = scanner.number.unwrap_or(0);
        let schema = scanner.schema;
        let checked = Checked::new(found.steps.len(), columns);
        let Found { key, metadata, steps, complete, start, end, damage } = found;
        let path = path.to_path_buf();
        let source = Source::Open(file);
        Ok(Self { path, source, number, key, schema, metadata, steps, complete, start, end, length, damage, checked })
    }

    /// Closes the file; it is opened again whenever something is read.
    pub fn close(&mut self, fs: &Arc<dyn FileSystem>) {
        self.source = Source::Closed(fs.clone());
    }

    /// Bytes behind the last sound frame: an append that was cut short.
    pub fn tail(&self) -> u64 {
        self.length.saturating_sub(self.end)
    }

    /// Whether nothing was ever recorded, so that a lost header loses nothing.
    pub fn is_blank(&self) -> bool {
        self.steps.is_empty() && !self.complete
    }

    /// The first damage as an error.
    pub fn require_sound(&self) -> Result<()> {
        match self.damage.first() {
            Some(LogDamage { offset, reason }) => Err(corrupt(&self.path, *offset, reason.clone())),
            None => Ok(()),
        }
    }

    /// Where the frame of the last of `steps` steps ends; `None` where that frame is lost.
    pub fn end_of(&self, steps: usize) -> Option<u64> {
        let Some(last) = steps.checked_sub(1) else { return (self.start > 0).then_some(self.start) };
        match self.steps.get(last)? {
            Step::Present { end, .. } | Step::Missing { end } => Some(*end),
            Step::Damaged { .. } => None,
        }
    }

    /// Error of the codec up to and including `step`.
    pub fn error_at(&self, column: usize, step: u64) -> CodecError {
        let steps = usize::try_from(step).ok().and_then(|step| self.steps.get(..=step)).unwrap_or(&self.steps);
        let last = steps.iter().rev().find_map(|step| match step {
            Step::Present { columns, .. } => columns.get(column).map(|(_, entry)| entry.error),
            Step::Missing { .. } | Step::Damaged { .. } => None,
        });
        last.unwrap_or_default()
    }
}

#[derive(Default)]
struct Found {
    key: Option<String>,
    metadata: Option<String>,
    steps: Vec<Step>,
    complete: bool,
    start: u64,
    end: u64,
    damage: Vec<LogDamage>,
}

impl Found {
    fn damage(&mut self, offset: u64, reason: impl Into<String>) {
        self.damage.push(LogDamage { offset, reason: reason.into() });
    }

    fn take(&mut self, frame: Frame, schema: &mut Option<Arc<Schema>>, path: &Path, end: u64) -> Result<()> {
        let Frame { header, columns, text } = frame;
        let offset = header.offset;
        if self.complete {
            self.damage(offset, "a frame behind the trajectory's end");
            return Ok(());
        }
        match header.kind {
            FrameKind::Header => {
                let content: LogHeader<'_> = serde_json::from_slice(&text)
                    .map_err(|error| corrupt(path, offset, format!("the log's header is no sound JSON: {error}")))?;
                check_key(&content.key).map_err(|error| corrupt(path, offset, error.to_string()))?;
                let parsed = Schema::parse(content.schema.get());
                *schema = Some(Arc::new(parsed.map_err(|error| corrupt(path, offset, error.to_string()))?));
                self.key = Some(content.key.into_owned());
                self.metadata = Some(content.metadata.get().to_owned());
            }
            FrameKind::Begin => {
                self.take_key(offset, text);
                self.start = end;
            }
            FrameKind::Complete => {
                self.take_key(offset, text);
                if self.fill_gap(&header) {
                    self.complete = true;
                }
            }
            FrameKind::Record => {
                if self.fill_gap(&header) {
                    self.steps.push(Step::Present { columns, end });
                }
            }
            FrameKind::Missing => {
                if self.fill_gap(&header) {
                    self.steps.push(Step::Missing { end });
                }
            }
        }
        Ok(())
    }

    fn take_key(&mut self, offset: u64, text: Vec<u8>) {
        match (String::from_utf8(text), &self.key) {
            (Ok(key), None) if check_key(&key).is_ok() => self.key = Some(key),
            (Ok(key), Some(known)) if key == *known => {}
            _ => self.damage(offset, "the frame has another key than the log"),
        }
    }

    /// Marks the steps before `header.step` that have no frame. False if the frame cannot follow those before it.
    fn fill_gap(&mut self, header: &FrameHeader) -> bool {
        let next = self.steps.len() as u64;
        // Every step takes a frame, so the offset bounds how many there can be, whatever the header claims.
        if header.step < next || header.step > header.offset / ALIGNMENT {
            self.damage(header.offset, format!("a frame of step {} where step {next} was due", header.step));
            return false;
        }
        if header.step > next {
            let offset = self.damage.last().map_or(header.offset, |damage| damage.offset);
            if self.damage.is_empty() {
                self.damage(offset, format!("steps {next} to {} have no frame", header.step - 1));
            }
            self.steps.extend((next..header.step).map(|_| Step::Damaged { offset }));
        }
        true
    }
}

impl Records for Log {
    fn key(&self) -> &str {
        self.key.as_deref().unwrap_or_default()
    }

    fn steps(&self) -> u64 {
        self.steps.len() as u64
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn place(&self, column: usize, step: u64) -> Result<Option<Place>> {
        let found = usize::try_from(step).ok().and_then(|step| self.steps.get(step));
        match found {
            Some(Step::Present { columns, .. }) => Ok(columns.get(column).map(|(offset, entry)| Place {
                offset: *offset,
                length: entry.length,
                rows: entry.rows,
                kind: entry.kind,
                digest: entry.digest,
            })),
            Some(Step::Damaged { offset }) => {
                Err(corrupt(&self.path, *offset, format!("the frame of {:?}, step {step}, is lost", self.key())))
            }
            Some(Step::Missing { .. }) | None => Ok(None),
        }
    }

    fn bytes(&self, place: &Place) -> Result<Cow<'_, [u8]>> {
        // The scan compared the place with the file's length, which bounds the allocation.
        let mut bytes = vec![0; usize::try_from(place.length).unwrap_or(0)];
        self.bytes_into(place, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    fn bytes_into(&self, place: &Place, out: &mut [u8]) -> Result<()> {
        let mut read = |file: &dyn File| file.read_at(out, place.offset);
        let result = match &self.source {
            Source::Open(file) => read(&**file),
            Source::Closed(fs) => read(&*fs.open(&self.path).map_err(at(&self.path, "opening"))?),
        };
        result.map_err(|error| read_error(&self.path, place.offset, error))
    }

    fn codec_error(&self, column: usize) -> CodecError {
        self.error_at(column, u64::MAX)
    }

    fn checked(&self) -> &Checked {
        &self.checked
    }
}
