//! Chunks of a text that two tokenizers cut alike.
//!
//! Both streams are walked byte by byte: a chunk closes wherever both have reached the same byte. A token that covers no
//! byte of its own (a part of a character whose last token has it, a prefix that the text does not have) goes with the
//! token that follows it. Merging of chunks by the teacher's probability of a boundary is that of Minixhofer and others,
//! "Cross-Tokenizer Distillation via Approximate Likelihood Matching", 2025.

use std::hint::select_unpredictable;

use super::ranks::Ranks;
use crate::simd::vectorised;
use crate::{Error, Result, parallel};

/// First byte and end of every token of a batch of rows, `[rows, tokens, 2]`; (-1, -1) for one that is no part of the
/// text.
#[derive(Debug, Clone, Copy)]
pub struct Spans<'a> {
    name: &'a str,
    values: &'a [i64],
    tokens: usize,
}

impl<'a> Spans<'a> {
    /// Spans of `rows` rows; `name` is the caller's, for messages.
    ///
    /// # Errors
    /// [`Error::Argument`] when the values are not `rows` rows of pairs.
    pub fn new(name: &'a str, values: &'a [i64], rows: usize, tokens: usize) -> Result<Self> {
        if rows.checked_mul(tokens).and_then(|pairs| pairs.checked_mul(2)) != Some(values.len()) {
            let allowed = format!("two for each of {rows} times {tokens} tokens");
            return Err(Error::argument(name, format_args!("{} values", values.len()), allowed));
        }
        Ok(Self { name, values, tokens })
    }

    fn row(&self, row: usize) -> &'a [[i64; 2]] {
        self.values[2 * row * self.tokens..2 * (row + 1) * self.tokens].as_chunks().0
    }

    /// The row's first byte and the end of its last token, if it has any of the text.
    fn check(&self, row: usize) -> Result<Option<(i64, i64)>> {
        // Most rows are whole between what pads them, which takes no decision for each token.
        let spans = self.row(row);
        let is_token = |span: &[i64; 2]| span[0] != -1 || span[1] != -1;
        let Some(first) = spans.iter().position(is_token) else { return Ok(None) };
        let last = spans.iter().rposition(is_token).unwrap_or(first);
        let whole = spans[first..=last].as_flattened();
        if whole[0] >= 0 && follow(whole) { Ok(Some((whole[0], spans[last][1]))) } else { self.check_each(row) }
    }

    /// As [`Spans::check`], token by token, to pass by those that are no part of the text or to name what is wrong.
    fn check_each(&self, row: usize) -> Result<Option<(i64, i64)>> {
        let (mut start, mut reached) = (None, 0);
        for (token, &[first, end]) in self.row(row).iter().enumerate() {
            if (first, end) == (-1, -1) {
                continue;
            }
            let follows = if start.is_some() { first == reached } else { first >= 0 };
            if !follows || end < first {
                let after = match start {
                    Some(_) => format!("one from byte {reached} on, where the token before it ends"),
                    None => "one from byte 0 or a later one on".to_owned(),
                };
                let got = format_args!("({first}, {end}) for token {token} of row {row}");
                return Err(Error::argument(self.name, got, format!("{after}, or (-1, -1) for no part of the text")));
            }
            start.get_or_insert(first);
            reached = end;
        }
        Ok(start.map(|start| (start, reached)))
    }
}

vectorised! {
    /// Whether pairs of numbers rise, and each begins with what the one before it ends with.
    fn follow(values: &[i64]) -> bool = follow_body;
}

#[inline(always)]
fn follow_body(values: &[i64]) -> bool {
    // Without an early end: that would cost more than it saves.
    let later = values.get(1..).unwrap_or_default();
    let pairs = values.iter().zip(later).enumerate();
    let wrong = pairs.fold(0, |wrong, (place, (value, next))| {
        wrong | i64::from(next < value) | ((value ^ next) & -(place as i64 & 1))
    });
    wrong == 0
}

/// How likely the teacher finds the end of a word after each of its tokens.
#[derive(Debug, Clone, Copy)]
pub struct Boundary<'a> {
    /// Log-probabilities, `[rows, tokens of the teacher]`.
    pub log_probs: &'a [f32],
    /// A chunk closes only above it.
    pub threshold: f32,
}

