//! Writes a segment: a safetensors header, the tensors one after the other, and the header once more.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use crate::digest::xxh3_64;

use super::codec::RecordKind;
use super::filesystem::{File, at};
use super::manifest::stored_error;
use super::records::{Records, Verify, stored};
use super::schema::{Column, Schema};
use super::segment::{
    BASES, DIGEST_HOLE, DIGESTS, HEADER_COPY, HEADER_START, MAX_HEADER_BYTES, OFFSETS, TRAILER_BYTES, TRAILER_MAGIC,
    TrajectoryForm, data_tensor, own_digest, side_tensor,
};
use crate::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;

/// One trajectory that goes into a segment.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub records: &'a dyn Records,
    /// Steps that are left out and marked as missing, beside those that are missing already.
    pub dropped: &'a BTreeSet<u64>,
}

impl Source<'_> {
    fn is_missing(&self, step: u64) -> Result<bool> {
        // A record is whole or missing, so the first column speaks for all.
        Ok(self.dropped.contains(&step) || self.records.place(0, step)?.is_none())
    }
}

/// What the manifest says of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    pub size: u64,
    pub digest: u64,
}

enum Content {
    /// Small integers, ready.
    Words(Vec<u64>),
    /// The records of a column.
    Column { source: usize, column: usize },
}

struct Tensor {
    name: String,
    dtype: &'static str,
    item: usize,
    shape: Vec<u64>,
    bytes: u64,
    content: Content,
}

/// Writes and syncs `file`. Every record's checksum is compared on the way.
///
/// # Errors
/// [`Error::StoreCorrupt`] names the log or segment whose record does not match.
pub(super) fn write(
    file: &dyn File,
    path: &Path,
    schema: &Schema,
    metadata: &str,
    sources: &[Source<'_>],
    replaces: &[String],
) -> Result<Written> {
    let mut tensors = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        for (position, column) in schema.columns().iter().enumerate() {
            plan(*source, index, position, column, &mut tensors)?;
        }
    }
    // Widest elements first: then each tensor lies on a border of its element size, without gaps, which the format forbids.
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.item));
    let mut missing = Vec::with_capacity(sources.len());
    for source in sources {
        let steps = (0..source.records.steps()).map(|step| Ok(source.is_missing(step)?.then_some(step)));
        missing.push(steps.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect::<Vec<u64>>());
    }
    let header = header(schema, metadata, sources, &missing, replaces, &tensors)?;
    let digest = own_digest(header.as_bytes());

    let mut sink = Sink { file, path, position: 0, buffer: Vec::with_capacity(BUFFER_BYTES) };
    sink.write(&(header.len() as u64).to_le_bytes())?;
    sink.write(header.as_bytes())?;
    for tensor in &tensors {
        match &tensor.content {
            Content::Words(words) => {
                for word in words {
                    sink.write(&word.to_le_bytes())?;
                }
            }
            Content::Column { source, column } => {
                write_column(&mut sink, sources[*source], &missing[*source], schema, *column)?;
            }
        }
    }
    sink.write(header.as_bytes())?;
    sink.write(&(header.len() as u64).to_le_bytes())?;
    sink.write(&xxh3_64(header.as_bytes()).to_le_bytes())?;
    sink.write(TRAILER_MAGIC)?;
    let size = sink.finish()?;
    file.sync().map_err(at(path, "syncing"))?;
    Ok(Written { size, digest })
}

fn plan(source: Source<'_>, index: usize, position: usize, column: &Column, tensors: &mut Vec<Tensor>) -> Result<()> {
    let key = source.records.key();
    let steps = source.records.steps();
    let (mut digests, mut bases, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
    let (mut bytes, mut units) = (0u64, 0u64);
    for step in 0..steps {
        let place = if source.dropped.contains(&step) { None } else { source.records.place(position, step)? };
        let (length, rows) = match place {
            Some(place) => (place.length, place.rows),
            None if column.ragged || !column.is_raw() => (0, 0),
            None => (column.bytes as u64, 0),
        };
        digests.push(place.map_or(0, |place| place.digest));
        bases.push(match place.map(|place| place.kind) {
            Some(RecordKind::Delta { base }) => base,
            _ => u64::MAX,
        });
        bytes = bytes.checked_add(length).ok_or_else(|| too_large(key))?;
        units = units.checked_add(if column.ragged { rows } else { length }).ok_or_else(|| too_large(key))?;
        offsets.push(units);
    }
    let words = |suffix: &str, dtype: &'static str, words: Vec<u64>| Tensor {
        name: side_tensor(key, column, suffix),
        dtype,
        item: 8,
        shape: vec![words.len() as u64],
        bytes: 8 * words.len() as u64,
        content: Content::Words(words),
    };
    let coded = !column.is_raw();
    let shape = match (coded, column.ragged) {
        (true, _) => vec![bytes],
        (false, ragged) => {
            let first = if ragged { units } else { steps };
            [first].into_iter().chain(column.shape.iter().copied()).collect()
        }
    };
    tensors.push(Tensor {
        name: data_tensor(key, column),
        dtype: if coded { "U8" } else { column.dtype.name() },
        item: if coded { 1 } else { column.dtype.size() },
        shape,
        bytes,
        content: Content::Column { source: index, column: position },
    });
    tensors.push(words(DIGESTS, "U64", digests));
    if coded || column.ragged {
        tensors.push(words(OFFSETS, "I64", offsets));
    }
    if coded {
        tensors.push(words(BASES, "I64", bases));
    }
    Ok(())
}

