//! What a store says of itself: `info` and `verify`.

use std::path::Path;

use serde::Serialize;
use serde_json::value::RawValue;

use super::catalogue::{Catalogue, Entry, ManifestState};
use super::filesystem::FileSystem;
use super::frame::FORMAT_VERSION;
use super::records::{Records, Verify, stored};
use super::schema::Schema;
use super::segment::{Segment, Tolerance};
use crate::{Error, Result};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The file.
    pub path: String,
    /// The byte.
    pub offset: u64,
    /// The trajectory, where it is known.
    pub key: Option<String>,
    /// The step, where it is known.
    pub step: Option<u64>,
    /// The column, where it is known.
    pub column: Option<String>,
    /// What contradicts what.
    pub reason: String,
}

/// Bytes at a log's end that are no whole record: an append that was cut short, or is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tail {
    /// The log.
    pub path: String,
    /// The trajectory.
    pub key: String,
    /// Where the tail begins.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// What [`super::Store::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Records whose every column matches its checksum.
    pub records: u64,
    /// Stored bytes that were compared.
    pub bytes: u64,
    /// Everything that is wrong.
    pub damage: Vec<Damage>,
    /// Unfinished ends of logs.
    pub tails: Vec<Tail>,
    /// Steps that an earlier repair dropped.
    pub missing: u64,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileInfo {
    /// Its name in the store's directory.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// Trajectories in it.
    pub trajectories: u64,
}

