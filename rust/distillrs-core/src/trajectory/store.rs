//! A store: create, open, begin, read, seal.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

use super::catalogue::{Catalogue, Entry, ManifestState, Sealed};
use super::codec::CodecError;
use super::filesystem::{FileSystem, Mapping, RealFs, at};
use super::lock::StoreLock;
use super::manifest::Manifest;
use super::names;
use super::records::{Place, Records, Verify, present, read, stored};
use super::report::{Info, VerifyReport, info, verify};
use super::schema::{Schema, check_key};
use super::seal::{SealLimits, SealReport, seal};
use super::writer::{Home, Writer};
use crate::{Error, Result};

/// A directory of trajectories.
///
/// A store that was opened only reads, and never writes a byte. Methods take `&self` and may be called from any thread;
/// reading works in forked children too.
#[derive(Debug)]
pub struct Store {
    fs: Arc<dyn FileSystem>,
    directory: PathBuf,
    writable: bool,
    verify: Verify,
    schema: Arc<Schema>,
    metadata: String,
    catalogue: RwLock<Arc<Catalogue>>,
    stale: Arc<AtomicBool>,
}

/// The bytes of one record.
#[derive(Debug)]
pub enum View {
    /// In a mapped segment.
    Mapped(Arc<Mapping>, Range<usize>),
    /// Decoded, or read from a log. Words, so that every element type is aligned; the length is in bytes.
    Owned(Vec<u64>, usize),
}

impl View {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(mapping, range) => mapping.get(range.clone()).unwrap_or_default(),
            Self::Owned(words, length) => &as_bytes(words)[..*length],
        }
    }
}

