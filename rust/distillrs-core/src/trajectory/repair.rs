//! Repair: drops what is damaged, keeps everything else, and says exactly what.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::catalogue::{ManifestState, Sealed};
use super::codec::RecordKind;
use super::filesystem::{Existing, FileSystem, RealFs, at};
use super::frame::{FrameHeader, FrameKind, HEADER_BYTES, align};
use super::lock::{KeyLock, StoreLock};
use super::log::{Log, Step, log_prefix};
use super::manifest::{Manifest, SegmentRecord};
use super::names;
use super::records::{Records, Verify, stored};
use super::schema::Schema;
use super::seal::{NewSegment, sweep};
use super::segment::{Segment, Tolerance};
use super::segment_writer::Source;
use crate::{Error, Result};

/// One step of one trajectory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct KeyStep {
    /// The trajectory.
    pub key: String,
    /// The step.
    pub step: u64,
}

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// Records that were damaged.
    pub dropped: Vec<KeyStep>,
    /// Sound records that are stored as a difference to a damaged one, and went with it.
    pub dependants: Vec<KeyStep>,
    /// Records that are there and sound.
    pub kept: u64,
    /// Trajectories of which nothing was left; their files were set aside.
    pub lost: Vec<String>,
    /// Files that were written anew.
    pub files: Vec<String>,
    /// Files that could not be used and were given the ending `.damaged`.
    pub set_aside: Vec<String>,
    /// Files that only repeated what stands elsewhere, and were removed.
    pub removed: Vec<String>,
    /// Whether the manifest was lost, damaged or behind.
    pub manifest_rebuilt: bool,
}

/// Repairs a store on the real file system.
///
/// # Errors
/// [`Error::StoreLocked`] while a trajectory is being written; [`Error::Io`], and the store is as it was or half repaired,
/// never worse; [`Error::StoreCorrupt`] if nothing carries the schema.
pub fn repair(path: &Path) -> Result<RepairReport> {
    let fs: Arc<dyn FileSystem> = Arc::new(RealFs);
    repair_in(&fs, path)
}

/// [`repair`] on any file system.
///
/// # Errors
/// As [`repair`].
pub fn repair_in(fs: &Arc<dyn FileSystem>, directory: &Path) -> Result<RepairReport> {
    // Loaded once before the lock, so that a path that is no store does not get a lock file.
    Sealed::load(&**fs, directory, None)?;
    let store = StoreLock::acquire(&**fs, directory)?;
    sweep(&**fs, directory)?;
    let sealed = Sealed::load(&**fs, directory, None)?;
    let mut report = RepairReport::default();
    let logs = lock_logs(fs, directory, &sealed, &store)?;
    let logged: BTreeMap<&str, &PathBuf> =
        logs.iter().filter_map(|(path, lock)| Some((lock.as_ref()?.key(), path))).collect();
    let (manifest, old) = repair_segments(&**fs, directory, &sealed, &logged, &mut report)?;
    drop(logged);
    let listed = sealed.segments.iter().filter(|handle| handle.listed).map(|handle| &handle.record.name);
    let is_behind = !listed.eq(manifest.segments.iter().map(|record| &record.name));
    report.manifest_rebuilt = matches!(sealed.manifest, ManifestState::Rebuilt(_));
    if report.manifest_rebuilt || is_behind {
        manifest.store(&**fs, directory)?;
    }
    for path in old {
        fs.remove(&path).map_err(at(&path, "removing"))?;
    }
    let complete: BTreeSet<&str> =
        manifest.segments.iter().flat_map(|segment| &segment.trajectories).map(|listed| &*listed.key).collect();
    for (path, lock) in logs {
        repair_log(&**fs, directory, &path, &sealed, &complete, &mut report)?;
        if let Some(lock) = lock {
            lock.release(&store)?;
        }
    }
    fs.sync_directory(directory).map_err(at(directory, "syncing"))?;
    report.dropped.sort();
    report.dependants.sort();
    Ok(report)
}

