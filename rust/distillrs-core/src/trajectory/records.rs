//! One trajectory's records, wherever they lie, and how they are checked and decoded.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::codec::{self, CodecError, RecordKind};
use super::frame::record_digest;
use super::schema::{Column, Schema};
use crate::{Error, Result};

/// When checksums are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// When a record is first touched in this process.
    #[default]
    First,
    /// Every time.
    Always,
    /// Not at all.
    Never,
}

impl Verify {
    /// Reads `"first"`, `"always"`, `"never"`.
    ///
    /// # Errors
    /// [`Error::Argument`] for another word.
    pub fn parse(word: &str) -> Result<Self> {
        match word {
            "first" => Ok(Self::First),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(Error::argument("verify", format_args!("{word:?}"), "\"first\", \"always\" or \"never\"")),
        }
    }
}

/// Where one column of one record lies, and what its bytes should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Place {
    pub offset: u64,
    pub length: u64,
    pub rows: u64,
    pub kind: RecordKind,
    pub digest: u64,
}

/// The records of one trajectory, in a log or in a segment.
pub(super) trait Records: Debug + Send + Sync {
    fn key(&self) -> &str;
    fn steps(&self) -> u64;
    fn path(&self) -> &Path;
    /// `None` for a step that a repair dropped. `step` is below `steps()`.
    fn place(&self, column: usize, step: u64) -> Result<Option<Place>>;
    /// The stored bytes, unchecked.
    fn bytes(&self, place: &Place) -> Result<Cow<'_, [u8]>>;
    /// The stored bytes, unchecked, into a buffer of their length.
    fn bytes_into(&self, place: &Place, out: &mut [u8]) -> Result<()>;
    /// Error of the codec over the whole trajectory.
    fn codec_error(&self, column: usize) -> CodecError;
    fn checked(&self) -> &Checked;
}

/// Which records have had their checksums compared in this process: one bit for each column of each step.
#[derive(Debug)]
pub(super) struct Checked {
    columns: usize,
    words: Box<[AtomicU64]>,
}

