//! Packing against plain arithmetic in `f64`, and the fast ways against the plain ones.

use proptest::prelude::*;

use super::half::{from_half, to_half};
use super::layout::{LogProbCode, RowLayout};
use super::pack::{TopKRows, pack_logits, pack_top_k};
use super::select::Logits;
use super::unpack::{Target, unpack_reference, unpack_rows};

struct Unpacked {
    ids: Vec<i64>,
    log_probs: Vec<f32>,
    tail: Vec<f32>,
    partitions: Vec<f32>,
}

fn unpack(layout: &RowLayout, bytes: &[u8], fast: bool) -> Unpacked {
    let rows = bytes.len() / layout.row_bytes;
    let mut out = Unpacked {
        ids: vec![-7; rows * layout.k],
        log_probs: vec![f32::NAN; rows * layout.k],
        tail: vec![f32::NAN; rows],
        partitions: vec![f32::NAN; rows * layout.temperatures.len()],
    };
    let mut target = Target {
        ids: &mut out.ids,
        log_probs: &mut out.log_probs,
        tail: &mut out.tail,
        partitions: &mut out.partitions,
    };
    if fast { unpack_rows(layout, bytes, &mut target) } else { unpack_reference(layout, bytes, &mut target) }.unwrap();
    out
}

/// Log-probabilities of a row at a temperature, in `f64`.
fn log_softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scaled: Vec<f64> = logits.iter().map(|&value| (f64::from(value) - f64::from(largest)) / temperature).collect();
    let log_sum = scaled.iter().map(|value| value.exp()).sum::<f64>().ln();
    scaled.into_iter().map(|value| value - log_sum).collect()
}

fn pack(layout: &RowLayout, logits: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xAA; logits.len() / layout.vocabulary as usize * layout.row_bytes];
    pack_logits(layout, Logits::Single(logits), None, None, 0, &mut bytes).unwrap();
    bytes
}

/// Rows of logits, some of them with ties, excluded ids or wide spreads.
fn logits() -> impl Strategy<Value = (usize, Vec<f32>)> {
    let value = prop_oneof![
        8 => -20.0f32..20.0,
        2 => (-3i32..3).prop_map(|value| value as f32),
        1 => Just(f32::NEG_INFINITY),
        1 => -300.0f32..300.0,
    ];
    (1usize..700, 1usize..4).prop_flat_map(move |(vocabulary, rows)| {
        (Just(vocabulary), prop::collection::vec(value.clone(), vocabulary * rows))
    })
}

fn layout(vocabulary: usize, k: usize, half: bool, temperatures: &[f64]) -> RowLayout {
    let code = if half { LogProbCode::Half } else { LogProbCode::Steps };
    RowLayout::new(vocabulary as u64, k as u64, code, temperatures.to_vec(), false).unwrap()
}

