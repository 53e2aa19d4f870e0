use super::*;
use crate::random::{Kind, Stream, Units, normal_f32};

fn normal(name: &str, count: usize) -> Vec<f32> {
    let mut out = vec![0.0; count];
    let stream = Stream::new(7, name, 0, Kind::Normal);
    normal_f32(stream, Units::Range { first: 0, count: 1 }, count, &mut out).unwrap();
    out
}

struct Case {
    x: Vec<f32>,
    data: Vec<f32>,
    alpha: Vec<f64>,
    variance: Vec<f64>,
    weights: Option<Vec<f64>>,
    width: usize,
}

impl Case {
    fn new(rows: usize, points: usize, width: usize, offset: f32, weighted: bool) -> Self {
        let weights = (0..points).map(|index| f64::from((index % 3) as u32) * 0.7).collect();
        Self {
            x: normal("x", rows * width).iter().map(|value| value + offset).collect(),
            data: normal("data", points * width).iter().map(|value| value + offset).collect(),
            alpha: (0..rows).map(|row| 1.0 - 0.01 * row as f64).collect(),
            variance: (0..rows).map(|row| 0.4 + 0.3 * row as f64).collect(),
            weights: weighted.then_some(weights),
            width,
        }
    }

    fn mixture(&self) -> Mixture<'_> {
        Mixture {
            x: &self.x,
            alpha: &self.alpha,
            variance: &self.variance,
            data: &self.data,
            weights: self.weights.as_deref(),
            width: self.width,
        }
    }

    /// Posterior probabilities of a row in double precision.
    fn shares(&self, row: usize) -> Vec<f64> {
        let exponents: Vec<f64> = (self.data.chunks_exact(self.width).enumerate())
            .map(|(index, point)| {
                let pairs = self.x[row * self.width..].iter().zip(point);
                let distance: f64 = pairs.map(|(&x, &y)| (f64::from(x) - self.alpha[row] * f64::from(y)).powi(2)).sum();
                let weight = self.weights.as_ref().map_or(1.0, |weights| weights[index]);
                weight.ln() - distance / (2.0 * self.variance[row])
            })
            .collect();
        let best = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let masses: Vec<f64> = exponents.iter().map(|value| (value - best).exp()).collect();
        let total: f64 = masses.iter().sum();
        masses.iter().map(|mass| mass / total).collect()
    }
}

fn run(level: Level, case: &Case) -> (Vec<f32>, Vec<f64>, Vec<f64>) {
    run_way(Way { level, sifts: true }, case)
}

fn run_way(way: Way, case: &Case) -> (Vec<f32>, Vec<f64>, Vec<f64>) {
    let rows = case.alpha.len();
    let (mut mean, mut best, mut total) = (vec![0.0; rows * case.width], vec![0.0; rows], vec![0.0; rows]);
    let out = Posterior { mean: &mut mean, best: &mut best, total: &mut total };
    posterior_at(way, &case.mixture(), out, &|| Ok(())).unwrap();
    (mean, best, total)
}

