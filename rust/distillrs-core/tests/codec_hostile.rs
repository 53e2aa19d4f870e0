//! The fuzzing corpus of the codecs, and every one-byte change and truncation of it: damage is reported, never a panic.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "support/corpus.rs"]
mod corpus;

use distillrs_core::trajectory::codec::{CodecSpec, Dtype, Encoder, hostile};

use corpus::Corpus;

/// A chain of each codec and type, as the fuzzer reads it.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let int8 = CodecSpec::DeltaInt8 { keyframe_every: 4 };
    let specs = [int8, CodecSpec::HalfDelta, CodecSpec::Lossless { keyframe_every: 4 }, CodecSpec::Raw];
    let mut seeds = Vec::new();
    for (code, spec) in (0u8..).zip(specs) {
        for (flag, dtype) in [(0, Dtype::F32), (4, Dtype::F64)] {
            let (elements, first) = (300u16, 40u16);
            let mut bytes = vec![code | flag];
            bytes.extend_from_slice(&elements.to_le_bytes());
            bytes.extend_from_slice(&first.to_le_bytes());
            let sizes = [usize::from(first), usize::from(elements - first)];
            let mut encoder = Encoder::new(&spec, dtype, usize::from(elements), &sizes).unwrap();
            for step in 0..3u16 {
                let values = (0..elements).map(|index| f64::from(index) + f64::from(step * (index % 7)) / 64.0);
                let record: Vec<u8> = match dtype {
                    Dtype::F32 => values.flat_map(|value| (value as f32).to_le_bytes()).collect(),
                    _ => values.flat_map(f64::to_le_bytes).collect(),
                };
                let mut payload = Vec::new();
                encoder.encode(u64::from(step), &record, &mut payload).unwrap();
                bytes.extend_from_slice(&(payload.len() as u16).to_le_bytes());
                bytes.extend_from_slice(&payload);
            }
            seeds.push((format!("{}-{dtype}", spec.name()), bytes));
        }
    }
    seeds
}

fn corpus() -> Corpus {
    Corpus { target: "codec", seeds: seeds(), read: hostile::codec }
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
