use std::slice;

use distillrs_core::Error;
use distillrs_core::ops::{
    self, Bf16, Divergence, Element, F16, Known, Layout, Matrix, Mixture, Part, Posterior, Problem, Ranking,
    SparseProblem, Statistics, Weights,
};
use pyo3::prelude::*;

use crate::error::{CoreError, CoreResult, check_signals};

/// Address, columns, rows in a run, elements between runs, elements between rows: of a CPU tensor that the caller keeps
/// alive for the call, from `distillrs.ops._layout`.
type Rows = (usize, usize, usize, usize, usize);

/// Address and length of a contiguous tensor that the caller keeps alive for the call.
type Vector = (usize, usize);

fn matrix<T>((address, columns, inner, outer_stride, inner_stride): Rows) -> Matrix<T> {
    let layout = Layout { inner, outer_stride, inner_stride };
    // SAFETY: the one caller of this private module passes the layout of a tensor of this type that it holds until the
    // call returns. Writing to it meanwhile from another thread is the user's error, as for torch's own functions.
    unsafe { Matrix::new(address as *mut T, layout, columns) }
}

fn vector<'a, T>((address, length): Vector) -> &'a [T] {
    if length == 0 {
        return &[];
    }
    // SAFETY: as in `matrix`.
    unsafe { slice::from_raw_parts(address as *const T, length) }
}

fn vector_mut<'a, T>((address, length): Vector) -> &'a mut [T] {
    if length == 0 {
        return &mut [];
    }
    // SAFETY: as in `matrix`; the tensor is new and nobody else has it.
    unsafe { slice::from_raw_parts_mut(address as *mut T, length) }
}

fn divergence(name: &str, parameter: f64) -> CoreResult<Divergence> {
    let parameter = parameter as f32;
    Ok(match name {
        "ForwardKL" => Divergence::ForwardKL,
        "ReverseKL" => Divergence::ReverseKL,
        "JensenShannon" => Divergence::JensenShannon { beta: parameter },
        "SkewKL" if parameter == 0.0 => Divergence::ForwardKL,
        "SkewKL" => Divergence::SkewKL { alpha: parameter },
        "SkewReverseKL" if parameter == 0.0 => Divergence::ReverseKL,
        "SkewReverseKL" => Divergence::SkewReverseKL { alpha: parameter },
        "TotalVariation" => Divergence::TotalVariation,
        "Alpha" => Divergence::Alpha { a: parameter },
        _ => return Err(Error::argument("divergence", name, "a divergence of the core").into()),
    })
}

fn unknown_dtype(dtype: &str) -> CoreError {
    Error::argument("dtype", dtype, "F32, BF16 or F16").into()
}

/// Runs `$body` with `$kind` as the type of a dtype's name.
macro_rules! with_dtype {
    ($dtype:expr, $kind:ident, $body:expr) => {
        match $dtype {
            "F32" => {
                type $kind = f32;
                $body
            }
            "BF16" => {
                type $kind = Bf16;
                $body
            }
            "F16" => {
                type $kind = F16;
                $body
            }
            other => Err(unknown_dtype(other)),
        }
    };
}

/// One divergence of a mixture: its name and parameter, the weight for all rows or one for each.
type PartOfMixture = (String, f64, f64, Option<Vector>);

/// Losses and divergences of all rows, the gradient where there is room for it; the sum of the losses.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one call")]
pub fn row_divergence(
    py: Python<'_>,
    dtypes: (String, String),
    student: Rows,
    teacher: Rows,
    vocabulary: usize,
    parts: Vec<PartOfMixture>,
    temperatures: (Vector, Vector),
    scales: (Vector, Vector),
    labels: Option<Vector>,
    gradient: Option<Rows>,
    losses: Vector,
    divergences: Vector,
) -> CoreResult<f64> {
    let parts = parts_of(&parts)?;
    let call = Call { student, teacher, vocabulary, parts: &parts, temperatures, scales, labels, gradient };
    let (losses, divergences) = (vector_mut(losses), vector_mut(divergences));
    py.detach(|| {
        with_dtype!(dtypes.0.as_str(), S, with_dtype!(dtypes.1.as_str(), T, call.run::<S, T>(losses, divergences)))
    })
}

struct Call<'a> {
    student: Rows,
    teacher: Rows,
    vocabulary: usize,
    parts: &'a [Part<'a>],
    temperatures: (Vector, Vector),
    scales: (Vector, Vector),
    labels: Option<Vector>,
    gradient: Option<Rows>,
}

impl Call<'_> {
    fn run<S: Element, T: Element>(&self, losses: &mut [f64], divergences: &mut [f64]) -> CoreResult<f64> {
        let problem = Problem::<S, T> {
            student: matrix(self.student),
            teacher: matrix(self.teacher),
            vocabulary: self.vocabulary,
            parts: self.parts,
            student_temperature: vector(self.temperatures.0),
            teacher_temperature: vector(self.temperatures.1),
            divergence_scale: vector(self.scales.0),
            label_scale: vector(self.scales.1),
            labels: self.labels.map(vector),
            gradient: self.gradient.map(matrix),
        };
        Ok(ops::row_divergence(&problem, losses, divergences, &check_signals)?)
    }
}

