//! Divergences between rows of logits, with the gradient in the same call.
//!
//! Three steps for each row, block by block: exponentials and their sums (the only one that reads the logits), the
//! elementwise functions where the divergence is not linear, the gradient. The gradient of a row is written between the
//! first step's blocks of the next row, so that the arithmetic of one hides the memory traffic of the other.

use std::any::TypeId;
use std::f64::consts::{LN_2, LOG2_E};
use std::ops::Range;
use std::ptr;

use super::Level;
use super::element::Element;
use super::matrix::Matrix;
use super::passes::{
    AHEAD, BLOCK, Buffers, Coefficients, Exponents, Label, Mode, Passes, Scales, Stretch, Sums, WIDEST,
};
use super::point::Divergence;
use super::portable::Portable;
use super::scratch::{Line, Pending, SCRATCH, Scratch};
use super::vector::SMALLEST;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use crate::host::rounds_to_bf16;
use crate::{Error, Result, parallel};

/// Logits between two looks at whether to stop, for each thread.
pub(super) const LOGITS_AT_ONCE: usize = 1 << 25;

/// Bytes of buffers that the second cache of a common processor holds beside the rows on their way.
pub(super) const CACHE: usize = 768 << 10;

/// Powers of two by which a row's exponentials may exceed 1 before its reference moves: little, because what is summed
/// relative to a far reference cancels.
pub(super) const NEAR: f64 = 4.0;

/// A weight for all rows, or one for each.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// For all.
    Same(f64),
    /// For each.
    Each(&'a [f64]),
}

impl Weights<'_> {
    pub(super) fn of(self, row: usize) -> f64 {
        match self {
            Self::Same(weight) => weight,
            Self::Each(weights) => weights[row],
        }
    }
}

/// One divergence of a mixture.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Which.
    pub divergence: Divergence,
    /// Its share.
    pub weights: Weights<'a>,
}

/// The rows of one call. The loss of a row is `divergence_scale D + label_scale CE`, the cross-entropy with its label at
/// temperature 1; a row whose scales are both 0 is not looked at, and its gradient is 0.
#[derive(Debug)]
pub struct Problem<'a, S, T> {
    /// Logits of the student.
    pub student: Matrix<S>,
    /// Logits of the teacher.
    pub teacher: Matrix<T>,
    /// Columns that count.
    pub vocabulary: usize,
    /// D is the sum of these; one at least.
    pub parts: &'a [Part<'a>],
    /// Temperature of each row of the student.
    pub student_temperature: &'a [f64],
    /// And of the teacher.
    pub teacher_temperature: &'a [f64],
    /// For each row.
    pub divergence_scale: &'a [f64],
    /// For each row.
    pub label_scale: &'a [f64],
    /// For each row; looked at where the label's scale is not 0.
    pub labels: Option<&'a [i64]>,
    /// Where the gradient goes; may be the student's memory.
    pub gradient: Option<Matrix<S>>,
}

/// Computes the loss of every row into `losses` and D into `divergences`; returns the sum of the losses, taken in the
/// rows' order. The result does not depend on the thread count.
///
/// # Errors
/// [`Error::Argument`] for sizes that do not fit and labels outside the vocabulary; whatever `check` returns: then the
/// gradient is incomplete.
pub fn row_divergence<S: Element, T: Element>(
    problem: &Problem<'_, S, T>,
    losses: &mut [f64],
    divergences: &mut [f64],
    check: &dyn Fn() -> Result<()>,
) -> Result<f64> {
    run(Level::here(), problem, losses, divergences, check)
}