/// Most tokens of one task, about: a smaller batch is done before another thread wakes up.
const TASK: usize = 1 << 17;

/// What one task reads and writes.
struct Part<'a> {
    first: usize,
    student: &'a mut [i64],
    teacher: &'a mut [i64],
    ends: &'a mut [i64],
}

/// Numbers the chunks of every row. `student_chunks` and `teacher_chunks` get each token's chunk, from 0 in each row, -1
/// for none; `ends`, with as many columns as the shorter side, gets the byte at which each chunk ends, -1 for none.
///
/// Chunks of fewer than `minimum` bytes are joined with the next, at the end of a row with the one before. With a
/// boundary chunks are joined until the teacher's log-probability of one exceeds the threshold, and what is still open
/// at the end of a row belongs to none; so do tokens behind the last byte that both sides reach.
///
/// # Errors
/// [`Error::Argument`] for spans with gaps, overlaps or out of order, sides that begin at different bytes, or lengths
/// that differ; the message has the row. Whatever `check` returns.
#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one call")]
pub fn merge(
    student: &Spans<'_>,
    teacher: &Spans<'_>,
    minimum: i64,
    boundary: Option<Boundary<'_>>,
    student_chunks: &mut [i64],
    teacher_chunks: &mut [i64],
    ends: &mut [i64],
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let (own, other) = (student.tokens, teacher.tokens);
    let columns = own.min(other);
    if columns == 0 {
        student_chunks.fill(-1);
        teacher_chunks.fill(-1);
        return Ok(());
    }
    let rows = student.values.len() / 2 / own;
    if teacher.values.len() / 2 / other != rows {
        let got = format_args!("{} rows", teacher.values.len() / 2 / other);
        return Err(Error::argument(teacher.name, got, format!("the student's {rows} rows")));
    }
    if let Some(boundary) = boundary
        && boundary.log_probs.len() != rows * other
    {
        let got = format_args!("{} values", boundary.log_probs.len());
        return Err(Error::argument("boundary", got, format!("one for each of {rows} times {other} tokens")));
    }
    for (name, length, wanted) in [
        ("student_chunks", student_chunks.len(), rows * own),
        ("teacher_chunks", teacher_chunks.len(), rows * other),
        ("ends", ends.len(), rows * columns),
    ] {
        if length != wanted {
            return Err(Error::argument(name, format_args!("{length} values"), wanted.to_string()));
        }
    }
    check()?;
    // Tasks of equal size, so that no thread waits for the last.
    let tasks = (student.values.len() / 2).saturating_add(teacher.values.len() / 2).div_ceil(TASK);
    let lines = rows.div_ceil(tasks.max(1)).max(1);
    let parts = student_chunks
        .chunks_mut(lines * own)
        .zip(teacher_chunks.chunks_mut(lines * other))
        .zip(ends.chunks_mut(lines * columns))
        .enumerate()
        .map(|(task, ((student, teacher), ends))| Part { first: task * lines, student, teacher, ends })
        .collect();
    let done = parallel::map(parts, |part| {
        let lines = part.student.chunks_mut(own).zip(part.teacher.chunks_mut(other)).zip(part.ends.chunks_mut(columns));
        let mut ranks = Ranks::default();
        for (place, ((student_line, teacher_line), ends)) in lines.enumerate() {
            let row = part.first + place;
            let log_probs = boundary.map(|it| (&it.log_probs[row * other..(row + 1) * other], it.threshold));
            merge_row(student, teacher, row, minimum, log_probs, &mut ranks, student_line, teacher_line, ends)?;
        }
        Ok(())
    });
    // The first row's error, whichever thread was faster.
    done.into_iter().collect::<Result<()>>()?;
    check()
}

