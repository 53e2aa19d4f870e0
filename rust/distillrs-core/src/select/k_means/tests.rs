use super::*;
use crate::random::normal_f64;

fn noise(seed: u64, count: usize) -> Vec<f64> {
    let mut values = vec![0.0; count];
    let stream = Stream::new(seed, "points", 0, Kind::Normal);
    normal_f64(stream, Units::Range { first: 0, count: 1 }, count, &mut values).unwrap();
    values
}

fn go() -> Result<()> {
    Ok(())
}

fn settings(k: usize, start: Option<&[f64]>) -> Settings<'_> {
    Settings { k, start, iterations: 100, seed: 3, run: 0 }
}

/// Nearest centre by comparing all distances, the lowest of equals.
fn brute_labels(points: &Points<'_, f64>, centres: &[f64]) -> Vec<i64> {
    let squared = |row: usize, centre: &[f64]| squared_distance(points.row(row), centre);
    let nearest = |row: usize| {
        let distances: Vec<f64> = centres.chunks(points.columns()).map(|centre| squared(row, centre)).collect();
        let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
        distances.iter().position(|&distance| distance == least).unwrap() as i64
    };
    (0..points.rows()).map(nearest).collect()
}

/// Lloyd's rounds without any of the shortcuts; no cluster may become empty.
fn brute(points: &Points<'_, f64>, start: &[f64]) -> (Vec<f64>, Vec<i64>) {
    let columns = points.columns();
    let mut centres = start.to_vec();
    let mut labels = brute_labels(points, &centres);
    for _ in 0..100 {
        for (cluster, centre) in centres.chunks_mut(columns).enumerate() {
            let members: Vec<usize> = (0..points.rows()).filter(|&row| labels[row] == cluster as i64).collect();
            for (column, out) in centre.iter_mut().enumerate() {
                let sum: f64 = members.iter().map(|&row| points.row(row)[column]).sum();
                *out = sum / members.len() as f64;
            }
        }
        let next = brute_labels(points, &centres);
        if next == labels {
            break;
        }
        labels = next;
    }
    (centres, labels)
}

#[test]
fn rounds_equal_those_without_shortcuts() {
    for (rows, columns, k) in [(50, 1, 3), (200, 2, 5), (600, 3, 290), (1500, 7, 40), (3000, 17, 33)] {
        for offset in [0.0, 1e6] {
            let mut values = noise(rows as u64, rows * columns);
            values.iter_mut().for_each(|value| *value += offset);
            let points = Points::new("points", &values, rows, columns).unwrap();
            let start = &values[..k * columns];
            let found = k_means(&points, &settings(k, Some(start)), &go).unwrap();
            let (centres, labels) = brute(&points, start);
            assert_eq!(found.labels, labels);
            for (found, centre) in found.centres.iter().zip(&centres) {
                assert!((found - centre).abs() <= 1e-9 * (1.0 + offset / 1e5));
            }
        }
    }
}

#[test]
fn labels_medoids_and_inertia_belong_to_the_centres() {
    for iterations in [0, 1, 3, 100] {
        let values = noise(5, 700 * 4);
        let points = Points::new("points", &values, 700, 4).unwrap();
        let found = k_means(&points, &Settings { iterations, ..settings(20, None) }, &go).unwrap();
        assert_eq!(found.labels, brute_labels(&points, &found.centres));
        let own = |row: usize| &found.centres[4 * found.labels[row] as usize..][..4];
        let inertia: f64 = (0..700).map(|row| squared_distance(points.row(row), own(row))).sum();
        assert!((found.inertia - inertia).abs() < 1e-9 * inertia);
        assert!(found.rounds <= iterations);
        for (centre, &medoid) in found.centres.chunks(4).zip(&found.medoids) {
            let distances: Vec<f64> = (0..700).map(|row| squared_distance(points.row(row), centre)).collect();
            let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
            assert_eq!(distances.iter().position(|&distance| distance == least), Some(medoid as usize));
        }
    }
}

#[test]
fn a_start_far_outside_leaves_every_point_with_its_nearest_centre() {
    let values = noise(5, 400 * 3);
    let points = Points::new("points", &values, 400, 3).unwrap();
    for far in [1e3, 1e12, 1e30, 1e140] {
        let mut start = values[..20 * 3].to_vec();
        start[..3].fill(far);
        for iterations in [0, 1, 100] {
            let found = k_means(&points, &Settings { iterations, ..settings(20, Some(&start)) }, &go).unwrap();
            assert_eq!(found.labels, brute_labels(&points, &found.centres));
        }
    }
}

#[test]
fn threads_change_nothing() {
    let values = noise(6, 5000 * 6);
    let points = Points::new("points", &values, 5000, 6).unwrap();
    parallel::set_threads(1).unwrap();
    let alone = k_means(&points, &settings(30, None), &go).unwrap();
    for threads in [2, 3, 7] {
        parallel::set_threads(threads).unwrap();
        assert_eq!(k_means(&points, &settings(30, None), &go).unwrap(), alone);
    }
}

