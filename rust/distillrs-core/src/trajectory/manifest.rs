//! The manifest: what a store is, and which sealed segments it has. Lost or damaged, it is rebuilt by a scan.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::digest::xxh3_64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::codec::CodecError;
use super::filesystem::{FileSystem, at, read_all, write_whole};
use super::frame::FORMAT_VERSION;
use super::names;
use super::records::corrupt;
use super::schema::Schema;
use crate::{Error, Result};

const FORMAT: &str = "distillrs trajectory store";
/// Oldest reader that understands what this build writes.
const MINIMUM_READER: u32 = 0;
const MAX_MANIFEST_BYTES: u64 = 1 << 30;

/// A codec's error as files keep it: largest, mean, over how many records.
pub(super) type StoredError = (f64, f64, u64);

pub(super) fn stored_error(error: CodecError) -> Option<StoredError> {
    // JSON has no word for what is not finite.
    let finite = error.max.is_finite() && error.mean.is_finite();
    (error.records > 0 && finite).then_some((error.max, error.mean, error.records))
}

/// One trajectory of a segment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Listed {
    pub key: Arc<str>,
    pub steps: u64,
}

/// Errors of lossy columns by key and column.
pub(super) type ErrorTable = BTreeMap<String, BTreeMap<String, StoredError>>;

/// One sealed segment.
#[derive(Debug, Clone)]
pub(super) struct SegmentRecord {
    pub name: String,
    pub size: u64,
    pub digest: u64,
    pub trajectories: Vec<Listed>,
    /// JSON of an [`ErrorTable`]: opening a store does not read it.
    pub codec_error: Box<RawValue>,
}

/// The manifest's content.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    pub schema: Schema,
    /// JSON object of the user's.
    pub metadata: String,
    pub segments: Vec<SegmentRecord>,
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    body: &'a RawValue,
    #[serde(borrow)]
    xxh3: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Version {
    format: String,
    format_version: u32,
    minimum_reader: u32,
}

#[derive(Serialize, Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    format: Cow<'a, str>,
    format_version: u32,
    minimum_reader: u32,
    #[serde(borrow)]
    schema: &'a RawValue,
    #[serde(borrow)]
    metadata: &'a RawValue,
    #[serde(borrow)]
    segments: Vec<SegmentForm<'a>>,
}

#[derive(Serialize, Deserialize)]
struct SegmentForm<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    size: u64,
    #[serde(borrow)]
    digest: Cow<'a, str>,
    #[serde(borrow)]
    trajectories: Vec<(Cow<'a, str>, u64)>,
    #[serde(borrow)]
    codec_error: &'a RawValue,
}

fn hex(digest: u64) -> String {
    format!("{digest:016x}")
}

impl Manifest {
    /// Reads `manifest.json`. `Ok(None)` if there is none.
    ///
    /// # Errors
    /// [`Error::StoreCorrupt`] if it contradicts its checksum, [`Error::StoreVersion`] if it asks for a later reader.
    pub fn load(fs: &dyn FileSystem, directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(names::MANIFEST);
        let file = match fs.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(&path, "opening")(error)),
        };
        let content = read_all(&*file, &path, MAX_MANIFEST_BYTES)?;
        Self::parse(&content, &path).map(Some)
    }

    /// Reads a manifest's bytes; `path` is for messages.
    pub fn parse(content: &[u8], path: &Path) -> Result<Self> {
        let damaged = |error: serde_json::Error| corrupt(path, 0, format!("the manifest is no sound JSON: {error}"));
        let envelope: Envelope<'_> = serde_json::from_slice(content).map_err(damaged)?;
        if hex(xxh3_64(envelope.body.get().as_bytes())) != envelope.xxh3 {
            return Err(corrupt(path, 0, "the manifest's checksum does not match"));
        }
        let parsed = serde_json::from_str::<Body<'_>>(envelope.body.get());
        let version = match &parsed {
            Ok(body) => Version {
                format: body.format.clone().into_owned(),
                format_version: body.format_version,
                minimum_reader: body.minimum_reader,
            },
            // A later version may have any body; only these three fields stay.
            Err(_) => serde_json::from_str(envelope.body.get()).map_err(damaged)?,
        };
        if version.format != FORMAT {
            return Err(corrupt(path, 0, format!("the manifest is of {:?}", version.format)));
        }
        if version.minimum_reader > u32::from(FORMAT_VERSION) {
            let supported = format!("0 to {FORMAT_VERSION}");
            return Err(Error::StoreVersion { path: path.to_path_buf(), found: version.format_version, supported });
        }
        let body = parsed.map_err(damaged)?;
        let schema = Schema::parse(body.schema.get()).map_err(|error| corrupt(path, 0, error.to_string()))?;
        let segments = body.segments.into_iter().map(|form| {
            if !names::is_segment(&form.name) {
                return Err(corrupt(path, 0, format!("{:?} is no name of a segment", form.name)));
            }
            let digest = u64::from_str_radix(&form.digest, 16)
                .map_err(|error| corrupt(path, 0, format!("digest of {}: {error}", form.name)))?;
            let listed = |(key, steps): (Cow<'_, str>, u64)| Listed { key: key.into(), steps };
            Ok(SegmentRecord {
                name: form.name.into_owned(),
                size: form.size,
                digest,
                trajectories: form.trajectories.into_iter().map(listed).collect(),
                codec_error: form.codec_error.to_owned(),
            })
        });
        let segments = segments.collect::<Result<Vec<_>>>()?;
        Ok(Self { schema, metadata: body.metadata.get().to_owned(), segments })
    }

    /// The manifest's bytes.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let failed = |error: serde_json::Error| Error::argument("metadata", error, "a JSON object");
        let schema = RawValue::from_string(self.schema.to_json()).map_err(failed)?;
        let metadata = RawValue::from_string(self.metadata.clone()).map_err(failed)?;
        let segments = self.segments.iter().map(|segment| SegmentForm {
            name: Cow::Borrowed(&segment.name),
            size: segment.size,
            digest: Cow::Owned(hex(segment.digest)),
            trajectories: segment.trajectories.iter().map(|one| (Cow::Borrowed(&*one.key), one.steps)).collect(),
            codec_error: &segment.codec_error,
        });
        let body = Body {
            format: Cow::Borrowed(FORMAT),
            format_version: u32::from(FORMAT_VERSION),
            minimum_reader: MINIMUM_READER,
            schema: &schema,
            metadata: &metadata,
            segments: segments.collect(),
        };
        let body = serde_json::value::to_raw_value(&body).map_err(failed)?;
        let envelope = Envelope { body: &body, xxh3: Cow::Owned(hex(xxh3_64(body.get().as_bytes()))) };
        serde_json::to_vec(&envelope).map_err(failed)
    }

    /// Puts this manifest in the place of the one on disk, durably.
    pub fn store(&self, fs: &dyn FileSystem, directory: &Path) -> Result<()> {
        write_whole(fs, &directory.join(names::MANIFEST), &self.encode()?)
    }
}