/// What [`super::Store::info`] says.
#[derive(Debug, Serialize)]
pub struct Info {
    /// Version of the format that this build writes.
    pub format_version: u16,
    /// `"sound"`, or why the manifest was rebuilt in memory.
    pub manifest: String,
    /// The columns.
    pub schema: Option<Box<RawValue>>,
    /// The user's object.
    pub metadata: Option<Box<RawValue>>,
    /// Complete trajectories.
    pub complete: u64,
    /// Unfinished trajectories.
    pub incomplete: u64,
    /// Steps of all of them.
    pub steps: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Sealed files.
    pub segments: Vec<FileInfo>,
    /// Open files.
    pub logs: Vec<FileInfo>,
    /// What is known to be wrong, without a verification.
    pub damage: Vec<Damage>,
    /// Unfinished ends of logs.
    pub tails: Vec<Tail>,
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn known_damage(catalogue: &Catalogue) -> Vec<Damage> {
    let of = |problem: &super::catalogue::Problem| {
        let log = catalogue.logs.iter().find(|log| log.path == problem.path);
        Damage {
            path: text(&problem.path),
            offset: problem.offset,
            key: log.and_then(|log| log.key.clone()),
            step: None,
            column: None,
            reason: problem.reason.clone(),
        }
    };
    catalogue.problems.iter().map(of).collect()
}

fn tails(catalogue: &Catalogue) -> Vec<Tail> {
    let with_tail = catalogue.logs.iter().filter(|log| log.tail() > 0);
    with_tail
        .map(|log| Tail { path: text(&log.path), key: log.key().to_owned(), offset: log.end, bytes: log.tail() })
        .collect()
}

pub(super) fn info(fs: &dyn FileSystem, directory: &Path, catalogue: &Catalogue) -> Info {
    let sealed = &catalogue.sealed;
    let segments: Vec<_> = sealed
        .segments
        .iter()
        .map(|handle| FileInfo {
            name: handle.record.name.clone(),
            bytes: handle.record.size,
            trajectories: handle.record.trajectories.len() as u64,
        })
        .collect();
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let logs: Vec<_> = catalogue
        .logs
        .iter()
        .map(|log| FileInfo { name: name(&log.path), bytes: log.length, trajectories: 1 })
        .collect();
    let manifest_bytes = fs.open(&directory.join(super::names::MANIFEST)).and_then(|file| file.length()).unwrap_or(0);
    let complete = catalogue.sorted().iter().filter(|(_, complete)| *complete).count() as u64;
    Info {
        format_version: FORMAT_VERSION,
        manifest: match &sealed.manifest {
            ManifestState::Sound => "sound".to_owned(),
            ManifestState::Rebuilt(None) => "rebuilt in memory: manifest.json is missing".to_owned(),
            ManifestState::Rebuilt(Some(problem)) => format!("rebuilt in memory: {}", problem.reason),
        },
        schema: RawValue::from_string(sealed.schema.to_json()).ok(),
        metadata: RawValue::from_string(sealed.metadata.clone()).ok(),
        complete,
        incomplete: catalogue.entries.len() as u64 - complete,
        steps: catalogue.entries.values().map(|entry| catalogue.steps(*entry)).sum(),
        bytes: segments.iter().chain(&logs).map(|file| file.bytes).sum::<u64>() + manifest_bytes,
        segments,
        logs,
        damage: known_damage(catalogue),
        tails: tails(catalogue),
    }
}

pub(super) fn verify(fs: &dyn FileSystem, directory: &Path, catalogue: &Catalogue) -> Result<VerifyReport> {
    let schema = &catalogue.sealed.schema;
    let mut report =
        VerifyReport { records: 0, bytes: 0, damage: known_damage(catalogue), tails: tails(catalogue), missing: 0 };
    for handle in &catalogue.sealed.segments {
        // A mapping that was made before says nothing of the file's size now.
        let exact = Tolerance::Exact { size: handle.record.size, digest: handle.record.digest };
        let segment = match Segment::open(fs, handle.path(), exact) {
            Ok(segment) => {
                if let Err(error) = segment.check_copy() {
                    report.damage.push(damage(None, None, error)?);
                }
                Some(segment)
            }
            Err(error @ Error::StoreCorrupt { .. }) => {
                let failure = damage(None, None, error)?;
                report.damage.push(failure);
                Segment::open(fs, handle.path(), Tolerance::Remains).ok()
            }
            Err(error) => return Err(error),
        };
        for listed in &handle.record.trajectories {
            let found = segment.as_ref().and_then(|segment| segment.trajectory(&listed.key));
            let serving = matches!(catalogue.entry(directory, &listed.key), Ok(Entry::Segment { .. }));
            match found {
                Some(records) => check(records, schema, &mut report)?,
                None if serving => {
                    let reason = "the trajectory's index is lost with the segment's header".to_owned();
                    let (path, key) = (text(handle.path()), Some(listed.key.to_string()));
                    report.damage.push(Damage { path, offset: 8, key, step: None, column: None, reason });
                }
                None => {}
            }
        }
    }
    for log in &catalogue.logs {
        check(log, schema, &mut report)?;
    }
    Ok(report)
}

fn damage(key: Option<&str>, at: Option<(u64, &str)>, error: Error) -> Result<Damage> {
    match error {
        Error::StoreCorrupt { path, offset, reason } => Ok(Damage {
            path: text(&path),
            offset,
            key: key.map(str::to_owned),
            step: at.map(|(step, _)| step),
            column: at.map(|(_, column)| column.to_owned()),
            reason,
        }),
        other => Err(other),
    }
}

/// Compares every checksum of one trajectory.
fn check(records: &dyn Records, schema: &Schema, report: &mut VerifyReport) -> Result<()> {
    for step in 0..records.steps() {
        let mut whole = true;
        for (index, column) in schema.columns().iter().enumerate() {
            let result = records.place(index, step).and_then(|place| match place {
                None => Ok(None),
                Some(_) => stored(records, schema, index, step, Verify::Always).map(|(place, _)| Some(place.length)),
            });
            match result {
                Ok(None) => {
                    whole = false;
                    report.missing += u64::from(index == 0);
                }
                Ok(Some(length)) => report.bytes += length,
                Err(error) => {
                    whole = false;
                    report.damage.push(damage(Some(records.key()), Some((step, &column.name)), error)?);
                }
            }
        }
        report.records += u64::from(whole);
    }
    Ok(())
}
