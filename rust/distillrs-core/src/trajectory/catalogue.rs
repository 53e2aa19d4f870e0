//! What a store holds at one moment: its segments, its logs, and what is wrong with them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::value::RawValue;

use super::codec::CodecError;
use super::filesystem::{FileSystem, Mapping, at};
use super::log::Log;
use super::manifest::{ErrorTable, Listed, Manifest, SegmentRecord};
use super::names;
use super::records::{Records, corrupt};
use super::schema::Schema;
use super::segment::{Segment, Tolerance};
use crate::{Error, Result};

/// A file that cannot be used as it is.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    pub path: PathBuf,
    pub offset: u64,
    pub reason: String,
}

impl Problem {
    fn of(path: &Path, error: Error) -> Self {
        match error {
            Error::StoreCorrupt { path, offset, reason } => Self { path, offset, reason },
            other => Self { path: path.to_path_buf(), offset: 0, reason: other.to_string() },
        }
    }

    pub fn error(&self) -> Error {
        corrupt(&self.path, self.offset, self.reason.clone())
    }
}

/// What became of the manifest.
#[derive(Debug, Clone)]
pub(super) enum ManifestState {
    Sound,
    /// Rebuilt in memory, because it was missing or damaged.
    Rebuilt(Option<Problem>),
}

/// A segment, opened when it is first touched.
#[derive(Debug)]
pub(super) struct SegmentHandle {
    pub record: SegmentRecord,
    /// Whether the manifest lists it.
    pub listed: bool,
    path: PathBuf,
    opened: OnceLock<Arc<Segment>>,
}

impl SegmentHandle {
    fn listed(directory: &Path, record: SegmentRecord) -> Self {
        let path = directory.join(&record.name);
        Self { record, listed: true, path, opened: OnceLock::new() }
    }

