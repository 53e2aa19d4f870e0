//! Chunks of a row by the rank of its bytes, where every common byte ends one.
//!
//! A token belongs to the chunk whose number is how many bytes up to the token's first one both sides have reached. Marks
//! of the bytes that each side reaches, a running count over the bytes, and a look-up for each token find all of them
//! without a decision that depends on where the tokens end: a walk over both sides waits for one at every token.

/// Bytes for each token up to which this is faster than a walk, about.
const BYTES_OF_TOKEN: usize = 8;

/// Memory for the bytes of a row, used again for the next.
#[derive(Debug, Default)]
pub(super) struct Ranks {
    own: Vec<u8>,
    other: Vec<u8>,
    /// The chunk of a token that begins at each byte, -1 for none; one more for tokens that are no part of the text.
    chunks: Vec<i32>,
}

impl Ranks {
    /// Numbers the chunks of one row and gives how many there are; what lies behind in `ends` is undefined. `None` if the
    /// text is too long for its tokens.
    ///
    /// Spans follow each other from `start` on, but for those of (-1, -1), and end at `end` or before.
    pub(super) fn number(
        &mut self,
        (own, other): (&[[i64; 2]], &[[i64; 2]]),
        (start, end): (i64, i64),
        student_chunks: &mut [i64],
        teacher_chunks: &mut [i64],
        ends: &mut [i64],
    ) -> Option<usize> {
        let most = BYTES_OF_TOKEN.checked_mul(own.len() + other.len())?.min(i32::MAX as usize);
        let bytes = usize::try_from(end - start).ok().filter(|&bytes| bytes < most)?;
        for (marks, spans) in [(&mut self.own, own), (&mut self.other, other)] {
            marks.clear();
            marks.resize(bytes + 2, 0);
            for span in spans {
                marks[place(span[1], start, bytes)] = 1;
            }
        }
        self.chunks.clear();
        self.chunks.resize(bytes + 2, -1);
        // Nothing ends at the first byte; what is marked there are tokens without a byte.
        let (mut count, mut last) = (0, 0);
        let marks = self.own[..=bytes].iter().zip(&self.other[..=bytes]).enumerate().skip(1);
        for ((byte, (own, other)), chunk) in marks.zip(&mut self.chunks) {
            // The place before holds this chunk, should it close.
            *chunk = count as i32;
            let is_common = own & other;
            // A chunk takes a token of each side, so there are never more than ends.
            if let Some(end) = ends.get_mut(count) {
                *end = start + byte as i64;
            }
            count += usize::from(is_common);
            last = if is_common == 1 { byte } else { last };
        }
        self.chunks[last..].fill(-1);
        for (chunks, spans) in [(student_chunks, own), (teacher_chunks, other)] {
            for (chunk, span) in chunks.iter_mut().zip(spans) {
                *chunk = i64::from(self.chunks[place(span[0], start, bytes)]);
            }
        }
        Some(count)
    }
}

/// A byte's place among those of the row, the one behind them for -1.
#[inline(always)]
fn place(byte: i64, start: i64, bytes: usize) -> usize {
    ((byte - start) as usize).min(bytes + 1)
}