fn parts_of(parts: &[PartOfMixture]) -> CoreResult<Vec<Part<'_>>> {
    let part = |(name, parameter, weight, weights): &PartOfMixture| {
        let weights = weights.map_or(Weights::Same(*weight), |weights| Weights::Each(vector(weights)));
        Ok(Part { divergence: divergence(name, *parameter)?, weights })
    };
    parts.iter().map(part).collect()
}

/// Losses of all rows from top-k teachers, the gradient where there is room for it; the sum of the losses.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one call")]
pub fn sparse_row_divergence(
    py: Python<'_>,
    dtype: &str,
    student: Rows,
    vocabulary: usize,
    k: usize,
    top: (Vector, Vector, Vector),
    parts: Vec<PartOfMixture>,
    temperature: Vector,
    scale: Vector,
    gradient: Option<Rows>,
    losses: Vector,
) -> CoreResult<f64> {
    let parts = parts_of(&parts)?;
    let losses = vector_mut(losses);
    py.detach(|| {
        with_dtype!(dtype, S, {
            let problem = SparseProblem::<S> {
                student: matrix(student),
                vocabulary,
                k,
                ids: vector(top.0),
                log_probs: vector(top.1),
                tail: vector(top.2),
                parts: &parts,
                temperature: vector(temperature),
                scale: vector(scale),
                gradient: gradient.map(matrix),
            };
            Ok(ops::sparse_divergence(&problem, losses, &check_signals)?)
        })
    })
}

/// Losses of all rankings, the gradient where there is room for it; the sum of the losses.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one call")]
pub fn plackett_luce(
    py: Python<'_>,
    dtypes: (String, String),
    student: Rows,
    teacher: Rows,
    temperature: Vector,
    scale: Vector,
    labels: Vector,
    gradient: Option<Rows>,
    losses: Vector,
) -> CoreResult<f64> {
    let losses = vector_mut(losses);
    py.detach(|| {
        with_dtype!(
            dtypes.0.as_str(),
            S,
            with_dtype!(dtypes.1.as_str(), T, {
                let problem = Ranking::<S, T> {
                    student: matrix(student),
                    teacher: matrix(teacher),
                    temperature: vector(temperature),
                    scale: vector(scale),
                    labels: vector(labels),
                    gradient: gradient.map(matrix),
                };
                Ok(ops::plackett_luce(&problem, losses, &check_signals)?)
            })
        )
    })
}

/// Statistics of every row: log-sum-exp, entropy, arg max, and the places of the `k` largest.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one call")]
pub fn row_statistics(
    py: Python<'_>,
    dtype: &str,
    logits: Rows,
    vocabulary: usize,
    temperature: Vector,
    logsumexp: Vector,
    entropy: Vector,
    argmax: Vector,
    k: usize,
    top: Vector,
) -> CoreResult<()> {
    let out = Statistics {
        logsumexp: vector_mut(logsumexp),
        entropy: vector_mut(entropy),
        argmax: vector_mut(argmax),
        k,
        top: vector_mut(top),
    };
    py.detach(|| {
        with_dtype!(dtype, T, {
            let logits = matrix::<T>(logits);
            Ok(ops::row_statistics(logits, vocabulary, vector(temperature), out, &check_signals)?)
        })
    })
}

/// Rows, alpha, variance, points, weights if there are any; features of a row.
type MixtureOf = (Vector, Vector, Vector, Vector, Option<Vector>, usize);

fn mixture<'a>((x, alpha, variance, data, weights, width): MixtureOf) -> Mixture<'a> {
    Mixture {
        x: vector(x),
        alpha: vector(alpha),
        variance: vector(variance),
        data: vector(data),
        weights: weights.map(vector),
        width,
    }
}

/// Posterior mean of every row; the largest closeness and the sum relative to it.
#[pyfunction]
pub fn mixture_mean(py: Python<'_>, of: MixtureOf, mean: Vector, best: Vector, total: Vector) -> CoreResult<()> {
    let out = Posterior { mean: vector_mut(mean), best: vector_mut(best), total: vector_mut(total) };
    py.detach(|| Ok(ops::posterior_mean(&mixture(of), out, &check_signals)?))
}

/// Covariance of the features with their product with the direction.
#[pyfunction]
pub fn mixture_covariance(
    py: Python<'_>,
    of: MixtureOf,
    mean: Vector,
    best: Vector,
    total: Vector,
    direction: Vector,
    out: Vector,
) -> CoreResult<()> {
    let known = Known { mean: vector(mean), best: vector(best), total: vector(total), direction: vector(direction) };
    let out = vector_mut(out);
    py.detach(|| Ok(ops::posterior_covariance(&mixture(of), &known, out, &check_signals)?))
}

/// Reads two pieces of memory and writes a third, past the caches.
#[pyfunction]
pub fn memory_pass(py: Python<'_>, first: usize, second: usize, out: usize, bytes: usize) -> CoreResult<()> {
    if !out.is_multiple_of(64) {
        return Err(Error::argument("out", out, "an address that 64 divides").into());
    }
    py.detach(|| {
        // SAFETY: as in `matrix`; the benchmark passes three tensors of that size.
        unsafe { ops::memory_pass(first as *const f32, second as *const f32, out as *mut f32, bytes) }
    });
    Ok(())
}
