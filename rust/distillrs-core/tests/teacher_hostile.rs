//! The fuzzing corpus of packed rows, and every one-byte change and truncation of it: a bad field is refused, never a
//! wrong id, never a panic.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "support/corpus.rs"]
mod corpus;

use distillrs_core::trajectory::teacher::{LogProbCode, Logits, RowLayout, hostile, pack_logits};

use corpus::Corpus;

/// Two rows of each code, with an entry without probability, behind the head that the fuzzer reads.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (name, code, k, flags) in [
        ("steps", LogProbCode::Steps, 19u16, 0b0100u8),
        ("half", LogProbCode::Half, 16, 0b1001),
        ("short", LogProbCode::Steps, 3, 0b0000),
        ("sampled", LogProbCode::Half, 0, 0b0011),
    ] {
        let temperatures = (0..=flags >> 2 & 3).map(|index| 1.0 + f64::from(index)).collect();
        let vocabulary = 300u32;
        let sampled = flags & 2 != 0;
        let layout = RowLayout::new(u64::from(vocabulary), u64::from(k), code, temperatures, sampled).unwrap();
        let mut logits: Vec<f32> = (0..600).map(|index| ((index * 67 % 600) as f32) / 16.0).collect();
        logits[320..].fill(f32::NEG_INFINITY);
        let mut rows = vec![0; 2 * layout.row_bytes];
        let tokens = [299, 7];
        let tokens = sampled.then_some(&tokens[..]);
        pack_logits(&layout, Logits::Single(&logits), None, tokens, 0, &mut rows).unwrap();
        let mut bytes = vocabulary.to_le_bytes().to_vec();
        bytes.extend_from_slice(&k.to_le_bytes());
        bytes.push(flags);
        bytes.extend_from_slice(&rows);
        seeds.push((name.to_owned(), bytes));
    }
    seeds
}

fn corpus() -> Corpus {
    Corpus { target: "teacher_rows", seeds: seeds(), read: hostile::rows }
}

#[test]
fn the_corpus_and_its_neighbours_do_no_harm() {
    corpus().does_no_harm();
}

#[test]
fn the_corpus_is_what_this_build_writes() {
    corpus().is_what_this_build_writes();
}

#[test]
#[ignore = "writes the committed corpus"]
fn write_the_corpus() {
    corpus().write();
}
