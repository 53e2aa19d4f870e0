use super::*;
use crate::ops::{Divergence, Layout};
use crate::random::{Kind, Stream, Units, normal_f32};

const TABLE: [Divergence; 7] = [
    Divergence::ForwardKL,
    Divergence::ReverseKL,
    Divergence::JensenShannon { beta: 0.3 },
    Divergence::SkewKL { alpha: 0.1 },
    Divergence::SkewReverseKL { alpha: 0.2 },
    Divergence::TotalVariation,
    Divergence::Alpha { a: 0.5 },
];

fn noise(name: &str, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    let stream = Stream::new(1, name, 0, Kind::Normal);
    normal_f32(stream, Units::Range { first: 0, count: 1 }, count, &mut values).unwrap();
    values
}

fn dense(columns: usize) -> Layout {
    Layout { inner: usize::MAX, outer_stride: 0, inner_stride: columns }
}

/// Loss and gradient of a row by all its entries' probabilities.
fn exact(
    logits: &[f32],
    ids: &[i64],
    log_probs: &[f64],
    tail: f64,
    temperature: f64,
    divergence: Divergence,
) -> (f64, Vec<f64>) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let q: Vec<f64> = logits.iter().map(|&x| ((f64::from(x) - f64::from(largest)) / temperature).exp()).collect();
    let sum: f64 = q.iter().sum();
    let q: Vec<f64> = q.into_iter().map(|value| value / sum).collect();
    let is_entry = |column: usize| ids.contains(&(column as i64));
    let rest: f64 = (0..q.len()).filter(|&column| !is_entry(column)).map(|column| q[column]).sum();
    let (mut value, of_tail) = event(divergence, tail, rest.ln());
    let mut slopes = of_tail;
    let mut gradient: Vec<f64> = q.iter().map(|value| of_tail * value / rest).collect();
    for (&id, &log_p) in ids.iter().zip(log_probs).filter(|&(&id, _)| id >= 0) {
        let (d, h) = event(divergence, log_p, q[id as usize].ln());
        (value, slopes) = (value + d, slopes + h);
        gradient[id as usize] = h;
    }
    let gradient = gradient.iter().zip(&q).map(|(slope, q)| (slope - slopes * q) / temperature).collect();
    (value, gradient)
}

#[test]
fn every_level_agrees_with_double_precision() {
    // With a slope later blocks rise above the references of earlier ones.
    for (rows, columns, vocabulary, slope) in
        [(3, 5, 5, 0.0), (2, 1024, 1024, 0.0), (3, 2500, 2477, 0.0), (1, 17, 16, 0.0), (2, 4100, 4099, 60.0)]
    {
        let rise = |index: usize| slope * (index % columns / BLOCK) as f32;
        let noisy = noise("student", rows * columns).into_iter().enumerate();
        let mut student: Vec<f32> = noisy.map(|(index, x)| 3.0 * x + 20.0 + rise(index)).collect();
        let k = 4;
        let (mut ids, mut log_probs) = (Vec::new(), Vec::new());
        for row in 0..rows {
            let last = vocabulary as i64 - 1;
            ids.extend([last, -1, (row as i64 * 7 + 1) % (last / 2 + 1), last / 2 + 1]);
            log_probs.extend([0.2f64, 0.5, 0.3, 0.1].map(f64::ln));
        }
        let tail = vec![0.4f64.ln(); rows];
        for (level, divergence) in Level::all().into_iter().flat_map(|level| TABLE.map(|each| (level, each))) {
            let parts = [Part { divergence, weights: Weights::Same(1.0) }];
            let mut gradient = vec![7.0f32; student.len()];
            let mut losses = vec![0.0; rows];
            let temperature = 1.5;
            // SAFETY: the slices hold that many rows.
            let problem = unsafe {
                SparseProblem {
                    student: Matrix::new(student.as_mut_ptr(), dense(columns), columns),
                    vocabulary,
                    k,
                    ids: &ids,
                    log_probs: &log_probs,
                    tail: &tail,
                    parts: &parts,
                    temperature: &vec![temperature; rows],
                    scale: &vec![2.0; rows],
                    gradient: Some(Matrix::new(gradient.as_mut_ptr(), dense(columns), columns)),
                }
            };
            let total = run(level, &problem, &mut losses, &|| Ok(())).unwrap();
            assert_eq!(total, losses.iter().sum::<f64>());
            for row in 0..rows {
                let (range, of) = (row * k..(row + 1) * k, row * columns..row * columns + vocabulary);
                let (ids, log_probs) = (&ids[range.clone()], &log_probs[range]);
                let (value, due) = exact(&student[of], ids, log_probs, tail[row], temperature, divergence);
                assert!((losses[row] - 2.0 * value).abs() < 2e-6 * (1.0 + value.abs()), "{level:?} {divergence:?}");
                let size = due.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                for (index, due) in due.iter().enumerate() {
                    let got = f64::from(gradient[row * columns + index]);
                    assert!((got - 2.0 * due).abs() < 4e-6 * size + 1e-7, "{level:?} {divergence:?} {index}");
                }
                assert!(gradient[row * columns + vocabulary..(row + 1) * columns].iter().all(|&value| value == 0.0));
            }
        }
    }
}

#[test]
fn sizes_and_columns_are_checked() {
    let parts = [Part { divergence: Divergence::ForwardKL, weights: Weights::Each(&[1.0]) }];
    let mut student = vec![0.0f32; 4];
    // SAFETY: the slice holds the rows.
    let matrix = unsafe { Matrix::new(student.as_mut_ptr(), dense(2), 2) };
    let refused = |vocabulary, ids: &[i64], parts: &[Part<'_>]| {
        let problem = SparseProblem {
            student: matrix,
            vocabulary,
            k: 1,
            ids,
            log_probs: &[0.0; 2],
            tail: &[0.0; 2],
            parts,
            temperature: &[1.0; 2],
            scale: &[1.0; 2],
            gradient: None,
        };
        sparse_divergence(&problem, &mut [0.0; 2], &|| Ok(())).unwrap_err().to_string()
    };
    assert!(refused(3, &[0, 0], &parts[..0]).contains("vocabulary"));
    assert!(refused(2, &[0, 2], &parts[..0]).contains("ids"));
    assert!(refused(2, &[0], &parts[..0]).contains("ids"));
    assert!(refused(2, &[0, 1], &parts).contains("weights"));
}
