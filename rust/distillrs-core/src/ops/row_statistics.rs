//! Log-sum-exp, entropy, largest and most likely entries of rows of logits.

use std::f64::consts::{LN_2, LOG2_E};
use std::ptr;

use super::Level;
use super::element::Element;
use super::matrix::Matrix;
use super::passes::{BLOCK, Exponents, Mode, Passes, WIDEST};
use super::portable::Portable;
use super::row_divergence::{Totals, finite, larger};
use super::scratch::{Line, SCRATCH};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use crate::{Error, Result, parallel};

const ROWS_AT_ONCE: usize = 1 << 10;

/// Where the statistics go: a value for each row, `k` for the last two.
#[derive(Debug)]
pub struct Statistics<'a> {
    /// Natural log-sum-exp of the tempered logits.
    pub logsumexp: &'a mut [f64],
    /// Entropy in nats.
    pub entropy: &'a mut [f64],
    /// The largest logit's place, the first of equal ones; that of the first not-a-number if there is one.
    pub argmax: &'a mut [i64],
    /// How many of the largest are wanted.
    pub k: usize,
    /// Places of the largest logits, largest first, the first of equal ones first.
    pub top: &'a mut [i64],
}

/// Statistics of the first `vocabulary` columns of every row at its temperature.
///
/// # Errors
/// [`Error::Argument`] for sizes that do not fit; whatever `check` returns.
pub fn row_statistics<T: Element>(
    logits: Matrix<T>,
    vocabulary: usize,
    temperature: &[f64],
    out: Statistics<'_>,
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    run(Level::here(), logits, vocabulary, temperature, out, check)
}

fn run<T: Element>(
    level: Level,
    logits: Matrix<T>,
    vocabulary: usize,
    temperature: &[f64],
    out: Statistics<'_>,
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let rows = temperature.len();
    let k = out.k;
    if vocabulary == 0 || vocabulary > logits.columns() {
        return Err(Error::argument("vocabulary", vocabulary, format!("an integer from 1 to {}", logits.columns())));
    }
    if k > vocabulary {
        return Err(Error::argument("top_k", k, format!("an integer from 0 to {vocabulary}")));
    }
    let sizes = [out.logsumexp.len(), out.entropy.len(), out.argmax.len()];
    if sizes.iter().any(|&size| size != rows) || out.top.len() != rows * k {
        return Err(Error::argument("statistics", "vectors of another length", format!("{rows} rows")));
    }
    let mut tops: Vec<&mut [i64]> = if k == 0 { Vec::new() } else { out.top.chunks_mut(k).collect() };
    let mut tops = tops.drain(..);
    let mut tasks: Vec<_> = out
        .logsumexp
        .iter_mut()
        .zip(out.entropy)
        .zip(out.argmax)
        .enumerate()
        .map(|(row, ((logsumexp, entropy), argmax))| (row, logsumexp, entropy, argmax, tops.next().unwrap_or_default()))
        .collect();
    while !tasks.is_empty() {
        check()?;
        let rest = tasks.split_off(tasks.len().min(ROWS_AT_ONCE));
        parallel::for_each(tasks, |(row, logsumexp, entropy, argmax, top)| {
            let factor = LOG2_E / temperature[row];
            let found = match level {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level says that the processor has the instructions.
                Level::Avx512 => unsafe { one_row::<Avx512, T>(logits.row(row), vocabulary, factor, top) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level says that the processor has the instructions.
                Level::Avx2 => unsafe { one_row::<Avx2, T>(logits.row(row), vocabulary, factor, top) },
                // SAFETY: no special instructions.
                Level::Portable => unsafe { one_row::<Portable, T>(logits.row(row), vocabulary, factor, top) },
            };
            (*logsumexp, *entropy, *argmax) = found;
        });
        tasks = rest;
    }
    Ok(())
}

/// The pass of the divergences with a student whose logits are all 0: its "forward" sum is that of the entropy.
///
/// # Safety
/// The processor has the instructions of `P`; the row has that many entries.
unsafe fn one_row<P: Passes, T: Element>(
    row: *const T,
    vocabulary: usize,
    factor: f64,
    top: &mut [i64],
) -> (f64, f64, i64) {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.raw.resize(2 * BLOCK / WIDEST, Line([0.0; WIDEST]));
        let slot = &mut scratch.slots[0];
        slot.pending = None;
        slot.prepare(Mode::Forward, false, BLOCK, ptr::null_mut());
        let raw = scratch.raw.as_mut_ptr().cast::<f32>();
        let mut references = [0.0, f32::NEG_INFINITY];
        let mut totals = Totals::new(references);
        let (mut best, mut place, mut first_nan) = (f32::NEG_INFINITY, 0, None);
        let mut largest = Largest { entries: Vec::with_capacity(top.len() + 1), k: top.len() };
        for start in (0..vocabulary).step_by(BLOCK) {
            let count = BLOCK.min(vocabulary - start);
            // SAFETY: the row has `count` entries from `start` on; the scratch has room for a block of each stream.
            let (sums, values, block_best) = unsafe {
                let block_best = P::load(row.add(start), count, raw.add(BLOCK));
                raw.write_bytes(0, BLOCK);
                references[1] = larger(references[1], block_best);
                let task = Exponents {
                    count,
                    logits: [raw, raw.add(BLOCK)],
                    references: [0.0, finite(references[1])],
                    factors: [0.0, factor as f32],
                    ahead: [(ptr::null(), 0), (row.wrapping_add(start + BLOCK).cast(), size_of::<T>())],
                    kept: [ptr::null(); 2],
                };
                let sums = P::exponentials(Mode::Forward, false, &task, &slot.buffers(Mode::Forward, 0));
                (sums, std::slice::from_raw_parts(raw.add(BLOCK), count), block_best)
            };
            totals.add(references, &sums, [0.0, factor]);
            if first_nan.is_none() && sums.teacher.is_nan() {
                first_nan = values.iter().position(|value| value.is_nan()).map(|index| start + index);
            }
            if block_best > best {
                best = block_best;
                place = start + values.iter().position(|&value| value == best).unwrap_or(0);
            }
            if !sums.teacher.is_nan() && largest.excludes(block_best) {
                continue;
            }
            largest.take(start, values);
        }
        for (top, (_, index)) in top.iter_mut().zip(&largest.entries) {
            *top = *index as i64;
        }
        let logsumexp = LN_2 * (f64::from(references[1]) * factor + totals.teacher.log2());
        let entropy = logsumexp - LN_2 * totals.forward / totals.teacher;
        (logsumexp, entropy, first_nan.unwrap_or(place) as i64)
    })
}

