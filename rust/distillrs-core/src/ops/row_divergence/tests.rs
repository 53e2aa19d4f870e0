use super::*;
use crate::ops::Layout;
use crate::random::{Kind, Stream, Units, normal_f32};

fn noise(name: &str, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    let stream = Stream::new(1, name, 0, Kind::Normal);
    normal_f32(stream, Units::Range { first: 0, count: 1 }, count, &mut values).unwrap();
    values
}

/// d and h of the table in `f64`, from the definitions.
fn terms(divergence: Divergence, p: f64, q: f64) -> (f64, f64) {
    match divergence {
        Divergence::ForwardKL => (p * (p / q).ln(), -p),
        Divergence::ReverseKL => (q * (q / p).ln(), q * ((q / p).ln() + 1.0)),
        Divergence::JensenShannon { beta } => {
            let beta = f64::from(beta);
            let m = beta * p + (1.0 - beta) * q;
            let own = (1.0 - beta) * q * (q / m).ln();
            (beta * p * (p / m).ln() + own, own)
        }
        Divergence::SkewKL { alpha } => {
            let alpha = f64::from(alpha);
            let m = alpha * p + (1.0 - alpha) * q;
            (p * (p / m).ln(), -(1.0 - alpha) * p * q / m)
        }
        Divergence::SkewReverseKL { alpha } => {
            let alpha = f64::from(alpha);
            let m = (1.0 - alpha) * p + alpha * q;
            (q * (q / m).ln(), q * ((q / m).ln() + 1.0 - alpha * q / m))
        }
        Divergence::TotalVariation => ((p - q).abs() / 2.0, q * (q - p).signum() / 2.0),
        Divergence::Alpha { a } => {
            let a = f64::from(a);
            let power = p.powf(a) * q.powf(1.0 - a);
            ((power - a * p - (1.0 - a) * q) / (a * (a - 1.0)), (q - power) / a)
        }
    }
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> =
        logits.iter().map(|&x| ((f64::from(x) - f64::from(largest)) / temperature).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / sum).collect()
}

const TABLE: [Divergence; 7] = [
    Divergence::ForwardKL,
    Divergence::ReverseKL,
    Divergence::JensenShannon { beta: 0.3 },
    Divergence::SkewKL { alpha: 0.1 },
    Divergence::SkewReverseKL { alpha: 0.2 },
    Divergence::TotalVariation,
    Divergence::Alpha { a: 0.5 },
];

fn dense(columns: usize) -> Layout {
    Layout { inner: usize::MAX, outer_stride: 0, inner_stride: columns }
}

struct Outcome {
    losses: Vec<f64>,
    gradient: Vec<f32>,
    total: f64,
}

