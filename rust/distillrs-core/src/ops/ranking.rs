//! The weighted Plackett-Luce loss of rankings, with its gradient.
//!
//! With classes in the order of the ranking, R_k the log-sum-exp of the scores from position k on and a_k the weights, the
//! loss is `sum_k a_k (R_k - s_k)` and its derivative by s_i is `exp(s_i) sum_{k <= i} a_k exp(-R_k) - a_i`. The sums from
//! behind are kept relative to the largest score behind, and the prefix sums relative to `exp(-R_i)`, which only falls: no
//! exponential is above 1.

use std::cell::RefCell;
use std::ops::Range;

use super::element::Element;
use super::matrix::Matrix;
use super::row_divergence::{LOGITS_AT_ONCE, clear};
use crate::{Error, Result, parallel};

/// The rows of one call. The loss of a row is `scale` times the ranking's; a row whose scale is 0 is not looked at, and its
/// gradient is 0.
#[derive(Debug)]
pub struct Ranking<'a, S, T> {
    /// Scores of the student.
    pub student: Matrix<S>,
    /// Scores of the teacher, of as many classes.
    pub teacher: Matrix<T>,
    /// Temperature of the teacher's weights in each row.
    pub temperature: &'a [f64],
    /// For each row.
    pub scale: &'a [f64],
    /// First class of each row's ranking; looked at where the scale is not 0.
    pub labels: &'a [i64],
    /// Where the gradient goes; may be the student's memory.
    pub gradient: Option<Matrix<S>>,
}

/// Computes the loss of every row; returns their sum, taken in the rows' order. The result does not depend on the thread
/// count.
///
/// # Errors
/// [`Error::Argument`] for sizes that do not fit and labels that are no class; whatever `check` returns: then the gradient
/// is incomplete.
pub fn plackett_luce<S: Element, T: Element>(
    problem: &Ranking<'_, S, T>,
    losses: &mut [f64],
    check: &dyn Fn() -> Result<()>,
) -> Result<f64> {
    let rows = losses.len();
    validate(problem, rows)?;
    let threads = parallel::threads();
    // Sorting makes a score many times as dear as a logit of a divergence.
    let at_once = (LOGITS_AT_ONCE / 16 * threads / problem.student.columns()).max(threads);
    for start in (0..rows).step_by(at_once) {
        check()?;
        let end = rows.min(start + at_once);
        let size = (end - start).div_ceil(if threads == 1 { 1 } else { 4 * threads });
        let tasks: Vec<_> =
            losses[start..end].chunks_mut(size).enumerate().map(|(piece, out)| (start + piece * size, out)).collect();
        parallel::for_each(tasks, |(first, losses)| {
            let rows = first..first + losses.len();
            // SAFETY: the matrices hold the rows, and no other task has these.
            unsafe { some_rows(problem, rows, losses) };
        });
    }
    Ok(losses.iter().sum())
}

fn validate<S, T>(problem: &Ranking<'_, S, T>, rows: usize) -> Result<()> {
    let classes = problem.student.columns();
    // Places are kept in 32 bits beside the keys.
    if classes == 0 || classes > u32::MAX as usize {
        return Err(Error::argument("student", format!("{classes} classes"), format!("from 1 to {}", u32::MAX)));
    }
    if problem.teacher.columns() != classes {
        return Err(Error::argument("teacher", format!("{} classes", problem.teacher.columns()), classes.to_string()));
    }
    if problem.gradient.is_some_and(|gradient| gradient.columns() != classes) {
        return Err(Error::argument("gradient", "another number of columns", "the student's"));
    }
    let sizes =
        [("temperature", problem.temperature.len()), ("scale", problem.scale.len()), ("labels", problem.labels.len())];
    if let Some((name, size)) = sizes.into_iter().find(|&(_, size)| size != rows) {
        return Err(Error::argument(name, format!("{size} values"), format!("{rows}, one for each row")));
    }
    for (&label, &scale) in problem.labels.iter().zip(problem.scale) {
        if scale != 0.0 && usize::try_from(label).map_or(true, |label| label >= classes) {
            return Err(Error::argument("labels", label, format!("an entry from 0 to {}", classes - 1)));
        }
    }
    Ok(())
}