fn too_large(key: &str) -> Error {
    Error::argument("trajectory", format_args!("{key:?} with more than 2^64 bytes"), "fewer")
}

fn header(
    schema: &Schema,
    metadata: &str,
    sources: &[Source<'_>],
    missing: &[Vec<u64>],
    replaces: &[String],
    tensors: &[Tensor],
) -> Result<String> {
    let forms: Vec<TrajectoryForm<'_>> = sources
        .iter()
        .zip(missing)
        .map(|(source, missing)| {
            let errors = schema.columns().iter().enumerate().filter_map(|(index, column)| {
                let error = stored_error(source.records.codec_error(index))?;
                Some((Cow::Borrowed(column.name.as_str()), error))
            });
            (Cow::Borrowed(source.records.key()), source.records.steps(), missing.clone(), errors.collect())
        })
        .collect();
    let mut text = format!("{HEADER_START}{DIGEST_HOLE}\"");
    let fields = [
        ("format_version", "0".to_owned()),
        ("metadata", metadata.to_owned()),
        ("minimum_reader", "0".to_owned()),
        ("replaces", json(&replaces)?),
        ("schema", schema.to_json()),
        ("trajectories", json(&forms)?),
    ];
    for (name, value) in fields {
        let _ = write!(text, ",\"distillrs.{name}\":{}", json(&value)?);
    }
    text.push('}');
    let mut offset = 0u64;
    for tensor in tensors {
        let end = offset.checked_add(tensor.bytes).ok_or_else(|| too_large(&tensor.name))?;
        let (name, dtype, shape) = (json(&tensor.name)?, tensor.dtype, json(&tensor.shape)?);
        let _ = write!(text, ",{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{offset},{end}]}}");
        offset = end;
    }
    // The copy's size stands in the header, and the header's size in the copy: grow the padding until both fit.
    let mut length = 0u64;
    let mut text = loop {
        let copy = length + TRAILER_BYTES;
        let end = offset.checked_add(copy).ok_or_else(|| too_large(HEADER_COPY))?;
        let last =
            format!(",\"{HEADER_COPY}\":{{\"dtype\":\"U8\",\"shape\":[{copy}],\"data_offsets\":[{offset},{end}]}}}}");
        let due = (8 + (text.len() + last.len()) as u64).next_multiple_of(64) - 8;
        if due <= length {
            break text + &last;
        }
        length = due;
    };
    if length > MAX_HEADER_BYTES {
        let allowed = format!("trajectories whose header has at most {MAX_HEADER_BYTES} bytes");
        return Err(Error::argument("segment", format_args!("a header of {length} bytes"), allowed));
    }
    while (text.len() as u64) < length {
        text.push(' ');
    }
    let digest = format!("{:016x}", own_digest(text.as_bytes()));
    text.replace_range(HEADER_START.len()..HEADER_START.len() + DIGEST_HOLE.len(), &digest);
    Ok(text)
}

fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::argument("metadata", error, "what JSON can say"))
}

fn write_column(
    sink: &mut Sink<'_>,
    source: Source<'_>,
    missing: &[u64],
    schema: &Schema,
    position: usize,
) -> Result<()> {
    let column = &schema.columns()[position];
    for step in 0..source.records.steps() {
        if missing.binary_search(&step).is_err() {
            let (_, bytes) = stored(source.records, schema, position, step, Verify::Always)?;
            sink.write(&bytes)?;
        } else if column.is_raw() && !column.ragged {
            sink.write(&vec![0; column.bytes])?;
        }
    }
    Ok(())
}

/// Gathers small writes.
struct Sink<'a> {
    file: &'a dyn File,
    path: &'a Path,
    position: u64,
    buffer: Vec<u8>,
}

impl Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.drain()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            self.file.write_at(bytes, self.position).map_err(at(self.path, "writing"))?;
            self.position += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        self.file.write_at(&self.buffer, self.position).map_err(at(self.path, "writing"))?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<u64> {
        self.drain()?;
        Ok(self.position)
    }
}
