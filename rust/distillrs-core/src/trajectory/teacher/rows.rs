//! Documents of a store as numbered rows, and the gathering of rows.
//!
//! A trajectory `writer-<number>` holds the documents of one writer, one in each record. A row's number is made of the
//! writer's, the document's and the token's, so it stays the same when the cache grows, is sealed or is repaired, and a
//! position beyond a document's end is noticed instead of being the next document's.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::super::catalogue::{Catalogue, Entry};
use super::super::filesystem::{FileSystem, Mapping};
use super::super::records::{Records, Verify, corrupt, stored};
use super::super::store::Store;
use super::dense::unpack_dense;
use super::layout::RowLayout;
use super::unpack::{Defect, Id, Target, sampled, unpack_rows};
use crate::{Error, Result, parallel};

const TOKEN_BITS: u32 = 24;
const DOCUMENT_BITS: u32 = 24;
/// Most tokens of a document.
pub const TOKEN_LIMIT: u64 = 1 << TOKEN_BITS;
/// Most documents of a writer.
pub const DOCUMENT_LIMIT: u64 = 1 << DOCUMENT_BITS;
/// Most writers of a cache.
pub const WRITER_LIMIT: u64 = 1 << 15;
const PREFIX: &str = "writer-";
/// Readings of a cache whose logs others seal meanwhile.
const LOOKS: u32 = 64;
/// Rows of one task.
const PIECE: usize = 1024;
/// Rows of one task where they hold every class.
const DENSE_PIECE: usize = 64;

/// Documents of one key whose rows differ; the first one counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The key.
    pub key: String,
    /// Writer and document that count.
    pub kept: (u64, u64),
    /// Writer and document that do not.
    pub other: (u64, u64),
}

impl Conflict {
    /// First row of the document that counts.
    pub fn kept_row(&self) -> i64 {
        number(self.kept.0, self.kept.1)
    }

    /// First row of the other one.
    pub fn other_row(&self) -> i64 {
        number(self.other.0, self.other.1)
    }
}

/// One document.
struct Document {
    tokens: u32,
    /// Its rows in the mapped segment; empty where they lie in a log.
    range: Range<usize>,
    /// Its rows, copied from a log at the first touch.
    copy: OnceLock<Box<[u8]>>,
    checked: AtomicBool,
}

struct Run {
    name: String,
    entry: Entry,
    mapping: Option<Arc<Mapping>>,
    /// Empty for a record that a repair dropped or that is damaged.
    documents: Vec<Option<Document>>,
}

/// The rows of a cache at one moment.
pub struct TeacherRows {
    store: Arc<Store>,
    catalogue: Arc<Catalogue>,
    fs: Arc<dyn FileSystem>,
    verify: Verify,
    layout: RowLayout,
    column: usize,
    /// By the writer's number.
    runs: Vec<Option<Run>>,
    keys: HashMap<Box<str>, i64>,
    conflicts: Vec<Conflict>,
    tokens: u64,
}

impl fmt::Debug for TeacherRows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TeacherRows").field("documents", &self.keys.len()).finish_non_exhaustive()
    }
}

/// Where gathered rows go.
#[derive(Debug)]
pub struct Gathered<'a, I> {
    /// `[rows, k]`.
    pub ids: &'a mut [I],
    /// `[rows, k]`.
    pub log_probs: &'a mut [f32],
    /// `[rows]`.
    pub tail: &'a mut [f32],
    /// `[rows, temperatures]`.
    pub partitions: &'a mut [f32],
}

fn number(writer: u64, document: u64) -> i64 {
    // Both are below their limits, so the number is positive.
    (writer << (DOCUMENT_BITS + TOKEN_BITS) | document << TOKEN_BITS) as i64
}

fn parts(row: i64) -> (u64, u64, u64) {
    let row = row as u64;
    (row >> (DOCUMENT_BITS + TOKEN_BITS), row >> TOKEN_BITS & (DOCUMENT_LIMIT - 1), row & (TOKEN_LIMIT - 1))
}

