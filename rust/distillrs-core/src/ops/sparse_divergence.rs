//! Divergences of dense rows of a student from the most likely entries of a teacher and the mass of the rest.
//!
//! Both sides are taken over k + 1 events. A row is read once: exponentials of everything outside the entries, relative to
//! references of their own, so that a small rest is not lost beside the entries; the entries themselves are a few numbers
//! in `f64`. The gradient is a multiple of the exponentials, but for the entries; it is written between the blocks of the
//! next row.

use std::cell::RefCell;
use std::f64::consts::{LN_2, LOG2_E};
use std::ops::Range;
use std::ptr;

use super::Level;
use super::element::Element;
use super::events::event;
use super::matrix::Matrix;
use super::passes::{BLOCK, OneSide, Passes, WIDEST};
use super::portable::Portable;
use super::row_divergence::{CACHE, LOGITS_AT_ONCE, NEAR, Part, Weights, clear, finite, larger, shrink};
use super::scratch::Line;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use crate::{Error, Result, parallel};

/// The rows of one call. The loss of a row is `scale D`; a row whose scale is 0 is not looked at, and its gradient is 0.
#[derive(Debug)]
pub struct SparseProblem<'a, S> {
    /// Logits of the student.
    pub student: Matrix<S>,
    /// Columns that count.
    pub vocabulary: usize,
    /// Entries of the teacher for each row.
    pub k: usize,
    /// Their columns, `k` for each row, distinct; below 0 for none.
    pub ids: &'a [i64],
    /// Natural logarithms of their probabilities; minus infinity for none, whatever the column.
    pub log_probs: &'a [f64],
    /// Natural logarithm of the mass of all others, for each row.
    pub tail: &'a [f64],
    /// D is the sum of these; one at least.
    pub parts: &'a [Part<'a>],
    /// Temperature of each row of the student; the teacher's numbers are at theirs.
    pub temperature: &'a [f64],
    /// For each row.
    pub scale: &'a [f64],
    /// Where the gradient goes; may be the student's memory.
    pub gradient: Option<Matrix<S>>,
}

/// Computes the loss of every row; returns their sum, taken in the rows' order. The result does not depend on the thread
/// count.
///
/// # Errors
/// [`Error::Argument`] for sizes that do not fit and columns outside the vocabulary; whatever `check` returns: then the
/// gradient is incomplete.
pub fn sparse_divergence<S: Element>(
    problem: &SparseProblem<'_, S>,
    losses: &mut [f64],
    check: &dyn Fn() -> Result<()>,
) -> Result<f64> {
    run(Level::here(), problem, losses, check)
}