/// A position of a ranking.
#[derive(Clone, Copy)]
struct Position {
    class: usize,
    /// The teacher's weight.
    share: f64,
    /// The student's score.
    score: f64,
    /// The largest score from here on.
    largest: f64,
    /// Sum of the exponentials from here on, relative to it.
    sum: f64,
}

struct Scratch {
    keys: Vec<u64>,
    positions: Vec<Position>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { keys: Vec::new(), positions: Vec::new() }) };
}

/// # Safety
/// The matrices hold the rows, which nobody else uses.
unsafe fn some_rows<S: Element, T: Element>(problem: &Ranking<'_, S, T>, rows: Range<usize>, losses: &mut [f64]) {
    let classes = problem.student.columns();
    SCRATCH.with_borrow_mut(|scratch| {
        for (loss, row) in losses.iter_mut().zip(rows) {
            let scale = problem.scale[row];
            if scale == 0.0 {
                *loss = 0.0;
                if let Some(gradient) = problem.gradient {
                    // SAFETY: the row has that many elements.
                    unsafe { clear(gradient.row(row), classes) };
                }
                continue;
            }
            // SAFETY: the caller's promise.
            let (student, teacher) = unsafe {
                let student = problem.student.row(row).cast_const();
                let teacher = problem.teacher.row(row).cast_const();
                (std::slice::from_raw_parts(student, classes), std::slice::from_raw_parts(teacher, classes))
            };
            scratch.rank(student, teacher, problem.labels[row] as usize, problem.temperature[row]);
            *loss = scale * scratch.loss();
            if let Some(gradient) = problem.gradient {
                let to = gradient.row(row);
                // SAFETY: the row has room for every class; the scores that it may overwrite have been read.
                scratch.gradient(scale, |class, value| unsafe { *to.add(class) = S::narrow(value as f32) });
            }
        }
    });
}

impl Scratch {
    /// The ranking: the label, then the others by falling score of the teacher, equal ones by index.
    fn rank<S: Element, T: Element>(&mut self, student: &[S], teacher: &[T], label: usize, temperature: f64) {
        self.keys.clear();
        let others = teacher.iter().enumerate().filter(|&(class, _)| class != label);
        self.keys.extend(others.map(|(class, score)| u64::from(falling(score.wide())) << 32 | class as u64));
        self.keys.sort_unstable();
        let largest =
            teacher.iter().map(|score| score.wide()).fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b });
        let of_class = |class: usize| Position {
            class,
            share: ((f64::from(teacher[class].wide()) - f64::from(largest)) / temperature).exp(),
            score: f64::from(student[class].wide()),
            largest: 0.0,
            sum: 0.0,
        };
        self.positions.clear();
        self.positions.push(of_class(label));
        self.positions.extend(self.keys.iter().map(|key| of_class((key & u64::from(u32::MAX)) as usize)));
        let total: f64 = self.positions.iter().map(|position| position.share).sum();
        let (mut largest, mut sum) = (f64::NEG_INFINITY, 0.0);
        for position in self.positions.iter_mut().rev() {
            position.share /= total;
            if position.score > largest {
                sum *= (largest - position.score).exp();
                largest = position.score;
            }
            sum += (position.score - largest).exp();
            (position.largest, position.sum) = (largest, sum);
        }
    }

    fn loss(&self) -> f64 {
        self.positions.iter().map(|each| each.share * (each.largest - each.score + each.sum.ln())).sum()
    }

    /// Hands the derivative of every class on.
    fn gradient(&self, scale: f64, mut write: impl FnMut(usize, f64)) {
        let mut before = 0.0;
        let (mut largest, mut sum) = (self.positions[0].largest, self.positions[0].sum);
        for each in &self.positions {
            // sum_{k <= i} a_k exp(R_i - R_k).
            before *= each.sum / sum;
            if each.largest != largest {
                before *= (each.largest - largest).exp();
            }
            before += each.share;
            (largest, sum) = (each.largest, each.sum);
            let drawn = before * ((each.score - largest).exp() / sum);
            write(each.class, scale * (drawn - each.share));
        }
    }
}