#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one row")]
fn merge_row(
    student: &Spans<'_>,
    teacher: &Spans<'_>,
    row: usize,
    minimum: i64,
    boundary: Option<(&[f32], f32)>,
    ranks: &mut Ranks,
    student_chunks: &mut [i64],
    teacher_chunks: &mut [i64],
    ends: &mut [i64],
) -> Result<()> {
    let (Some((start, end)), Some((other, last))) = (student.check(row)?, teacher.check(row)?) else {
        student_chunks.fill(-1);
        teacher_chunks.fill(-1);
        ends.fill(-1);
        return Ok(());
    };
    if start != other {
        let got = format_args!("row {row} from byte {other}");
        return Err(Error::argument(teacher.name, got, format!("one from the student's first byte, {start}")));
    }
    let (own, other) = (student.row(row), teacher.row(row));
    if boundary.is_none() && minimum <= 1 {
        let found = ranks.number((own, other), (start, end.max(last)), student_chunks, teacher_chunks, ends);
        if let Some(count) = found {
            ends[count..].fill(-1);
            return Ok(());
        }
    }
    let walked = match boundary {
        None => walk(own, other, start, minimum, |_| true, student_chunks, teacher_chunks, ends),
        Some((log_probs, threshold)) => {
            walk(own, other, start, minimum, |token| log_probs[token] > threshold, student_chunks, teacher_chunks, ends)
        }
    };
    let Walked { count, first, common, closed, tail } = walked;
    student_chunks[closed.0..].fill(-1);
    teacher_chunks[closed.1..].fill(-1);
    ends[count..].fill(-1);
    if boundary.is_none() && common > first {
        let number = count.saturating_sub(1);
        for (spans, chunks, tokens) in
            [(own, student_chunks, closed.0..tail.0), (other, teacher_chunks, closed.1..tail.1)]
        {
            for (chunk, _) in chunks[tokens.clone()].iter_mut().zip(&spans[tokens]).filter(|(_, span)| span[0] >= 0) {
                *chunk = number as i64;
            }
        }
        ends[number] = common;
    }
    Ok(())
}

/// How far a walk came.
struct Walked {
    /// Chunks that were closed.
    count: usize,
    /// First byte of the one that is open.
    first: i64,
    /// The last byte that both have reached.
    common: i64,
    /// Tokens of both sides before the open chunk.
    closed: (usize, usize),
    /// Tokens of both sides up to the last common byte.
    tail: (usize, usize),
}