impl Checked {
    pub fn new(steps: usize, columns: usize) -> Self {
        let words = steps.saturating_mul(columns).div_ceil(64);
        Self { columns, words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    fn word(&self, column: usize, step: u64) -> Option<(&AtomicU64, u64)> {
        let bit = usize::try_from(step).ok()?.checked_mul(self.columns)?.checked_add(column)?;
        Some((self.words.get(bit / 64)?, 1 << (bit % 64)))
    }

    // Relaxed: the bit guards no other memory; two threads that both find it unset both check.
    fn get(&self, column: usize, step: u64) -> bool {
        self.word(column, step).is_some_and(|(word, mask)| word.load(Ordering::Relaxed) & mask != 0)
    }

    fn set(&self, column: usize, step: u64) {
        if let Some((word, mask)) = self.word(column, step) {
            word.fetch_or(mask, Ordering::Relaxed);
        }
    }
}

pub(super) fn corrupt(path: &Path, offset: u64, reason: impl Into<String>) -> Error {
    Error::StoreCorrupt { path: path.to_path_buf(), offset, reason: reason.into() }
}

/// The place of a record that must be there.
pub(super) fn present(records: &dyn Records, schema: &Schema, column: usize, step: u64) -> Result<Place> {
    if step >= records.steps() {
        let allowed = format!("a step below {} of trajectory {:?}", records.steps(), records.key());
        return Err(Error::argument("step", step, allowed));
    }
    records.place(column, step)?.ok_or_else(|| {
        let name = &schema.columns()[column].name;
        let reason = format!("step {step} of {:?}, column {name:?}, was dropped by a repair", records.key());
        corrupt(records.path(), 0, reason)
    })
}

fn check(records: &dyn Records, name: &str, step: u64, place: &Place, bytes: &[u8]) -> Result<()> {
    if record_digest(bytes, step, place.rows, place.kind) == place.digest {
        return Ok(());
    }
    let reason =
        format!("the checksum of trajectory {:?}, step {step}, column {name:?}, does not match", records.key());
    Err(corrupt(records.path(), place.offset, reason))
}

fn check_if_due(
    records: &dyn Records,
    verify: Verify,
    (column, name): (usize, &str),
    step: u64,
    place: &Place,
    bytes: &[u8],
) -> Result<()> {
    let due = match verify {
        Verify::Always => true,
        Verify::First => !records.checked().get(column, step),
        Verify::Never => false,
    };
    if due {
        check(records, name, step, place, bytes)?;
        records.checked().set(column, step);
    }
    Ok(())
}

/// The stored bytes of one column of one record after the check that `verify` asks for.
pub(super) fn stored<'a>(
    records: &'a dyn Records,
    schema: &Schema,
    column: usize,
    step: u64,
    verify: Verify,
) -> Result<(Place, Cow<'a, [u8]>)> {
    let place = present(records, schema, column, step)?;
    let bytes = records.bytes(&place)?;
    check_if_due(records, verify, (column, &schema.columns()[column].name), step, &place, &bytes)?;
    Ok((place, bytes))
}

/// Steps that one record needs, rising, itself included.
pub(super) fn chain(records: &dyn Records, schema: &Schema, column: usize, step: u64) -> Result<Vec<u64>> {
    let mut steps = vec![step];
    let mut current = step;
    while let RecordKind::Delta { base } = present(records, schema, column, current)?.kind {
        if base >= current || steps.len() > codec::MAX_KEYFRAME_EVERY as usize {
            let reason = format!("step {current} of {:?} is stored as a difference to step {base}", records.key());
            return Err(corrupt(records.path(), 0, reason));
        }
        steps.push(base);
        current = base;
    }
    steps.reverse();
    Ok(steps)
}

/// Fills one buffer per step with decoded records.
pub(super) fn read(
    records: &dyn Records,
    schema: &Schema,
    column: usize,
    verify: Verify,
    wanted: &mut [(u64, &mut [u8])],
) -> Result<()> {
    let spec = &schema.columns()[column];
    if !spec.is_raw() {
        return read_coded(records, schema, column, verify, wanted);
    }
    for (step, out) in wanted.iter_mut() {
        let place = present(records, schema, column, *step)?;
        if out.len() as u64 != place.length {
            let allowed = format!("{} bytes for step {step} of column {:?}", place.length, spec.name);
            return Err(Error::argument("out", format_args!("{} bytes", out.len()), allowed));
        }
        records.bytes_into(&place, out)?;
        // What was copied is what gets checked, so the bytes that the caller has are those that passed.
        check_if_due(records, verify, (column, &spec.name), *step, &place, out)?;
    }
    Ok(())
}

fn read_coded(
    records: &dyn Records,
    schema: &Schema,
    column: usize,
    verify: Verify,
    wanted: &mut [(u64, &mut [u8])],
) -> Result<()> {
    let spec: &Column = &schema.columns()[column];
    for (step, out) in wanted.iter() {
        if out.len() != spec.bytes {
            let allowed = format!("{} bytes for step {step} of column {:?}", spec.bytes, spec.name);
            return Err(Error::argument("out", format_args!("{} bytes", out.len()), allowed));
        }
    }
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&index| wanted[index].0);
    // Steps of one keyframe are decoded in one pass.
    let mut groups: Vec<(u64, BTreeSet<u64>)> = Vec::new();
    for &index in &order {
        let step = wanted[index].0;
        if groups.last().is_some_and(|(_, steps)| steps.last() == Some(&step)) {
            continue;
        }
        let needed = chain(records, schema, column, step)?;
        match groups.iter_mut().find(|(root, _)| *root == needed[0]) {
            Some((_, steps)) => steps.extend(needed),
            None => groups.push((needed[0], needed.into_iter().collect())),
        }
    }
    for (_, steps) in &groups {
        let steps: Vec<u64> = steps.iter().copied().collect();
        let mut places = Vec::with_capacity(steps.len());
        let mut payloads = Vec::with_capacity(steps.len());
        for &step in &steps {
            let (place, bytes) = stored(records, schema, column, step, verify)?;
            places.push(place);
            payloads.push(bytes);
        }
        let payloads: Vec<&[u8]> = payloads.iter().map(AsRef::as_ref).collect();
        let mut targets: Vec<(usize, u64, &mut [u8])> = Vec::new();
        let mut repeated: Vec<(u64, &mut [u8])> = Vec::new();
        for (step, out) in wanted.iter_mut() {
            if let Ok(position) = steps.binary_search(step) {
                if targets.iter().any(|(other, ..)| *other == position) {
                    repeated.push((*step, out));
                } else {
                    targets.push((position, *step, out));
                }
            }
        }
        targets.sort_by_key(|(position, ..)| *position);
        let mut slots: Vec<(usize, &mut [u8])> =
            targets.iter_mut().map(|(position, _, out)| (*position, &mut **out)).collect();
        codec::decode(&spec.codec, spec.dtype, spec.elements, &spec.tensor_sizes, &payloads, &mut slots)
            .map_err(|error| error.at(|index| locate(records.path(), &places, index)))?;
        for (step, out) in repeated {
            if let Some((.., decoded)) = targets.iter().find(|(_, other, _)| *other == step) {
                out.copy_from_slice(decoded);
            }
        }
    }
    Ok(())
}

pub(super) fn locate(path: &Path, places: &[Place], index: usize) -> (PathBuf, u64) {
    (path.to_path_buf(), places.get(index).map_or(0, |place| place.offset))
}
