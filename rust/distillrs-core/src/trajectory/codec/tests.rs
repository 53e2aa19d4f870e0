use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::random::{Kind, Stream, Units, normal_f64};

const CODED: [CodecSpec; 4] = [
    CodecSpec::DeltaInt8 { keyframe_every: 4 },
    CodecSpec::HalfDelta,
    CodecSpec::Lossless { keyframe_every: 4 },
    CodecSpec::Raw,
];

/// Payloads with their kinds, as a log keeps them.
struct Stored {
    spec: CodecSpec,
    dtype: Dtype,
    elements: usize,
    tensor_sizes: Vec<usize>,
    payloads: Vec<Vec<u8>>,
    kinds: Vec<RecordKind>,
}

impl Stored {
    fn new(spec: CodecSpec, dtype: Dtype, elements: usize, tensor_sizes: &[usize]) -> Self {
        Self { spec, dtype, elements, tensor_sizes: tensor_sizes.to_vec(), payloads: Vec::new(), kinds: Vec::new() }
    }

    fn encoder(&self) -> Encoder {
        Encoder::new(&self.spec, self.dtype, self.elements, &self.tensor_sizes).unwrap()
    }

    fn write(&mut self, encoder: &mut Encoder, record: &[u8]) {
        let mut payload = Vec::new();
        self.kinds.push(encoder.encode(self.payloads.len() as u64, record, &mut payload).unwrap());
        let bound = self.spec.payload_bound(self.dtype, self.elements, self.tensor_sizes.len().max(1)).unwrap();
        assert!(payload.len() <= bound);
        self.payloads.push(payload);
    }

    fn write_all(spec: CodecSpec, dtype: Dtype, tensor_sizes: &[usize], records: &[Vec<u8>]) -> Self {
        let elements = records[0].len() / dtype.size();
        let mut stored = Self::new(spec, dtype, elements, tensor_sizes);
        let mut encoder = stored.encoder();
        records.iter().for_each(|record| stored.write(&mut encoder, record));
        stored
    }

    fn chain(&self, step: usize) -> Vec<usize> {
        let mut steps = vec![step];
        while let RecordKind::Delta { base } = self.kinds[steps[steps.len() - 1]] {
            steps.push(base as usize);
        }
        steps.reverse();
        steps
    }

    fn payloads(&self, steps: &[usize]) -> Vec<&[u8]> {
        steps.iter().map(|&step| self.payloads[step].as_slice()).collect()
    }

    fn read(&self, step: usize) -> Vec<u8> {
        let chain = self.chain(step);
        let mut out = vec![0xAA; self.elements * self.dtype.size()];
        let wanted = &mut [(chain.len() - 1, out.as_mut_slice())];
        decode(&self.spec, self.dtype, self.elements, &self.tensor_sizes, &self.payloads(&chain), wanted).unwrap();
        out
    }
}

fn floats(record: &[u8]) -> Vec<f32> {
    record.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A walk of `records` steps whose motion shrinks from 1e-1 to 1e-4.
fn walk(elements: usize, records: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut position = vec![0.0; elements];
    let noise = |step: usize, out: &mut [f64]| {
        let stream = Stream::new(seed, "walk", step as u64, Kind::Normal);
        normal_f64(stream, Units::Range { first: 0, count: 1 }, out.len(), out).unwrap();
    };
    let mut motion = vec![0.0; elements];
    noise(records, &mut position);
    (0..records)
        .map(|step| {
            let record = position.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect();
            noise(step, &mut motion);
            let size = 0.1 * 1e-3f64.powf(step as f64 / records as f64);
            position.iter_mut().zip(&motion).for_each(|(value, motion)| *value += size * motion);
            record
        })
        .collect()
}

/// Numbers that are the upper halves of `f32`.
fn bfloats(bytes: &[u8]) -> Vec<f32> {
    let wide = |half: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([half[0], half[1]])) << 16);
    bytes.chunks_exact(2).map(wide).collect()
}

