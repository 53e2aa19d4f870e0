//! Packing: what a row is stored from becomes its bytes.

use super::half::{from_half, to_half, to_half_above};
use super::layout::{LogProbCode, RowLayout};
use super::select::{Logit, Logits, NoDistribution, Scratch, Selected, log_sum_exp, select};
use crate::parallel;
use crate::{Error, Result};

/// Code of a step to minus infinity: this entry and those behind it have no probability.
pub(super) const NOTHING: u8 = 255;
/// Largest step in units of the scale.
const LARGEST_STEP: f64 = 254.0;
/// Log-probabilities below this are stored as this: `f32` has no smaller probability.
const LOWEST: f64 = -104.0;
/// Rows of one task.
const PIECE: usize = 16;

/// Rows that somebody else selected; all slices begin at the same row.
#[derive(Debug, Clone, Copy)]
pub struct TopKRows<'a> {
    /// `[rows, k]`.
    pub ids: &'a [i64],
    /// `[rows, k]`, at temperature 1.
    pub log_probs: &'a [f32],
    /// `[rows]`, at temperature 1.
    pub tail: &'a [f32],
    /// `[rows, temperatures]`: log of the sum of `p^(1/T)` over the vocabulary.
    pub partitions: &'a [f32],
}

/// The sampled token of each row, and its log-probability.
pub type SampledRows<'a> = (&'a [i64], &'a [f32]);

fn refuse(name: &str, row: usize, got: impl std::fmt::Display, allowed: &str) -> Error {
    Error::argument(name, format_args!("{got} in row {row}"), allowed)
}

fn no_distribution(row: usize, reason: NoDistribution, vocabulary: u32) -> Error {
    match reason {
        NoDistribution::NotANumber => refuse("logits", row, "NaN", "numbers, and -inf for excluded ids"),
        NoDistribution::Infinite => refuse("logits", row, "inf", "numbers, and -inf for excluded ids"),
        NoDistribution::Empty => refuse("logits", row, "-inf throughout", "at least one number"),
        NoDistribution::Id(id) => refuse("ids", row, id, &format!("ids from 0 to {}, or -1 for none", vocabulary - 1)),
        NoDistribution::Twice(id) => refuse("ids", row, format_args!("{id} twice"), "every id once"),
    }
}

/// Packs logits, `[rows, vocabulary]`: the `k` largest of each row, or the `ids` (`[rows, k]`, -1 for none) of a support
/// that the caller chose. `first_row` is the number of the first row in messages.
///
/// # Errors
/// [`Error::Argument`] names the row.
pub fn pack_logits(
    layout: &RowLayout,
    logits: Logits<'_>,
    ids: Option<&[i64]>,
    sampled: Option<&[i64]>,
    first_row: usize,
    out: &mut [u8],
) -> Result<()> {
    let rows = out.len() / layout.row_bytes;
    let width = layout.vocabulary as usize;
    check("out", out.len(), rows.checked_mul(layout.row_bytes))?;
    check("logits", logits.len(), rows.checked_mul(width))?;
    ids.map_or(Ok(()), |ids| check("ids", ids.len(), rows.checked_mul(layout.k)))?;
    if sampled.is_some() != layout.sampled {
        let (got, allowed) = if layout.sampled { ("none", "a token for each row") } else { ("tokens", "none") };
        return Err(Error::argument("sampled", got, allowed));
    }
    sampled.map_or(Ok(()), |sampled| check("sampled", sampled.len(), Some(rows)))?;
    match logits {
        Logits::Single(values) => pack_pieces(layout, values, ids, sampled, first_row, out),
        Logits::BFloat16(values) => pack_pieces(layout, values, ids, sampled, first_row, out),
        Logits::Half(values) => pack_pieces(layout, values, ids, sampled, first_row, out),
    }
}