/// A key that falls as the number rises, the same for both zeros.
fn falling(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    // Rising keys set the sign of positive numbers and turn negative ones around.
    let rising = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !rising
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Layout;

    /// Position by position, as the definition says.
    fn exact(student: &[f32], teacher: &[f32], label: usize, temperature: f64) -> (f64, Vec<f64>) {
        let mut order: Vec<usize> = (0..student.len()).filter(|&class| class != label).collect();
        order.sort_by(|&a, &b| teacher[b].partial_cmp(&teacher[a]).unwrap());
        order.insert(0, label);
        let weight = |class: usize| (f64::from(teacher[class]) / temperature).exp();
        let total: f64 = (0..student.len()).map(weight).sum();
        let (mut loss, mut gradient) = (0.0, vec![0.0; student.len()]);
        for (position, &class) in order.iter().enumerate() {
            let share = weight(class) / total;
            let sum: f64 = order[position..].iter().map(|&other| f64::from(student[other]).exp()).sum();
            loss += share * (sum.ln() - f64::from(student[class]));
            gradient[class] -= share;
            for &other in &order[position..] {
                gradient[other] += share * f64::from(student[other]).exp() / sum;
            }
        }
        (loss, gradient)
    }

    #[test]
    fn losses_and_gradients_are_those_of_drawing_position_by_position() {
        let (rows, classes) = (5, 7);
        // Ties among the teacher's scores, both zeros among them.
        let mut student: Vec<f32> = (0..rows * classes).map(|index| ((index * 37 % 23) as f32 - 11.0) / 3.0).collect();
        let mut teacher: Vec<f32> = (0..rows * classes).map(|index| -((index * 29 % 5) as f32 - 2.0)).collect();
        let layout = Layout { inner: usize::MAX, outer_stride: 0, inner_stride: classes };
        let mut gradient = vec![7.0f32; rows * classes];
        let labels = [0, 6, 3, -100, 1];
        let scale = [1.0, 2.0, 0.5, 0.0, 1.0];
        // SAFETY: the vectors hold the rows.
        let problem = unsafe {
            Ranking {
                student: Matrix::new(student.as_mut_ptr(), layout, classes),
                teacher: Matrix::new(teacher.as_mut_ptr(), layout, classes),
                temperature: &[1.0, 2.0, 0.5, 1.0, 1.0],
                scale: &scale,
                labels: &labels,
                gradient: Some(Matrix::new(gradient.as_mut_ptr(), layout, classes)),
            }
        };
        let mut losses = vec![0.0; rows];
        let total = plackett_luce(&problem, &mut losses, &|| Ok(())).unwrap();
        assert_eq!(total, losses.iter().sum::<f64>());
        for row in 0..rows {
            let range = row * classes..(row + 1) * classes;
            if scale[row] == 0.0 {
                assert!(losses[row] == 0.0 && gradient[range].iter().all(|&value| value == 0.0));
                continue;
            }
            let label = labels[row] as usize;
            let (loss, due) = exact(&student[range.clone()], &teacher[range.clone()], label, problem.temperature[row]);
            assert!((losses[row] - scale[row] * loss).abs() < 1e-12 * (1.0 + loss.abs()), "{} {loss}", losses[row]);
            for (found, due) in gradient[range].iter().zip(&due) {
                assert!((f64::from(*found) - scale[row] * due).abs() < 1e-7, "{found} {due}");
            }
        }
    }

    #[test]
    fn sizes_and_labels_are_checked() {
        let (mut student, mut teacher) = ([0.0f32; 4], [0.0f32; 4]);
        let layout = Layout { inner: 2, outer_stride: 0, inner_stride: 2 };
        // SAFETY: the arrays hold the rows.
        let matrix = |values: &mut [f32; 4], columns| unsafe { Matrix::new(values.as_mut_ptr(), layout, columns) };
        let (student, same, fewer) = (matrix(&mut student, 2), matrix(&mut teacher, 2), matrix(&mut teacher, 1));
        let refused = |teacher, scale: &[f64], labels: &[i64]| {
            let problem = Ranking { student, teacher, temperature: &[1.0; 2], scale, labels, gradient: None };
            plackett_luce(&problem, &mut [0.0; 2], &|| Ok(())).unwrap_err().to_string()
        };
        assert!(refused(fewer, &[1.0; 2], &[0, 1]).contains("teacher"));
        assert!(refused(same, &[1.0], &[0, 1]).contains("scale"));
        assert!(refused(same, &[1.0; 2], &[0, 2]).contains("labels"));
        assert!(refused(same, &[1.0; 2], &[0, -1]).contains("labels"));
    }
}