/// Numbers the tokens up to the last chunk that closes; what lies behind is undefined. `is_likely` says of a token of
/// the teacher whether a chunk may end after it.
///
/// Each step takes the token that ends first, or both where they end alike, and writes what it would be for either
/// decision: which side is behind changes so irregularly that a branch would be guessed wrong once for most chunks. A token
/// that is no part of the text ends at -1, before all others, and needs no case of its own.
#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one row")]
#[inline(always)]
fn walk(
    own: &[[i64; 2]],
    other: &[[i64; 2]],
    start: i64,
    minimum: i64,
    is_likely: impl Fn(usize) -> bool,
    student_chunks: &mut [i64],
    teacher_chunks: &mut [i64],
    ends: &mut [i64],
) -> Walked {
    let (mut student, mut teacher) = (0, 0);
    let mut at = Walked { count: 0, first: start, common: start, closed: (0, 0), tail: (0, 0) };
    // A chunk takes a token of each side, so there are never more than ends.
    while student < own.len() && teacher < other.len() {
        let (ours, theirs) = (own[student][1], other[teacher][1]);
        // The sign of an end spreads to -1, which stays -1 with any number.
        student_chunks[student] = at.count as i64 | ours >> 63;
        teacher_chunks[teacher] = at.count as i64 | theirs >> 63;
        ends[at.count] = ours;
        // Where both have a token without a byte after a common one, its byte is common no second time.
        let is_common = (ours == theirs) & (ours > at.common);
        let closes = is_common & (ours - at.first >= minimum) & is_likely(teacher);
        student += usize::from(ours <= theirs);
        teacher += usize::from(theirs <= ours);
        let tail = (student, teacher);
        at.common = select_unpredictable(is_common, ours, at.common);
        at.tail = select_unpredictable(is_common, tail, at.tail);
        at.first = select_unpredictable(closes, ours, at.first);
        at.closed = select_unpredictable(closes, tail, at.closed);
        at.count += usize::from(closes);
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(student: &[i64], teacher: &[i64], minimum: i64, boundary: Option<&[f32]>) -> Result<[Vec<i64>; 3]> {
        let (own, other) = (student.len() / 2, teacher.len() / 2);
        let (mut first, mut second, mut ends) = (vec![7; own], vec![7; other], vec![7; own.min(other)]);
        merge(
            &Spans::new("student_spans", student, 1, own)?,
            &Spans::new("teacher_spans", teacher, 1, other)?,
            minimum,
            boundary.map(|log_probs| Boundary { log_probs, threshold: 0.1f32.ln() }),
            &mut first,
            &mut second,
            &mut ends,
            &|| Ok(()),
        )?;
        Ok([first, second, ends])
    }

    const BYTES: [i64; 14] = [-1, -1, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6];
    const WORDS: [i64; 10] = [0, 0, 0, 3, -1, -1, 3, 4, 4, 6];

    #[test]
    fn a_chunk_closes_where_both_sides_reach_a_byte() {
        let found = run(&BYTES, &WORDS, 1, None).unwrap();
        assert_eq!(found[0], [-1, 0, 0, 0, 1, 2, 2]);
        assert_eq!(found[1], [0, 0, -1, 1, 2]);
        assert_eq!(found[2], [3, 4, 6, -1, -1]);
    }

    #[test]
    fn chunks_are_joined_up_to_a_minimum_or_a_likely_boundary() {
        assert_eq!(run(&BYTES, &WORDS, 2, None).unwrap()[2], [3, 6, -1, -1, -1]);
        assert_eq!(run(&BYTES, &WORDS, 4, None).unwrap()[2], [6, -1, -1, -1, -1]);
        assert_eq!(run(&BYTES, &WORDS, 9, None).unwrap()[0], [-1, 0, 0, 0, 0, 0, 0]);
        let likely = [0.0, -5.0, 0.0, -1.0, -5.0];
        let found = run(&BYTES, &WORDS, 1, Some(&likely)).unwrap();
        assert_eq!(found[0], [-1, 0, 0, 0, 0, -1, -1]);
        assert_eq!(found[1], [0, 0, -1, 0, -1]);
    }

    /// Spans of random lengths over a text, some without a byte and some that are no part of it.
    fn spans(state: &mut u64, bytes: i64, longest: u64) -> Vec<i64> {
        let mut next = |count: u64| {
            *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*state >> 33) % count
        };
        let (mut found, mut reached) = (vec![], 3);
        while reached < 3 + bytes {
            let end = reached + [0, 1 + next(longest) as i64][usize::from(next(5) > 0)];
            found.extend(if next(7) == 0 { [-1, -1] } else { [reached, end] });
            reached = if found[found.len() - 1] < 0 { reached } else { end };
        }
        found
    }

    #[test]
    fn ranks_of_bytes_and_a_walk_find_the_same_chunks() {
        let mut state = 1;
        for (bytes, longest) in [(0, 1), (9, 1), (60, 3), (300, 8), (4000, 200)] {
            for _ in 0..50 {
                let (student, teacher) = (spans(&mut state, bytes, longest), spans(&mut state, bytes, 2 * longest));
                // Where any token may end a chunk, that is the same as having no such condition.
                let likely = vec![0.0; teacher.len() / 2];
                let walked = run(&student, &teacher, 1, Some(&likely)).unwrap();
                assert_eq!(run(&student, &teacher, 1, None).unwrap(), walked, "{student:?} {teacher:?}");
            }
        }
    }

    #[test]
    fn gaps_overlaps_and_other_beginnings_are_refused_with_their_row() {
        for wrong in [[0, 1, 2, 3], [0, 2, 1, 3], [2, 3, 0, 2], [0, 2, 2, 1], [-1, 2, 2, 3], [-2, -2, 0, 3]] {
            let message = run(&wrong, &[0, 3], 1, None).unwrap_err().to_string();
            assert!(message.starts_with("student_spans: got (") && message.contains("of row 0"), "{message}");
        }
        let message = run(&[0, 3], &[1, 3], 1, None).unwrap_err().to_string();
        assert!(message.starts_with("teacher_spans: got row 0 from byte 1"), "{message}");
        assert!(Spans::new("student_spans", &[0; 5], 1, 2).is_err());
        assert!(Spans::new("student_spans", &[0; 5], usize::MAX, 2).is_err());
    }
}