fn run<S: Element, T: Element>(
    level: Level,
    problem: &Problem<'_, S, T>,
    losses: &mut [f64],
    divergences: &mut [f64],
    check: &dyn Fn() -> Result<()>,
) -> Result<f64> {
    let rows = losses.len();
    validate(problem, rows, divergences.len())?;
    let threads = parallel::threads();
    let at_once = (LOGITS_AT_ONCE * threads / problem.vocabulary).max(threads);
    for start in (0..rows).step_by(at_once) {
        check()?;
        let end = rows.min(start + at_once);
        // A few pieces for each thread even out what else the machine does; fewer leave more to interleave.
        let size = (end - start).div_ceil(if threads == 1 { 1 } else { 4 * threads });
        let pieces = losses[start..end].chunks_mut(size).zip(divergences[start..end].chunks_mut(size));
        let tasks: Vec<_> = pieces.enumerate().map(|(piece, out)| (start + piece * size, out)).collect();
        parallel::for_each(tasks, |(first, (losses, divergences))| {
            let rows = first..first + losses.len();
            match level {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level and the question say that the processor has the instructions.
                Level::Avx512 if rounds_to_bf16() => unsafe {
                    some_rows::<Avx512<true>, S, T>(problem, rows, losses, divergences)
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level says that the processor has the instructions.
                Level::Avx512 => unsafe { some_rows::<Avx512, S, T>(problem, rows, losses, divergences) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level says that the processor has the instructions.
                Level::Avx2 => unsafe { some_rows::<Avx2, S, T>(problem, rows, losses, divergences) },
                // SAFETY: no special instructions.
                Level::Portable => unsafe { some_rows::<Portable, S, T>(problem, rows, losses, divergences) },
            }
        });
    }
    Ok(losses.iter().sum())
}

fn validate<S, T>(problem: &Problem<'_, S, T>, rows: usize, divergences: usize) -> Result<()> {
    let columns = problem.student.columns().min(problem.teacher.columns());
    if problem.vocabulary == 0 || problem.vocabulary > columns {
        return Err(Error::argument("vocabulary", problem.vocabulary, format!("an integer from 1 to {columns}")));
    }
    if problem.gradient.is_some_and(|gradient| gradient.columns() != problem.student.columns()) {
        return Err(Error::argument("gradient", "another number of columns", "the student's"));
    }
    let mut sizes = vec![
        ("divergences", divergences),
        ("student_temperature", problem.student_temperature.len()),
        ("teacher_temperature", problem.teacher_temperature.len()),
        ("divergence_scale", problem.divergence_scale.len()),
        ("label_scale", problem.label_scale.len()),
    ];
    for part in problem.parts {
        if let Weights::Each(weights) = part.weights {
            sizes.push(("weights", weights.len()));
        }
    }
    if let Some(labels) = problem.labels {
        sizes.push(("labels", labels.len()));
    }
    if let Some((name, size)) = sizes.into_iter().find(|&(_, size)| size != rows) {
        return Err(Error::argument(name, format!("{size} values"), format!("{rows}, one for each row")));
    }
    for (row, &scale) in problem.label_scale.iter().enumerate() {
        if scale != 0.0 {
            let label = problem.labels.map_or(-1, |labels| labels[row]);
            if usize::try_from(label).map_or(true, |label| label >= problem.vocabulary) {
                let allowed = format!("an entry from 0 to {}", problem.vocabulary - 1);
                return Err(Error::argument("labels", label, allowed));
            }
        }
    }
    Ok(())
}

/// # Safety
/// The processor has the instructions of `P`; the matrices hold the rows.
unsafe fn some_rows<P: Passes, S: Element, T: Element>(
    problem: &Problem<'_, S, T>,
    rows: Range<usize>,
    losses: &mut [f64],
    divergences: &mut [f64],
) {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.raw.resize(2 * BLOCK / WIDEST, Line([0.0; WIDEST]));
        let mut work = Worker::new(problem, scratch);
        let first = rows.start;
        for row in rows.clone() {
            // SAFETY: the caller's promise.
            let (loss, divergence) = unsafe { work.row::<P>(row, rows.end) };
            losses[row - first] = loss;
            divergences[row - first] = divergence;
        }
        // SAFETY: the caller's promise.
        unsafe { work.finish::<P>() };
    });
}

/// Sums of a whole row in `f64`, relative to its references.
#[derive(Default)]
pub(super) struct Totals {
    references: [f32; 2],
    student: f64,
    pub teacher: f64,
    plain: f64,
    pub forward: f64,
    reverse: f64,
}

struct Worker<'a, S, T> {
    problem: &'a Problem<'a, S, T>,
    mode: Mode,
    scratch: &'a mut Scratch,
    current: usize,
    /// Two rows' buffers would not stay in the cache: each row's gradient follows at once.
    is_long: bool,
    /// The row that a second step asks the memory for: it needs nothing of the memory itself.
    next: Option<usize>,
}

