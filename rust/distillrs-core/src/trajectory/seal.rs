//! Sealing: complete logs become segments.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::catalogue::{ManifestState, Sealed};
use super::codec::CodecError;
use super::filesystem::{Existing, File, FileSystem, at};
use super::lock::{KeyLock, StoreLock};
use super::log::Log;
use super::manifest::{ErrorTable, Listed, Manifest, SegmentRecord, stored_error};
use super::names;
use super::records::{Records, Verify, corrupt, stored};
use super::schema::Schema;
use super::segment_writer::{self, Source, Written};
use crate::{Error, Result};

/// Most bytes of logs that go into one segment, unless a single one has more.
pub const SEGMENT_BYTES: u64 = 4 << 30;
/// Most trajectories of one segment; their logs and locks are open at once, and macOS gives a process 256 files.
pub const SEGMENT_TRAJECTORIES: usize = 64;

/// A complete log that stayed one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The trajectory.
    pub key: String,
    /// Why it was left.
    pub reason: String,
}

/// What sealing did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SealReport {
    /// Keys that lie in a segment now.
    pub sealed: Vec<String>,
    /// Files written.
    pub segments: Vec<String>,
    /// Complete logs that stayed.
    pub skipped: Vec<Skipped>,
}

/// How much goes into one segment.
#[derive(Debug, Clone, Copy)]
pub struct SealLimits {
    /// Bytes of logs.
    pub bytes: u64,
    /// Trajectories.
    pub trajectories: usize,
}

impl Default for SealLimits {
    fn default() -> Self {
        Self { bytes: SEGMENT_BYTES, trajectories: SEGMENT_TRAJECTORIES }
    }
}

struct Candidate {
    log: Log,
    lock: KeyLock,
}

pub(super) fn seal(
    fs: &Arc<dyn FileSystem>,
    directory: &Path,
    schema: &Arc<Schema>,
    limits: SealLimits,
) -> Result<SealReport> {
    let mut report = SealReport::default();
    let (names, sealed) = {
        let _store = StoreLock::acquire(&**fs, directory)?;
        sweep(&**fs, directory)?;
        let sealed = Sealed::load(&**fs, directory, None)?;
        adopt(&**fs, directory, &sealed)?;
        (sealed.names.clone(), sealed)
    };
    let mut batch = Vec::new();
    let mut bytes = 0u64;
    for name in names.iter().filter(|name| names::is_log(name)) {
        let path = directory.join(name);
        let Some(candidate) = candidate(fs, directory, schema, &path, &sealed, &mut report)? else { continue };
        let full = bytes.saturating_add(candidate.log.length) > limits.bytes || batch.len() >= limits.trajectories;
        if full && !batch.is_empty() {
            write_batch(fs, directory, schema, std::mem::take(&mut batch), &mut report)?;
            bytes = 0;
        }
        bytes = bytes.saturating_add(candidate.log.length);
        batch.push(candidate);
    }
    if !batch.is_empty() {
        write_batch(fs, directory, schema, batch, &mut report)?;
    }
    Ok(report)
}

