use super::*;
use crate::random::{integers as whole, normal_f32};

fn noise(seed: u64, count: usize, is_coarse: bool) -> Vec<f32> {
    let mut values = vec![0f32; count];
    let units = Units::Range { first: 0, count: 1 };
    if is_coarse {
        let mut drawn = vec![0i64; count];
        whole(Stream::new(seed, "points", 0, Kind::Integers), units, count, 4, &mut drawn).unwrap();
        return drawn.into_iter().map(|value| value as f32).collect();
    }
    normal_f32(Stream::new(seed, "points", 0, Kind::Normal), units, count, &mut values).unwrap();
    values
}

/// Every distance of every pick.
fn brute(points: &Points<'_, f32>, settings: &Centres<'_>, first: i64) -> Picks {
    let row = |id: i64| points.row(id as usize).iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
    let mut nearest = vec![f64::INFINITY; points.rows()];
    let mut is_out = vec![false; points.rows()];
    let mut picks = Picks::default();
    let see = |id: i64, nearest: &mut [f64]| {
        let centre = row(id);
        for (point, near) in nearest.iter_mut().enumerate() {
            *near = near.min(squared_distance(points.row(point), &centre));
        }
    };
    for &id in settings.chosen {
        see(id, &mut nearest);
        is_out[id as usize] = true;
    }
    for pick in 0..settings.k {
        let mut best = first;
        if pick > 0 || first < 0 {
            best = (0..points.rows())
                .filter(|&id| !is_out[id])
                .fold(None, |best: Option<usize>, id| {
                    Some(best.filter(|&best| nearest[best] >= nearest[id]).unwrap_or(id))
                })
                .unwrap() as i64;
        }
        picks.ids.push(best);
        picks.gains.push(nearest[best as usize].sqrt());
        see(best, &mut nearest);
        is_out[best as usize] = true;
    }
    picks
}

#[test]
fn picks_are_those_of_the_plain_rule() {
    for (rows, columns, k) in [(1, 1, 1), (9, 2, 9), (300, 3, 300), (2000, 7, 150), (40_000, 5, 40), (700, 64, 100)] {
        for is_coarse in [false, true] {
            for offset in [0.0, 1000.0] {
                let values: Vec<f32> =
                    noise(rows as u64, rows * columns, is_coarse).iter().map(|value| value + offset).collect();
                let points = Points::new("points", &values, rows, columns).unwrap();
                let settings = Centres { k, chosen: &[], start: Some(rows / 2), seed: 0, run: 0 };
                let found = k_center(&points, &settings, &|| Ok(())).unwrap();
                assert_eq!(found, brute(&points, &settings, (rows / 2) as i64));
                if rows > 100 {
                    let chosen = [7, 3, 90];
                    let settings = Centres { k: k.min(rows - 3), chosen: &chosen, start: None, seed: 0, run: 0 };
                    let found = k_center(&points, &settings, &|| Ok(())).unwrap();
                    assert_eq!(found, brute(&points, &settings, -1));
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let points = Points::new("points", &[0.0, 1.0, 2.0], 3, 1).unwrap();
    let base = Centres { k: 1, chosen: &[], start: None, seed: 0, run: 0 };
    for (settings, name) in [
        (Centres { k: 4, ..base }, "k:"),
        (Centres { k: 3, chosen: &[1], ..base }, "k:"),
        (Centres { chosen: &[3], ..base }, "chosen:"),
        (Centres { chosen: &[-1], ..base }, "chosen:"),
        (Centres { chosen: &[1, 1], ..base }, "chosen:"),
        (Centres { start: Some(3), ..base }, "start:"),
        (Centres { start: Some(0), chosen: &[0], ..base }, "start:"),
    ] {
        let error = k_center(&points, &settings, &|| Ok(())).unwrap_err().to_string();
        assert!(error.starts_with(name), "{error}");
    }
    assert!(k_center(&points, &Centres { k: 2, ..base }, &|| Err(Error::Interrupted)).is_err());
    assert_eq!(k_center(&points, &Centres { k: 0, ..base }, &|| Err(Error::Interrupted)).unwrap(), Picks::default());
}

#[test]
fn several_processes_pick_what_one_does() {
    use super::super::peers::tests::together;

    for (rows, columns, is_coarse) in [(50, 2, true), (400, 5, false), (60, 3, true)] {
        for offset in [0.0, 1000.0] {
            let values: Vec<f32> =
                noise(rows as u64, rows * columns, is_coarse).iter().map(|value| value + offset).collect();
            let points = Points::new("points", &values, rows, columns).unwrap();
            let several = [5, (rows - 1) as i64, 17];
            for (chosen, start) in [(&[][..], None), (&several, None), (&several[..1], Some(rows / 3))] {
                let settings = Centres { k: rows / 2, chosen, start, seed: 3, run: 9 };
                let alone = k_center(&points, &settings, &|| Ok(())).unwrap();
                for cuts in [&[0, rows][..], &[0, 1, rows], &[0, 0, rows / 3, rows / 3, rows]] {
                    let found = together(cuts, |own, shard| {
                        let points =
                            Points::new("points", &values[own.start * columns..own.end * columns], own.len(), columns);
                        k_center_sharded(&points.unwrap(), &settings, shard, &|| Ok(())).unwrap()
                    });
                    assert_eq!(found, alone);
                }
            }
        }
    }
}
