//! The one writer of one trajectory.

use std::collections::HashSet;
use std::fmt::Debug;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::catalogue::Sealed;
use super::codec::{CodecError, CodecSpec, DecodeError, Encoder, RecordKind};
use super::filesystem::{Existing, File, FileSystem, at};
use super::frame::{ColumnEntry, FrameHeader, FrameKind, HEADER_BYTES, align, record_digest};
use super::lock::{KeyLock, StoreLock};
use super::log::{Log, log_prefix};
use super::names;
use super::records::{Records, Verify, chain, corrupt, locate, stored};
use super::schema::Schema;
use crate::{Error, Result};

/// One column of a record on its way in.
#[derive(Debug, Clone, Copy)]
pub struct ColumnData<'a> {
    /// The column.
    pub name: &'a str,
    /// Its elements, little endian.
    pub bytes: &'a [u8],
    /// Rows of a ragged column; else `None`.
    pub rows: Option<u64>,
}

/// What resuming dropped from a log's end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Discarded {
    /// Bytes cut off.
    pub bytes: u64,
    /// Records among them.
    pub records: u64,
}

/// Writes records of one trajectory.
#[derive(Debug)]
pub struct Writer {
    fs: Arc<dyn FileSystem>,
    directory: PathBuf,
    path: PathBuf,
    schema: Arc<Schema>,
    key: String,
    lock: Option<KeyLock>,
    file: Arc<dyn File>,
    number: u64,
    /// Where the next frame goes.
    position: u64,
    /// Where the acknowledged part ends.
    durable: u64,
    steps: u64,
    columns: Vec<ColumnWriter>,
    name_is_durable: bool,
    /// Why no more can be written.
    failure: Option<String>,
    discarded: Discarded,
    stale: Arc<AtomicBool>,
}

#[derive(Debug)]
struct ColumnWriter {
    encoder: Option<Encoder>,
    /// Error of the records before this writer took over.
    before: CodecError,
    payload: Vec<u8>,
}

/// What [`Writer::begin`] needs of its store.
#[derive(Debug, Clone)]
pub(super) struct Home {
    pub fs: Arc<dyn FileSystem>,
    pub directory: PathBuf,
    pub schema: Arc<Schema>,
    pub metadata: String,
    /// Raised when a trajectory became complete, so that the store looks again.
    pub stale: Arc<AtomicBool>,
}

impl Writer {
    pub(super) fn begin(home: Home, key: &str, resume_at: Option<u64>) -> Result<Self> {
        let Home { fs, directory, schema, metadata, stale } = home;
        let lock = {
            let store = StoreLock::acquire(&*fs, &directory)?;
            KeyLock::acquire(&fs, &directory, key, &store)?
        };
        // Sealing needs the key's lock, so what is not sealed by now stays so.
        let conflict = |reason: String| Error::KeyConflict { key: key.to_owned(), path: directory.clone(), reason };
        if let Some((_, steps)) = Sealed::load(&*fs, &directory, None)?.find(key) {
            return Err(conflict(format!("the trajectory is complete, with {steps} steps")));
        }
        let path = directory.join(names::log_name(key));
        let file = fs.create(&path, Existing::Keep).map_err(at(&path, "opening"))?;
        let log = Log::scan_file(file.clone(), &path, Some(&schema))?;
        if log.complete {
            return Err(conflict(format!("the trajectory is complete, with {} steps", log.steps())));
        }
        let mut writer = Self {
            columns: Vec::new(),
            key: key.to_owned(),
            lock: Some(lock),
            number: names::unique_number(),
            position: 0,
            durable: 0,
            steps: 0,
            name_is_durable: false,
            failure: None,
            discarded: Discarded { bytes: log.length, records: 0 },
            fs,
            directory,
            path,
            schema,
            file,
            stale,
        };
        writer.columns = writer.fresh_columns()?;
        if log.is_blank() || resume_at == Some(0) {
            refuse_beyond(resume_at, 0, key)?;
            writer.discarded.records = log.steps();
            writer.start(&metadata)?;
        } else {
            writer.resume(&log, resume_at)?;
        }
        Ok(writer)
    }

    fn fresh_columns(&self) -> Result<Vec<ColumnWriter>> {
        let fresh = |column: &super::schema::Column| {
            let encoder = match column.codec {
                CodecSpec::Raw => None,
                _ => Some(Encoder::new(&column.codec, column.dtype, column.elements, &column.tensor_sizes)?),
            };
            Ok(ColumnWriter { encoder, before: CodecError::default(), payload: Vec::new() })
        };
        self.schema.columns().iter().map(fresh).collect()
    }