/// `delta-int8` from the words of its description, one value at a time.
fn reference_delta_int8(predecessor: &[f32], payload: &[u8]) -> Vec<f32> {
    let body = &payload[HEADER..];
    if payload[1] == 0 {
        return floats(body);
    }
    let halves = predecessor.len().div_ceil(128);
    let scales = bfloats(&body[..2 * halves]);
    let step = |(index, &value): (usize, &f32)| {
        let product = f32::from(body[2 * halves + index] as i8) * scales[index / 128];
        value + product
    };
    predecessor.iter().enumerate().map(step).collect()
}

fn assert_same_bits(left: &[f32], right: &[f32]) {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(left), bits(right));
}

/// Numbers of every kind, as bits.
fn any_float() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -1.0f32..1.0,
        2 => any::<u32>().prop_map(f32::from_bits),
        1 => Just(0.0), 1 => Just(-0.0), 1 => Just(f32::MAX), 1 => Just(f32::MIN),
        1 => Just(f32::MIN_POSITIVE), 1 => Just(1e-45), 1 => Just(f32::INFINITY), 1 => Just(f32::NAN),
    ]
}

fn any_records() -> impl Strategy<Value = Vec<Vec<f32>>> {
    (0usize..600, 1usize..12).prop_flat_map(|(elements, count)| vec(vec(any_float(), elements), count))
}