proptest! {
    #[test]
    fn what_is_stored_is_the_top_of_the_softmax_within_the_stated_error(
        (vocabulary, mut logits) in logits(), k in 1usize..90, half: bool
    ) {
        for row in logits.chunks_mut(vocabulary) {
            row[vocabulary / 2] = row[vocabulary / 2].max(-1.0);
        }
        let k = k.min(vocabulary);
        let temperatures = [1.0, 2.0, 0.5];
        let layout = layout(vocabulary, k, half, &temperatures);
        let bytes = pack(&layout, &logits);
        let out = unpack(&layout, &bytes, true);
        for (row, logits) in logits.chunks(vocabulary).enumerate() {
            let ids = &out.ids[row * k..(row + 1) * k];
            let log_probs = &out.log_probs[row * k..(row + 1) * k];
            let exact = log_softmax(logits, 1.0);
            let mut order: Vec<usize> = (0..vocabulary).collect();
            order.sort_by(|&first, &second| (logits[second] + 0.0).total_cmp(&(logits[first] + 0.0)).then(first.cmp(&second)));
            prop_assert_eq!(ids, order[..k].iter().map(|&id| id as i64).collect::<Vec<_>>());
            let scale = if half { 0.0 } else { f64::from(super::unpack::half_at(&bytes[row * layout.row_bytes..], layout.head_at + 4)) };
            for (&id, &log_prob) in ids.iter().zip(log_probs) {
                let due = exact[id as usize];
                if due == f64::NEG_INFINITY {
                    prop_assert_eq!(log_prob, f32::NEG_INFINITY);
                    continue;
                }
                let bound = if half { due.abs() / 2048.0 + 1e-5 } else { scale + 1e-5 };
                let floor = exact[ids[0] as usize] - 104.0;
                let due = if half { due } else { due.max(floor.min(-104.0)) };
                let due = if !half && due < -104.0 { f64::from(log_prob) } else { due };
                prop_assert!((f64::from(log_prob) - due).abs() <= bound, "{} {} {}", log_prob, due, bound);
            }
            // The tail, against what the plain sum leaves, with eleven bits of its logarithm.
            let tail: f64 = order[k..].iter().map(|&id| exact[id].exp()).sum();
            let stored = f64::from(out.tail[row]);
            if tail < 1e-35 {
                prop_assert!(stored < -79.0);
            } else {
                prop_assert!((stored - tail.ln()).abs() <= tail.ln().abs() / 2048.0 + 1e-6, "{} {}", stored, tail.ln());
            }
            // Entries and tail are one distribution, at every temperature.
            for (index, &temperature) in temperatures.iter().enumerate() {
                let partition = f64::from(out.partitions[row * 3 + index]);
                let head: f64 = log_probs.iter().map(|&value| (f64::from(value) / temperature - partition).exp()).sum();
                let exact = log_softmax(logits, temperature);
                let due: f64 = ids.iter().map(|&id| exact[id as usize].exp()).sum();
                let allowed = if index == 0 && half { 5e-3 } else { 2e-6 };
                prop_assert!((head - due).abs() <= allowed, "T = {}: {} {}", temperature, head, due);
                let all: f64 = log_softmax(logits, 1.0).iter().map(|value| (value / temperature).exp()).sum::<f64>();
                let bound = scale / temperature + if half { 0.05 } else { 0.0 } + 1e-4;
                prop_assert!((partition - all.ln()).abs() <= bound, "{} {}", partition, all.ln());
            }
        }
    }

    #[test]
    fn the_fast_way_gives_the_same_bits(
        (vocabulary, mut logits) in logits(), k in 1usize..90, half: bool, temperatures in 1usize..3
    ) {
        logits.chunks_mut(vocabulary).for_each(|row| row[0] = 1.0);
        let layout = layout(vocabulary, k.min(vocabulary), half, &[1.0, 3.0][..temperatures]);
        let bytes = pack(&layout, &logits);
        let (plain, fast) = (unpack(&layout, &bytes, false), unpack(&layout, &bytes, true));
        prop_assert_eq!(plain.ids, fast.ids);
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        prop_assert_eq!(bits(plain.log_probs), bits(fast.log_probs));
        prop_assert_eq!(bits(plain.tail), bits(fast.tail));
        prop_assert_eq!(bits(plain.partitions), bits(fast.partitions));
    }

    #[test]
    fn ids_of_every_width_read_back(bits in 1u32..25, k in 1usize..70, seed: u64) {
        let vocabulary = 1u64 << bits;
        let k = k.min(vocabulary as usize);
        let layout = RowLayout::new(vocabulary, k as u64, LogProbCode::Steps, vec![1.0], false).unwrap();
        prop_assert_eq!(layout.id_bits as u32, bits);
        // Distinct ids: an odd multiplier permutes the residues.
        let ids: Vec<i64> =
            (0..k as u64).map(|index| ((index ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) % vocabulary) as i64).collect();
        let share = (1.0 / (2.0 * k as f64)).ln() as f32;
        let top_k = TopKRows { ids: &ids, log_probs: &vec![share; k], tail: &[0.5f32.ln()], partitions: &[0.0] };
        let mut bytes = vec![0; layout.row_bytes];
        let distinct = ids.iter().collect::<std::collections::BTreeSet<_>>().len() == k;
        let packed = pack_top_k(&layout, top_k, None, &mut bytes);
        prop_assert_eq!(packed.is_ok(), distinct);
        if distinct {
            let mut ids = ids;
            ids.sort_unstable();
            for fast in [false, true] {
                let out = unpack(&layout, &bytes, fast);
                prop_assert_eq!(&out.ids, &ids);
                prop_assert!(out.log_probs.iter().all(|value| (value - share).abs() < 1e-5));
            }
        }
    }

    #[test]
    fn a_chosen_support_has_the_rest_as_its_tail(
        (vocabulary, mut logits) in logits(), seed: u32, size in 1usize..40
    ) {
        logits.chunks_mut(vocabulary).for_each(|row| row[0] = 1.0);
        let size = size.min(vocabulary - 1);
        prop_assume!(size > 0);
        let rows = logits.len() / vocabulary;
        let layout = layout(vocabulary, size + 1, true, &[1.0]);
        let ids: Vec<i64> = (0..rows)
            .flat_map(|_| (0..size).map(|index| ((index + seed as usize) % vocabulary) as i64).chain([-1]))
            .collect();
        let mut bytes = vec![0; rows * layout.row_bytes];
        pack_logits(&layout, Logits::Single(&logits), Some(&ids), None, 0, &mut bytes).unwrap();
        let out = unpack(&layout, &bytes, true);
        for (row, logits) in logits.chunks(vocabulary).enumerate() {
            let exact = log_softmax(logits, 1.0);
            let chosen = &ids[row * (size + 1)..row * (size + 1) + size];
            let entries = out.ids[row * (size + 1)..].iter().zip(&out.log_probs[row * (size + 1)..]).take(size + 1);
            for (&id, &log_prob) in entries {
                if log_prob > f32::NEG_INFINITY {
                    prop_assert!(chosen.contains(&id));
                    let due = exact[id as usize];
                    prop_assert!((f64::from(log_prob) - due).abs() <= due.abs() / 2048.0 + 1e-5);
                }
            }
            let tail: f64 = (0..vocabulary).filter(|&id| !chosen.contains(&(id as i64))).map(|id| exact[id].exp()).sum();
            let stored = f64::from(out.tail[row]);
            let near = (stored - tail.ln()).abs() <= tail.ln().abs() / 2048.0 + 1e-6;
            prop_assert!(near || (tail < 1e-35 && stored < -79.0), "{} {}", stored, tail.ln());
        }
    }

    #[test]
    fn any_bytes_unpack_to_sound_values_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), k in 0u16..40) {
        super::hostile::rows(&bytes);
        let mut led = vec![0, 0, 2, 0, k as u8, 0, bytes.first().copied().unwrap_or(0)];
        led.extend_from_slice(&bytes);
        super::hostile::rows(&led);
    }
}

