use super::*;

fn one(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    philox(key, counter.map(|word| [word])).map(|[word]| word)
}

/// The known-answer vectors that Random123 ships for philox4x32 with 10 rounds.
#[test]
fn philox_gives_the_published_answers() {
    assert_eq!(one([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(one([u32::MAX; 2], [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    assert_eq!(
        one([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
    );
}

/// The value at (unit, position), from its definition.
fn reference_f32(stream: Stream, unit: u64, position: usize) -> f32 {
    (stream.block(unit, (position / 4) as u32)[position % 4] >> 8) as f32 / (1u32 << 24) as f32
}

fn reference_f64(stream: Stream, unit: u64, position: usize) -> f64 {
    (stream.wide(unit, position as u64) >> 11) as f64 / (1u64 << 53) as f64
}

#[test]
fn every_vector_width_gives_the_scalar_definition() {
    let stream = Stream::new(7, "noise", (3 << 32) | 5, Kind::Uniform);
    let ids: Vec<u64> = (0..37).map(|index| index * index * 1_000_000_007).collect();
    for units in [Units::Range { first: u64::MAX - 20, count: 37 }, Units::Ids(&ids)] {
        for per_unit in [0, 1, 2, 3, 4, 5, 8, 31, 64, 67, 129] {
            let mut out = vec![0f32; 37 * per_unit];
            let mut wide = vec![0f64; 37 * per_unit];
            uniform_f32(stream, units, per_unit, &mut out).unwrap();
            uniform_f64(stream, units, per_unit, &mut wide).unwrap();
            for index in 0..out.len() {
                let (unit, position) = (units.get(index / per_unit), index % per_unit);
                assert_eq!(out[index], reference_f32(stream, unit, position));
                assert_eq!(wide[index], reference_f64(stream, unit, position));
            }
            let (mut narrow, mut portable, mut plain) = (out.clone(), wide.clone(), wide.clone());
            if per_unit > 0 {
                fill_lanes::<_, 1>(UniformF32, stream, units, per_unit, 0, &mut narrow);
                fill_lanes::<_, 1>(NormalF64, stream, units, per_unit, 0, &mut portable);
                normal_f64(stream, units, per_unit, &mut plain).unwrap();
            }
            assert_eq!(out, narrow);
            assert_eq!(portable, plain);
        }
    }
}

#[test]
fn many_tasks_give_what_one_gives() {
    let stream = Stream::new(1, "t", 0, Kind::Normal);
    for (count, per_unit) in [(1, 100_001), (100_001, 1), (333, 301)] {
        let units = Units::Range { first: 11, count };
        let (mut tasks, mut one) = (vec![0f32; count * per_unit], vec![0f32; count * per_unit]);
        normal_f32(stream, units, per_unit, &mut tasks).unwrap();
        fill_lanes::<_, 4>(NormalF32, stream, units, per_unit, 0, &mut one);
        assert_eq!(tasks, one);
    }
}

#[test]
fn seed_name_step_and_kind_all_count() {
    let base = Stream::new(1, "a", 2, Kind::Uniform);
    let others = [
        Stream::new(2, "a", 2, Kind::Uniform),
        Stream::new(1, "b", 2, Kind::Uniform),
        Stream::new(1, "a", 3, Kind::Uniform),
        Stream::new(1, "a", 2 + (1 << 32), Kind::Uniform),
        Stream::new(1, "a", 2, Kind::Normal),
    ];
    for other in others {
        assert_ne!(base.block(0, 0), other.block(0, 0));
    }
}

#[test]
fn a_choice_is_a_prefix_of_the_permutation() {
    for n in [0u64, 1, 2, 9, 100, 1000] {
        let stream = Stream::new(n, "order", 4, Kind::Permutation);
        let all = choose(stream, n, n).unwrap();
        let mut sorted = all.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..n as i64).collect::<Vec<_>>());
        for count in [0, 1, n / 9, n / 2, n] {
            let count = count.min(n);
            assert_eq!(choose(stream, n, count).unwrap(), all[..count as usize]);
        }
    }
    let far = choose(Stream::new(0, "far", 0, Kind::Permutation), 1 << 33, 5).unwrap();
    assert!(far.iter().all(|&pick| (0..1 << 33).contains(&pick)));
    assert!(choose(Stream::new(0, "", 0, Kind::Permutation), 3, 4).is_err());
}

#[test]
fn integers_stay_below_their_bound() {
    let stream = Stream::new(0, "i", 0, Kind::Integers);
    let units = Units::Range { first: 0, count: 1000 };
    for high in [1, 2, 3, 1 << 32, 1 << 63] {
        let mut out = vec![-1; 1000];
        integers(stream, units, 1, high, &mut out).unwrap();
        assert!(out.iter().all(|&value| value >= 0 && (value as u64) < high));
    }
    assert!(integers(stream, units, 1, 0, &mut [0; 1000]).is_err());
    assert!(integers(stream, units, 1, u64::MAX, &mut [0; 1000]).is_err());
}