fn run<S: Element>(
    level: Level,
    problem: &SparseProblem<'_, S>,
    losses: &mut [f64],
    check: &dyn Fn() -> Result<()>,
) -> Result<f64> {
    let rows = losses.len();
    validate(problem, rows)?;
    let threads = parallel::threads();
    let at_once = (LOGITS_AT_ONCE * threads / problem.vocabulary).max(threads);
    for start in (0..rows).step_by(at_once) {
        check()?;
        let end = rows.min(start + at_once);
        let size = (end - start).div_ceil(if threads == 1 { 1 } else { 4 * threads });
        let tasks: Vec<_> =
            losses[start..end].chunks_mut(size).enumerate().map(|(piece, out)| (start + piece * size, out)).collect();
        parallel::for_each(tasks, |(first, losses)| {
            let rows = first..first + losses.len();
            match level {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level says that the processor has the instructions.
                Level::Avx512 => unsafe { some_rows::<Avx512, S>(problem, rows, losses) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level says that the processor has the instructions.
                Level::Avx2 => unsafe { some_rows::<Avx2, S>(problem, rows, losses) },
                // SAFETY: no special instructions.
                Level::Portable => unsafe { some_rows::<Portable, S>(problem, rows, losses) },
            }
        });
    }
    Ok(losses.iter().sum())
}

fn validate<S>(problem: &SparseProblem<'_, S>, rows: usize) -> Result<()> {
    let columns = problem.student.columns();
    if problem.vocabulary == 0 || problem.vocabulary > columns {
        return Err(Error::argument("vocabulary", problem.vocabulary, format!("an integer from 1 to {columns}")));
    }
    if problem.gradient.is_some_and(|gradient| gradient.columns() != columns) {
        return Err(Error::argument("gradient", "another number of columns", "the student's"));
    }
    let entries = rows.checked_mul(problem.k).ok_or_else(|| Error::argument("k", problem.k, "fewer entries"))?;
    let mut sizes = vec![
        ("ids", problem.ids.len(), entries),
        ("log_probs", problem.log_probs.len(), entries),
        ("tail", problem.tail.len(), rows),
        ("temperature", problem.temperature.len(), rows),
        ("scale", problem.scale.len(), rows),
    ];
    for part in problem.parts {
        if let Weights::Each(weights) = part.weights {
            sizes.push(("weights", weights.len(), rows));
        }
    }
    if let Some((name, got, due)) = sizes.into_iter().find(|&(_, got, due)| got != due) {
        return Err(Error::argument(name, format!("{got} values"), format!("{due} for {rows} rows")));
    }
    let wrong = problem.ids.iter().find(|&&id| id >= 0 && id as u64 >= problem.vocabulary as u64);
    if let Some(id) = wrong {
        return Err(Error::argument("ids", id, format!("an entry from 0 to {}", problem.vocabulary - 1)));
    }
    Ok(())
}

/// An entry of a row's teacher.
#[derive(Clone, Copy)]
struct Entry {
    column: usize,
    log_p: f64,
    /// Base-2 exponent of the student there.
    exponent: f64,
    slope: f64,
}

/// A row between its first and its last step.
struct Slot {
    exponentials: Vec<Line>,
    references: Vec<f32>,
    /// What each block's exponentials are multiplied with.
    factors: Vec<f32>,
    /// In the order of their columns; their slopes are those of the gradient.
    entries: Vec<Entry>,
    pending: Option<usize>,
}

struct Scratch {
    raw: Vec<Line>,
    slots: [Slot; 2],
}

impl Slot {
    const fn new() -> Self {
        Self {
            exponentials: Vec::new(),
            references: Vec::new(),
            factors: Vec::new(),
            entries: Vec::new(),
            pending: None,
        }
    }

    fn block(&mut self, block: usize) -> *mut f32 {
        self.exponentials.as_mut_ptr().cast::<f32>().wrapping_add(block * BLOCK)
    }

    fn entries_of(&self, block: usize) -> Range<usize> {
        let place = |column: usize| self.entries.partition_point(|entry| entry.column < column);
        place(block * BLOCK)..place((block + 1) * BLOCK)
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { raw: Vec::new(), slots: [Slot::new(), Slot::new()] }) };
}

/// # Safety
/// The processor has the instructions of `P`; the matrices hold the rows.
unsafe fn some_rows<P: Passes, S: Element>(problem: &SparseProblem<'_, S>, rows: Range<usize>, losses: &mut [f64]) {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.raw.resize(BLOCK / WIDEST, Line([0.0; WIDEST]));
        for slot in &mut scratch.slots {
            // What an interrupted call left.
            slot.pending = None;
        }
        let is_long = 2 * problem.vocabulary * size_of::<f32>() > CACHE;
        let mut work = Worker { problem, scratch, current: 0, is_long };
        let first = rows.start;
        for row in rows.clone() {
            // SAFETY: the caller's promise.
            losses[row - first] = unsafe { work.row::<P>(row, rows.end) };
        }
        // SAFETY: the caller's promise.
        unsafe { work.finish::<P>() };
    });
}

struct Worker<'a, S> {
    problem: &'a SparseProblem<'a, S>,
    scratch: &'a mut Scratch,
    current: usize,
    /// Two rows' buffers would not stay in the cache: each row's gradient follows at once.
    is_long: bool,
}