impl<'a, S: Element, T: Element> Worker<'a, S, T> {
    fn new(problem: &'a Problem<'a, S, T>, scratch: &'a mut Scratch) -> Self {
        let mode = match problem.parts {
            [part] if part.divergence == Divergence::ForwardKL => Mode::Forward,
            [part] if part.divergence == Divergence::ReverseKL => Mode::Reverse,
            [part] if part.divergence.needs_logs() => Mode::Logs,
            [_] => Mode::Point,
            parts if parts.iter().all(|part| part.divergence.is_linear()) => Mode::Pair,
            _ => Mode::All,
        };
        for slot in &mut scratch.slots {
            // What an interrupted call left.
            slot.pending = None;
        }
        let bytes = mode.streams() * problem.vocabulary * size_of::<f32>();
        Self { problem, mode, scratch, current: 0, is_long: 2 * bytes > CACHE, next: None }
    }

    /// Loss and divergence of a row; its gradient waits for the next one.
    unsafe fn row<P: Passes>(&mut self, row: usize, end: usize) -> (f64, f64) {
        let (scale, label_scale) = (self.problem.divergence_scale[row], self.problem.label_scale[row]);
        if scale == 0.0 && label_scale == 0.0 {
            self.skip(row);
            return (0.0, 0.0);
        }
        self.next = (row + 1 < end && !self.is_long).then_some(row + 1);
        let temperature = self.problem.student_temperature[row];
        let with_plain = label_scale != 0.0 && temperature != 1.0;
        let label = self.problem.labels.filter(|_| label_scale != 0.0).map(|labels| labels[row] as usize);
        // SAFETY: the label was checked; nothing has been written to this row yet.
        let label_logit = label.map(|label| f64::from(unsafe { *self.problem.student.row(row).add(label) }.wide()));
        let gradient = match self.problem.gradient {
            // The label's logit, the only one that is looked at twice, has been read.
            Some(gradient) if TypeId::of::<S>() == TypeId::of::<f32>() => gradient.row(row).cast(),
            _ => ptr::null_mut(),
        };
        self.scratch.slots[self.current].prepare(self.mode, with_plain, self.problem.vocabulary, gradient);
        // SAFETY: the caller's promise.
        let totals = unsafe { self.first_step::<P>(row, end, with_plain) };

        let factors = self.factors(row);
        let [student_max, teacher_max] = totals.references.map(f64::from);
        // Base-2 logarithms of the sums over the tempered exponentials.
        let student_log = student_max * factors[0] + totals.student.log2();
        let teacher_log = teacher_max * factors[1] + totals.teacher.log2();
        let apart = LN_2 * (student_log - teacher_log);
        let forward = LN_2 * totals.forward / totals.teacher + apart;
        let reverse = LN_2 * totals.reverse / totals.student - apart;

        let (mut divergence, mut slope) = (0.0, 0.0);
        let (mut forward_weight, mut reverse_weight) = (0.0, 0.0);
        let mut is_first = true;
        for part in self.problem.parts {
            let weight = part.weights.of(row);
            if weight == 0.0 {
                // Not even where it is infinite.
                continue;
            }
            match part.divergence {
                Divergence::ForwardKL => {
                    forward_weight += weight;
                    divergence += weight * forward;
                    slope -= weight;
                }
                Divergence::ReverseKL => {
                    reverse_weight += weight;
                    divergence += weight * reverse;
                    slope += weight * (reverse + 1.0);
                }
                other => {
                    // SAFETY: the caller's promise.
                    let (d, h) = unsafe {
                        self.second_step::<P>(other, weight, !is_first, &totals, [student_log, teacher_log], factors)
                    };
                    is_first = false;
                    divergence += weight * d;
                    slope += weight * h;
                }
            }
        }
        let mut loss = if scale == 0.0 { 0.0 } else { scale * divergence };
        if let Some(logit) = label_logit {
            let sum = if with_plain { totals.plain } else { totals.student };
            loss += label_scale * (student_max + sum.ln() - logit);
        }
        if self.problem.gradient.is_some() {
            if is_first && matches!(self.mode, Mode::All | Mode::Point | Mode::Logs) {
                self.clear_derivative();
            }
            let gain = scale / temperature;
            let linear = reverse_weight - slope;
            let [shared, own] = if with_plain { [0.0, label_scale] } else { [label_scale, 0.0] };
            let slot = &mut self.scratch.slots[self.current];
            let mut before: Option<([f32; 2], Coefficients)> = None;
            for (coefficients, &references) in slot.coefficients.iter_mut().zip(&slot.references) {
                if let Some((of, known)) = before
                    && of == references
                {
                    *coefficients = known;
                    continue;
                }
                let [student, teacher] = references.map(|reference| f64::from(finite(reference)));
                let student_scale = shrink((student - student_max) * factors[0]) / totals.student;
                let teacher_scale = shrink((teacher - teacher_max) * factors[1]) / totals.teacher;
                let plain_scale = shrink((student - student_max) * LOG2_E) / totals.plain;
                let mut a = if scale == 0.0 { 0.0 } else { gain * linear };
                if reverse_weight != 0.0 && scale != 0.0 {
                    a += gain * reverse_weight * (LN_2 * (student * factors[0] - teacher * factors[1]) - apart);
                }
                *coefficients = Coefficients {
                    a: (student_scale * (a + shared)) as f32,
                    b: (student_scale * gain * reverse_weight * LN_2) as f32,
                    c: (teacher_scale * gain * forward_weight) as f32,
                    h: gain as f32,
                    l: (plain_scale * own) as f32,
                };
                before = Some((references, *coefficients));
            }
            slot.pending = Some(Pending { row, with_plain, label: label.map(|label| (label, label_scale as f32)) });
        }
        self.current = 1 - self.current;
        if self.is_long {
            // SAFETY: the caller's promise.
            unsafe { self.finish::<P>() };
        }
        (loss, divergence)
    }