fn as_bytes(words: &[u64]) -> &[u8] {
    // SAFETY: any initialised u64 is eight initialised bytes, whose alignment is 1; the lifetime is that of `words`.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

fn as_bytes_mut(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: as in `as_bytes`; any bytes are valid u64, and the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}

impl Store {
    /// Makes a store on the real file system, or joins one that is there.
    ///
    /// # Errors
    /// See [`Store::create_in`].
    pub fn create(path: &Path, schema: &str, metadata: &str, exist_ok: bool) -> Result<Self> {
        Self::create_in(Arc::new(RealFs), path, schema, metadata, exist_ok)
    }

    /// Makes a store, or with `exist_ok` joins one of the same schema and metadata. Any number of processes may join.
    ///
    /// # Errors
    /// [`Error::StoreExists`], [`Error::SchemaMismatch`], [`Error::Argument`] for a directory that holds something else.
    pub fn create_in(
        fs: Arc<dyn FileSystem>,
        path: &Path,
        schema: &str,
        metadata: &str,
        exist_ok: bool,
    ) -> Result<Self> {
        let schema = Schema::parse(schema)?;
        let user: Value = serde_json::from_str(metadata)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| Error::argument("metadata", metadata, "a JSON object"))?;
        fs.create_directories(path).map_err(at(path, "creating"))?;
        // Looked at before the lock too, so that a folder of somebody else's does not get a lock file. Listed first: what
        // another process makes meanwhile is a store by the second look.
        let foreign = refuse_foreign_files(&*fs, path);
        if let (Err(refusal), Err(Error::StoreMissing { .. })) = (foreign, Sealed::load(&*fs, path, None)) {
            return Err(refusal);
        }
        let lock = StoreLock::acquire(&*fs, path)?;
        match Sealed::load(&*fs, path, None) {
            Ok(_) if !exist_ok => return Err(Error::StoreExists { path: path.to_path_buf() }),
            Ok(sealed) => {
                if let Some(reason) = sealed.schema.difference(&schema) {
                    return Err(Error::SchemaMismatch { path: path.to_path_buf(), reason });
                }
                let there = serde_json::from_str(&sealed.metadata).unwrap_or(Value::Null);
                if let Some(reason) = metadata_difference(&there, &user) {
                    return Err(Error::SchemaMismatch { path: path.to_path_buf(), reason });
                }
                if let ManifestState::Rebuilt(_) = sealed.manifest {
                    sealed.manifest().store(&*fs, path)?;
                }
            }
            Err(Error::StoreMissing { .. }) => {
                refuse_foreign_files(&*fs, path)?;
                Manifest { schema, metadata: metadata.to_owned(), segments: Vec::new() }.store(&*fs, path)?;
                let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
                fs.sync_directory(above).map_err(at(above, "syncing"))?;
            }
            Err(error) => return Err(error),
        }
        drop(lock);
        Self::load(fs, path, true, Verify::First)
    }

    /// Opens a store on the real file system to read.
    ///
    /// # Errors
    /// See [`Store::open_in`].
    pub fn open(path: &Path, verify: Verify) -> Result<Self> {
        Self::open_in(Arc::new(RealFs), path, verify)
    }

    /// Opens a store to read. Segments are mapped when they are first touched.
    ///
    /// # Errors
    /// [`Error::StoreMissing`]; [`Error::StoreCorrupt`] if neither the manifest nor any other file has the schema;
    /// [`Error::StoreVersion`].
    pub fn open_in(fs: Arc<dyn FileSystem>, path: &Path, verify: Verify) -> Result<Self> {
        Self::load(fs, path, false, verify)
    }

    fn load(fs: Arc<dyn FileSystem>, path: &Path, writable: bool, verify: Verify) -> Result<Self> {
        let catalogue = Catalogue::load(&fs, path, None)?;
        Ok(Self {
            fs,
            directory: path.to_path_buf(),
            writable,
            verify,
            schema: catalogue.sealed.schema.clone(),
            metadata: catalogue.sealed.metadata.clone(),
            catalogue: RwLock::new(Arc::new(catalogue)),
            stale: Arc::new(AtomicBool::new(false)),
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Whether trajectories can be begun.
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// The columns.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The user's JSON object.
    pub fn metadata(&self) -> &str {
        &self.metadata
    }

    fn require_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(Error::argument("store", "one opened to read", "one from `create`, with exist_ok=True to join"))
    }

    /// Starts a trajectory, or goes on where its log ends; `resume_at` drops its records from that step on.
    ///
    /// # Errors
    /// [`Error::StoreLocked`] names the process that writes it; [`Error::KeyConflict`] if it is complete;
    /// [`Error::StoreCorrupt`] if records before its last are damaged: repair, or resume before them.
    pub fn begin(&self, key: &str, resume_at: Option<u64>) -> Result<Writer> {
        self.require_writable()?;
        check_key(key)?;
        let home = Home {
            fs: self.fs.clone(),
            directory: self.directory.clone(),
            schema: self.schema.clone(),
            metadata: self.metadata.clone(),
            stale: self.stale.clone(),
        };
        Writer::begin(home, key, resume_at)
    }

    fn catalogue(&self) -> Result<Arc<Catalogue>> {
        if self.stale.swap(false, Ordering::AcqRel) {
            self.refresh()?;
        }
        Ok(self.catalogue.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// What rooms that read records on their own need: the store at this moment, its file system, when to check.
    pub(super) fn snapshot(&self) -> Result<(Arc<Catalogue>, Arc<dyn FileSystem>, Verify)> {
        Ok((self.catalogue()?, self.fs.clone(), self.verify))
    }

    /// Takes in what others completed, sealed or appended since.
    ///
    /// # Errors
    /// As [`Store::open_in`].
    pub fn refresh(&self) -> Result<()> {
        let before = self.catalogue.read().unwrap_or_else(PoisonError::into_inner).clone();
        let now = Catalogue::load(&self.fs, &self.directory, Some(&before))?;
        *self.catalogue.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
        Ok(())
    }

    /// Keys in order; unfinished trajectories only with `incomplete`.
    ///
    /// # Errors
    /// As [`Store::refresh`].
    pub fn keys(&self, incomplete: bool) -> Result<Vec<String>> {
        Ok(self.lengths(incomplete)?.into_iter().map(|(key, _)| key).collect())
    }

    /// Keys in order, with their steps.
    ///
    /// # Errors
    /// As [`Store::refresh`].
    pub fn lengths(&self, incomplete: bool) -> Result<Vec<(String, u64)>> {
        let catalogue = self.catalogue()?;
        let chosen = catalogue.sorted().iter().filter(|(_, complete)| *complete || incomplete);
        let with_steps = chosen.filter_map(|(key, _)| {
            let entry = catalogue.entries.get(key)?;
            Some((key.to_string(), catalogue.steps(*entry)))
        });
        Ok(with_steps.collect())
    }

    fn with<T>(&self, key: &str, mut action: impl FnMut(&Catalogue, Entry, &dyn Records) -> Result<T>) -> Result<T> {
        let mut attempt = || {
            let catalogue = self.catalogue()?;
            let entry = catalogue.entry(&self.directory, key)?;
            action(&catalogue, entry, catalogue.records(&*self.fs, key, entry)?)
        };
        match attempt() {
            // Another process sealed the log since it was listed.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                self.refresh()?;
                attempt()
            }
            result => result,
        }
    }

    /// Steps of a trajectory that a repair dropped.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`], and those of opening its segment.
    pub fn missing(&self, key: &str) -> Result<Vec<u64>> {
        self.with(key, |_, _, records| {
            let steps = (0..records.steps()).filter(|&step| matches!(records.place(0, step), Ok(None)));
            Ok(steps.collect())
        })
    }

    /// Error of a column's codec, relative to the displacement between neighbours.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`], [`Error::Argument`] for a column that is not there.
    pub fn codec_error(&self, key: &str, column: &str) -> Result<CodecError> {
        let column = self.schema.index(column)?;
        let catalogue = self.catalogue()?;
        let entry = catalogue.entry(&self.directory, key)?;
        catalogue.codec_error(key, entry, column)
    }

    /// Rows of one record of a ragged column.
    ///
    /// # Errors
    /// As [`Store::read`]; [`Error::Argument`] for a column of fixed shape.
    pub fn rows(&self, key: &str, column: &str, step: u64) -> Result<u64> {
        let index = self.schema.index(column)?;
        if !self.schema.columns()[index].ragged {
            return Err(Error::argument("column", format_args!("{column:?}, of fixed shape"), "a ragged column"));
        }
        // The number of rows is part of what the checksum covers, so it is looked at too.
        self.with(key, |_, _, records| Ok(stored(records, &self.schema, index, step, self.verify)?.0.rows))
    }

    /// Fills one buffer per step with one column's records.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`]; [`Error::Argument`] for a column, step or buffer that does not fit;
    /// [`Error::StoreCorrupt`] for bytes that contradict their checksum.
    pub fn read(&self, key: &str, column: &str, wanted: &mut [(u64, &mut [u8])]) -> Result<()> {
        let index = self.schema.index(column)?;
        self.with(key, |_, _, records| read(records, &self.schema, index, self.verify, wanted))
    }

    /// One record: of the mapped file where it lies there as it is, else a decoded copy.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn view(&self, key: &str, column: &str, step: u64) -> Result<View> {
        let index = self.schema.index(column)?;
        let spec = &self.schema.columns()[index];
        self.with(key, |catalogue, entry, records| {
            let place: Place = present(records, &self.schema, index, step)?;
            if let (true, Entry::Segment { index: segment, .. }) = (spec.is_raw(), entry) {
                let segment = catalogue.sealed.segments[segment].open(&*self.fs, &self.schema)?;
                stored(records, &self.schema, index, step, self.verify)?;
                if let Some((mapping, range)) = segment.trajectory(key).and_then(|one| one.mapped(&place)) {
                    return Ok(View::Mapped(mapping, range));
                }
            }
            // Of a raw record the place's length is bounded by its file, of a coded one the schema's is what decodes.
            let length = if spec.is_raw() { usize::try_from(place.length).unwrap_or(0) } else { spec.bytes };
            let mut words = vec![0u64; length.div_ceil(8)];
            read(records, &self.schema, index, self.verify, &mut [(step, &mut as_bytes_mut(&mut words)[..length])])?;
            Ok(View::Owned(words, length))
        })
    }

    /// Moves complete logs into segments: own ones, and those that others left.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing is lost then, and sealing can be tried again.
    pub fn seal(&self) -> Result<SealReport> {
        self.seal_with(SealLimits::default())
    }

    /// [`Store::seal`] with other limits.
    ///
    /// # Errors
    /// As [`Store::seal`].
    pub fn seal_with(&self, limits: SealLimits) -> Result<SealReport> {
        self.require_writable()?;
        let report = seal(&self.fs, &self.directory, &self.schema, limits);
        self.stale.store(true, Ordering::Release);
        report
    }

    /// What the store holds.
    ///
    /// # Errors
    /// As [`Store::refresh`].
    pub fn info(&self) -> Result<Info> {
        Ok(info(&*self.fs, &self.directory, &*self.catalogue()?))
    }

    /// Reads everything and compares every checksum.
    ///
    /// # Errors
    /// [`Error::Io`] alone; damage is reported.
    pub fn verify(&self) -> Result<VerifyReport> {
        self.refresh()?;
        verify(&*self.fs, &self.directory, &*self.catalogue()?)
    }

    /// Codec errors of every lossy column of a trajectory, by column.
    ///
    /// # Errors
    /// As [`Store::codec_error`].
    pub fn codec_errors(&self, key: &str) -> Result<BTreeMap<String, CodecError>> {
        let names = self.schema.columns().iter().filter(|column| !column.codec.is_exact());
        names.map(|column| Ok((column.name.clone(), self.codec_error(key, &column.name)?))).collect()
    }
}

/// The first entry of the metadata that differs. A layout may have thousands of words, so long values are cut.
fn metadata_difference(there: &Value, asked: &Value) -> Option<String> {
    const SHOWN: usize = 200;
    let show = |value: Option<&Value>| {
        let Some(value) = value else { return "nothing".to_owned() };
        let text = value.to_string();
        match text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
            None => text,
        }
    };
    if there == asked {
        return None;
    }
    let differing = there.as_object().into_iter().chain(asked.as_object()).flat_map(|object| object.keys());
    let key = differing.into_iter().find(|key| there.get(key) != asked.get(key));
    Some(match key {
        Some(key) => format!(
            "the store has metadata with {key:?} = {}, asked for was {}",
            show(there.get(key)),
            show(asked.get(key))
        ),
        None => format!("the store has metadata {}, asked for was {}", show(Some(there)), show(Some(asked))),
    })
}

fn refuse_foreign_files(fs: &dyn FileSystem, path: &Path) -> Result<()> {
    let listed: io::Result<Vec<String>> = fs.list(path);
    let listed = listed.map_err(at(path, "listing"))?;
    let foreign = listed.iter().find(|name| *name != names::STORE_LOCK && !names::is_temporary(name));
    match foreign {
        None => Ok(()),
        Some(name) => {
            let got = format!("{}, which holds {name:?}", path.display());
            Err(Error::argument("path", got, "a new or empty directory, or a store"))
        }
    }
}