    fn found(path: PathBuf, name: &str, segment: Segment) -> Result<Self> {
        let mut errors = ErrorTable::new();
        for trajectory in &segment.trajectories {
            for (index, column) in segment.schema.columns().iter().enumerate() {
                if let Some(error) = super::manifest::stored_error(trajectory.codec_error(index)) {
                    errors.entry(trajectory.key().to_owned()).or_default().insert(column.name.clone(), error);
                }
            }
        }
        let codec_error = serde_json::value::to_raw_value(&errors)
            .map_err(|error| corrupt(&path, 8, format!("the codec errors of the segment: {error}")))?;
        let listed = |one: &super::segment::SegmentTrajectory| Listed { key: one.key().into(), steps: one.steps() };
        let trajectories = segment.trajectories.iter().map(listed).collect();
        let record = SegmentRecord {
            name: name.to_owned(),
            size: segment.size,
            digest: segment.digest,
            trajectories,
            codec_error,
        };
        let opened = OnceLock::from(Arc::new(segment));
        Ok(Self { record, listed: false, path, opened })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open segment.
    pub fn open(&self, fs: &dyn FileSystem, schema: &Schema) -> Result<&Arc<Segment>> {
        if let Some(segment) = self.opened.get() {
            return Ok(segment);
        }
        // Two threads may both map it; one mapping is dropped. Nothing waits, so a fork cannot leave a waiter behind.
        let tolerance = Tolerance::Exact { size: self.record.size, digest: self.record.digest };
        let segment = Segment::open(fs, &self.path, tolerance)?;
        if let Some(difference) = schema.difference(&segment.schema) {
            return Err(corrupt(&self.path, 8, format!("the segment has another schema: {difference}")));
        }
        for listed in &self.record.trajectories {
            if segment.trajectory(&listed.key).is_none_or(|found| found.steps() != listed.steps) {
                let reason = format!("the segment does not hold {} steps of {:?}", listed.steps, listed.key);
                return Err(corrupt(&self.path, 8, reason));
            }
        }
        Ok(self.opened.get_or_init(|| Arc::new(segment)))
    }
}

/// The sealed part of a store.
#[derive(Debug)]
pub(super) struct Sealed {
    pub schema: Arc<Schema>,
    pub metadata: String,
    pub manifest: ManifestState,
    pub segments: Vec<Arc<SegmentHandle>>,
    pub problems: Vec<Problem>,
    /// Names in the directory before the manifest was read.
    pub names: Vec<String>,
}

impl Sealed {
    /// Reads the directory and the manifest; without a sound one, every segment and log that carries a schema.
    ///
    /// The directory is listed before the manifest is read: sealing puts a segment into the manifest before it removes
    /// logs, so a trajectory whose log was gone from the list is in the manifest.
    pub fn load(fs: &dyn FileSystem, directory: &Path, previous: Option<&Self>) -> Result<Self> {
        let missing = |reason: &str| Error::StoreMissing { path: directory.to_path_buf(), reason: reason.to_owned() };
        let mut names = match fs.list(directory) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(missing("the directory does not exist"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Err(missing("it is no directory")),
            Err(error) => return Err(at(directory, "listing")(error)),
        };
        names.sort_unstable();
        let (manifest, state) = match Manifest::load(fs, directory) {
            Ok(Some(manifest)) => (Some(manifest), ManifestState::Sound),
            Ok(None) => (None, ManifestState::Rebuilt(None)),
            Err(error @ Error::StoreCorrupt { .. }) => {
                let problem = Problem::of(&directory.join(names::MANIFEST), error);
                (None, ManifestState::Rebuilt(Some(problem)))
            }
            Err(error) => return Err(error),
        };
        let mut problems = Vec::new();
        if let ManifestState::Rebuilt(Some(problem)) = &state {
            problems.push(problem.clone());
        }
        let (mut schema, mut metadata, records) = match manifest {
            Some(Manifest { schema, metadata, segments }) => (Some(Arc::new(schema)), Some(metadata), segments),
            None => (None, None, Vec::new()),
        };
        let known: HashMap<&str, &Arc<SegmentHandle>> = previous
            .into_iter()
            .flat_map(|previous| &previous.segments)
            .filter(|handle| handle.listed)
            .map(|handle| (handle.record.name.as_str(), handle))
            .collect();
        let mut segments: Vec<Arc<SegmentHandle>> = Vec::with_capacity(records.len());
        for record in records {
            let same = known.get(record.name.as_str()).filter(|handle| handle.record.digest == record.digest);
            let handle =
                same.map_or_else(|| Arc::new(SegmentHandle::listed(directory, record)), |same| (*same).clone());
            segments.push(handle);
        }
        let listed: HashSet<&str> = segments.iter().map(|handle| handle.record.name.as_str()).collect();
        let unlisted: Vec<&String> =
            names.iter().filter(|name| names::is_segment(name) && !listed.contains(name.as_str())).collect();
        let mut found = Vec::new();
        for name in unlisted {
            let path = directory.join(name);
            let opened = Segment::open(fs, &path, Tolerance::Own);
            match opened.and_then(|segment| SegmentHandle::found(path.clone(), name, segment)) {
                Ok(handle) => found.push(handle),
                Err(error @ Error::StoreVersion { .. }) => return Err(error),
                Err(error) => problems.push(Problem::of(&path, error)),
            }
        }
        let replaced: Vec<String> = found
            .iter()
            .filter_map(|handle| handle.opened.get())
            .flat_map(|segment| segment.replaces.iter().cloned())
            .collect();
        for handle in found {
            let segment = handle.opened.get();
            let (Some(segment), false) = (segment, replaced.contains(&handle.record.name)) else { continue };
            let schema = schema.get_or_insert_with(|| segment.schema.clone());
            metadata.get_or_insert_with(|| segment.metadata.clone());
            match schema.difference(&segment.schema) {
                None => segments.push(Arc::new(handle)),
                Some(difference) => {
                    let reason = format!("the segment has another schema: {difference}");
                    problems.push(Problem { path: handle.path, offset: 8, reason });
                }
            }
        }
        if schema.is_none() {
            for name in names.iter().filter(|name| names::is_log(name)) {
                if let Ok(log) = Log::scan(fs, &directory.join(name), None)
                    && let Some(carried) = log.schema
                {
                    schema = Some(carried);
                    metadata = log.metadata;
                    break;
                }
            }
        }
        match (schema, problems.first()) {
            (Some(schema), _) => {
                let metadata = metadata.unwrap_or_else(|| "{}".to_owned());
                Ok(Self { schema, metadata, manifest: state, segments, problems, names })
            }
            (None, Some(problem)) => Err(problem.error()),
            (None, None) => Err(missing("it has no manifest.json")),
        }
    }

    /// The segment that holds `key`, and its steps.
    pub fn find(&self, key: &str) -> Option<(&Arc<SegmentHandle>, u64)> {
        self.segments.iter().find_map(|handle| {
            let listed = handle.record.trajectories.iter().find(|listed| *listed.key == *key)?;
            Some((handle, listed.steps))
        })
    }

    /// The manifest that says this.
    pub fn manifest(&self) -> Manifest {
        let segments = self.segments.iter().map(|handle| handle.record.clone()).collect();
        Manifest { schema: (*self.schema).clone(), metadata: self.metadata.clone(), segments }
    }
}

/// Where a trajectory lies.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    Segment { index: usize, steps: u64 },
    Log { index: usize },
}

/// A store at one moment.
#[derive(Debug)]
pub(super) struct Catalogue {
    pub sealed: Sealed,
    pub logs: Vec<Log>,
    pub entries: HashMap<Arc<str>, Entry>,
    sorted: OnceLock<Vec<(Arc<str>, bool)>>,
    /// Problems of the sealed part and of logs.
    pub problems: Vec<Problem>,
}

/// Looks at a directory whose logs others seal meanwhile; a name that leads nowhere for good is left out after them.
const LOOKS: u32 = 64;

impl Catalogue {
    /// Reads the manifest, and the frames' headers of every log.
    pub fn load(fs: &Arc<dyn FileSystem>, directory: &Path, previous: Option<&Self>) -> Result<Self> {
        for _ in 1..LOOKS {
            if let Some(found) = Self::look(fs, directory, previous, false)? {
                return Ok(found);
            }
        }
        let found = Self::look(fs, directory, previous, true)?;
        found.ok_or_else(|| Error::StoreMissing { path: directory.to_path_buf(), reason: "its logs vanish".to_owned() })
    }

