use super::*;
use crate::random::{Units, integers, normal_f32};

fn go() -> Result<()> {
    Ok(())
}

fn lazy(k: usize) -> Facility {
    Facility { k, sample: None, seed: 0, run: 0, kept: 0 }
}

/// Plain greedy: all gains for every pick, after the first.
fn brute(points: &Points<'_, f32>, k: usize, first: i64) -> Picks {
    let row = |id: usize| points.row(id).iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
    let distances: Vec<Vec<f64>> = (0..points.rows())
        .map(|id| (0..points.rows()).map(|other| squared_distance(points.row(other), &row(id))).collect())
        .collect();
    let mut picks = Picks { ids: vec![first], gains: vec![0.0] };
    let mut nearest = distances[first as usize].clone();
    while picks.ids.len() < k {
        let mut best = (f64::NEG_INFINITY, 0);
        for (id, distances) in distances.iter().enumerate().filter(|(id, _)| !picks.ids.contains(&(*id as i64))) {
            let gains = nearest.iter().zip(distances).filter(|(near, squared)| squared < near);
            let gain: f64 = gains.map(|(near, squared)| near - squared).sum();
            if gain > best.0 {
                best = (gain, id);
            }
        }
        picks.ids.push(best.1 as i64);
        picks.gains.push(best.0);
        nearest.iter_mut().zip(&distances[best.1]).for_each(|(near, &squared)| *near = near.min(squared));
    }
    picks
}

#[test]
fn picks_are_those_of_all_gains() {
    for (rows, columns, k) in [(1, 1, 1), (30, 2, 30), (300, 5, 60), (900, 20, 25)] {
        let mut values = vec![0f32; rows * columns];
        let units = Units::Range { first: 0, count: 1 };
        normal_f32(Stream::new(rows as u64, "p", 0, Kind::Normal), units, rows * columns, &mut values).unwrap();
        let mut drawn = vec![0i64; rows * columns];
        integers(Stream::new(1, "p", 0, Kind::Integers), units, rows * columns, 4, &mut drawn).unwrap();
        let coarse: Vec<f32> = drawn.into_iter().map(|value| value as f32).collect();
        let far: Vec<f32> = values.iter().map(|value| value + 1000.0).collect();
        for values in [&values, &coarse, &far] {
            let points = Points::new("points", values, rows, columns).unwrap();
            let found = facility_location(&points, &lazy(k), &go).unwrap();
            let mut expected = brute(&points, k, found.ids[0]);
            expected.gains[0] = found.gains[0];
            assert_eq!(found.ids, expected.ids);
            for (gain, expected) in found.gains.iter().zip(&expected.gains) {
                assert!((gain - expected).abs() <= 1e-12 * expected);
            }
            for kept in [1 << 10, 1 << 20] {
                assert_eq!(facility_location(&points, &Facility { kept, ..lazy(k) }, &go).unwrap(), found);
            }
        }
    }
}

#[test]
fn a_sample_of_all_points_gives_the_plain_picks_and_a_small_one_is_worth_less() {
    let mut values = vec![0f32; 400 * 3];
    let units = Units::Range { first: 0, count: 1 };
    normal_f32(Stream::new(1, "p", 0, Kind::Normal), units, 1200, &mut values).unwrap();
    let points = Points::new("points", &values, 400, 3).unwrap();
    let plain = facility_location(&points, &lazy(20), &go).unwrap();
    let drawn =
        |sample, seed| facility_location(&points, &Facility { sample: Some(sample), seed, ..lazy(20) }, &go).unwrap();
    let all = drawn(400, 5);
    assert_eq!(all.ids, plain.ids);
    let worth = |picks: &Picks| picks.gains.iter().sum::<f64>();
    assert!((worth(&all) - worth(&plain)).abs() < 1e-9 * worth(&plain));
    assert!(worth(&drawn(5, 1)) < worth(&plain));
    assert_eq!(drawn(5, 1), drawn(5, 1));
    assert_ne!(drawn(5, 1), drawn(5, 2));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let points = Points::new("points", &[0.0, 1.0, 2.0], 3, 1).unwrap();
    let refused = |settings: Facility| facility_location(&points, &settings, &go).unwrap_err().to_string();
    assert!(refused(lazy(4)).starts_with("k:"));
    assert!(refused(Facility { sample: Some(0), ..lazy(1) }).starts_with("sample:"));
    assert!(facility_location(&points, &lazy(2), &|| Err(Error::Interrupted)).is_err());
    assert_eq!(facility_location(&points, &lazy(0), &go).unwrap(), Picks::default());
}

#[test]
fn several_processes_pick_what_one_does() {
    use super::super::peers::tests::together;

    for (rows, columns, k, is_coarse) in [(50, 2, 50, true), (300, 5, 40, false), (90, 3, 30, true)] {
        for offset in [0.0, 1000.0] {
            let mut values = vec![0f32; rows * columns];
            let units = Units::Range { first: 0, count: 1 };
            normal_f32(Stream::new(rows as u64, "p", 0, Kind::Normal), units, rows * columns, &mut values).unwrap();
            if is_coarse {
                values.iter_mut().for_each(|value| *value = value.round());
            }
            // One far point makes the unit of gains fall later.
            values[columns] = 3e4;
            values.iter_mut().for_each(|value| *value += offset);
            let points = Points::new("points", &values, rows, columns).unwrap();
            for sample in [None, Some(7)] {
                let settings = Facility { sample, ..lazy(k) };
                let alone = facility_location(&points, &settings, &go).unwrap();
                for cuts in [&[0, rows][..], &[0, 1, rows], &[0, 0, rows / 3, rows / 3, rows]] {
                    let found = together(cuts, |own, shard| {
                        let points =
                            Points::new("points", &values[own.start * columns..own.end * columns], own.len(), columns);
                        facility_location_sharded(&points.unwrap(), &settings, shard, &go).unwrap()
                    });
                    assert_eq!(found, alone);
                }
            }
        }
    }
}

#[test]
fn the_unit_of_gains_falls_with_the_limits() {
    // Without that, all that is left after the far point would be worth nothing.
    let values: Vec<f64> = (0..60).map(|row| if row == 7 { 1e100 } else { f64::from(row * row) }).collect();
    let points = Points::new("points", &values, 60, 1).unwrap();
    let found = facility_location(&points, &lazy(60), &go).unwrap();
    assert_eq!(found.ids[1], 7);
    assert!(found.gains.iter().all(|&gain| gain > 0.0) && found.gains.is_sorted_by(|left, right| left >= right));
}