impl<S: Element> Worker<'_, S> {
    /// The loss of a row; its gradient waits for the next one.
    unsafe fn row<P: Passes>(&mut self, row: usize, end: usize) -> f64 {
        let problem = self.problem;
        let scale = problem.scale[row];
        if scale == 0.0 {
            if let Some(gradient) = problem.gradient {
                // SAFETY: the row has that many elements.
                unsafe { clear(gradient.row(row), gradient.columns()) };
            }
            return 0.0;
        }
        let factor = LOG2_E / problem.temperature[row];
        self.prepare(row, factor);
        // SAFETY: the caller's promise.
        let (reference, sum) = unsafe { self.first_step::<P>(row, end, factor) };
        let slot = &mut self.scratch.slots[self.current];
        // Base-2 logarithms of the sums over the tempered exponentials: outside of the entries, and of all.
        let outside = f64::from(reference) * factor + sum.log2();
        let total = log2_sum(outside, &slot.entries);
        let log_tail = LN_2 * (outside - total);
        let (mut divergence, mut slopes, mut tail_slope) = (0.0, 0.0, 0.0);
        slot.entries.iter_mut().for_each(|entry| entry.slope = 0.0);
        for part in problem.parts {
            let weight = part.weights.of(row);
            if weight == 0.0 {
                // Not even where it is infinite.
                continue;
            }
            let (d, h) = event(part.divergence, problem.tail[row], log_tail);
            divergence += weight * d;
            tail_slope += weight * h;
            for entry in &mut slot.entries {
                let (d, h) = event(part.divergence, entry.log_p, LN_2 * (entry.exponent - total));
                divergence += weight * d;
                entry.slope += weight * h;
            }
        }
        slopes += tail_slope + slot.entries.iter().map(|entry| entry.slope).sum::<f64>();
        if problem.gradient.is_some() {
            let gain = scale / problem.temperature[row];
            let share = if sum == 0.0 { 0.0 } else { gain * (tail_slope - slopes * log_tail.exp()) / sum };
            let shrinking = |block: f32| shrink((f64::from(finite(block)) - f64::from(finite(reference))) * factor);
            for (coefficient, &block) in slot.factors.iter_mut().zip(&slot.references) {
                *coefficient = (share * shrinking(block)) as f32;
            }
            for entry in &mut slot.entries {
                entry.slope = gain * (entry.slope - slopes * (LN_2 * (entry.exponent - total)).exp());
            }
            slot.pending = Some(row);
        }
        self.current = 1 - self.current;
        if self.is_long {
            // SAFETY: the caller's promise.
            unsafe { self.finish::<P>() };
        }
        scale * divergence
    }

    /// Room for a row, and its entries in order.
    fn prepare(&mut self, row: usize, factor: f64) {
        let problem = self.problem;
        let slot = &mut self.scratch.slots[self.current];
        let lines = problem.vocabulary.div_ceil(WIDEST);
        if slot.exponentials.len() < lines {
            slot.exponentials = vec![Line([0.0; WIDEST]); lines];
        }
        let blocks = problem.vocabulary.div_ceil(BLOCK);
        slot.references.resize(blocks, 0.0);
        slot.factors.resize(blocks, 0.0);
        let range = row * problem.k..(row + 1) * problem.k;
        slot.entries.clear();
        for (&id, &log_p) in problem.ids[range.clone()].iter().zip(&problem.log_probs[range]) {
            if id < 0 || log_p == f64::NEG_INFINITY {
                continue;
            }
            // SAFETY: the columns were checked, and nothing has been written to this row yet.
            let logit = unsafe { *problem.student.row(row).add(id as usize) }.wide();
            slot.entries.push(Entry { column: id as usize, log_p, exponent: f64::from(logit) * factor, slope: 0.0 });
        }
        slot.entries.sort_by_key(|entry| entry.column);
    }

    /// Exponentials of all blocks without the entries; their reference and their sum. Between them the gradient of the
    /// row before.
    unsafe fn first_step<P: Passes>(&mut self, row: usize, end: usize, factor: f64) -> (f32, f64) {
        let problem = self.problem;
        let student = problem.student.row(row).cast_const();
        let next = problem.student.row(if row + 1 < end { row + 1 } else { row }).cast_const();
        let raw = self.scratch.raw.as_mut_ptr().cast::<f32>();
        let (mut reference, mut total) = (f32::NEG_INFINITY, 0.0);
        for (block, start) in (0..problem.vocabulary).step_by(BLOCK).enumerate() {
            let count = BLOCK.min(problem.vocabulary - start);
            let after = start + BLOCK;
            let ahead = if after < problem.vocabulary { student.wrapping_add(after) } else { next };
            let slot = &mut self.scratch.slots[self.current];
            let out = slot.block(block);
            let inside = slot.entries_of(block);
            let task = BlockOf { count, before: reference, factor, ahead: (ahead.cast(), size_of::<S>()) };
            // SAFETY: the row has `count` elements from `start` on, and there is room for a block of raw values and for
            // every block of exponentials.
            let (now, sum) = unsafe {
                if inside.is_empty() {
                    task.exponentials::<P, S>(student.add(start), out)
                } else {
                    P::load(student.add(start), count, raw);
                    for entry in &slot.entries[inside] {
                        *raw.add(entry.column - start) = f32::NEG_INFINITY;
                    }
                    task.exponentials::<P, f32>(raw, out)
                }
            };
            slot.references[block] = now;
            if now != reference {
                total *= ((f64::from(reference) - f64::from(finite(now))) * factor).exp2();
            }
            total += f64::from(sum);
            reference = now;
            // SAFETY: the caller's promise.
            unsafe { self.last_step::<P>(1 - self.current, block) };
        }
        self.scratch.slots[1 - self.current].pending = None;
        (reference, total)
    }

    /// The gradient of a block of the row that waits in a slot, if one does.
    unsafe fn last_step<P: Passes>(&mut self, slot: usize, block: usize) {
        let problem = self.problem;
        let slot = &mut self.scratch.slots[slot];
        let (Some(row), Some(gradient)) = (slot.pending, problem.gradient) else { return };
        let start = block * BLOCK;
        let count = BLOCK.min(problem.vocabulary - start);
        let to = gradient.row(row);
        // SAFETY: the caller's promise; the row has room for `count` elements from `start` on, and the entries are in it.
        unsafe {
            P::scaled(slot.factors[block], slot.block(block), to.add(start), count);
            let mut before = usize::MAX;
            let mut slope = 0.0;
            for entry in &slot.entries[slot.entries_of(block)] {
                slope = if entry.column == before { slope + entry.slope } else { entry.slope };
                *to.add(entry.column) = S::narrow(slope as f32);
                before = entry.column;
            }
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
}

/// A block of the first step.
struct BlockOf {
    count: usize,
    /// The row's reference up to it.
    before: f32,
    factor: f64,
    ahead: (*const u8, usize),
}

impl BlockOf {
    /// What the block's exponentials are relative to, and their sum: the reference so far, as long as no logit is far above
    /// it.
    ///
    /// # Safety
    /// As for [`Passes::exponentials_of_one`].
    unsafe fn exponentials<P: Passes, E: Element>(&self, logits: *const E, out: *mut f32) -> (f32, f32) {
        let once = |reference: f32, ahead| {
            let task =
                OneSide { count: self.count, logits, reference: finite(reference), factor: self.factor as f32, ahead };
            // SAFETY: the caller's promise.
            unsafe { P::exponentials_of_one(&task, out) }
        };
        let mut reference = self.before;
        if reference == f32::NEG_INFINITY {
            // SAFETY: the caller's promise.
            reference = unsafe { P::largest(logits, self.count) };
        }
        let (largest, sum) = once(reference, self.ahead);
        if (f64::from(largest) - f64::from(finite(reference))) * self.factor <= NEAR {
            return (reference, sum);
        }
        let reference = larger(reference, largest);
        (reference, once(reference, (ptr::null(), 0)).1)
    }
}

/// The base-2 logarithm of the sum of 2^outside and of the entries', each column once.
fn log2_sum(outside: f64, entries: &[Entry]) -> f64 {
    let largest = entries.iter().map(|entry| entry.exponent).fold(outside, |a, b| if a > b { a } else { b });
    let mut sum = (outside - largest).exp2();
    let mut before = usize::MAX;
    for entry in entries {
        if entry.column != before {
            sum += (entry.exponent - largest).exp2();
        }
        before = entry.column;
    }
    largest + sum.log2()
}

#[cfg(test)]
mod tests;