/// A complete, sound log of this store that nobody else is at, with its lock.
fn candidate(
    fs: &Arc<dyn FileSystem>,
    directory: &Path,
    schema: &Arc<Schema>,
    path: &Path,
    sealed: &Sealed,
    report: &mut SealReport,
) -> Result<Option<Candidate>> {
    let scan = || match Log::scan(&**fs, path, Some(schema)) {
        Ok(log) => Ok(Some(log)),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(Error::StoreCorrupt { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let Some(log) = scan()?.filter(|log| log.complete && log.key.is_some()) else { return Ok(None) };
    let lock = {
        let store = StoreLock::acquire(&**fs, directory)?;
        match KeyLock::acquire(fs, directory, log.key(), &store) {
            Ok(lock) => lock,
            // Its writer, or another process that seals, is at it.
            Err(Error::StoreLocked { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
    };
    // Only now nobody else changes it.
    let Some(log) = scan()?.filter(|log| log.complete) else { return Ok(None) };
    let difference = log.schema.as_ref().and_then(|other| schema.difference(other));
    let own_name = path.file_name().and_then(|name| name.to_str()) == Some(&names::log_name(log.key()));
    let reason = match (log.damage.first(), difference) {
        (Some(damage), _) => Some(format!("damaged at byte {}: {}", damage.offset, damage.reason)),
        (_, Some(difference)) => Some(difference),
        _ if !own_name => Some("the file has the name of another key".to_owned()),
        _ => None,
    };
    if let Some(reason) = reason {
        report.skipped.push(Skipped { key: log.key().to_owned(), reason });
        return Ok(None);
    }
    if let Some((handle, _)) = sealed.find(log.key()) {
        // A crash came between the manifest and the log's removal. The log goes only if the segment is sound.
        let checked = handle.open(&**fs, schema).and_then(|segment| {
            let records = segment.trajectory(log.key());
            let records = records.ok_or_else(|| corrupt(handle.path(), 8, "the segment lacks the trajectory"))?;
            check_all(records, schema)
        });
        match checked {
            Ok(()) => {
                let store = StoreLock::acquire(&**fs, directory)?;
                fs.remove(path).map_err(at(path, "removing"))?;
                lock.release(&store)?;
            }
            Err(error @ Error::StoreCorrupt { .. }) => {
                let reason = format!("its sealed copy is damaged: {error}");
                report.skipped.push(Skipped { key: log.key().to_owned(), reason });
            }
            Err(error) => return Err(error),
        }
        return Ok(None);
    }
    Ok(Some(Candidate { log, lock }))
}

/// Compares every checksum of a trajectory.
pub(super) fn check_all(records: &dyn Records, schema: &Schema) -> Result<()> {
    for step in 0..records.steps() {
        for column in 0..schema.columns().len() {
            if records.place(column, step)?.is_some() {
                stored(records, schema, column, step, Verify::Always)?;
            }
        }
    }
    Ok(())
}

fn write_batch(
    fs: &Arc<dyn FileSystem>,
    directory: &Path,
    schema: &Arc<Schema>,
    mut batch: Vec<Candidate>,
    report: &mut SealReport,
) -> Result<()> {
    let metadata = Sealed::load(&**fs, directory, None)?.metadata;
    while !batch.is_empty() {
        let nothing = BTreeSet::new();
        let sources: Vec<_> =
            batch.iter().map(|candidate| Source { records: &candidate.log, dropped: &nothing }).collect();
        let new = NewSegment::create(&**fs, directory)?;
        match new.write(schema, &metadata, &sources, &[]) {
            Ok(record) => {
                drop(sources);
                match publish(&**fs, directory, new, record, batch, report)? {
                    None => return Ok(()),
                    Some(rest) => batch = rest,
                }
            }
            Err(Error::StoreCorrupt { path, offset, reason }) => {
                drop(sources);
                new.discard(&**fs);
                let Some(index) = batch.iter().position(|candidate| candidate.log.path == path) else {
                    return Err(Error::StoreCorrupt { path, offset, reason });
                };
                let bad = batch.remove(index);
                report.skipped.push(Skipped { key: bad.log.key().to_owned(), reason });
            }
            Err(error) => {
                new.discard(&**fs);
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Puts a segment into the manifest and removes its logs. If a trajectory turns out to be sealed already, nothing is
/// published and the others are given back.
fn publish(
    fs: &dyn FileSystem,
    directory: &Path,
    new: NewSegment,
    record: SegmentRecord,
    batch: Vec<Candidate>,
    report: &mut SealReport,
) -> Result<Option<Vec<Candidate>>> {
    let store = StoreLock::acquire(fs, directory)?;
    // A process that sealed one of them may have died, after the manifest, before it removed the log.
    let now = Sealed::load(fs, directory, None)?;
    let (repeated, fresh): (Vec<_>, Vec<_>) =
        batch.into_iter().partition(|candidate| now.find(candidate.log.key()).is_some());
    if !repeated.is_empty() {
        new.discard(fs);
        for Candidate { log, lock } in repeated {
            let reason = "it is sealed already; sealing again removes what its log left".to_owned();
            report.skipped.push(Skipped { key: log.key().to_owned(), reason });
            lock.release(&store)?;
        }
        return Ok(Some(fresh));
    }
    new.rename(fs, directory)?;
    report.segments.push(record.name.clone());
    let mut manifest = now.manifest();
    manifest.segments.push(record);
    manifest.store(fs, directory)?;
    for Candidate { log, lock } in fresh {
        fs.remove(&log.path).map_err(at(&log.path, "removing"))?;
        report.sealed.push(log.key().to_owned());
        lock.release(&store)?;
    }
    Ok(None)
}

/// A segment that does not have its name yet.
#[derive(Debug)]
pub(super) struct NewSegment {
    file: Arc<dyn File>,
    temporary: PathBuf,
    pub name: String,
}

impl NewSegment {
    /// Makes and locks the file, so that nobody sweeps it away while it is written.
    pub fn create(fs: &dyn FileSystem, directory: &Path) -> Result<Self> {
        let _store = StoreLock::acquire(fs, directory)?;
        Self::create_under(fs, directory)
    }

    /// As [`NewSegment::create`], where the store's lock is held already.
    pub fn create_under(fs: &dyn FileSystem, directory: &Path) -> Result<Self> {
        let name = names::new_segment_name();
        let temporary = directory.join(&name).with_extension("tmp");
        let file = fs.create(&temporary, Existing::Refuse).map_err(at(&temporary, "creating"))?;
        file.try_lock().map_err(at(&temporary, "locking"))?;
        Ok(Self { file, temporary, name })
    }

    pub fn write(
        &self,
        schema: &Schema,
        metadata: &str,
        sources: &[Source<'_>],
        replaces: &[String],
    ) -> Result<SegmentRecord> {
        let Written { size, digest } =
            segment_writer::write(&*self.file, &self.temporary, schema, metadata, sources, replaces)?;
        let mut errors = ErrorTable::new();
        let mut trajectories = Vec::with_capacity(sources.len());
        for Source { records, .. } in sources {
            trajectories.push(Listed { key: records.key().into(), steps: records.steps() });
            for (index, column) in schema.columns().iter().enumerate() {
                let error: CodecError = records.codec_error(index);
                if let Some(error) = stored_error(error) {
                    errors.entry(records.key().to_owned()).or_default().insert(column.name.clone(), error);
                }
            }
        }
        let codec_error = serde_json::value::to_raw_value(&errors)
            .map_err(|error| Error::argument("codec_error", error, "finite numbers"))?;
        Ok(SegmentRecord { name: self.name.clone(), size, digest, trajectories, codec_error })
    }

    /// Gives the file its name, durably. The store's lock is held by the caller.
    pub fn rename(self, fs: &dyn FileSystem, directory: &Path) -> Result<()> {
        let path = directory.join(&self.name);
        fs.rename(&self.temporary, &path).map_err(at(&path, "renaming"))?;
        fs.sync_directory(directory).map_err(at(directory, "syncing"))
    }

    /// Removes the file after a failure; what stays is swept by the next writer.
    pub fn discard(self, fs: &dyn FileSystem) {
        drop(self.file);
        let _ = fs.remove(&self.temporary);
    }
}

/// Removes temporary files that a crash left. The store's lock is held by the caller.
pub(super) fn sweep(fs: &dyn FileSystem, directory: &Path) -> Result<()> {
    for name in fs.list(directory).map_err(at(directory, "listing"))? {
        if !names::is_temporary(&name) {
            continue;
        }
        let path = directory.join(&name);
        // A segment that is being written is locked; the other temporary files live under the store's lock only.
        let abandoned = match fs.open(&path) {
            Ok(file) => file.try_lock().map_err(at(&path, "locking"))?,
            Err(_) => false,
        };
        if abandoned {
            fs.remove(&path).map_err(at(&path, "removing"))?;
        }
    }
    Ok(())
}

/// Writes the manifest anew if a crash left it behind: lost, damaged, or without a segment that is there.
pub(super) fn adopt(fs: &dyn FileSystem, directory: &Path, sealed: &Sealed) -> Result<bool> {
    let behind = matches!(sealed.manifest, ManifestState::Rebuilt(_));
    // A segment that only repeats what the manifest has elsewhere is left for a repair to remove.
    let is_new = |handle: &super::catalogue::SegmentHandle| {
        let known = |listed: &Listed| {
            let holders = sealed.segments.iter().filter(|other| other.listed);
            holders.flat_map(|other| &other.record.trajectories).any(|other| other.key == listed.key)
        };
        !handle.record.trajectories.iter().any(known)
    };
    let unlisted = sealed.segments.iter().any(|handle| !handle.listed && is_new(handle));
    if !behind && !unlisted {
        return Ok(false);
    }
    let mut manifest: Manifest = sealed.manifest();
    if !behind {
        let kept = sealed.segments.iter().filter(|handle| handle.listed || is_new(handle));
        manifest.segments = kept.map(|handle| handle.record.clone()).collect();
    }
    manifest.store(fs, directory)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::filesystem::RealFs;
    use super::super::store::Store;
    use super::super::writer::ColumnData;
    use super::*;

    const SCHEMA: &str =
        r#"{"columns": [{"name": "theta", "dtype": "U8", "shape": [4], "ragged": false, "codec": {"name": "raw"}}]}"#;

    #[test]
    fn a_trajectory_that_was_sealed_meanwhile_gets_no_second_segment() -> Result<()> {
        let folder = tempfile::tempdir().map_err(at(Path::new("folder"), "creating"))?;
        let directory = folder.path().join("store");
        let store = Store::create(&directory, SCHEMA, "{}", false)?;
        let mut logs = Vec::new();
        for key in ["a", "b"] {
            let mut writer = store.begin(key, None)?;
            writer.append(&[ColumnData { name: "theta", bytes: key.repeat(4).as_bytes(), rows: None }])?;
            writer.complete()?;
            let path = directory.join(names::log_name(key));
            logs.push((std::fs::read(&path).map_err(at(&path, "reading"))?, path));
        }
        // What a process leaves that dies after its manifest is written and before it removes the log of "a".
        let (b_content, b_path) = logs.pop().unwrap_or_default();
        std::fs::remove_file(&b_path).map_err(at(&b_path, "removing"))?;
        store.seal()?;
        for (content, path) in [&logs[0], &(b_content, b_path)] {
            std::fs::write(path, content).map_err(at(path, "writing"))?;
        }

        // Another process listed the store before that manifest, and comes to both logs now.
        let fs: Arc<dyn FileSystem> = Arc::new(RealFs);
        let schema = Arc::new(Schema::parse(SCHEMA)?);
        let mut batch = Vec::new();
        for key in ["a", "b"] {
            let lock = KeyLock::acquire(&fs, &directory, key, &StoreLock::acquire(&*fs, &directory)?)?;
            batch.push(Candidate { log: Log::scan(&*fs, &directory.join(names::log_name(key)), Some(&schema))?, lock });
        }
        let mut report = SealReport::default();
        write_batch(&fs, &directory, &schema, batch, &mut report)?;

        assert_eq!(report.sealed, ["b"]);
        assert_eq!(report.skipped.iter().map(|skipped| skipped.key.as_str()).collect::<Vec<_>>(), ["a"]);
        let sealed = Sealed::load(&*fs, &directory, None)?;
        let keys: Vec<_> = sealed.segments.iter().flat_map(|segment| &segment.record.trajectories).collect();
        assert_eq!(keys.iter().map(|listed| &*listed.key).collect::<Vec<_>>(), ["a", "b"]);
        store.seal()?;
        assert!(!directory.join(names::log_name("a")).exists());
        Ok(())
    }
}