/// Every log, with its trajectory's lock where the key is known.
fn lock_logs(
    fs: &Arc<dyn FileSystem>,
    directory: &Path,
    sealed: &Sealed,
    store: &StoreLock,
) -> Result<Vec<(PathBuf, Option<KeyLock>)>> {
    let mut logs = Vec::new();
    for name in sealed.names.iter().filter(|name| names::is_log(name)) {
        let path = directory.join(name);
        let log = Log::scan(&**fs, &path, Some(&sealed.schema));
        let lock = match log.ok().and_then(|log| log.key) {
            Some(key) if names::log_name(&key) == *name => Some(KeyLock::acquire(fs, directory, &key, store)?),
            _ => None,
        };
        logs.push((path, lock));
    }
    Ok(logs)
}

/// Steps that cannot be read, and sound steps that need one of them.
struct Losses {
    damaged: BTreeSet<u64>,
    dependants: BTreeSet<u64>,
    kept: u64,
}

impl Losses {
    fn of(records: &dyn Records, schema: &Schema) -> Result<Self> {
        let mut losses = Self { damaged: BTreeSet::new(), dependants: BTreeSet::new(), kept: 0 };
        for step in 0..records.steps() {
            match losses.check(records, schema, step) {
                Ok(Some(true)) => losses.kept += 1,
                Ok(Some(false)) => {
                    losses.dependants.insert(step);
                }
                Ok(None) => {}
                Err(Error::StoreCorrupt { .. }) => {
                    losses.damaged.insert(step);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(losses)
    }

    /// Whether a sound record's bases are there too; `None` for one that was dropped before.
    fn check(&self, records: &dyn Records, schema: &Schema, step: u64) -> Result<Option<bool>> {
        let mut complete = true;
        for column in 0..schema.columns().len() {
            let Some(place) = records.place(column, step)? else { return Ok(None) };
            stored(records, schema, column, step, Verify::Always)?;
            if let RecordKind::Delta { base } = place.kind {
                // Bases lie before, so their own fate is known.
                let gone = self.damaged.contains(&base) || self.dependants.contains(&base);
                complete &= !gone && records.place(column, base)?.is_some();
            }
        }
        Ok(Some(complete))
    }

    fn all(&self) -> BTreeSet<u64> {
        self.damaged.union(&self.dependants).copied().collect()
    }

    fn report(&self, key: &str, report: &mut RepairReport) {
        let at = |step: &u64| KeyStep { key: key.to_owned(), step: *step };
        report.dropped.extend(self.damaged.iter().map(at));
        report.dependants.extend(self.dependants.iter().map(at));
        report.kept += self.kept;
    }
}

/// Writes damaged segments anew. Gives the manifest that holds then, and the files that it no longer names.
fn repair_segments(
    fs: &dyn FileSystem,
    directory: &Path,
    sealed: &Sealed,
    logged: &BTreeMap<&str, &PathBuf>,
    report: &mut RepairReport,
) -> Result<(Manifest, Vec<PathBuf>)> {
    let schema = &sealed.schema;
    let mut records: Vec<SegmentRecord> = Vec::new();
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut old = Vec::new();
    let mut names: Vec<(String, Option<&SegmentRecord>)> =
        sealed.segments.iter().map(|handle| (handle.record.name.clone(), Some(&handle.record))).collect();
    let known: BTreeSet<String> = names.iter().map(|(name, _)| name.clone()).collect();
    names.extend(
        sealed
            .names
            .iter()
            .filter(|name| names::is_segment(name) && !known.contains(*name))
            .map(|name| (name.clone(), None)),
    );
    for (name, record) in names {
        let path = directory.join(&name);
        let expected = record.map(|record| Tolerance::Exact { size: record.size, digest: record.digest });
        let whole = Segment::open(fs, &path, expected.unwrap_or(Tolerance::Own));
        let is_whole = whole.as_ref().is_ok_and(|segment| segment.check_copy().is_ok());
        let opened = match whole {
            Err(Error::StoreCorrupt { .. }) => Segment::open(fs, &path, Tolerance::Remains),
            other => other,
        };
        let segment = match opened {
            Ok(segment) if schema.difference(&segment.schema).is_none() => segment,
            Ok(_) | Err(Error::StoreCorrupt { .. }) => {
                let keys = record.iter().flat_map(|record| &record.trajectories).map(|one| one.key.to_string());
                report.lost.extend(keys.filter(|key| !logged.contains_key(key.as_str())));
                set_aside(fs, &path, &name, report)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        if segment.trajectories.iter().all(|one| taken.contains(one.key())) {
            // A crash came after this one was replaced, or before its replacement was listed.
            report.removed.push(name);
            old.push(path);
            continue;
        }
        let mut losses = BTreeMap::new();
        for one in segment.trajectories.iter().filter(|one| !taken.contains(one.key())) {
            let found = Losses::of(one, schema)?;
            if !found.all().is_empty()
                && let Some(path) = logged.get(one.key())
                && is_whole_log(fs, path, schema)?
            {
                // A crash left the log that this was sealed from. It serves again, and the next sealing takes it.
                continue;
            }
            found.report(one.key(), report);
            losses.insert(one.key().to_owned(), found.all());
        }
        let sound = is_whole && losses.len() == segment.trajectories.len() && losses.values().all(BTreeSet::is_empty);
        taken.extend(losses.keys().cloned());
        if let (true, Some(record)) = (sound, record) {
            records.push(record.clone());
            continue;
        }
        let sources: Vec<_> = segment
            .trajectories
            .iter()
            .filter_map(|one| Some(Source { records: one, dropped: losses.get(one.key())? }))
            .collect();
        if sources.is_empty() {
            report.removed.push(name);
            old.push(path);
            continue;
        }
        let new = NewSegment::create_under(fs, directory)?;
        let written = new.write(schema, &segment.metadata, &sources, std::slice::from_ref(&name));
        match written {
            Ok(record) => records.push(record),
            Err(error) => {
                new.discard(fs);
                return Err(error);
            }
        }
        report.files.push(new.name.clone());
        new.rename(fs, directory)?;
        old.push(path);
    }
    let manifest = Manifest { schema: (**schema).clone(), metadata: sealed.metadata.clone(), segments: records };
    Ok((manifest, old))
}

/// Whether a log holds a complete trajectory without any loss.
fn is_whole_log(fs: &dyn FileSystem, path: &Path, schema: &Arc<Schema>) -> Result<bool> {
    let log = match Log::scan(fs, path, Some(schema)) {
        Ok(log) => log,
        Err(Error::StoreCorrupt { .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    let same = log.schema.as_ref().is_none_or(|other| schema.difference(other).is_none());
    let has_gaps = log.steps.iter().any(|step| matches!(step, Step::Missing { .. }));
    if !(log.complete && log.damage.is_empty() && same) || has_gaps {
        return Ok(false);
    }
    Ok(Losses::of(&log, schema)?.all().is_empty())
}

fn set_aside(fs: &dyn FileSystem, path: &Path, name: &str, report: &mut RepairReport) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    match fs.rename(path, Path::new(&aside)) {
        Ok(()) => report.set_aside.push(format!("{name}.damaged")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(path, "renaming")(error)),
    }
    Ok(())
}

fn repair_log(
    fs: &dyn FileSystem,
    directory: &Path,
    path: &Path,
    sealed: &Sealed,
    complete: &BTreeSet<&str>,
    report: &mut RepairReport,
) -> Result<()> {
    let schema = &sealed.schema;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let log = match Log::scan(fs, path, Some(schema)) {
        Ok(log) => log,
        Err(Error::StoreCorrupt { .. }) => return set_aside(fs, path, &name, report),
        Err(error) => return Err(error),
    };
    if log.is_blank() {
        return Ok(());
    }
    let foreign = log.schema.as_ref().is_some_and(|other| schema.difference(other).is_some());
    let Some(key) = log.key.clone().filter(|key| names::log_name(key) == name && !foreign) else {
        return set_aside(fs, path, &name, report);
    };
    if complete.contains(key.as_str()) {
        report.removed.push(name);
        return fs.remove(path).map_err(at(path, "removing"));
    }
    let losses = Losses::of(&log, schema)?;
    losses.report(&key, report);
    if log.damage.is_empty() && losses.damaged.is_empty() && losses.dependants.is_empty() {
        return Ok(());
    }
    rewrite(fs, directory, &log, &key, sealed, &losses.all())?;
    report.files.push(name);
    Ok(())
}

/// Writes a log anew beside the old one, with a frame that says so for every step that is dropped.
fn rewrite(
    fs: &dyn FileSystem,
    directory: &Path,
    log: &Log,
    key: &str,
    sealed: &Sealed,
    dropped: &BTreeSet<u64>,
) -> Result<()> {
    let temporary = log.path.with_extension(format!("{}.tmp", names::unique()));
    let file = fs.create(&temporary, Existing::Refuse).map_err(at(&temporary, "creating"))?;
    let number = names::unique_number();
    let metadata = log.metadata.as_deref().unwrap_or(&sealed.metadata);
    let prefix = log_prefix(number, key, &sealed.schema, metadata)?;
    let write = |bytes: &[u8], offset: u64| file.write_at(bytes, offset).map_err(at(&temporary, "writing"));
    let too_long = || Error::argument("log", "one that ends past the range of offsets", "a shorter one");
    write(&prefix, 0)?;
    let mut position = prefix.len() as u64;
    for (index, step) in log.steps.iter().enumerate() {
        let number_of_step = index as u64;
        let columns = match step {
            Step::Present { columns, .. } if !dropped.contains(&number_of_step) => columns,
            _ => {
                let header = FrameHeader::new(FrameKind::Missing, number, position, number_of_step, &[]);
                write(&header.encode(), position)?;
                position += HEADER_BYTES as u64;
                continue;
            }
        };
        let mut table = Vec::with_capacity(columns.len() * HEADER_BYTES);
        let mut offset = position + (HEADER_BYTES * (1 + columns.len())) as u64;
        let mut end = offset;
        let mut base = number_of_step;
        for (column, (_, entry)) in columns.iter().enumerate() {
            table.extend_from_slice(&entry.encode());
            if let RecordKind::Delta { base: other } = entry.kind {
                base = base.min(other);
            }
            let (_, bytes) = stored(log, &sealed.schema, column, number_of_step, Verify::First)?;
            write(&bytes, offset)?;
            if !bytes.is_empty() {
                end = offset + bytes.len() as u64;
                offset = align(end).ok_or_else(too_long)?;
            }
        }
        let header = FrameHeader {
            columns: u16::try_from(columns.len()).unwrap_or(u16::MAX),
            base,
            payload_length: end - position - HEADER_BYTES as u64,
            ..FrameHeader::new(FrameKind::Record, number, position, number_of_step, &table)
        };
        write(&header.encode(), position)?;
        write(&table, position + HEADER_BYTES as u64)?;
        position = offset;
    }
    if log.complete {
        let header = FrameHeader::new(FrameKind::Complete, number, position, log.steps(), key.as_bytes());
        write(&header.encode(), position)?;
        write(key.as_bytes(), position + HEADER_BYTES as u64)?;
    }
    file.sync().map_err(at(&temporary, "syncing"))?;
    drop(file);
    fs.rename(&temporary, &log.path).map_err(at(&log.path, "renaming"))?;
    fs.sync_directory(directory).map_err(at(directory, "syncing"))
}