    /// Writes the first two frames of a new log.
    fn start(&mut self, metadata: &str) -> Result<()> {
        let bytes = log_prefix(self.number, &self.key, &self.schema, metadata)?;
        self.file.set_length(0).map_err(at(&self.path, "truncating"))?;
        self.file.write_at(&bytes, 0).map_err(at(&self.path, "writing"))?;
        self.position = bytes.len() as u64;
        Ok(())
    }

    /// Goes on where a log ends. A cut-short append at its end is dropped; damage before that is not passed over.
    fn resume(&mut self, log: &Log, resume_at: Option<u64>) -> Result<()> {
        if let Some(difference) = log.schema.as_ref().and_then(|schema| self.schema.difference(schema)) {
            return Err(Error::SchemaMismatch { path: log.path.clone(), reason: difference });
        }
        let kept = self.kept_steps(log, resume_at)?;
        let end = usize::try_from(kept).ok().and_then(|kept| log.end_of(kept));
        let end = end.ok_or_else(|| {
            corrupt(&log.path, 0, "the log's first frames are lost: repair the store, or resume at 0")
        })?;
        self.number = log.number;
        self.file.set_length(end).map_err(at(&self.path, "truncating"))?;
        self.make_durable(end)?;
        self.name_is_durable = true;
        self.discarded = Discarded { bytes: log.length.saturating_sub(end), records: log.steps() - kept };
        self.position = end;
        self.durable = end;
        self.steps = kept;
        if let Some(last) = kept.checked_sub(1) {
            self.resume_encoders(log, last)?;
        }
        Ok(())
    }