#[test]
fn every_level_agrees_with_double_precision() {
    for (rows, points, width, offset) in [(1, 1, 1, 0.0), (5, 33, 3, 50.0), (9, 700, 17, 0.0), (3, 70, 130, -20.0)] {
        for weighted in [false, true] {
            let case = Case::new(rows, points.max(2), width, offset, weighted);
            for level in Level::all() {
                let (mean, best, total) = run(level, &case);
                let direction: Vec<f64> = normal("direction", rows * (width + 1)).iter().map(|&v| v.into()).collect();
                let known = Known { mean: &mean, best: &best, total: &total, direction: &direction };
                let mut change = vec![0.0; rows * (width + 1)];
                covariance_at(Way { level, sifts: true }, &case.mixture(), &known, &mut change, &|| Ok(())).unwrap();
                for row in 0..rows {
                    let shares = case.shares(row);
                    let features = |index: usize, exact: &[f64]| -> Vec<f64> {
                        let point = &case.data[index * width..][..width];
                        let mut apart: Vec<f64> = point.iter().zip(exact).map(|(&y, m)| f64::from(y) - m).collect();
                        apart.push(apart.iter().map(|value| value * value).sum());
                        apart
                    };
                    let exact: Vec<f64> = (0..width)
                        .map(|k| shares.iter().enumerate().map(|(i, r)| r * f64::from(case.data[i * width + k])).sum())
                        .collect();
                    for k in 0..width {
                        let error = (f64::from(mean[row * width + k]) - exact[k]).abs();
                        assert!(error < 2e-5 * (1.0 + f64::from(offset.abs()) / 10.0), "{level:?} {error}");
                    }
                    let (mut product, mut average, mut slope) = (vec![0.0; width + 1], vec![0.0; width + 1], 0.0);
                    for (index, share) in shares.iter().enumerate() {
                        let f = features(index, &exact);
                        let along: f64 = f.iter().zip(&direction[row * (width + 1)..]).map(|(a, b)| a * b).sum();
                        slope += share * along;
                        for k in 0..=width {
                            product[k] += share * along * f[k];
                            average[k] += share * f[k];
                        }
                    }
                    let scale = 1.0 + product.iter().map(|value| value.abs()).fold(0.0, f64::max);
                    for k in 0..=width {
                        let error = (change[row * (width + 1) + k] - (product[k] - slope * average[k])).abs();
                        assert!(error < 1e-4 * scale, "{level:?} {width} {k}: {error} of {scale}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_beside_any_others_at_any_thread_count() {
    let case = Case::new(21, 500, 19, 0.0, true);
    let (mean, best, total) = run(Level::here(), &case);
    let before = parallel::threads();
    for threads in [1, 3, 7] {
        parallel::set_threads(threads).unwrap();
        assert_eq!(run(Level::here(), &case), (mean.clone(), best.clone(), total.clone()));
    }
    parallel::set_threads(before).unwrap();
    let mut one = Case::new(21, 500, 19, 0.0, true);
    one.x = one.x[5 * 19..6 * 19].to_vec();
    one.alpha = vec![one.alpha[5]];
    one.variance = vec![one.variance[5]];
    assert_eq!(run(Level::here(), &one).0, mean[5 * 19..6 * 19]);
}

#[test]
fn without_noise_the_nearest_points_share() {
    let mut case = Case::new(2, 40, 3, 0.0, false);
    case.variance = vec![0.0, 0.0];
    case.alpha = vec![1.0, 0.0];
    case.x[..3].copy_from_slice(&[9.0, 9.0, 9.0]);
    case.data[..3].copy_from_slice(&[8.0, 9.0, 9.0]);
    case.data[117..].copy_from_slice(&[8.0, 9.0, 9.0]);
    let (mean, _, total) = run(Level::here(), &case);
    assert!((mean[0] - 8.0).abs() < 1e-5 && (mean[1] - 9.0).abs() < 1e-5 && (total[0] - 2.0).abs() < 1e-5);
    let average: f32 = case.data.iter().step_by(3).sum::<f32>() / 40.0;
    assert!((mean[3] - average).abs() < 1e-5);
}

#[test]
fn not_a_number_and_wrong_sizes_are_seen() {
    let mut case = Case::new(6, 600, 3, 0.0, false);
    case.x[3] = f32::NAN;
    let mean = run(Level::here(), &case).0;
    assert!(mean[3..6].iter().all(|value| value.is_nan()) && mean[..3].iter().all(|value| value.is_finite()));
    case.width = 4;
    let out = Posterior { mean: &mut [], best: &mut [], total: &mut [] };
    assert!(posterior_mean(&case.mixture(), out, &|| Ok(())).is_err());
}

#[test]
fn leaving_tiles_by_the_expansion_changes_no_bit() {
    let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    for (spread, noise) in [(1.0, 0.3), (1e-3, 1e-5), (1.0, 3.0), (1e18, 1e17), (1e-19, 1e-20), (30.0, 0.0)] {
        for (rows, points, width) in [(9, 700, 70), (6, 1500, 16)] {
            let mut case = Case::new(rows, points, width, 0.0, true);
            case.data.iter_mut().for_each(|value| *value *= spread);
            // Rows near some of the points, which are in any of the tiles.
            for row in 0..rows {
                for feature in 0..width {
                    let point = f64::from(case.data[row * 71 % points * width + feature]);
                    let x = case.alpha[row] * point + noise * f64::from(case.x[row * width + feature]);
                    case.x[row * width + feature] = x as f32;
                }
                case.variance[row] = noise * noise;
            }
            case.alpha[1] = 0.0;
            case.alpha[2] = 1e-17;
            case.x[3 * width] = f32::INFINITY;
            case.data[5 * width] = f32::NAN;
            case.data[8 * width] = 3e38;
            for level in Level::all() {
                let (sifted, whole) = (Way { level, sifts: true }, Way { level, sifts: false });
                let (found, expected) = (run_way(sifted, &case), run_way(whole, &case));
                let wide = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(wide(&found.0), wide(&expected.0), "{level:?} {spread} {noise}");
                assert_eq!((bits(&found.1), bits(&found.2)), (bits(&expected.1), bits(&expected.2)));
                let direction: Vec<f64> = normal("direction", rows * (width + 1)).iter().map(|&v| v.into()).collect();
                let known = Known { mean: &found.0, best: &found.1, total: &found.2, direction: &direction };
                let change = [sifted, whole].map(|way| {
                    let mut out = vec![0.0; rows * (width + 1)];
                    covariance_at(way, &case.mixture(), &known, &mut out, &|| Ok(())).unwrap();
                    bits(&out)
                });
                assert_eq!(change[0], change[1], "{level:?} {spread} {noise}");
            }
        }
    }
}

#[test]
fn reach_holds_every_point_that_differences_find_and_few_others() {
    let case = Case::new(8, 32, 100, 0.0, false);
    let points = Points::new(&case.mixture(), true);
    let mut packed = Packed::new(&case.mixture(), &points);
    let tile = packed.pack(&case.mixture(), &points, 0);
    let rows = Rows::new(&case.mixture(), &points, 0, 8);
    let mut exact = vec![0.0; 8 * points.tile];
    let mut products = exact.clone();
    // SAFETY: no special instructions; the buffers have room for all rows and a tile.
    unsafe { rows.closeness::<Portable>(&tile, &[0, 4], &mut exact) };
    for row in 0..8 {
        let best = exact[row * points.tile..][..32].iter().copied().fold(f32::MIN, f32::max);
        // As far above the closest point as still leaves it within reach, and a little farther.
        let window = 100.0 / rows.factor[row];
        for (above, reached) in [(0.999 * window, true), (1.002 * window + 0.03, false)] {
            let mut quads = vec![row / QUAD * QUAD];
            let known = |other: usize| Some(if other == row { best + above } else { 1e20 });
            // SAFETY: as above.
            unsafe { rows.sift::<Portable>(&tile, &mut quads, &mut products, known) };
            assert_eq!(!quads.is_empty(), reached, "{row} {above}");
        }
    }
}