    /// log2(e) / T of student and teacher.
    fn factors(&self, row: usize) -> [f64; 2] {
        [LOG2_E / self.problem.student_temperature[row], LOG2_E / self.problem.teacher_temperature[row]]
    }

    /// Exponentials of all blocks; between them the gradient of the row before.
    unsafe fn first_step<P: Passes>(&mut self, row: usize, end: usize, with_plain: bool) -> Totals {
        let problem = self.problem;
        let factors = self.factors(row);
        let (student, teacher) = (problem.student.row(row).cast_const(), problem.teacher.row(row).cast_const());
        let next = if row + 1 < end { row + 1 } else { row };
        let (next_student, next_teacher) =
            (problem.student.row(next).cast_const(), problem.teacher.row(next).cast_const());
        let raw = self.scratch.raw.as_mut_ptr().cast::<f32>();
        let mut totals = Totals::new([f32::NEG_INFINITY; 2]);
        for (block, start) in (0..problem.vocabulary).step_by(BLOCK).enumerate() {
            let count = BLOCK.min(problem.vocabulary - start);
            let after = start + AHEAD;
            let (ahead_student, ahead_teacher) = if after < problem.vocabulary {
                (student.wrapping_add(after), teacher.wrapping_add(after))
            } else {
                let after = after - problem.vocabulary;
                (next_student.wrapping_add(after), next_teacher.wrapping_add(after))
            };
            let before = self.scratch.slots[1 - self.current].buffers(self.mode, block);
            // SAFETY: the row has `count` elements from `start` on, and a block of raw values has room for them; the
            // slot's streams have room for every block of the vocabulary.
            unsafe {
                let block_of = BlockOf {
                    mode: self.mode,
                    with_plain,
                    count,
                    before: totals.references,
                    factors,
                    ahead: [(ahead_student.cast(), size_of::<S>()), (ahead_teacher.cast(), size_of::<T>())],
                    kept: [before.student, before.teacher],
                };
                let out = self.scratch.slots[self.current].buffers(self.mode, block);
                let (from_student, from_teacher) = (student.add(start), teacher.add(start));
                let (sums, references) = if TypeId::of::<S>() == TypeId::of::<T>() {
                    let logits = [from_student, from_teacher.cast()];
                    let largest = logits.map(|from| P::largest(from, count));
                    block_of.exponentials::<P, S>(logits, largest, &out)
                } else {
                    let largest = [P::load(from_student, count, raw), P::load(from_teacher, count, raw.add(BLOCK))];
                    block_of.exponentials::<P, f32>([raw, raw.add(BLOCK)], largest, &out)
                };
                self.scratch.slots[self.current].references[block] = references;
                totals.add(references, &sums, factors);
                self.last_step::<P>(1 - self.current, block);
            }
        }
        self.scratch.slots[1 - self.current].pending = None;
        totals
    }