fn check(name: &str, got: usize, due: Option<usize>) -> Result<()> {
    if due == Some(got) {
        return Ok(());
    }
    let allowed = due.map_or_else(|| "fewer rows".to_owned(), |due| due.to_string());
    Err(Error::argument(name, format_args!("{got} values"), allowed))
}

fn pack_pieces<T: Logit>(
    layout: &RowLayout,
    logits: &[T],
    ids: Option<&[i64]>,
    sampled: Option<&[i64]>,
    first_row: usize,
    out: &mut [u8],
) -> Result<()> {
    let width = layout.vocabulary as usize;
    let pieces: Vec<(usize, &mut [u8])> = out.chunks_mut(PIECE * layout.row_bytes).enumerate().collect();
    let results = parallel::map(pieces, |(piece, out)| {
        let mut scratch = Scratch::default();
        for (index, target) in out.chunks_exact_mut(layout.row_bytes).enumerate() {
            let row = piece * PIECE + index;
            let values = &logits[row * width..(row + 1) * width];
            let wanted = ids.map(|ids| &ids[row * layout.k..(row + 1) * layout.k]);
            select(values, layout.k, wanted, &layout.temperatures, &mut scratch)
                .map_err(|reason| no_distribution(first_row + row, reason, layout.vocabulary))?;
            let token = match sampled {
                None => None,
                Some(tokens) => {
                    let token = tokens[row];
                    let value = usize::try_from(token).ok().and_then(|token| values.get(token)).ok_or_else(|| {
                        refuse("sampled", first_row + row, token, &format!("an id from 0 to {}", layout.vocabulary - 1))
                    })?;
                    Some((token as u32, (f64::from(value.widen()) - scratch.selected.log_sum) as f32))
                }
            };
            pack_row(layout, &scratch.selected, token, target);
        }
        Ok(())
    });
    results.into_iter().collect()
}

/// Packs rows that somebody else selected. An id with a log-probability of minus infinity, or -1, is none.
///
/// # Errors
/// [`Error::Argument`] names the row.
pub fn pack_top_k(
    layout: &RowLayout,
    top_k: TopKRows<'_>,
    sampled: Option<SampledRows<'_>>,
    out: &mut [u8],
) -> Result<()> {
    let (k, temperatures) = (layout.k, layout.temperatures.len());
    let rows = out.len() / layout.row_bytes;
    check("out", out.len(), rows.checked_mul(layout.row_bytes))?;
    check("ids", top_k.ids.len(), rows.checked_mul(k))?;
    check("log_probs", top_k.log_probs.len(), rows.checked_mul(k))?;
    check("tail_log_mass", top_k.tail.len(), Some(rows))?;
    check("log_partition", top_k.partitions.len(), rows.checked_mul(temperatures))?;
    if sampled.is_some() != layout.sampled {
        let (got, allowed) = if layout.sampled { ("none", "a token for each row") } else { ("tokens", "none") };
        return Err(Error::argument("sampled", got, allowed));
    }
    if let Some((ids, log_probs)) = sampled {
        check("sampled.ids", ids.len(), Some(rows))?;
        check("sampled.log_probs", log_probs.len(), Some(rows))?;
    }
    let mut selected = Selected::default();
    for (row, target) in out.chunks_exact_mut(layout.row_bytes).enumerate() {
        if k > 0 {
            take_row(layout, &top_k, row, &mut selected)?;
        }
        let token = match sampled {
            None => None,
            Some((ids, log_probs)) => {
                let known = u32::try_from(ids[row]).ok().filter(|&id| id < layout.vocabulary);
                let allowed = format!("an id from 0 to {}", layout.vocabulary - 1);
                let id = known.ok_or_else(|| refuse("sampled.ids", row, ids[row], &allowed))?;
                if log_probs[row].is_nan() || log_probs[row] > 0.0 {
                    return Err(refuse("sampled.log_probs", row, log_probs[row], "at most 0"));
                }
                Some((id, log_probs[row]))
            }
        };
        pack_row(layout, &selected, token, target);
    }
    Ok(())
}