/// Records close to each other, all finite.
fn near_records() -> impl Strategy<Value = Vec<Vec<f32>>> {
    (1usize..600, 1usize..12, -30i32..30).prop_flat_map(|(elements, count, exponent)| {
        let size = 2f32.powi(exponent);
        vec(vec((-1.0f32..1.0).prop_map(move |value| value * size), elements), count)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn exact_codecs_give_every_bit_back(records in any_records(), which in 0usize..Dtype::ALL.len(), every in 1u32..6) {
        let dtype = Dtype::ALL[which].0;
        let records: Vec<Vec<u8>> = records.iter().map(|record| {
            let mut record = bytes(record);
            record.truncate(record.len() / dtype.size() * dtype.size());
            record
        }).collect();
        for spec in [CodecSpec::Raw, CodecSpec::Lossless { keyframe_every: every }] {
            let stored = Stored::write_all(spec, dtype, &[], &records);
            for (step, record) in records.iter().enumerate() {
                prop_assert_eq!(&stored.read(step), record);
            }
        }
    }

    #[test]
    fn int8_records_decode_to_the_reference_whatever_the_values(records in any_records(), every in 1u32..6) {
        let records: Vec<Vec<u8>> = records.iter().map(|record| bytes(record)).collect();
        let stored = Stored::write_all(CodecSpec::DeltaInt8 { keyframe_every: every }, Dtype::F32, &[], &records);
        let mut expected = Vec::new();
        for (step, record) in records.iter().enumerate() {
            expected = reference_delta_int8(&expected, &stored.payloads[step]);
            assert_same_bits(&floats(&stored.read(step)), &expected);
            if stored.kinds[step] == RecordKind::Keyframe {
                prop_assert_eq!(&stored.read(step), record);
            }
        }
    }

    #[test]
    fn int8_errors_stay_within_half_a_step_of_the_scale(records in near_records()) {
        let spec = CodecSpec::DeltaInt8 { keyframe_every: 100 };
        let given: Vec<Vec<u8>> = records.iter().map(|record| bytes(record)).collect();
        let stored = Stored::write_all(spec, Dtype::F32, &[], &given);
        for (step, record) in records.iter().enumerate() {
            let decoded = floats(&stored.read(step));
            let halves = record.len().div_ceil(128);
            for (index, (value, decoded)) in record.iter().zip(&decoded).enumerate() {
                let scale = match stored.kinds[step] {
                    RecordKind::Keyframe => 0.0,
                    RecordKind::Delta { .. } => bfloats(&stored.payloads[step][HEADER..HEADER + 2 * halves])[index / 128],
                };
                let rounding = 4.0 * f32::EPSILON * (value.abs() + 127.0 * scale) + 2f32.powi(-100);
                prop_assert!((value - decoded).abs() <= 0.5 * scale + rounding);
            }
        }
    }

    #[test]
    fn half_differences_keep_eleven_bits(records in near_records(), cut in 0.0f64..1.0) {
        let elements = records[0].len();
        let first = (cut * elements as f64) as usize;
        let sizes = [first, 0, elements - first];
        let given: Vec<Vec<u8>> = records.iter().map(|record| bytes(record)).collect();
        let stored = Stored::write_all(CodecSpec::HalfDelta, Dtype::F32, &sizes, &given);
        for (step, record) in records.iter().enumerate() {
            prop_assert!(stored.chain(step).len() <= 2);
            for ((value, decoded), base) in record.iter().zip(floats(&stored.read(step))).zip(&records[0]) {
                // Half a last bit of the f16, the floor of its denormals, and the rounding of two f32 operations.
                let largest = 2.0 * records[step].iter().chain(&records[0]).fold(0f32, |most, value| most.max(value.abs()));
                let bound = (value - base).abs() * 2f32.powi(-11) + largest * (2f32.powi(-38) + 4.0 * f32::EPSILON);
                prop_assert!((value - decoded).abs() <= bound);
            }
        }
    }

    #[test]
    fn half_differences_fall_back_to_keyframes_without_loss(records in any_records()) {
        let given: Vec<Vec<u8>> = records.iter().map(|record| bytes(record)).collect();
        let stored = Stored::write_all(CodecSpec::HalfDelta, Dtype::F32, &[], &given);
        for (step, record) in records.iter().enumerate() {
            let decoded = floats(&stored.read(step));
            if stored.kinds[step] == RecordKind::Keyframe {
                assert_same_bits(&decoded, record);
            }
            prop_assert!(decoded.iter().zip(record).all(|(decoded, value)| decoded.is_finite() == value.is_finite()));
        }
    }

    #[test]
    fn several_records_of_one_chain_decode_as_each_alone(
        records in any_records(), which in 0usize..4, picks in vec(any::<bool>(), 12)
    ) {
        let given: Vec<Vec<u8>> = records.iter().map(|record| bytes(record)).collect();
        let stored = Stored::write_all(CODED[which], Dtype::F32, &[], &given);
        // All payloads are one chain: keyframes inside restart it.
        let steps: Vec<usize> = (0..records.len()).collect();
        let mut out: Vec<(usize, Vec<u8>)> =
            steps.iter().filter(|&&step| picks[step]).map(|&step| (step, vec![0; given[0].len()])).collect();
        let mut wanted: Vec<(usize, &mut [u8])> = out.iter_mut().map(|(step, out)| (*step, out.as_mut_slice())).collect();
        let elements = records[0].len();
        decode(&CODED[which], Dtype::F32, elements, &[], &stored.payloads(&steps), &mut wanted).unwrap();
        for (step, decoded) in out {
            prop_assert_eq!(decoded, stored.read(step));
        }
    }

    #[test]
    fn resuming_writes_what_an_unbroken_writer_would(
        records in any_records(), which in 0usize..4, at in 0usize..12, wide in any::<bool>()
    ) {
        let given: Vec<Vec<u8>> = records.iter().map(|record| match wide {
            true => record.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect(),
            false => bytes(record),
        }).collect();
        let dtype = if wide { Dtype::F64 } else { Dtype::F32 };
        let stored = Stored::write_all(CODED[which], dtype, &[], &given);
        let at = at.min(records.len() - 1);
        let mut encoder = stored.encoder();
        let chain = stored.chain(at);
        encoder.resume(&stored.payloads(&chain), at as u64).unwrap();
        let mut resumed = Stored::new(CODED[which], dtype, records[0].len(), &[]);
        resumed.payloads = stored.payloads[..=at].to_vec();
        resumed.kinds = stored.kinds[..=at].to_vec();
        for record in &given[at + 1..] {
            resumed.write(&mut encoder, record);
        }
        // A half-delta log that goes on after a record that stands alone takes that one as its new first record.
        let renamed = CODED[which] == CodecSpec::HalfDelta && stored.kinds[at] == RecordKind::Keyframe && at > 0;
        for (step, record) in given.iter().enumerate() {
            if renamed {
                prop_assert!(resumed.kinds[step].is_delta() || &resumed.read(step) == record);
            } else {
                prop_assert_eq!(&resumed.payloads[step], &stored.payloads[step]);
                prop_assert_eq!(resumed.kinds[step], stored.kinds[step]);
            }
        }
    }

    #[test]
    fn nothing_depends_on_a_record_that_was_not_stored(
        records in near_records(), which in 0usize..4, lost in 0usize..12
    ) {
        let given: Vec<Vec<u8>> = records.iter().map(|record| bytes(record)).collect();
        let mut stored = Stored::new(CODED[which], Dtype::F32, records[0].len(), &[]);
        let mut encoder = stored.encoder();
        let mut kept = Vec::new();
        for (step, record) in given.iter().enumerate() {
            if step == lost {
                encoder.encode(stored.payloads.len() as u64, record, &mut Vec::new()).unwrap();
                encoder.abandon_last();
            } else {
                stored.write(&mut encoder, record);
                kept.push(record);
            }
        }
        let unbroken: Vec<Vec<u8>> = (0..kept.len()).map(|step| stored.read(step)).collect();
        for (record, decoded) in kept.iter().zip(&unbroken) {
            let largest = floats(record).iter().fold(0f32, |most, value| most.max(value.abs()));
            for (value, decoded) in floats(record).iter().zip(floats(decoded)) {
                prop_assert!((value - decoded).abs() <= 0.1 * largest.max(2.0 * value.abs()) + 0.1);
            }
        }
    }

    #[test]
    fn hostile_payloads_are_refused_or_decoded_but_never_a_panic(
        records in any_records(), which in 0usize..4, wide in any::<bool>(),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()), tail in vec(any::<u8>(), 0..40), at in 0usize..12,
    ) {
        let dtype = if wide { Dtype::F64 } else { Dtype::F32 };
        let given: Vec<Vec<u8>> = records.iter().map(|record| {
            let mut record = bytes(record);
            record.truncate(record.len() / dtype.size() * dtype.size());
            record
        }).collect();
        let mut stored = Stored::write_all(CODED[which], dtype, &[], &given);
        let at = at.min(records.len() - 1);
        let payload = &mut stored.payloads[at];
        for (place, value) in &edits {
            if !payload.is_empty() {
                let place = place.index(payload.len());
                payload[place] = *value;
            }
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len() + 1));
        }
        payload.extend_from_slice(&tail);
        let steps: Vec<usize> = (0..records.len()).collect();
        let mut out = vec![0; given[0].len()];
        let last = records.len() - 1;
        match decode(&CODED[which], dtype, stored.elements, &[], &stored.payloads(&steps), &mut [(last, &mut out)]) {
            Ok(()) => {}
            Err(DecodeError::Damaged(damage)) => prop_assert!(damage.index <= last),
            Err(DecodeError::Argument(error)) => prop_assert!(false, "{error}"),
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_payload(
        which in 0usize..3, payload in vec(any::<u8>(), 0..200), elements in 0usize..20, claimed in any::<u64>()
    ) {
        let spec = CODED[which];
        let mut forged = vec![spec.code(), 0, Dtype::F32.code(), 0, 0, 0, 0, 0];
        forged.extend_from_slice(&claimed.to_le_bytes());
        forged.extend_from_slice(&payload);
        for bytes in [&payload, &forged] {
            for kind in [0, 1, 2] {
                let mut bytes = bytes.clone();
                if let Some(byte) = bytes.get_mut(1) {
                    *byte = kind;
                }
                let mut out = vec![0; 4 * elements];
                let _ = decode(&spec, Dtype::F32, elements, &[], &[&bytes], &mut [(0, &mut out)]);
            }
        }
    }
}

#[test]
fn errors_do_not_add_up_over_a_hundred_records() {
    let records = walk(3000, 101, 1);
    let stored = Stored::write_all(CodecSpec::DeltaInt8 { keyframe_every: 1000 }, Dtype::F32, &[], &records);
    assert_eq!(stored.kinds.iter().filter(|kind| !kind.is_delta()).count(), 1);
    let distance = |left: &[f32], right: &[f32]| {
        left.iter().zip(right).map(|(left, right)| f64::from(left - right).powi(2)).sum::<f64>().sqrt()
    };
    for step in 1..=100 {
        let (given, before) = (floats(&records[step]), floats(&records[step - 1]));
        let relative = distance(&floats(&stored.read(step)), &given) / distance(&given, &before);
        assert!(relative < 0.012, "{step}: {relative}");
    }
}

#[test]
fn the_measured_error_is_that_of_the_decoded_records() {
    for spec in
        [CodecSpec::DeltaInt8 { keyframe_every: 7 }, CodecSpec::HalfDelta, CodecSpec::Lossless { keyframe_every: 7 }]
    {
        let records = walk(777, 30, 2);
        let mut stored = Stored::new(spec, Dtype::F32, 777, &[]);
        let mut encoder = stored.encoder();
        records.iter().for_each(|record| stored.write(&mut encoder, record));
        let mut errors = Vec::new();
        for step in 1..30 {
            if !stored.kinds[step].is_delta() || spec.is_exact() {
                continue;
            }
            let (decoded, given, before) =
                (floats(&stored.read(step)), floats(&records[step]), floats(&records[step - 1]));
            let square = |pairs: &mut dyn Iterator<Item = (&f32, &f32)>| {
                pairs.map(|(left, right)| (f64::from(*left) - f64::from(*right)).powi(2)).sum::<f64>()
            };
            let error = square(&mut decoded.iter().zip(&given)) / square(&mut given.iter().zip(&before));
            errors.push(error.sqrt());
        }
        let measured = encoder.error();
        assert_eq!(measured.records as usize, errors.len());
        let mean = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
        assert!((measured.mean - mean).abs() <= 1e-12 && errors.iter().all(|&error| error <= measured.max + 1e-12));
        assert!(spec.is_exact() || measured.max > 0.0);
        assert!(measured.max < if spec == CodecSpec::HalfDelta { 0.3 } else { 0.012 }, "{spec:?} {measured:?}");
    }
}

#[test]
fn the_default_interval_keeps_51_records_under_three_tenths() {
    let records = walk(319_000, 51, 3);
    let spec = CodecSpec::parse(&serde_json::json!("delta-int8")).unwrap();
    let stored = Stored::write_all(spec, Dtype::F32, &[], &records);
    let total: usize = stored.payloads.iter().map(Vec::len).sum();
    assert!((total as f64) < 0.30 * (51 * 4 * 319_000) as f64);
    for (payload, kind) in stored.payloads.iter().zip(&stored.kinds) {
        assert!(!kind.is_delta() || (payload.len() as f64) < 0.257 * (4 * 319_000) as f64);
    }
}

#[test]
fn keyframes_come_at_the_interval() {
    let records = walk(10, 12, 4);
    for (spec, expected) in [
        (CodecSpec::DeltaInt8 { keyframe_every: 5 }, vec![0, 5, 10]),
        (CodecSpec::Lossless { keyframe_every: 5 }, vec![0, 5, 10]),
        (CodecSpec::DeltaInt8 { keyframe_every: 1 }, (0..12).collect()),
        (CodecSpec::HalfDelta, vec![0]),
        (CodecSpec::Raw, (0..12).collect()),
    ] {
        let stored = Stored::write_all(spec, Dtype::F32, &[], &records);
        let keyframes: Vec<usize> = (0..12).filter(|&step| !stored.kinds[step].is_delta()).collect();
        assert_eq!(keyframes, expected, "{spec:?}");
    }
}

#[test]
fn a_keyframe_in_between_restarts_the_interval_and_loses_nothing() {
    let mut records = walk(300, 9, 5);
    records[3][4 * 299..].copy_from_slice(&f32::NAN.to_le_bytes());
    let stored = Stored::write_all(CodecSpec::DeltaInt8 { keyframe_every: 4 }, Dtype::F32, &[], &records);
    let keyframes: Vec<usize> = (0..9).filter(|&step| !stored.kinds[step].is_delta()).collect();
    assert_eq!(keyframes, [0, 3, 4, 8]); // 4 too: its predecessor has the NaN
    assert_eq!(stored.read(3), records[3]);
}

#[test]
fn wrong_arguments_are_refused_by_name() {
    let spec = CodecSpec::DeltaInt8 { keyframe_every: 4 };
    let refused = [
        Encoder::new(&spec, Dtype::BF16, 4, &[]).err(),
        Encoder::new(&spec, Dtype::F32, 4, &[3]).err(),
        Encoder::new(&spec, Dtype::F32, 4, &[usize::MAX, 5]).err(),
        Encoder::new(&spec, Dtype::F32, usize::MAX, &[]).err(),
        Encoder::new(&spec, Dtype::F32, 4, &[]).unwrap().encode(0, &[0; 15], &mut Vec::new()).err(),
    ];
    for (error, name) in refused.into_iter().zip(["dtype", "tensor_sizes", "tensor_sizes", "elements", "record"]) {
        assert!(error.unwrap().to_string().starts_with(name));
    }
    let mut encoder = Encoder::new(&spec, Dtype::F32, 4, &[]).unwrap();
    let mut payload = Vec::new();
    encoder.encode(3, &[0; 16], &mut payload).unwrap();
    assert!(encoder.encode(3, &[0; 16], &mut Vec::new()).is_err());
    let mut out = [0; 16];
    for (position, length) in [(1, 16), (0, 15)] {
        let result = decode(&spec, Dtype::F32, 4, &[], &[&payload], &mut [(position, &mut out[..length])]);
        assert!(matches!(result, Err(DecodeError::Argument(_))));
    }
}

#[test]
fn damage_is_placed() {
    let records = walk(300, 3, 6);
    for spec in CODED {
        let stored = Stored::write_all(spec, Dtype::F32, &[], &records);
        let mut short = stored.payloads[2].clone();
        short.pop();
        let chain = [stored.payloads[0].as_slice(), stored.payloads[1].as_slice(), &short];
        let mut out = vec![0; 1200];
        let error = decode(&spec, Dtype::F32, 300, &[], &chain, &mut [(2, &mut out)]).unwrap_err();
        let Error::StoreCorrupt { path, offset, .. } = error.at(|index| (format!("log-{index}").into(), 1000)) else {
            panic!("{spec:?}")
        };
        assert_eq!(path.to_str(), Some("log-2"));
        assert!(offset >= 1000 && offset <= 1000 + short.len() as u64);
        if spec != CodecSpec::Raw {
            let orphan = [stored.payloads[1].as_slice()];
            let error = decode(&spec, Dtype::F32, 300, &[], &orphan, &mut [(0, &mut out)]).unwrap_err();
            assert!(matches!(error, DecodeError::Damaged(Damage { index: 0, offset: 1, .. })), "{error:?}");
        }
    }
}