    /// The elementwise functions of a divergence over all blocks; the sums of d and h.
    unsafe fn second_step<P: Passes>(
        &mut self,
        divergence: Divergence,
        weight: f64,
        add: bool,
        totals: &Totals,
        logs: [f64; 2],
        factors: [f64; 2],
    ) -> (f64, f64) {
        let (mut d, mut h) = (0.0, 0.0);
        let [student_max, teacher_max] = totals.references.map(f64::from);
        let next = self.next.take();
        let (mut references, mut scales) = ([f32::NAN; 2], Scales::default());
        for (block, start) in (0..self.problem.vocabulary).step_by(BLOCK).enumerate() {
            let slot = &mut self.scratch.slots[self.current];
            if slot.references[block] != references {
                references = slot.references[block];
                let [student, teacher] = references.map(|reference| f64::from(finite(reference)));
                scales = Scales {
                    student: (shrink((student - student_max) * factors[0]) / totals.student) as f32,
                    teacher: (shrink((teacher - teacher_max) * factors[1]) / totals.teacher) as f32,
                    student_log: (student * factors[0] - logs[0]) as f32,
                    teacher_log: (teacher * factors[1] - logs[1]) as f32,
                };
            }
            let stretch = Stretch {
                padded: BLOCK.min(self.problem.vocabulary - start).next_multiple_of(WIDEST),
                ahead: next.map_or([(ptr::null(), 0); 2], |row| {
                    let problem = self.problem;
                    let student = problem.student.row(row).cast_const().wrapping_add(start).cast();
                    let teacher = problem.teacher.row(row).cast_const().wrapping_add(start).cast();
                    [(student, size_of::<S>()), (teacher, size_of::<T>())]
                }),
            };
            let buffers = slot.buffers(self.mode, block);
            // SAFETY: the caller's promise; the streams have room for every block.
            let sums = unsafe { P::point(divergence, weight as f32, add, &scales, &stretch, &buffers) };
            d += f64::from(sums.0);
            h += f64::from(sums.1);
        }
        (d, h)
    }

    /// The gradient of a block of the row that waits in a slot, if one does.
    unsafe fn last_step<P: Passes>(&mut self, slot: usize, block: usize) {
        let (problem, mode) = (self.problem, self.mode);
        let slot = &mut self.scratch.slots[slot];
        let (Some(pending), Some(gradient)) = (slot.pending, problem.gradient) else { return };
        let start = block * BLOCK;
        let count = BLOCK.min(problem.vocabulary - start);
        let label = pending.label.filter(|(label, _)| (start..start + count).contains(label));
        let label = label.map(|(label, amount)| Label { index: label - start, amount });
        let buffers = slot.buffers(mode, block);
        let to = gradient.row(pending.row);
        // SAFETY: the caller's promise; the row has room for `count` elements from `start` on.
        unsafe {
            P::gradient(mode, pending.with_plain, &slot.coefficients[block], &buffers, label, to.add(start), count);
            if start + count == problem.vocabulary {
                clear(to.add(problem.vocabulary), gradient.columns() - problem.vocabulary);
            }
        }
    }

    /// The gradient of the last row.
    unsafe fn finish<P: Passes>(&mut self) {
        for block in 0..self.problem.vocabulary.div_ceil(BLOCK) {
            // SAFETY: the caller's promise.
            unsafe { self.last_step::<P>(1 - self.current, block) };
        }
        self.scratch.slots[1 - self.current].pending = None;
    }

    fn skip(&mut self, row: usize) {
        if let Some(gradient) = self.problem.gradient {
            // SAFETY: the row has that many elements.
            unsafe { clear(gradient.row(row), gradient.columns()) };
        }
    }