    /// What a killed writer left in memory only becomes durable here; and what was cut off cannot come back.
    ///
    /// A system may forget pages that it failed to write and call the next sync a success, in this process or in another.
    /// So a failure leaves a marker, and whoever finds it writes the bytes again.
    fn make_durable(&self, end: u64) -> Result<()> {
        let marker = self.directory.join(names::unsynced_name(&self.key));
        let failed_before = match self.fs.open(&marker) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(at(&marker, "opening")(error)),
        };
        if failed_before {
            self.write_again(end)?;
        }
        if let Err(error) = self.file.sync() {
            // Without room for the marker there is none for records either.
            let _ = self.fs.create(&marker, Existing::Keep).and_then(|_| self.fs.sync_directory(&self.directory));
            return Err(at(&self.path, "syncing")(error));
        }
        if failed_before {
            self.fs.remove(&marker).map_err(at(&marker, "removing"))?;
        }
        self.fs.sync_directory(&self.directory).map_err(at(&self.directory, "syncing"))
    }

    fn write_again(&self, end: u64) -> Result<()> {
        const PIECE: u64 = 4 << 20;
        let mut position = 0;
        let mut piece = Vec::new();
        while position < end {
            piece.resize(usize::try_from(PIECE.min(end - position)).unwrap_or(0), 0);
            self.file.read_at(&mut piece, position).map_err(at(&self.path, "reading"))?;
            self.file.write_at(&piece, position).map_err(at(&self.path, "writing"))?;
            position += piece.len() as u64;
        }
        Ok(())
    }

    /// How many steps to keep. The last ones may be torn; one before a sound one may not.
    fn kept_steps(&self, log: &Log, resume_at: Option<u64>) -> Result<u64> {
        refuse_beyond(resume_at, log.steps(), &self.key)?;
        if let Some(kept) = resume_at {
            (0..kept).try_for_each(|step| self.check_step(log, step))?;
            return Ok(kept);
        }
        log.require_sound()?;
        let mut first_bad = None;
        for step in 0..log.steps() {
            match (self.check_step(log, step), first_bad.take()) {
                (Ok(()), None) => {}
                (Ok(()), Some((_, error))) => return Err(error),
                (Err(error @ Error::StoreCorrupt { .. }), earlier) => first_bad = earlier.or(Some((step, error))),
                (Err(error), _) => return Err(error),
            }
        }
        Ok(first_bad.map_or(log.steps(), |(step, _)| step))
    }

    fn check_step(&self, log: &Log, step: u64) -> Result<()> {
        for column in 0..self.schema.columns().len() {
            if log.place(column, step)?.is_some() {
                stored(log, &self.schema, column, step, Verify::First)?;
            }
        }
        Ok(())
    }

    fn resume_encoders(&mut self, log: &Log, last: u64) -> Result<()> {
        for (index, column) in self.columns.iter_mut().enumerate() {
            column.before = log.error_at(index, last);
            let Some(encoder) = &mut column.encoder else { continue };
            if log.place(index, last)?.is_none() {
                // A repair dropped the last record: the next one will stand alone.
                continue;
            }
            let steps = chain(log, &self.schema, index, last)?;
            let mut places = Vec::with_capacity(steps.len());
            let mut payloads = Vec::with_capacity(steps.len());
            for step in steps {
                let (place, bytes) = stored(log, &self.schema, index, step, Verify::First)?;
                places.push(place);
                payloads.push(bytes);
            }
            let payloads: Vec<&[u8]> = payloads.iter().map(AsRef::as_ref).collect();
            let located = |error: DecodeError| error.at(|index| locate(&log.path, &places, index));
            encoder.resume(&payloads, last).map_err(located)?;
        }
        Ok(())
    }

    /// The trajectory's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Records so far, those before a resumption included.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// What resuming dropped.
    pub fn discarded(&self) -> Discarded {
        self.discarded
    }

    fn require_open(&self) -> Result<()> {
        let closed =
            |got: String| Err(Error::argument("writer", got, "one that is open, in the process that began it"));
        match (&self.failure, &self.lock) {
            (Some(failure), _) => closed(failure.clone()),
            (None, None) => closed(format!("the closed writer of {:?}", self.key)),
            (None, Some(lock)) if !lock.is_own() => closed("a writer that a parent process began".to_owned()),
            _ => Ok(()),
        }
    }

    /// Appends one record; every column once, in any order. Returns its step.
    ///
    /// # Errors
    /// [`Error::Argument`] before anything is written. [`Error::Io`] when the system refuses: the records before are as
    /// they were and the writer can go on.
    pub fn append(&mut self, data: &[ColumnData<'_>]) -> Result<u64> {
        self.require_open()?;
        let ordered = self.check(data)?;
        let step = self.steps;
        let mut kinds = Vec::with_capacity(ordered.len());
        let result = self.encode(step, &ordered, &mut kinds).and_then(|()| self.write_record(step, &ordered, &kinds));
        if let Err(error) = result {
            for column in &mut self.columns[..kinds.len()] {
                if let Some(encoder) = &mut column.encoder {
                    encoder.abandon_last();
                }
            }
            self.cut_back(&error);
            return Err(error);
        }
        self.steps += 1;
        Ok(step)
    }

    fn encode(&mut self, step: u64, data: &[ColumnData<'_>], kinds: &mut Vec<RecordKind>) -> Result<()> {
        for (column, data) in self.columns.iter_mut().zip(data) {
            column.payload.clear();
            kinds.push(match &mut column.encoder {
                None => RecordKind::Keyframe,
                Some(encoder) => encoder.encode(step, data.bytes, &mut column.payload)?,
            });
        }
        Ok(())
    }

    /// Takes back what a failed write left.
    fn cut_back(&mut self, error: &Error) {
        if let Err(second) = self.file.set_length(self.position) {
            self.failure = Some(format!("one that failed ({error}) and could not be cut back ({second})"));
        }
    }

    fn check<'a>(&self, data: &[ColumnData<'a>]) -> Result<Vec<ColumnData<'a>>> {
        let mut seen = HashSet::new();
        for one in data {
            self.schema.index(one.name)?;
            if !seen.insert(one.name) {
                return Err(Error::argument("columns", format_args!("{:?} twice", one.name), "every column once"));
            }
        }
        let mut ordered = Vec::with_capacity(data.len());
        for column in self.schema.columns() {
            let Some(one) = data.iter().find(|one| one.name == column.name) else {
                let got = format!("a record without {:?}", column.name);
                return Err(Error::argument("columns", got, "every column of the schema"));
            };
            let expected = match (column.ragged, one.rows) {
                (true, Some(rows)) => (column.bytes as u64).checked_mul(rows),
                (false, None) => Some(column.bytes as u64),
                (true, None) => {
                    return Err(Error::argument(column.name.as_str(), "no number of rows", "rows, as it is ragged"));
                }
                (false, Some(rows)) => {
                    return Err(Error::argument(column.name.as_str(), format_args!("{rows} rows"), "a fixed shape"));
                }
            };
            if expected != Some(one.bytes.len() as u64) {
                let allowed = expected.map_or_else(|| "fewer rows".to_owned(), |bytes| format!("{bytes} bytes"));
                return Err(Error::argument(column.name.as_str(), format_args!("{} bytes", one.bytes.len()), allowed));
            }
            ordered.push(*one);
        }
        Ok(ordered)
    }

    fn write_record(&mut self, step: u64, data: &[ColumnData<'_>], kinds: &[RecordKind]) -> Result<()> {
        let too_long = || Error::argument("record", "one that ends past the range of offsets", "a shorter one");
        let head = HEADER_BYTES * (1 + data.len());
        let mut table = vec![0; HEADER_BYTES];
        let mut offset = self.position.checked_add(head as u64).ok_or_else(too_long)?;
        let mut end = offset;
        let mut base = step;
        for (index, (data, kind)) in data.iter().zip(kinds).enumerate() {
            let ColumnWriter { encoder, before, payload } = &self.columns[index];
            let (bytes, error) = match encoder {
                None => (data.bytes, CodecError::default()),
                Some(encoder) => (payload.as_slice(), before.merge(encoder.error())),
            };
            if let RecordKind::Delta { base: other } = kind {
                base = base.min(*other);
            }
            self.file.write_at(bytes, offset).map_err(at(&self.path, "writing"))?;
            // Before the digest, which takes as long as the disk needs to get going.
            self.file.start_writing(offset, bytes.len() as u64);
            let rows = data.rows.unwrap_or(0);
            let entry = ColumnEntry {
                length: bytes.len() as u64,
                rows,
                kind: *kind,
                digest: record_digest(bytes, step, rows, *kind),
                codec: self.schema.columns()[index].codec.code(),
                error,
            };
            table.extend_from_slice(&entry.encode());
            // An empty column at the end must not reach past what is written: the file would seem cut short.
            if !bytes.is_empty() {
                end = offset.checked_add(bytes.len() as u64).ok_or_else(too_long)?;
                offset = align(end).ok_or_else(too_long)?;
            }
        }
        let header = FrameHeader {
            columns: u16::try_from(data.len()).unwrap_or(u16::MAX),
            base,
            payload_length: end - self.position - HEADER_BYTES as u64,
            ..FrameHeader::new(FrameKind::Record, self.number, self.position, step, &table[HEADER_BYTES..])
        };
        table[..HEADER_BYTES].copy_from_slice(&header.encode());
        // The header last: a frame that is there is, but for a power cut, there as a whole.
        self.file.write_at(&table, self.position).map_err(at(&self.path, "writing"))?;
        self.position = offset;
        Ok(())
    }

    /// Makes every appended record durable.
    ///
    /// # Errors
    /// [`Error::Io`]: the records since the last flush are dropped, as nobody can say which of them reached the disk; the
    /// trajectory has to be resumed.
    pub fn flush(&mut self) -> Result<()> {
        self.require_open()?;
        self.sync()?;
        // Its own store reads what is durable.
        self.stale.store(true, Ordering::Release);
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        if self.durable == self.position && self.name_is_durable {
            return Ok(());
        }
        let mut result = self.file.sync().map_err(at(&self.path, "syncing"));
        if result.is_ok() && !self.name_is_durable {
            result = self.fs.sync_directory(&self.directory).map_err(at(&self.directory, "syncing"));
        }
        match result {
            Ok(()) => {
                self.durable = self.position;
                self.name_is_durable = true;
                Ok(())
            }
            Err(error) => {
                // A system may forget pages that it failed to write and call the next sync a success.
                let cut = self.file.set_length(self.durable);
                let word = if cut.is_ok() { "dropped" } else { "not acknowledged" };
                let failure = format!("one whose flush failed ({error}); records since the last flush are {word}");
                self.failure = Some(failure);
                Err(error)
            }
        }
    }

    /// Ends the trajectory, durably, and frees the lock.
    ///
    /// # Errors
    /// As [`Writer::flush`]; an [`Error::Io`] from writing the end leaves the trajectory incomplete and the writer open.
    pub fn complete(&mut self) -> Result<()> {
        self.require_open()?;
        // First the records, then the end: an end on disk vouches for them.
        self.sync()?;
        let key = self.key.clone();
        let header = FrameHeader::new(FrameKind::Complete, self.number, self.position, self.steps, key.as_bytes());
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(key.as_bytes());
        if let Err(error) = self.file.write_at(&bytes, self.position).map_err(at(&self.path, "writing")) {
            self.cut_back(&error);
            return Err(error);
        }
        self.position += bytes.len() as u64;
        self.sync()?;
        self.stale.store(true, Ordering::Release);
        self.close();
        Ok(())
    }

    /// Leaves the trajectory as it is, resumable, and frees the lock.
    pub fn close(&mut self) {
        if let Some(lock) = self.lock.take() {
            self.stale.store(true, Ordering::Release);
            // Files of a lock that could not be removed are taken over by the next writer of this key.
            let _ = lock.release_alone();
        }
    }
}

fn refuse_beyond(resume_at: Option<u64>, steps: u64, key: &str) -> Result<()> {
    match resume_at {
        Some(step) if step > steps => {
            Err(Error::argument("resume_at", step, format!("0 to {steps}, the sound records of {key:?}")))
        }
        _ => Ok(()),
    }
}
