//! Chunks of a text that two tokenizers cut alike.
//!
//! Both streams are walked byte by byte: a chunk closes wherever both have reached the same byte. A token that covers no
//! byte of its own (a part of a character whose last token has it, a prefix that the text does not have) goes with the
//! token that follows it. Merging of chunks by the teacher's probability of a boundary is that of Minixhofer and others,
//! "Cross-Tokenizer Distillation via Approximate Likelihood Matching", 2025.

use std::ops::Range;

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

    fn row(&self, row: usize) -> &'a [i64] {
        &self.values[2 * row * self.tokens..2 * (row + 1) * self.tokens]
    }

    /// The row's first byte, if it has any token of the text.
    fn check(&self, row: usize) -> Result<Option<i64>> {
        let (mut start, mut reached) = (None, 0);
        for (token, span) in self.row(row).chunks_exact(2).enumerate() {
            let (first, end) = (span[0], span[1]);
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
        Ok(start)
    }
}

/// How likely the teacher finds the end of a word after each of its tokens.
#[derive(Debug, Clone, Copy)]
pub struct Boundary<'a> {
    /// Log-probabilities, `[rows, tokens of the teacher]`.
    pub log_probs: &'a [f32],
    /// A chunk closes only above it.
    pub threshold: f32,
}

/// Tokens that one task takes, about: a smaller batch is done before another thread wakes up.
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
    let lines = (TASK / own.saturating_add(other)).max(1);
    let parts = student_chunks
        .chunks_mut(lines * own)
        .zip(teacher_chunks.chunks_mut(lines * other))
        .zip(ends.chunks_mut(lines * columns))
        .enumerate()
        .map(|(task, ((student, teacher), ends))| Part { first: task * lines, student, teacher, ends })
        .collect();
    let done = parallel::map(parts, |part| {
        let lines = part.student.chunks_mut(own).zip(part.teacher.chunks_mut(other)).zip(part.ends.chunks_mut(columns));
        for (place, ((student_line, teacher_line), ends)) in lines.enumerate() {
            let row = part.first + place;
            let log_probs = boundary.map(|it| (&it.log_probs[row * other..(row + 1) * other], it.threshold));
            merge_row(student, teacher, row, minimum, log_probs, student_line, teacher_line, ends)?;
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
    student_chunks: &mut [i64],
    teacher_chunks: &mut [i64],
    ends: &mut [i64],
) -> Result<()> {
    student_chunks.fill(-1);
    teacher_chunks.fill(-1);
    ends.fill(-1);
    let (Some(start), Some(other)) = (student.check(row)?, teacher.check(row)?) else { return Ok(()) };
    if start != other {
        let got = format_args!("row {row} from byte {other}");
        return Err(Error::argument(teacher.name, got, format!("one from the student's first byte, {start}")));
    }
    let mut own = Cursor { spans: student.row(row), next: 0, reached: start };
    let mut other = Cursor { spans: teacher.row(row), next: 0, reached: start };
    // Tokens of closed chunks, the open chunk's first byte, and the last byte that both have reached.
    let (mut closed, mut first, mut common, mut count) = ((0, 0), start, start, 0);
    let mut tail = closed;
    'row: loop {
        while own.reached != other.reached || own.reached == common {
            let behind = if own.reached <= other.reached { &mut own } else { &mut other };
            if !behind.advance() {
                break 'row;
            }
        }
        common = own.reached;
        tail = (own.next, other.next);
        // The token that the teacher took last is the one that reached this byte.
        let is_boundary = boundary.is_none_or(|(log_probs, threshold)| log_probs[other.next - 1] > threshold);
        if common - first >= minimum && is_boundary {
            own.number(closed.0..tail.0, count, student_chunks);
            other.number(closed.1..tail.1, count, teacher_chunks);
            ends[count] = common;
            (closed, first, count) = (tail, common, count + 1);
        }
    }
    if boundary.is_none() && common > first {
        let number = count.saturating_sub(1);
        own.number(closed.0..tail.0, number, student_chunks);
        other.number(closed.1..tail.1, number, teacher_chunks);
        ends[number] = common;
    }
    Ok(())
}

/// One side on its way through a row.
struct Cursor<'a> {
    spans: &'a [i64],
    next: usize,
    reached: i64,
}

impl Cursor<'_> {
    /// Takes the next token of the text; false when there is none.
    fn advance(&mut self) -> bool {
        while let Some(span) = self.spans.get(2 * self.next..2 * self.next + 2) {
            self.next += 1;
            if span[0] >= 0 {
                self.reached = span[1];
                return true;
            }
        }
        false
    }

    /// Gives the tokens of the text among these their chunk.
    fn number(&self, tokens: Range<usize>, chunk: usize, chunks: &mut [i64]) {
        for token in tokens {
            if self.spans[2 * token] >= 0 {
                chunks[token] = chunk as i64;
            }
        }
    }
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
