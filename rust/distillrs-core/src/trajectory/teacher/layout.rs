//! Where the fields of a packed row lie.

use serde::Deserialize;

use crate::{Error, Result};

/// Largest vocabulary: a group of eight ids then takes at most 24 bytes, and an id fits `i32`.
pub const MAX_VOCABULARY: u32 = 1 << 24;
/// Most entries of a row.
pub const MAX_K: usize = 4096;
/// Most temperatures of a row.
pub const MAX_TEMPERATURES: usize = 64;
/// Most classes of a dense row.
pub const MAX_CLASSES: u32 = 1 << 16;

/// How log-probabilities are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogProbCode {
    /// Eight bits for the step down from the entry before, a scale for each row.
    Steps,
    /// An `f16` for each.
    Half,
}

/// What every row of a cache holds, and where.
///
/// In this order, without gaps: `k` ids of `id_bits` bits each, lowest bit first, padded to a byte; then the
/// log-probabilities (of [`LogProbCode::Steps`] `k - 1` bytes, the top's `f32` and the scale's `f16`; of
/// [`LogProbCode::Half`] `k` times an `f16`); the tail's log-mass, `f16`; an `f32` log-partition for each temperature but
/// the first; if asked for the sampled token's id in whole bytes and its log-probability, `f32`. With `k = 0` only the
/// last two.
///
/// A dense row has every class in its order instead: how far its log-probability lies below the largest one, of
/// [`LogProbCode::Half`] an `f16` each, of [`LogProbCode::Steps`] a byte each and the scale's `f16`.
#[derive(Debug, Clone, PartialEq)]
pub struct RowLayout {
    /// Ids are below this.
    pub vocabulary: u32,
    /// Entries of a row.
    pub k: usize,
    /// Code of the log-probabilities.
    pub code: LogProbCode,
    /// The first is 1.
    pub temperatures: Vec<f64>,
    /// Whether a row ends with the sampled token.
    pub sampled: bool,
    /// Whether a row has every class and nothing else; `k` is 0 then.
    pub dense: bool,
    /// Bits of an id.
    pub id_bits: usize,
    /// Where the log-probabilities begin.
    pub codes_at: usize,
    /// Where the top's log-probability and the scale lie, in a dense row the scale; of [`LogProbCode::Half`] the same as
    /// `tail_at`.
    pub head_at: usize,
    /// Where the tail's log-mass lies.
    pub tail_at: usize,
    /// Where the log-partitions begin.
    pub partitions_at: usize,
    /// Where the sampled token begins.
    pub sampled_at: usize,
    /// Bytes of the sampled token's id.
    pub sampled_id_bytes: usize,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// What the fast way of unpacking needs, where this machine has it.
    pub(super) groups: Option<Groups>,
}

/// How a group of eight ids is brought together from the bytes that hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Groups {
    /// For each id the four bytes that it lies in, of two loads of 16.
    pub shuffle: [i8; 32],
    /// For each id the bits before it.
    pub shifts: [i32; 8],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LayoutForm {
    vocabulary: u64,
    k: u64,
    code: String,
    temperatures: Vec<f64>,
    sampled: bool,
    #[serde(default)]
    dense: bool,
}