#[test]
fn rows_of_half_precision_logits_are_those_of_their_values() {
    let values: Vec<f32> =
        (0..999).map(|index| from_half(to_half((f64::from(index * 37 % 999) - 500.0) / 64.0))).collect();
    let layout = layout(333, 20, false, &[1.0, 2.0]);
    let halves: Vec<u16> = values.iter().map(|&value| to_half(f64::from(value))).collect();
    // SAFETY: `Half` is a transparent `u16`.
    let halves = unsafe { std::slice::from_raw_parts(halves.as_ptr().cast(), halves.len()) };
    let mut bytes = vec![0; 3 * layout.row_bytes];
    pack_logits(&layout, Logits::Half(halves), None, None, 0, &mut bytes).unwrap();
    assert_eq!(bytes, pack(&layout, &values));
    let coarse: Vec<f32> = values.iter().map(|value| f32::from_bits(value.to_bits() & 0xFFFF_0000)).collect();
    let bits: Vec<u16> = coarse.iter().map(|value| (value.to_bits() >> 16) as u16).collect();
    // SAFETY: `BFloat16` is a transparent `u16`.
    let bits = unsafe { std::slice::from_raw_parts(bits.as_ptr().cast(), bits.len()) };
    pack_logits(&layout, Logits::BFloat16(bits), None, None, 0, &mut bytes).unwrap();
    assert_eq!(bytes, pack(&layout, &coarse));
}

