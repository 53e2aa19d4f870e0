//! Tokens that two vocabularies share.

use std::collections::HashMap;

use crate::{Error, Result};

/// The bytes of every token of a vocabulary, one after the other; a token without bytes is like no other.
#[derive(Debug, Clone, Copy)]
pub struct Vocabulary<'a> {
    bytes: &'a [u8],
    offsets: &'a [i64],
}

impl<'a> Vocabulary<'a> {
    /// Token `i` has the bytes from `offsets[i]` to `offsets[i + 1]`; `name` is the caller's, for messages.
    ///
    /// # Errors
    /// [`Error::Argument`] for offsets that do not rise from 0 to the number of bytes.
    pub fn new(name: &str, bytes: &'a [u8], offsets: &'a [i64]) -> Result<Self> {
        let rising = offsets.is_sorted();
        if !rising || offsets.first() != Some(&0) || offsets.last() != i64::try_from(bytes.len()).ok().as_ref() {
            let allowed = format!("offsets that rise from 0 to {}, the number of bytes", bytes.len());
            return Err(Error::argument(name, format_args!("{} offsets", offsets.len()), allowed));
        }
        Ok(Self { bytes, offsets })
    }

    fn tokens(&self) -> impl Iterator<Item = &'a [u8]> {
        self.offsets.windows(2).map(|pair| &self.bytes[pair[0] as usize..pair[1] as usize])
    }
}

/// The teacher's token with the same bytes for each token of the student, -1 where there is none. Of several tokens with
/// the same bytes the first of each side belong together, and the others to none, so that no token is counted twice.
pub fn shared_tokens(student: &Vocabulary<'_>, teacher: &Vocabulary<'_>) -> Vec<i64> {
    let mut known: HashMap<&[u8], i64> = HashMap::new();
    for (id, token) in teacher.tokens().enumerate().filter(|(_, token)| !token.is_empty()) {
        known.entry(token).or_insert(id as i64);
    }
    student.tokens().map(|token| known.remove(token).unwrap_or(-1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_are_found_once() {
        let student = Vocabulary::new("student", b"abaabb", &[0, 0, 1, 2, 3, 5, 6]).unwrap();
        let teacher = Vocabulary::new("teacher", b"abab", &[0, 2, 2, 3, 4]).unwrap();
        assert_eq!(shared_tokens(&student, &teacher), [-1, 2, 3, -1, 0, -1]);
        for offsets in [&[][..], &[0], &[0, 5], &[1, 4], &[0, 3, 2, 4], &[0, -1, 4]] {
            assert!(Vocabulary::new("teacher", b"abab", offsets).is_err());
        }
    }
}