    /// No part of this row's mixture has a derivative of its own.
    fn clear_derivative(&mut self) {
        for block in 0..self.problem.vocabulary.div_ceil(BLOCK) {
            let slot = &mut self.scratch.slots[self.current];
            let count = BLOCK.min(slot.padded - block * BLOCK);
            let buffers = slot.buffers(self.mode, block);
            // SAFETY: the stream has room for every block.
            unsafe { std::slice::from_raw_parts_mut(buffers.derivative, count) }.fill(0.0);
        }
    }
}

impl Totals {
    pub(super) fn new(references: [f32; 2]) -> Self {
        Self { references, ..Self::default() }
    }

    /// Takes in a block whose references are the row's up to it.
    pub(super) fn add(&mut self, references: [f32; 2], block: &Sums, factors: [f64; 2]) {
        let [student, teacher] = [0, 1].map(|side| f64::from(finite(references[side])));
        let shift = |side: usize, factor: f64| {
            if self.references[side] == references[side] {
                1.0
            } else {
                ((f64::from(self.references[side]) - f64::from(references[side])) * factor).exp2()
            }
        };
        let (student_shift, teacher_shift) = (shift(0, factors[0]), shift(1, factors[1]));
        let plain_shift = shift(0, LOG2_E);
        self.references = references;
        // The exponents were relative to the references; absolute ones make the sums of blocks comparable.
        let apart = teacher * factors[1] - student * factors[0];
        let (student_sum, teacher_sum) = (f64::from(block.student), f64::from(block.teacher));
        self.forward = self.forward * teacher_shift + (f64::from(block.forward) + teacher_sum * apart);
        self.reverse = self.reverse * student_shift + (f64::from(block.reverse) - student_sum * apart);
        self.student = self.student * student_shift + student_sum;
        self.teacher = self.teacher * teacher_shift + teacher_sum;
        self.plain = self.plain * plain_shift + f64::from(block.plain);
    }
}

/// A block of the first step.
struct BlockOf {
    mode: Mode,
    with_plain: bool,
    count: usize,
    /// The row's references up to it.
    before: [f32; 2],
    factors: [f64; 2],
    ahead: [(*const u8, usize); 2],
    /// Of the row before, whose gradient is made next.
    kept: [*mut f32; 2],
}

impl BlockOf {
    /// Sums of the block, and what they are relative to: the references so far, as long as no logit is far above them.
    ///
    /// The logits may be where `out` goes: they are read once, and each before it is overwritten.
    ///
    /// # Safety
    /// As for [`Passes::exponentials`].
    unsafe fn exponentials<P: Passes, E: Element>(
        &self,
        logits: [*const E; 2],
        largest: [f32; 2],
        out: &Buffers,
    ) -> (Sums, [f32; 2]) {
        let references = [0, 1].map(|side| {
            let (before, now) = (self.before[side], largest[side]);
            let above = f64::from(now) - f64::from(before);
            // Not where it is no number: then the row is none either.
            if above * self.factors[side] <= NEAR { before } else { larger(before, now) }
        });
        let task = Exponents {
            count: self.count,
            logits,
            references: references.map(finite),
            factors: self.factors.map(|factor| factor as f32),
            ahead: self.ahead,
            kept: self.kept.map(<*mut f32>::cast_const),
        };
        // SAFETY: the caller's promise.
        (unsafe { P::exponentials(self.mode, self.with_plain, &task, out) }, references)
    }
}

/// 2^x; 0 where the exponentials would be.
pub(super) fn shrink(x: f64) -> f64 {
    if x < f64::from(SMALLEST) { 0.0 } else { x.exp2() }
}

/// A reference that can be taken off: minus infinity of minus infinity would not be a number.
pub(super) fn finite(reference: f32) -> f32 {
    if reference == f32::NEG_INFINITY { 0.0 } else { reference }
}

/// The larger; not-a-number stays.
pub(super) fn larger(before: f32, now: f32) -> f32 {
    if before > now { before } else { now }
}

/// # Safety
/// There is room for `count` elements.
pub(super) unsafe fn clear<T: Element>(to: *mut T, count: usize) {
    for index in 0..count {
        // SAFETY: the caller's promise.
        unsafe { *to.add(index) = T::narrow(0.0) };
    }
}

#[cfg(test)]
mod tests;