/// The largest values so far, largest first; not-a-number counts as larger than any number.
struct Largest {
    entries: Vec<(f32, usize)>,
    k: usize,
}

impl Largest {
    /// Whether a number is too small to be taken.
    fn excludes(&self, value: f32) -> bool {
        self.k == 0 || self.entries.len() == self.k && self.entries.last().is_some_and(|last| value <= last.0)
    }

    fn take(&mut self, start: usize, values: &[f32]) {
        for (index, &value) in values.iter().enumerate() {
            if self.excludes(value) || self.k == 0 {
                continue;
            }
            let place = self.entries.partition_point(|entry| entry.0.is_nan() || entry.0 >= value);
            if place < self.k {
                self.entries.insert(place, (value, start + index));
                self.entries.truncate(self.k);
            }
        }
    }
}

/// Reads two pieces of memory and writes as much to a third, past the caches: what no kernel on two inputs can beat.
/// For benchmarks. Bytes after the last whole 64 are left alone.
///
/// # Safety
/// `bytes` bytes are at each address, the third one's writable and aligned to 64 bytes.
pub unsafe fn memory_pass(first: *const f32, second: *const f32, out: *mut f32, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_add_ps, _mm_loadu_ps, _mm_sfence, _mm_stream_ps};

        // As fast with four values as with sixteen: it waits for the memory.
        for index in (0..bytes / 64 * WIDEST).step_by(4) {
            // SAFETY: the caller's promise.
            unsafe {
                let sum = _mm_add_ps(_mm_loadu_ps(first.add(index)), _mm_loadu_ps(second.add(index)));
                _mm_stream_ps(out.add(index), sum);
            }
        }
        // SAFETY: every processor of this architecture has the instruction.
        unsafe { _mm_sfence() };
    }
    #[cfg(not(target_arch = "x86_64"))]
    for index in 0..bytes / 64 * WIDEST {
        // SAFETY: the caller's promise.
        unsafe { *out.add(index) = *first.add(index) + *second.add(index) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Layout;
    use crate::random::{Kind, Stream, Units, normal_f32};

    #[test]
    fn every_level_agrees_with_double_precision() {
        for (rows, columns, k) in [(3, 5, 5), (2, 1024, 1), (3, 2500, 40), (1, 17, 0)] {
            let mut logits = vec![0.0; rows * columns];
            let stream = Stream::new(1, "logits", 0, Kind::Normal);
            normal_f32(stream, Units::Range { first: 0, count: 1 }, logits.len(), &mut logits).unwrap();
            // A coarse grid makes ties.
            logits.iter_mut().for_each(|value| *value = (*value * 8.0).round() / 2.0);
            for level in Level::all() {
                let (mut logsumexp, mut entropy) = (vec![0.0; rows], vec![0.0; rows]);
                let (mut argmax, mut top) = (vec![0; rows], vec![0; rows * k]);
                let out = Statistics {
                    logsumexp: &mut logsumexp,
                    entropy: &mut entropy,
                    argmax: &mut argmax,
                    k,
                    top: &mut top,
                };
                let layout = Layout { inner: rows, outer_stride: 0, inner_stride: columns };
                // SAFETY: the vector holds the rows.
                let matrix = unsafe { Matrix::new(logits.as_mut_ptr(), layout, columns) };
                run(level, matrix, columns, &vec![2.0; rows], out, &|| Ok(())).unwrap();
                for row in 0..rows {
                    let values = &logits[row * columns..(row + 1) * columns];
                    let sum: f64 = values.iter().map(|&x| (f64::from(x) / 2.0).exp()).sum();
                    let mean: f64 = values.iter().map(|&x| f64::from(x) / 2.0 * (f64::from(x) / 2.0).exp() / sum).sum();
                    assert!((logsumexp[row] - sum.ln()).abs() < 1e-6, "{level:?}");
                    assert!((entropy[row] - (sum.ln() - mean)).abs() < 2e-6, "{level:?}");
                    let mut order: Vec<usize> = (0..columns).collect();
                    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
                    assert_eq!(argmax[row], order[0] as i64);
                    assert!(
                        top[row * k..(row + 1) * k].iter().zip(&order).all(|(&found, &index)| found == index as i64)
                    );
                }
            }
        }
    }
}