impl RowLayout {
    /// A layout from its parts.
    ///
    /// # Errors
    /// [`Error::Argument`] names the part.
    pub fn new(vocabulary: u64, k: u64, code: LogProbCode, temperatures: Vec<f64>, sampled: bool) -> Result<Self> {
        let vocabulary = u32::try_from(vocabulary)
            .ok()
            .filter(|size| (1..=MAX_VOCABULARY).contains(size))
            .ok_or_else(|| Error::argument("vocabulary", vocabulary, format!("a size from 1 to {MAX_VOCABULARY}")))?;
        let most = MAX_K.min(vocabulary as usize);
        let k = usize::try_from(k)
            .ok()
            .filter(|&k| k <= most)
            .ok_or_else(|| Error::argument("k", k, format!("a number of entries from 0 to {most}")))?;
        if k == 0 && !sampled {
            return Err(Error::argument("k", 0, "at least 1, or 0 with sampled=True"));
        }
        let fit = temperatures.len() <= MAX_TEMPERATURES && temperatures.iter().all(|&t| t.is_finite() && t > 0.0);
        if !fit || temperatures.first() != Some(&1.0) || (k == 0 && temperatures.len() > 1) {
            let allowed = format!("1 to {MAX_TEMPERATURES} positive numbers, the first 1.0, and no other if k is 0");
            return Err(Error::argument("temperatures", format_args!("{temperatures:?}"), allowed));
        }
        let id_bits = (u32::BITS - (vocabulary - 1).leading_zeros()).max(1) as usize;
        let codes_at = (k * id_bits).div_ceil(8);
        let (head_at, tail_at) = match (k, code) {
            (0, _) => (0, 0),
            (_, LogProbCode::Steps) => (codes_at + k - 1, codes_at + k - 1 + 6),
            (_, LogProbCode::Half) => (codes_at + 2 * k, codes_at + 2 * k),
        };
        let partitions_at = tail_at + if k == 0 { 0 } else { 2 };
        let sampled_at = partitions_at + 4 * (temperatures.len() - 1);
        let sampled_id_bytes = id_bits.div_ceil(8);
        let row_bytes = sampled_at + if sampled { sampled_id_bytes + 4 } else { 0 };
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, reason = "only that architecture has a fast way"))]
        let mut layout = Self {
            vocabulary,
            k,
            code,
            temperatures,
            sampled,
            dense: false,
            id_bits,
            codes_at,
            head_at,
            tail_at,
            partitions_at,
            sampled_at,
            sampled_id_bytes,
            row_bytes,
            groups: None,
        };
        #[cfg(target_arch = "x86_64")]
        {
            layout.groups = super::unpack_avx2::groups(&layout);
        }
        Ok(layout)
    }

    /// A layout of rows that hold every class.
    ///
    /// # Errors
    /// [`Error::Argument`] names the part.
    pub fn dense(classes: u64, code: LogProbCode) -> Result<Self> {
        let classes = u32::try_from(classes)
            .ok()
            .filter(|size| (1..=MAX_CLASSES).contains(size))
            .ok_or_else(|| Error::argument("classes", classes, format!("a number from 1 to {MAX_CLASSES}")))?;
        let (head_at, row_bytes) = match code {
            LogProbCode::Steps => (classes as usize, classes as usize + 2),
            LogProbCode::Half => (2 * classes as usize, 2 * classes as usize),
        };
        Ok(Self {
            vocabulary: classes,
            k: 0,
            code,
            temperatures: vec![1.0],
            sampled: false,
            dense: true,
            id_bits: 0,
            codes_at: 0,
            head_at,
            tail_at: row_bytes,
            partitions_at: row_bytes,
            sampled_at: row_bytes,
            sampled_id_bytes: 0,
            row_bytes,
            groups: None,
        })
    }

    /// A layout from JSON: `{"vocabulary", "k", "code": "u8" | "f16", "temperatures", "sampled"}`, and `"dense"` for rows
    /// that hold every class.
    ///
    /// # Errors
    /// [`Error::Argument`] names the part.
    pub fn parse(text: &str) -> Result<Self> {
        let form: LayoutForm = serde_json::from_str(text)
            .map_err(|error| Error::argument("layout", error, "vocabulary, k, code, temperatures and sampled"))?;
        let code = match form.code.as_str() {
            "u8" => LogProbCode::Steps,
            "f16" => LogProbCode::Half,
            other => return Err(Error::argument("code", format_args!("{other:?}"), "\"u8\" or \"f16\"")),
        };
        if form.dense {
            if form.k != 0 || form.sampled || form.temperatures != [1.0] {
                return Err(Error::argument(
                    "layout",
                    "a dense one with k, sampled or temperatures",
                    "0, false, [1.0]",
                ));
            }
            return Self::dense(form.vocabulary, code);
        }
        Self::new(form.vocabulary, form.k, code, form.temperatures, form.sampled)
    }
}