#[test]
fn as_many_clusters_as_points_are_the_points() {
    let values = noise(7, 40 * 3);
    let points = Points::new("points", &values, 40, 3).unwrap();
    let found = k_means(&points, &settings(40, None), &go).unwrap();
    let mut labels = found.labels.clone();
    labels.sort_unstable();
    assert_eq!(labels, (0..40).collect::<Vec<_>>());
    assert_eq!(found.inertia, 0.0);
}

#[test]
fn fewer_distinct_points_than_clusters_reach_inertia_zero() {
    let values: Vec<f64> = (0..30).flat_map(|row| [f64::from(row % 3), 1.0]).collect();
    let points = Points::new("points", &values, 30, 2).unwrap();
    let found = k_means(&points, &settings(7, None), &go).unwrap();
    assert_eq!(found.inertia, 0.0);
    assert_eq!(found.labels, brute_labels(&points, &found.centres));
    let mut medoids = found.medoids.clone();
    medoids.sort_unstable();
    medoids.dedup();
    assert_eq!(medoids.len(), 7);
    let all_equal = vec![4.0; 20];
    let points = Points::new("points", &all_equal, 10, 2).unwrap();
    let found = k_means(&points, &settings(3, None), &go).unwrap();
    assert_eq!((found.inertia, found.labels, found.medoids), (0.0, vec![0; 10], vec![0, 1, 2]));
}

#[test]
fn an_empty_cluster_starts_again_at_the_farthest_point() {
    // Two centres far away from everything, one in the middle: all points go to the third.
    let values = [0.0, 1.0, 2.0, 10.0];
    let points = Points::new("points", &values, 4, 1).unwrap();
    let start = [1e9, -1e9, 1.0];
    let once = k_means(&points, &Settings { iterations: 1, ..settings(3, Some(&start)) }, &go).unwrap();
    assert_eq!(once.centres, [10.0, 0.0, 1.5]);
    let found = k_means(&points, &settings(3, Some(&start)), &go).unwrap();
    assert_eq!((found.labels, found.inertia), (vec![1, 2, 2, 0], 0.5));
}

#[test]
fn equal_distances_go_to_the_lowest_centre() {
    let values = [0.0, 1.0, 0.5];
    let points = Points::new("points", &values, 3, 1).unwrap();
    let start = [1.0, 0.0];
    let found = k_means(&points, &Settings { iterations: 0, ..settings(2, Some(&start)) }, &go).unwrap();
    assert_eq!(found.labels, [1, 0, 0]);
}

#[test]
fn the_start_prefers_far_points() {
    // Four tight groups far apart: plain random starts hit all four in 9 of 100 runs, k-means++ nearly always.
    let values: Vec<f64> =
        noise(8, 400).iter().enumerate().map(|(row, x)| 1e-3 * x + 10.0 * (row % 4) as f64).collect();
    let points = Points::new("points", &values, 400, 1).unwrap();
    let hits = (0..50).filter(|&seed| {
        let found = k_means(&points, &Settings { seed, iterations: 0, ..settings(4, None) }, &go).unwrap();
        found.inertia < 1.0
    });
    assert!(hits.count() >= 48);
}

#[test]
fn draws_are_in_proportion_to_the_weights() {
    let weights = [0.0, 1.0, 0.0, 3.0, 0.0];
    assert_eq!(choose(&weights, 0.0), Some(1));
    assert_eq!(choose(&weights, 0.249), Some(1));
    assert_eq!(choose(&weights, 0.251), Some(3));
    assert_eq!(choose(&weights, 0.999_999_9), Some(3));
    assert_eq!(choose(&[0.0; 4], 0.5), None);
    let long: Vec<f64> = (0..5000).map(|index| f64::from(u8::from(index == 4000))).collect();
    assert_eq!(choose(&long, 0.999_999_999), Some(4000));
}

#[test]
fn what_cannot_be_clustered_is_refused_by_name() {
    let values = [0.0, 1.0, 2.0, f64::NAN];
    let message = Points::new("points", &values, 2, 2).unwrap_err().to_string();
    assert!(message.contains("NaN in row 1, column 1"), "{message}");
    assert!(Points::new("points", &values[..2], 2, 0).is_err());
    assert!(Points::new("points", &[1e200], 1, 1).is_err());
    let points = Points::new("points", &values[..3], 3, 1).unwrap();
    assert!(k_means(&points, &settings(0, None), &go).is_err());
    assert!(k_means(&points, &settings(4, None), &go).is_err());
    assert!(k_means(&points, &settings(1, Some(&[f64::INFINITY])), &go).is_err());
    assert!(k_means(&points, &settings(2, Some(&[0.0])), &go).is_err());
    let stop = || Err(Error::Interrupted);
    assert!(matches!(k_means(&points, &settings(1, None), &stop), Err(Error::Interrupted)));
}