    /// `None` where a log that was listed is gone: what it held is in a later manifest than the one that was read.
    fn look(
        fs: &Arc<dyn FileSystem>,
        directory: &Path,
        previous: Option<&Self>,
        is_last: bool,
    ) -> Result<Option<Self>> {
        let sealed = Sealed::load(&**fs, directory, previous.map(|previous| &previous.sealed))?;
        let mut problems = sealed.problems.clone();
        let count = sealed.segments.iter().map(|handle| handle.record.trajectories.len()).sum();
        let mut entries = HashMap::with_capacity(count);
        for (index, handle) in sealed.segments.iter().enumerate() {
            for listed in &handle.record.trajectories {
                entries.entry(listed.key.clone()).or_insert(Entry::Segment { index, steps: listed.steps });
            }
        }
        let mut logs = Vec::new();
        for name in sealed.names.iter().filter(|name| names::is_log(name)) {
            let path = directory.join(name);
            let mut log = match Log::scan(&**fs, &path, Some(&sealed.schema)) {
                Ok(log) => log,
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    if is_last {
                        continue;
                    }
                    return Ok(None);
                }
                Err(error @ (Error::Io { .. } | Error::StoreVersion { .. })) => return Err(error),
                Err(error) => {
                    problems.push(Problem::of(&path, error));
                    continue;
                }
            };
            for damage in &log.damage {
                problems.push(Problem { path: path.clone(), offset: damage.offset, reason: damage.reason.clone() });
            }
            if log.is_blank() {
                continue;
            }
            let other_schema = log.schema.as_ref().and_then(|schema| sealed.schema.difference(schema));
            let reason = match (&log.key, other_schema) {
                (None, _) => Some("no frame of the log has its key".to_owned()),
                (Some(key), _) if names::log_name(key) != *name => Some(format!("the log is of {key:?}")),
                (_, Some(difference)) => Some(format!("the log has another schema: {difference}")),
                _ => None,
            };
            if let Some(reason) = reason {
                problems.push(Problem { path, offset: 0, reason });
                continue;
            }
            log.close(fs);
            // A sealed trajectory wins over a log that a crash left behind.
            entries.entry(log.key().into()).or_insert(Entry::Log { index: logs.len() });
            logs.push(log);
        }
        Ok(Some(Self { sealed, logs, entries, sorted: OnceLock::new(), problems }))
    }