fn take_row(layout: &RowLayout, top_k: &TopKRows<'_>, row: usize, selected: &mut Selected) -> Result<()> {
    // Sums of probabilities that were rounded one by one may be a little more than one.
    const ROUNDING: f64 = 1e-3;
    let k = layout.k;
    selected.entries.clear();
    for (&id, &log_prob) in top_k.ids[row * k..(row + 1) * k].iter().zip(&top_k.log_probs[row * k..(row + 1) * k]) {
        if log_prob.is_nan() || f64::from(log_prob) > ROUNDING {
            return Err(refuse("log_probs", row, log_prob, "at most 0"));
        }
        if id == -1 && log_prob == f32::NEG_INFINITY {
            continue;
        }
        let known = u32::try_from(id).ok().filter(|&id| id < layout.vocabulary);
        let id = known.ok_or_else(|| no_distribution(row, NoDistribution::Id(id), layout.vocabulary))?;
        selected.entries.push((id, f64::from(log_prob).min(0.0)));
    }
    selected.entries.sort_unstable_by_key(|&(id, _)| id);
    // Entries without probability may repeat an id: padding has to have some id.
    let twice =
        selected.entries.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[1].1.min(pair[0].1) > f64::NEG_INFINITY);
    if let Some(pair) = twice {
        return Err(no_distribution(row, NoDistribution::Twice(i64::from(pair[0].0)), layout.vocabulary));
    }
    selected.entries.sort_unstable_by(|first, second| second.1.total_cmp(&first.1).then(first.0.cmp(&second.0)));
    let tail = f64::from(top_k.tail[row]);
    if tail.is_nan() || tail > ROUNDING {
        return Err(refuse("tail_log_mass", row, tail, "at most 0"));
    }
    selected.log_tail = tail.min(0.0);
    let count = layout.temperatures.len();
    let partitions = &top_k.partitions[row * count..(row + 1) * count];
    selected.log_heads.clear();
    for (&temperature, &partition) in layout.temperatures.iter().zip(partitions) {
        let partition = f64::from(partition);
        let scaled = selected.entries.iter().map(|entry| entry.1 / temperature - partition);
        let log_head = log_sum_exp(scaled);
        if !partition.is_finite() || log_head > ROUNDING {
            let allowed = "log-partitions under which the entries' probabilities add up to at most 1";
            return Err(refuse("log_partition", row, partition, allowed));
        }
        selected.log_heads.push(log_head.min(0.0));
    }
    if (selected.log_heads[0].exp() + selected.log_tail.exp() - 1.0).abs() > 10.0 * ROUNDING {
        let allowed = "the log of what the entries' probabilities leave of 1";
        return Err(refuse("tail_log_mass", row, tail, allowed));
    }
    Ok(())
}

/// One row. What is stored beside the ids and codes is computed from the decoded codes, so that entries and tail add up to
/// one at every temperature however coarse the codes are.
pub(super) fn pack_row(layout: &RowLayout, selected: &Selected, sampled: Option<(u32, f32)>, out: &mut [u8]) {
    out.fill(0);
    if layout.k > 0 {
        pack_entries(layout, selected, out);
    }
    if let Some((id, log_prob)) = sampled {
        let field = &mut out[layout.sampled_at..];
        let bytes = layout.sampled_id_bytes;
        field[..bytes].copy_from_slice(&id.to_le_bytes()[..bytes]);
        field[bytes..bytes + 4].copy_from_slice(&log_prob.min(0.0).to_le_bytes());
    }
}