impl TeacherRows {
    /// Reads the keys of every document. Documents whose key is damaged are left out: `verify` of the store names them.
    ///
    /// # Errors
    /// [`Error::SchemaMismatch`] if the store's rows have another size than the layout's; [`Error::StoreCorrupt`].
    pub fn load(store: &Arc<Store>, layout: RowLayout) -> Result<Self> {
        let (rows, keys) = (store.schema().index("rows")?, store.schema().index("key")?);
        let columns = store.schema().columns();
        let bytes = |index: usize| (columns[index].bytes, columns[index].ragged);
        if bytes(rows) != (layout.row_bytes, true) || bytes(keys) != (1, true) {
            let reason = format!("rows have {} bytes, those of the layout {}", bytes(rows).0, layout.row_bytes);
            return Err(Error::SchemaMismatch { path: store.path().to_path_buf(), reason });
        }
        let mut found = Self::read(store, &layout, rows, keys);
        for _ in 0..LOOKS {
            match &found {
                // Another process sealed a log since it was listed.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    store.refresh()?;
                    found = Self::read(store, &layout, rows, keys);
                }
                _ => break,
            }
        }
        found
    }

    fn read(store: &Arc<Store>, layout: &RowLayout, rows: usize, keys: usize) -> Result<Self> {
        let (catalogue, fs, verify) = store.snapshot()?;
        let mut names: Vec<(u64, &Arc<str>)> = catalogue
            .entries
            .keys()
            .filter_map(|name| Some((name.strip_prefix(PREFIX)?.parse().ok().filter(|&n| n < WRITER_LIMIT)?, name)))
            .collect();
        names.sort_unstable();
        let mut found = Self {
            store: store.clone(),
            catalogue: catalogue.clone(),
            fs,
            verify,
            layout: layout.clone(),
            column: rows,
            runs: Vec::new(),
            keys: HashMap::new(),
            conflicts: Vec::new(),
            tokens: 0,
        };
        for (writer, name) in names {
            found.add_run(&catalogue, writer, name, keys)?;
        }
        Ok(found)
    }

    fn add_run(&mut self, catalogue: &Catalogue, writer: u64, name: &Arc<str>, key_column: usize) -> Result<()> {
        let entry = catalogue.entry(self.store.path(), name)?;
        let records = catalogue.records(&*self.fs, name, entry)?;
        let mapping = catalogue.mapping(entry);
        let steps = records.steps().min(DOCUMENT_LIMIT);
        let mut run = Run { name: name.to_string(), entry, mapping, documents: Vec::with_capacity(steps as usize) };
        let mut keys = Vec::with_capacity(steps as usize);
        for step in 0..steps {
            let document = self.document(records, step, run.mapping.as_deref());
            let key = match &document {
                None => None,
                Some(_) => match stored(records, self.store.schema(), key_column, step, self.verify) {
                    Ok((_, bytes)) => String::from_utf8(bytes.into_owned()).ok(),
                    Err(Error::StoreCorrupt { .. }) => None,
                    Err(error) => return Err(error),
                },
            };
            run.documents.push(document.filter(|_| key.is_some()));
            keys.push(key);
        }
        // Below the limit of writers, as the names were chosen.
        let index = writer as usize;
        self.runs.resize_with(self.runs.len().max(index + 1), || None);
        self.runs[index] = Some(run);
        for (document, key) in (0..).zip(keys) {
            let Some(key) = key else { continue };
            match self.keys.get(key.as_str()) {
                None => {
                    self.tokens += u64::from(self.tokens_of(writer, document));
                    self.keys.insert(key.into_boxed_str(), number(writer, document));
                }
                Some(&row) => {
                    let (kept, first, _) = parts(row);
                    // What cannot be read is damage, which verifying names; here nothing can be said about it.
                    let same = match (self.bytes(kept, first), self.bytes(writer, document)) {
                        (Ok(kept), Ok(other)) => kept == other,
                        (Err(error @ Error::Io { .. }), _) | (_, Err(error @ Error::Io { .. })) => return Err(error),
                        _ => true,
                    };
                    if !same {
                        self.conflicts.push(Conflict { key, kept: (kept, first), other: (writer, document) });
                    }
                }
            }
        }
        Ok(())
    }

    fn document(&self, records: &dyn Records, step: u64, mapping: Option<&Mapping>) -> Option<Document> {
        let place = records.place(self.column, step).ok().flatten()?;
        let tokens = u32::try_from(place.rows).ok().filter(|&tokens| u64::from(tokens) < TOKEN_LIMIT)?;
        let range = match mapping {
            None => 0..0,
            Some(mapping) => {
                let start = usize::try_from(place.offset).ok()?;
                let end = start.checked_add(usize::try_from(place.length).ok()?)?;
                if end > mapping.len() {
                    return None;
                }
                start..end
            }
        };
        // Nothing but this bounds rows of a stranger's file: every row below `tokens` lies in the range.
        let bytes = self.layout.row_bytes.checked_mul(tokens as usize)?;
        if bytes as u64 != place.length {
            return None;
        }
        Some(Document { tokens, range, copy: OnceLock::new(), checked: AtomicBool::new(false) })
    }

    fn run(&self, writer: u64) -> Option<&Run> {
        self.runs.get(usize::try_from(writer).ok()?)?.as_ref()
    }

    fn tokens_of(&self, writer: u64, document: u64) -> u32 {
        let found = self.run(writer).and_then(|run| run.documents.get(document as usize));
        found.and_then(Option::as_ref).map_or(0, |document| document.tokens)
    }

    /// The rows of a document, checked at their first touch.
    fn bytes(&self, writer: u64, document: u64) -> Result<&[u8]> {
        let run = self.run(writer);
        let found = run.and_then(|run| Some((run, run.documents.get(document as usize)?.as_ref()?)));
        let (run, found) = found.ok_or_else(|| {
            let row = number(writer.min(WRITER_LIMIT - 1), document);
            Error::argument("rows", row, "rows of this cache, from index(keys), and -1")
        })?;
        let records = || self.catalogue.records(&*self.fs, &run.name, run.entry);
        let check = || stored(records()?, self.store.schema(), self.column, document, self.verify);
        match &run.mapping {
            Some(mapping) => {
                if self.verify == Verify::Always || !found.checked.load(Ordering::Relaxed) {
                    check()?;
                    found.checked.store(true, Ordering::Relaxed);
                }
                Ok(mapping.get(found.range.clone()).unwrap_or_default())
            }
            None => {
                if let Some(copy) = found.copy.get() {
                    return Ok(copy);
                }
                let copy = check()?.1.into_owned().into_boxed_slice();
                // Two threads may both copy it; nothing waits.
                Ok(found.copy.get_or_init(|| copy))
            }
        }
    }

    /// The layout of the rows.
    pub fn layout(&self) -> &RowLayout {
        &self.layout
    }

    /// Keys in order.
    pub fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.keys.keys().map(AsRef::as_ref).collect();
        keys.sort_unstable();
        keys
    }

    /// Number of documents, and of their tokens.
    pub fn size(&self) -> (usize, u64) {
        (self.keys.len(), self.tokens)
    }

    /// Keys that two documents have with different rows.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// The first row and the tokens of a key's document.
    pub fn find(&self, key: &str) -> Option<(i64, u32)> {
        let &row = self.keys.get(key)?;
        let (writer, document, _) = parts(row);
        Some((row, self.tokens_of(writer, document)))
    }

    /// The packed rows of a key's document.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`], [`Error::StoreCorrupt`], [`Error::Io`].
    pub fn packed(&self, key: &str) -> Result<&[u8]> {
        let missing = || Error::KeyNotFound { key: key.to_owned(), path: self.store.path().to_path_buf() };
        let (writer, document, _) = parts(self.find(key).ok_or_else(missing)?.0);
        self.bytes(writer, document)
    }

    /// Trajectory and step of a key's document.
    pub fn place(&self, key: &str) -> Option<(&str, u64)> {
        let (writer, document, _) = parts(*self.keys.get(key)?);
        Some((self.run(writer)?.name.as_str(), document))
    }

    /// Unpacks rows in the order asked for; -1 gives ids of 0 without probability and a tail of mass one.
    ///
    /// # Errors
    /// [`Error::Argument`] for a row that is not there or targets that do not fit; [`Error::StoreCorrupt`].
    pub fn gather<I: Id>(&self, rows: &[i64], out: Gathered<'_, I>) -> Result<()> {
        let (k, count) = (self.layout.k, self.layout.temperatures.len());
        let due = |width: usize| rows.len().checked_mul(width);
        let fits = due(k) == Some(out.ids.len())
            && due(k) == Some(out.log_probs.len())
            && out.tail.len() == rows.len()
            && due(count) == Some(out.partitions.len());
        if !fits {
            return Err(Error::argument("out", "tensors of another size", format!("those of {} rows", rows.len())));
        }
        if k == 0 {
            return Err(Error::argument("cache", "one without entries", "one with k of at least 1"));
        }
        let pieces: Vec<_> = rows
            .chunks(PIECE)
            .zip(out.ids.chunks_mut(PIECE * k))
            .zip(out.log_probs.chunks_mut(PIECE * k))
            .zip(out.tail.chunks_mut(PIECE))
            .zip(out.partitions.chunks_mut(PIECE * count))
            .map(|((((rows, ids), log_probs), tail), partitions)| (rows, Target { ids, log_probs, tail, partitions }))
            .collect();
        parallel::map(pieces, |(rows, target)| self.gather_piece(rows, target)).into_iter().collect()
    }

    /// Unpacks rows that hold every class, `[rows, classes]`; -1 gives zeros, which are an even distribution.
    ///
    /// # Errors
    /// As [`TeacherRows::gather`].
    pub fn gather_dense(&self, rows: &[i64], out: &mut [f32]) -> Result<()> {
        let classes = self.layout.vocabulary as usize;
        if !self.layout.dense {
            return Err(Error::argument("cache", "one of top-k rows", "one that holds every class"));
        }
        if rows.len().checked_mul(classes) != Some(out.len()) {
            return Err(Error::argument("out", "a tensor of another size", format!("that of {} rows", rows.len())));
        }
        let pieces: Vec<_> = rows.chunks(DENSE_PIECE).zip(out.chunks_mut(DENSE_PIECE * classes)).collect();
        let done = parallel::map(pieces, |(rows, out)| {
            let mut start = 0;
            while start < rows.len() {
                let (packed, length) = self.span(&rows[start..])?;
                let target = &mut out[start * classes..(start + length) * classes];
                match packed {
                    Some(packed) => unpack_dense(&self.layout, packed, target)
                        .map_err(|defect| self.defect(rows[start], &defect))?,
                    None => target.fill(0.0),
                }
                start += length;
            }
            Ok(())
        });
        done.into_iter().collect()
    }

    /// The bytes of rows as they are stored, in the order asked for; -1 is refused.
    ///
    /// # Errors
    /// As [`TeacherRows::gather`].
    pub fn gather_packed(&self, rows: &[i64], out: &mut [u8]) -> Result<()> {
        if rows.len().checked_mul(self.layout.row_bytes) != Some(out.len()) {
            return Err(Error::argument("out", "bytes of another size", format!("those of {} rows", rows.len())));
        }
        let mut start = 0;
        while start < rows.len() {
            let (packed, length) = self.span(&rows[start..])?;
            let packed = packed.ok_or_else(|| Error::argument("rows", -1, "rows of this cache, from index(keys)"))?;
            out[start * self.layout.row_bytes..][..packed.len()].copy_from_slice(packed);
            start += length;
        }
        Ok(())
    }

    fn gather_piece<I: Id>(&self, rows: &[i64], target: Target<'_, I>) -> Result<()> {
        let (k, count) = (self.layout.k, self.layout.temperatures.len());
        let mut start = 0;
        while start < rows.len() {
            let (packed, length) = self.span(&rows[start..])?;
            let place = start..start + length;
            let ids = &mut target.ids[place.start * k..place.end * k];
            let log_probs = &mut target.log_probs[place.start * k..place.end * k];
            let tail = &mut target.tail[place.clone()];
            let partitions = &mut target.partitions[place.start * count..place.end * count];
            match packed {
                Some(packed) => unpack_rows(&self.layout, packed, &mut Target { ids, log_probs, tail, partitions })
                    .map_err(|defect| self.defect(rows[start], &defect))?,
                None => {
                    ids.fill(I::from_id(0));
                    log_probs.fill(f32::NEG_INFINITY);
                    tail.fill(0.0);
                    partitions.fill(0.0);
                }
            }
            start = place.end;
        }
        Ok(())
    }

    /// The packed bytes of the rows at the front that follow each other, and how many they are; `None` for rows of -1.
    fn span(&self, rows: &[i64]) -> Result<(Option<&[u8]>, usize)> {
        let first = rows[0];
        if first == -1 {
            return Ok((None, rows.iter().take_while(|&&row| row == -1).count()));
        }
        let unknown = |row: i64, allowed: String| Err(Error::argument("rows", row, allowed));
        if first < 0 {
            return unknown(first, "rows of this cache, from index(keys), and -1".to_owned());
        }
        let (writer, document, token) = parts(first);
        let bytes = self.bytes(writer, document)?;
        let tokens = bytes.len() / self.layout.row_bytes;
        if token as usize >= tokens {
            let allowed = format!("a position below {tokens}, the tokens of its document; this is position {token}");
            return unknown(first, allowed);
        }
        let most = tokens - token as usize;
        let length = rows.iter().take(most).zip(first..).take_while(|(row, due)| **row == *due).count();
        let from = token as usize * self.layout.row_bytes;
        Ok((Some(&bytes[from..from + length * self.layout.row_bytes]), length))
    }

    fn defect(&self, first: i64, defect: &Defect) -> Error {
        let row = first + defect.row as i64;
        let (writer, document, token) = parts(row);
        let Some(run) = self.run(writer) else { return corrupt(self.store.path(), 0, defect.reason) };
        let records = self.catalogue.records(&*self.fs, &run.name, run.entry);
        let place =
            records.and_then(|records| Ok((records.path().to_path_buf(), records.place(self.column, document)?)));
        let (path, start) = match place {
            Ok((path, Some(place))) => (path, place.offset),
            _ => (self.store.path().to_path_buf(), 0),
        };
        let offset = start + token * self.layout.row_bytes as u64 + defect.offset as u64;
        corrupt(&path, offset, format!("{} at token {token} of document {document} of {:?}", defect.reason, run.name))
    }

    /// The sampled token of each row and its log-probability; -1 gives id 0 without probability.
    ///
    /// # Errors
    /// As [`TeacherRows::gather`].
    pub fn gather_sampled(&self, rows: &[i64], ids: &mut [i64], log_probs: &mut [f32]) -> Result<()> {
        if !self.layout.sampled {
            return Err(Error::argument("cache", "one without sampled tokens", "one made with sampled=True"));
        }
        if ids.len() != rows.len() || log_probs.len() != rows.len() {
            return Err(Error::argument("out", "tensors of another size", format!("those of {} rows", rows.len())));
        }
        let mut start = 0;
        while start < rows.len() {
            let (packed, length) = self.span(&rows[start..])?;
            for index in 0..length {
                let found = packed.map(|packed| &packed[index * self.layout.row_bytes..][..self.layout.row_bytes]);
                let (id, log_prob) = match found.map(|packed| sampled(&self.layout, packed)) {
                    None => (0, f32::NEG_INFINITY),
                    Some(Ok(found)) => found,
                    Some(Err((offset, reason))) => {
                        return Err(self.defect(rows[start], &Defect { row: index, offset, reason }));
                    }
                };
                ids[start + index] = i64::from(id);
                log_probs[start + index] = log_prob;
            }
            start += length;
        }
        Ok(())
    }
}