    /// Keys in order, each with whether it is complete.
    pub fn sorted(&self) -> &[(Arc<str>, bool)] {
        self.sorted.get_or_init(|| {
            let mut keys: Vec<_> =
                self.entries.iter().map(|(key, entry)| (key.clone(), self.is_complete(*entry))).collect();
            keys.sort_unstable();
            keys
        })
    }

    fn is_complete(&self, entry: Entry) -> bool {
        match entry {
            Entry::Segment { .. } => true,
            Entry::Log { index } => self.logs[index].complete,
        }
    }

    pub fn steps(&self, entry: Entry) -> u64 {
        match entry {
            Entry::Segment { steps, .. } => steps,
            Entry::Log { index } => self.logs[index].steps(),
        }
    }

    /// The entry of a key.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`], or [`Error::StoreCorrupt`] where a file that cannot be read may hold it.
    pub fn entry(&self, directory: &Path, key: &str) -> Result<Entry> {
        if let Some(entry) = self.entries.get(key) {
            return Ok(*entry);
        }
        let own_log = directory.join(names::log_name(key));
        let rebuilt = matches!(self.sealed.manifest, ManifestState::Rebuilt(_));
        let may_hold_it = |problem: &&Problem| {
            let name = problem.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            problem.path == own_log || (rebuilt && names::is_segment(name))
        };
        Err(match self.problems.iter().find(may_hold_it) {
            Some(problem) => problem.error(),
            None => Error::KeyNotFound { key: key.to_owned(), path: directory.to_path_buf() },
        })
    }

    /// The records of an entry.
    pub fn records(&self, fs: &dyn FileSystem, key: &str, entry: Entry) -> Result<&dyn Records> {
        match entry {
            Entry::Log { index } => Ok(&self.logs[index]),
            Entry::Segment { index, .. } => {
                let handle = &self.sealed.segments[index];
                let segment = handle.open(fs, &self.sealed.schema)?;
                let trajectory = segment.trajectory(key);
                trajectory
                    .map(|trajectory| trajectory as &dyn Records)
                    .ok_or_else(|| corrupt(handle.path(), 8, format!("the segment does not hold {key:?}")))
            }
        }
    }

    /// The mapped file that an entry lies in, once [`Catalogue::records`] opened it; `None` for a log.
    pub fn mapping(&self, entry: Entry) -> Option<Arc<Mapping>> {
        match entry {
            Entry::Log { .. } => None,
            Entry::Segment { index, .. } => Some(self.sealed.segments[index].opened.get()?.mapping().clone()),
        }
    }

    /// Error of a lossy column, from the manifest or the log; no segment is opened.
    pub fn codec_error(&self, key: &str, entry: Entry, column: usize) -> Result<CodecError> {
        let index = match entry {
            Entry::Log { index } => return Ok(self.logs[index].codec_error(column)),
            Entry::Segment { index, .. } => index,
        };
        let handle = &self.sealed.segments[index];
        let table: &RawValue = &handle.record.codec_error;
        let table: ErrorTable = serde_json::from_str(table.get())
            .map_err(|error| corrupt(handle.path(), 0, format!("codec errors in the manifest: {error}")))?;
        let name = &self.sealed.schema.columns()[column].name;
        let stored = table.get(key).and_then(|columns| columns.get(name)).copied();
        Ok(stored.map_or(CodecError::default(), |(max, mean, records)| CodecError { max, mean, records }))
    }
}