#[expect(clippy::too_many_arguments, reason = "a test's settings")]
fn compute(
    level: Level,
    parts: &[Part<'_>],
    student: &mut [f32],
    teacher: &mut [f32],
    rows: usize,
    vocabulary: usize,
    temperatures: [f64; 2],
    labels: Option<&[i64]>,
    in_place: bool,
) -> Outcome {
    let columns = student.len() / rows;
    let mut apart = vec![7.0; student.len()];
    let gradient = if in_place { student.as_mut_ptr() } else { apart.as_mut_ptr() };
    // SAFETY: the slices hold that many rows.
    let problem = unsafe {
        Problem {
            student: Matrix::new(student.as_mut_ptr(), dense(columns), columns),
            teacher: Matrix::new(teacher.as_mut_ptr(), dense(columns), columns),
            vocabulary,
            parts,
            student_temperature: &vec![temperatures[0]; rows],
            teacher_temperature: &vec![temperatures[1]; rows],
            divergence_scale: &vec![1.5; rows],
            label_scale: &vec![if labels.is_some() { 0.5 } else { 0.0 }; rows],
            labels,
            gradient: Some(Matrix::new(gradient, dense(columns), columns)),
        }
    };
    let (mut losses, mut divergences) = (vec![0.0; rows], vec![0.0; rows]);
    let total = run(level, &problem, &mut losses, &mut divergences, &|| Ok(())).unwrap();
    Outcome { losses, gradient: if in_place { student.to_vec() } else { apart }, total }
}

#[test]
fn every_level_agrees_with_double_precision() {
    // With a slope later blocks rise above the references of earlier ones.
    let shapes = [(3, 5, 5, 0.0), (2, 1024, 1024, 0.0), (3, 2500, 2477, 0.0), (1, 17, 16, 0.0)];
    for (rows, columns, vocabulary, slope) in shapes.into_iter().chain([(2, 4100, 4099, 3.0), (2, 4100, 4099, 60.0)]) {
        let rise = |index: usize| slope * (index % columns / BLOCK) as f32;
        let logits = |name: &str| noise(name, rows * columns).into_iter().enumerate();
        let mut student: Vec<f32> = logits("student").map(|(index, x)| 3.0 * x + 20.0 + rise(index)).collect();
        let mut teacher: Vec<f32> = logits("teacher").map(|(index, x)| 3.0 * x + rise(index)).collect();
        let labels: Vec<i64> = (0..rows).map(|row| ((vocabulary - 1 + row * 3) % vocabulary) as i64).collect();
        let mut mixtures: Vec<Vec<Part<'_>>> =
            TABLE.iter().map(|&divergence| vec![Part { divergence, weights: Weights::Same(1.0) }]).collect();
        mixtures.push(mixtures.iter().flatten().map(|part| Part { weights: Weights::Same(0.3), ..*part }).collect());
        mixtures.push(mixtures[..2].concat());
        for level in Level::all() {
            for parts in &mixtures {
                for (temperatures, labels) in
                    [([1.0, 1.0], Some(&labels[..])), ([2.0, 0.5], Some(&labels[..])), ([2.0, 3.0], None)]
                {
                    let found = compute(
                        level,
                        parts,
                        &mut student,
                        &mut teacher,
                        rows,
                        vocabulary,
                        temperatures,
                        labels,
                        false,
                    );
                    let mut total = 0.0;
                    for row in 0..rows {
                        let range = row * columns..row * columns + vocabulary;
                        let q = softmax(&student[range.clone()], temperatures[0]);
                        let p = softmax(&teacher[range.clone()], temperatures[1]);
                        let soft = softmax(&student[range.clone()], 1.0);
                        let pair = |index: usize| {
                            parts.iter().fold((0.0, 0.0), |(d, h), part| {
                                let (more, slope) = terms(part.divergence, p[index], q[index]);
                                let weight = part.weights.of(row);
                                (d + weight * more, h + weight * slope)
                            })
                        };
                        let (value, slope) = (0..vocabulary).map(pair).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
                        let label = labels.map(|labels| labels[row] as usize);
                        let loss = 1.5 * value + label.map_or(0.0, |label| -0.5 * soft[label].ln());
                        total += found.losses[row];
                        assert!(
                            (found.losses[row] - loss).abs() <= 3e-6 * (1.0 + loss.abs()),
                            "{level:?} {parts:?}: {} {loss}",
                            found.losses[row]
                        );
                        let exact: Vec<f64> = (0..vocabulary)
                            .map(|index| {
                                let own = 1.5 * (pair(index).1 - q[index] * slope) / temperatures[0];
                                let one_hot = if Some(index) == label { 1.0 } else { 0.0 };
                                own + label.map_or(0.0, |_| 0.5 * (soft[index] - one_hot))
                            })
                            .collect();
                        let largest = exact.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                        for (index, exact) in exact.iter().enumerate() {
                            let got = f64::from(found.gradient[row * columns + index]);
                            assert!(
                                (got - exact).abs() <= 2e-6 * largest + 1e-7,
                                "{level:?} {parts:?} {index}: {got} {exact}"
                            );
                        }
                        let beyond = &found.gradient[row * columns + vocabulary..(row + 1) * columns];
                        assert!(beyond.iter().all(|&value| value == 0.0));
                    }
                    assert_eq!(total, found.total);
                }
            }
        }
    }
}

#[test]
fn a_gradient_in_the_logits_place_has_the_same_bits() {
    // The rows' own memory takes the exponentials on the way, all but those of a last block that is no whole vectors; what
    // lies beyond the vocabulary, and the row after, must not be touched by them.
    for (rows, columns, vocabulary, slope) in [(3, 5, 5, 0.0), (2, 3100, 3087, 0.0), (3, 2 * BLOCK, 2 * BLOCK, 40.0)] {
        let rise = |index: usize| slope * (index % columns / BLOCK) as f32;
        let logits = |name: &str| noise(name, rows * columns).into_iter().enumerate();
        let student: Vec<f32> = logits("student").map(|(index, x)| 3.0 * x + rise(index)).collect();
        let mut teacher: Vec<f32> = logits("teacher").map(|(index, x)| 3.0 * x - rise(index)).collect();
        let labels: Vec<i64> = (0..rows).map(|row| (vocabulary - 1 - row) as i64).collect();
        for level in Level::all() {
            for divergence in TABLE {
                let mut own = student.clone();
                let mut outcome = |in_place| {
                    let parts = [Part { divergence, weights: Weights::Same(1.0) }];
                    let (temperatures, labels) = ([2.0, 0.5], Some(&labels[..]));
                    compute(level, &parts, &mut own, &mut teacher, rows, vocabulary, temperatures, labels, in_place)
                };
                let (apart, in_place) = (outcome(false), outcome(true));
                assert_eq!(in_place.losses, apart.losses, "{level:?} {divergence:?}");
                assert_eq!(in_place.gradient, apart.gradient, "{level:?} {divergence:?}");
            }
        }
    }
}

#[test]
fn sizes_and_labels_are_checked() {
    let parts = [Part { divergence: Divergence::ForwardKL, weights: Weights::Same(1.0) }];
    let (mut student, mut teacher) = (vec![0.0f32; 4], vec![0.0f32; 4]);
    // SAFETY: the slices hold the rows.
    let make = |vocabulary, labels| unsafe {
        Problem {
            student: Matrix::new(student.as_mut_ptr(), dense(2), 2),
            teacher: Matrix::new(teacher.as_mut_ptr(), dense(2), 2),
            vocabulary,
            parts: &parts,
            student_temperature: &[1.0; 2],
            teacher_temperature: &[1.0; 2],
            divergence_scale: &[1.0; 2],
            label_scale: &[1.0; 2],
            labels,
            gradient: None,
        }
    };
    let mut make = make;
    let (mut losses, mut divergences) = ([0.0; 2], [0.0; 2]);
    let mut refused = |problem: &Problem<'_, f32, f32>| {
        row_divergence(problem, &mut losses, &mut divergences, &|| Ok(())).unwrap_err().to_string()
    };
    assert!(refused(&make(3, Some(&[0, 1]))).contains("vocabulary"));
    assert!(refused(&make(2, Some(&[0, 2]))).contains("labels"));
    assert!(refused(&make(2, Some(&[0]))).contains("labels"));
    assert!(refused(&make(2, None)).contains("labels"));
}
