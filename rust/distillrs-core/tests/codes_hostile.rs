//! The fuzzing corpus of streams of codes, and every one-byte change and truncation of it: refused or other codes, never a
//! code of more bits, never a panic.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "support/corpus.rs"]
mod corpus;

use distillrs_core::forms::{encode_codes, hostile};

use corpus::Corpus;

/// A stream of each kind, of few and many bits, of one symbol, and without codes.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let even = |bits: u8| (0..77u32).map(|place| (place * 5 % (1 << bits)) as u8).collect::<Vec<_>>();
    let skewed = |count: u32| (0..count).map(|place| (place * 7 % 64).leading_zeros() as u8 - 26).collect::<Vec<_>>();
    let codes = [
        ("fixed-1", 1, even(1)),
        ("fixed-8", 8, even(8)),
        ("huffman-3", 3, skewed(300)),
        ("huffman-one-symbol", 4, vec![9; 200]),
        ("none", 5, Vec::new()),
    ];
    let seed = |(name, bits, codes): (&str, u8, Vec<u8>)| {
        let stream = encode_codes(&codes, bits, &|| Ok(())).unwrap();
        let mut bytes = vec![bits];
        bytes.extend_from_slice(&(codes.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&stream);
        (name.to_owned(), bytes)
    };
    codes.into_iter().map(seed).collect()
}

fn corpus() -> Corpus {
    Corpus { target: "codes", seeds: seeds(), read: hostile::codes }
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