fn pack_entries(layout: &RowLayout, selected: &Selected, out: &mut [u8]) {
    let nothing = (0, f64::NEG_INFINITY);
    let padding = layout.k.saturating_sub(selected.entries.len());
    let entries = || selected.entries.iter().copied().chain(std::iter::repeat_n(nothing, padding)).take(layout.k);
    for (index, (id, _)) in entries().enumerate() {
        let bit = index * layout.id_bits;
        // An id of at most 24 bits lies in 4 bytes from the byte that its first bit is in.
        let shifted = id << (bit % 8);
        for (byte, target) in shifted.to_le_bytes().into_iter().zip(&mut out[bit / 8..layout.codes_at]) {
            *target |= byte;
        }
    }
    let relative: Vec<f64> = match layout.code {
        LogProbCode::Steps => pack_steps(layout, entries().map(|entry| entry.1), selected.log_heads[0], out),
        LogProbCode::Half => {
            let fields = out[layout.codes_at..layout.tail_at].chunks_exact_mut(2);
            let decoded = fields.zip(entries()).map(|(field, (_, log_prob))| {
                let clamped = if log_prob == f64::NEG_INFINITY { log_prob } else { log_prob.clamp(-65504.0, 0.0) };
                let code = to_half(clamped);
                field.copy_from_slice(&code.to_le_bytes());
                f64::from(from_half(code))
            });
            decoded.collect()
        }
    };
    out[layout.tail_at..layout.tail_at + 2].copy_from_slice(&to_half(selected.log_tail.min(0.0)).to_le_bytes());
    let fields = out[layout.partitions_at..layout.sampled_at].chunks_exact_mut(4);
    for ((field, &temperature), &log_head) in fields.zip(&layout.temperatures[1..]).zip(&selected.log_heads[1..]) {
        let partition = log_sum_exp(relative.iter().map(|value| value / temperature)) - log_head;
        // Without any probability among the entries nothing can be said, and nothing depends on it.
        let partition = if partition.is_finite() { partition } else { 0.0 };
        field.copy_from_slice(&(partition as f32).to_le_bytes());
    }
}

/// Steps down from entry to entry, each from the decoded one before it, so that errors do not add up. Gives the decoded
/// log-probabilities.
fn pack_steps(
    layout: &RowLayout,
    log_probs: impl Iterator<Item = f64> + Clone,
    log_head: f64,
    out: &mut [u8],
) -> Vec<f64> {
    let first = log_probs.clone().next().unwrap_or(f64::NEG_INFINITY);
    let depth = |log_prob: f64| {
        if log_prob == f64::NEG_INFINITY { f64::INFINITY } else { first.max(LOWEST) - log_prob.max(LOWEST) }
    };
    let mut largest = 0.0f64;
    let mut before = 0.0;
    for value in log_probs.clone().map(depth).take_while(|value| value.is_finite()) {
        largest = largest.max(value - before);
        before = value;
    }
    let scale_code = to_half_above(largest / LARGEST_STEP);
    let scale = from_half(scale_code);
    let mut steps = 0u32;
    let mut decoded = Vec::with_capacity(layout.k);
    for (index, log_prob) in log_probs.enumerate() {
        let value = depth(log_prob);
        if value == f64::INFINITY {
            decoded.push(f64::NEG_INFINITY);
            if index > 0 {
                out[layout.codes_at + index - 1] = NOTHING;
            }
            continue;
        }
        if index > 0 {
            let left = value / f64::from(scale) - f64::from(steps);
            let code = if scale > 0.0 { left.round_ties_even().clamp(0.0, LARGEST_STEP) as u8 } else { 0 };
            out[layout.codes_at + index - 1] = code;
            steps += u32::from(code);
        }
        decoded.push(-f64::from(scale * steps as f32));
    }
    let shift = log_head - log_sum_exp(decoded.iter().copied());
    let top = if shift.is_finite() { (shift as f32).min(0.0) } else { f32::NEG_INFINITY };
    out[layout.head_at..layout.head_at + 4].copy_from_slice(&top.to_le_bytes());
    out[layout.head_at + 4..layout.head_at + 6].copy_from_slice(&scale_code.to_le_bytes());
    for value in &mut decoded {
        *value = if value.is_finite() { f64::from(top + *value as f32) } else { *value };
    }
    decoded
}