#[test]
fn a_small_tail_is_not_lost_in_a_difference() {
    // The tail's mass is e^-40 of the top's: 1 minus the head would be 0 in any precision.
    let mut logits = vec![-30.0f32; 1000];
    logits[17] = 10.0;
    let layout = layout(1000, 1, false, &[1.0]);
    let out = unpack(&layout, &pack(&layout, &logits), true);
    let due = 999f64.ln() - 40.0;
    assert!((f64::from(out.tail[0]) - due).abs() < due.abs() / 2048.0 + 1e-6, "{}", out.tail[0]);
}

#[test]
fn sixty_four_entries_of_a_large_vocabulary_take_215_bytes() {
    let layout = layout(151_936, 64, false, &[1.0]);
    assert_eq!((layout.id_bits, layout.row_bytes), (18, 215));
}

#[test]
fn what_is_no_distribution_is_refused_by_name_and_row() {
    let layout = layout(40, 3, false, &[1.0]);
    let mut bytes = vec![0; 2 * layout.row_bytes];
    for (value, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let mut logits = vec![0.0; 80];
        logits[57] = value;
        let error = pack_logits(&layout, Logits::Single(&logits), None, None, 0, &mut bytes).unwrap_err().to_string();
        assert!(error.starts_with("logits") && error.contains(word) && error.contains("row 1"), "{error}");
    }
    let mut logits = vec![f32::NEG_INFINITY; 80];
    logits[0] = 1.0;
    let error = pack_logits(&layout, Logits::Single(&logits), None, None, 0, &mut bytes).unwrap_err().to_string();
    assert!(error.contains("-inf throughout in row 1"), "{error}");
    let logits = vec![0.0; 80];
    for (ids, word) in [
        ([0, 1, 40, 0, 1, 2], "40 in row 0"),
        ([0, 1, 2, 5, 5, 1], "5 twice in row 1"),
        ([0, 1, 2, 0, -2, 1], "-2 in row 1"),
    ] {
        let error =
            pack_logits(&layout, Logits::Single(&logits), Some(&ids), None, 0, &mut bytes).unwrap_err().to_string();
        assert!(error.starts_with("ids") && error.contains(word), "{error}");
    }
}

#[test]
fn bad_fields_are_refused_where_they_lie() {
    let layout = RowLayout::new(100, 9, LogProbCode::Steps, vec![1.0, 2.0], false).unwrap();
    let logits: Vec<f32> = (0..100).map(|index| index as f32 / 8.0).collect();
    let sound = pack(&layout, &logits);
    let change = |at: usize, field: &[u8]| {
        let mut bytes = sound.clone();
        bytes[at..at + field.len()].copy_from_slice(field);
        let (mut ids, mut log_probs) = (vec![0i64; 9], vec![0.0; 9]);
        let (mut tail, mut partitions) = (vec![0.0; 1], vec![0.0; 2]);
        let mut target =
            Target { ids: &mut ids, log_probs: &mut log_probs, tail: &mut tail, partitions: &mut partitions };
        let defect = unpack_rows(&layout, &bytes, &mut target).unwrap_err();
        assert_eq!(defect, unpack_reference(&layout, &bytes, &mut target).unwrap_err());
        defect.offset
    };
    assert_eq!(change(0, &[0x7F]), 0);
    assert_eq!(change(layout.codes_at - 1, &[0x7F]), layout.codes_at - 1);
    for top in [f32::NAN, 0.5, f32::INFINITY] {
        assert_eq!(change(layout.head_at, &top.to_le_bytes()), layout.head_at);
    }
    for scale in [0x7E00u16, 0x7C00, 0x8001] {
        assert_eq!(change(layout.head_at + 4, &scale.to_le_bytes()), layout.head_at + 4);
    }
    for tail in [0x7E00u16, 0x7C00, 0x0001] {
        assert_eq!(change(layout.tail_at, &tail.to_le_bytes()), layout.tail_at);
    }
    for partition in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(change(layout.partitions_at, &partition.to_le_bytes()), layout.partitions_at);
    }
}
