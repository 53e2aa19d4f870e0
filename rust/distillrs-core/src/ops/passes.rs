//! The loops over one block of a row, compiled for each instruction set.

use super::element::Element;
use super::point::{Divergence, Entries, terms};
use super::vector::Vector;

/// Entries of a block: all streams of some blocks stay in the first cache from one pass to the next.
pub(super) const BLOCK: usize = 1024;

/// Entries between one that is worked on and one that the memory is asked for: more than a block, as the next one's
/// largest logit is looked for faster than the memory would answer.
pub(super) const AHEAD: usize = 1536;

/// Values in the widest vector; buffers and blocks are padded to a multiple of it.
pub(super) const WIDEST: usize = 16;

/// What a row's later passes need of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Forward KL alone.
    Forward,
    /// Reverse KL alone.
    Reverse,
    /// Both.
    Pair,
    /// One divergence by its elementwise functions.
    Point,
    /// One whose functions need logarithms too.
    Logs,
    /// Any mixture.
    All,
}

const FORWARD: u8 = 0;
const REVERSE: u8 = 1;
const PAIR: u8 = 2;
const POINT: u8 = 3;
const LOGS: u8 = 4;
const ALL: u8 = 5;

impl Mode {
    /// Streams of exponentials and the like in a row's buffers.
    pub(super) fn streams(self) -> usize {
        match self {
            Self::Forward | Self::Reverse | Self::Point => 2,
            Self::Pair => 3,
            Self::Logs => 4,
            Self::All => 6,
        }
    }
}

/// A block's memory in a row's buffers; which pointers are used follows from the mode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffers {
    /// Student's exponentials relative to the block's reference.
    pub student: *mut f32,
    /// Teacher's.
    pub teacher: *mut f32,
    /// Student's exponents less teacher's, in powers of two, relative to the references.
    pub difference: *mut f32,
    /// The derivative h; may be `teacher`, whose values it then replaces.
    pub derivative: *mut f32,
    /// Student's exponentials at temperature 1.
    pub plain: *mut f32,
    /// Student's exponents.
    pub student_log: *mut f32,
    /// Teacher's.
    pub teacher_log: *mut f32,
}

/// What the pass over exponentials takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exponents<T> {
    /// Entries of the block; what rounds them up to a multiple of [`WIDEST`] counts as minus infinity.
    pub count: usize,
    /// The block's logits: the student's, the teacher's. So are all pairs.
    pub logits: [*const T; 2],
    /// Taken off the logits.
    pub references: [f32; 2],
    /// log2(e) / T.
    pub factors: [f32; 2],
    /// What to ask the memory for meanwhile, and by how much to go on for each value.
    pub ahead: [(*const u8, usize); 2],
    /// What to ask the second cache for meanwhile, if the logits are narrower than `f32`: with these it is exponentials
    /// that take longest to come.
    pub kept: [*const f32; 2],
}

/// What the pass over one side's exponentials takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct OneSide<T> {
    /// Entries of the block; what rounds them up to a multiple of [`WIDEST`] counts as minus infinity.
    pub count: usize,
    pub logits: *const T,
    /// Taken off the logits.
    pub reference: f32,
    /// log2(e) / T.
    pub factor: f32,
    /// What to ask the memory for meanwhile, and by how much to go on for each vector.
    pub ahead: (*const u8, usize),
}

/// Sums over a block, relative to its references.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    pub student: f32,
    pub teacher: f32,
    pub plain: f32,
    /// Teacher's exponentials times (teacher's less student's exponents).
    pub forward: f32,
    /// Student's exponentials times (student's less teacher's exponents).
    pub reverse: f32,
}

/// Factors that bring a block to its row's scale.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scales {
    /// q = student's exponential times this.
    pub student: f32,
    /// p = teacher's exponential times this.
    pub teacher: f32,
    /// log2 q = student's exponent plus this.
    pub student_log: f32,
    pub teacher_log: f32,
}

/// The block that the pass over elementwise functions takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    /// Entries, rounded up to a multiple of [`WIDEST`].
    pub padded: usize,
    /// What to ask the memory for meanwhile, and by how much to go on for each value.
    pub ahead: [(*const u8, usize); 2],
}

/// The gradient is `student (a + b difference) - c teacher + h derivative + l plain`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Coefficients {
    pub a: f32,
    pub b: f32,
    pub c: f32,
    pub h: f32,
    pub l: f32,
}

/// Where the gradient differs by the label's own term.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label {
    /// In the block.
    pub index: usize,
    /// Taken off there.
    pub amount: f32,
}

/// The loops for one instruction set.
pub(super) trait Passes {
    /// Copies a block as `f32`; its largest value.
    ///
    /// # Safety
    /// `count` values are at `from`, room for as many is at `to`; the processor has the instructions.
    unsafe fn load<T: Element>(from: *const T, count: usize, to: *mut f32) -> f32;

    /// The largest value of a block.
    ///
    /// # Safety
    /// `count` values are at `from`; the processor has the instructions.
    unsafe fn largest<T: Element>(from: *const T, count: usize) -> f32;

    /// Exponentials of a block, and their sums.
    ///
    /// # Safety
    /// The logits are there; the pointers that the mode uses have room for `count` values rounded up to [`WIDEST`]; the
    /// processor has the instructions.
    unsafe fn exponentials<T: Element>(mode: Mode, with_plain: bool, task: &Exponents<T>, out: &Buffers) -> Sums;

    /// Exponentials of one side's block; its largest logit and their sum.
    ///
    /// # Safety
    /// As for [`Passes::exponentials`], of `out`.
    unsafe fn exponentials_of_one<T: Element>(task: &OneSide<T>, out: *mut f32) -> (f32, f32);

    /// Writes `factor` times a block's values.
    ///
    /// # Safety
    /// `count` values, rounded up to [`WIDEST`], are at `from`, room for `count` is at `to`; the processor has the
    /// instructions.
    unsafe fn scaled<T: Element>(factor: f32, from: *const f32, to: *mut T, count: usize);

    /// Writes (or with `add` adds) `weight h`; the sums of d and h.
    ///
    /// # Safety
    /// As for [`Passes::exponentials`].
    unsafe fn point(
        divergence: Divergence,
        weight: f32,
        add: bool,
        scales: &Scales,
        stretch: &Stretch,
        buffers: &Buffers,
    ) -> (f32, f32);

    /// Writes the gradient of a block.
    ///
    /// # Safety
    /// As for [`Passes::exponentials`]; there is room for `count` values at `to`.
    unsafe fn gradient<T: Element>(
        mode: Mode,
        with_plain: bool,
        coefficients: &Coefficients,
        buffers: &Buffers,
        label: Option<Label>,
        to: *mut T,
        count: usize,
    );
}

/// The largest of some values; with `COPY` they are written as `f32` too.
#[inline(always)]
unsafe fn largest<V: Vector, T: Element, const COPY: bool>(from: *const T, count: usize, to: *mut f32) -> f32 {
    // SAFETY: the caller's promise; every index is below `count`.
    unsafe {
        let mut largest = [V::splat(f32::NEG_INFINITY); 2];
        let whole = count - count % (2 * V::LANES);
        for index in (0..whole).step_by(2 * V::LANES) {
            let values: [V; 2] = if COPY {
                [T::load(from.add(index)), T::load(from.add(index + V::LANES))]
            } else {
                T::load_two(from.add(index))
            };
            if COPY {
                values[0].store(to.add(index));
                values[1].store(to.add(index + V::LANES));
            }
            largest = [largest[0].max(values[0]), largest[1].max(values[1])];
        }
        let mut largest = largest[0].max(largest[1]).largest();
        for index in whole..count {
            let value = (*from.add(index)).wide();
            if COPY {
                *to.add(index) = value;
            }
            largest = if value > largest { value } else { largest };
        }
        largest
    }
}

/// What the pass over exponentials keeps in registers.
#[derive(Clone, Copy)]
struct Running<V> {
    references: [V; 2],
    factors: [V; 2],
    student: V,
    teacher: V,
    plain: V,
    forward: V,
    reverse: V,
}

/// One vector of logits of each side, from `index` on. A function, not a closure: see `gradient_at`.
#[inline(always)]
unsafe fn exponentials_at<V: Vector, const MODE: u8, const PLAIN: bool>(
    [student_logits, teacher_logits]: [V; 2],
    index: usize,
    out: &Buffers,
    running: &mut Running<V>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let Running { references, factors, .. } = *running;
        let centred = student_logits.sub(references[0]);
        let student_log = centred.mul(factors[0]);
        let teacher_log = teacher_logits.sub(references[1]).mul(factors[1]);
        let student = student_log.exp2();
        let teacher = teacher_log.exp2();
        running.student = running.student.add(student);
        running.teacher = running.teacher.add(teacher);
        student.store(out.student.add(index));
        if MODE != REVERSE {
            teacher.store(out.teacher.add(index));
        }
        if matches!(MODE, FORWARD | PAIR | ALL) {
            // Where p is 0 the entry adds nothing, however far its exponents are.
            running.forward = teacher.fma_unless_zero(teacher_log.sub(student_log), running.forward);
        }
        if matches!(MODE, REVERSE | PAIR | ALL) {
            let difference = student_log.sub(teacher_log).zero_without(student);
            running.reverse = student.fma(difference, running.reverse);
            difference.store(out.difference.add(index));
        }
        if matches!(MODE, LOGS | ALL) {
            student_log.store(out.student_log.add(index));
            teacher_log.store(out.teacher_log.add(index));
        }
        if PLAIN {
            let plain = centred.mul(V::splat(std::f32::consts::LOG2_E)).exp2();
            running.plain = running.plain.add(plain);
            plain.store(out.plain.add(index));
        }
    }
}

#[inline(always)]
unsafe fn exponentials<V: Vector, T: Element, const MODE: u8, const PLAIN: bool>(
    task: &Exponents<T>,
    out: &Buffers,
) -> Sums {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        let mut running = Running {
            references: [V::splat(task.references[0]), V::splat(task.references[1])],
            factors: [V::splat(task.factors[0]), V::splat(task.factors[1])],
            student: zero,
            teacher: zero,
            plain: zero,
            forward: zero,
            reverse: zero,
        };
        let [mut first, mut second] = task.ahead;
        let whole = task.count - task.count % V::LANES;
        for index in (0..whole).step_by(V::LANES) {
            V::prefetch(first.0);
            V::prefetch(second.0);
            first.0 = first.0.wrapping_add(first.1 * V::LANES);
            second.0 = second.0.wrapping_add(second.1 * V::LANES);
            if size_of::<T>() < size_of::<f32>() {
                V::prefetch(task.kept[0].wrapping_add(index).cast());
                V::prefetch(task.kept[1].wrapping_add(index).cast());
            }
            let logits = [T::load(task.logits[0].add(index)), T::load(task.logits[1].add(index))];
            exponentials_at::<V, MODE, PLAIN>(logits, index, out, &mut running);
        }
        let padded = task.count.next_multiple_of(WIDEST);
        if whole < padded {
            let mut rest = [[f32::NEG_INFINITY; WIDEST]; 2];
            for index in whole..task.count {
                rest[0][index - whole] = (*task.logits[0].add(index)).wide();
                rest[1][index - whole] = (*task.logits[1].add(index)).wide();
            }
            for index in (whole..padded).step_by(V::LANES) {
                let logits = [0, 1].map(|side| V::load(rest[side].as_ptr().add(index - whole)));
                exponentials_at::<V, MODE, PLAIN>(logits, index, out, &mut running);
            }
        }
        Sums {
            student: running.student.sum(),
            teacher: running.teacher.sum(),
            plain: running.plain.sum(),
            forward: running.forward.sum(),
            reverse: running.reverse.sum(),
        }
    }
}

#[inline(always)]
unsafe fn exponentials_of_one<V: Vector, T: Element>(task: &OneSide<T>, out: *mut f32) -> (f32, f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let (reference, factor) = (V::splat(task.reference), V::splat(task.factor));
        let (mut largest, mut sum) = (V::splat(f32::NEG_INFINITY), V::splat(0.0));
        let mut ahead = task.ahead;
        let whole = task.count - task.count % V::LANES;
        for index in (0..whole).step_by(V::LANES) {
            V::prefetch(ahead.0);
            ahead.0 = ahead.0.wrapping_add(ahead.1 * V::LANES);
            let logits: V = T::load(task.logits.add(index));
            largest = largest.max(logits);
            let exponential = logits.sub(reference).mul(factor).exp2();
            sum = sum.add(exponential);
            exponential.store(out.add(index));
        }
        let padded = task.count.next_multiple_of(WIDEST);
        if whole < padded {
            let mut rest = [f32::NEG_INFINITY; WIDEST];
            for index in whole..task.count {
                rest[index - whole] = (*task.logits.add(index)).wide();
            }
            for index in (whole..padded).step_by(V::LANES) {
                let logits = V::load(rest.as_ptr().add(index - whole));
                largest = largest.max(logits);
                let exponential = logits.sub(reference).mul(factor).exp2();
                sum = sum.add(exponential);
                exponential.store(out.add(index));
            }
        }
        (largest.largest(), sum.sum())
    }
}

#[inline(always)]
unsafe fn scaled<V: Vector, T: Element>(factor: f32, from: *const f32, to: *mut T, count: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let factor = V::splat(factor);
        let whole = count - count % V::LANES;
        for index in (0..whole).step_by(V::LANES) {
            T::store(V::load(from.add(index)).mul(factor), to.add(index));
        }
        if whole < count {
            let mut last = [0.0; WIDEST];
            V::load(from.add(whole)).mul(factor).store(last.as_mut_ptr());
            for index in whole..count {
                *to.add(index) = T::narrow(last[index - whole]);
            }
        }
    }
}

#[inline(always)]
unsafe fn point<V: Vector>(
    divergence: Divergence,
    weight: f32,
    add: bool,
    scales: &Scales,
    stretch: &Stretch,
    buffers: &Buffers,
) -> (f32, f32) {
    /// One loop for each variant, so that the choice is made once.
    macro_rules! each {
        ($($pattern:pat => $rebuilt:expr, $logs:literal;)*) => {
            match divergence {
                $($pattern => loop_over::<V, $logs>($rebuilt, weight, add, scales, stretch, buffers),)*
                Divergence::ForwardKL | Divergence::ReverseKL => (0.0, 0.0),
            }
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        each! {
            Divergence::JensenShannon { beta } => Divergence::JensenShannon { beta }, false;
            Divergence::SkewKL { alpha } => Divergence::SkewKL { alpha }, false;
            Divergence::SkewReverseKL { alpha } => Divergence::SkewReverseKL { alpha }, false;
            Divergence::TotalVariation => Divergence::TotalVariation, false;
            Divergence::Alpha { a } => Divergence::Alpha { a }, true;
        }
    }
}

#[inline(always)]
unsafe fn loop_over<V: Vector, const LOGS: bool>(
    divergence: Divergence,
    weight: f32,
    add: bool,
    scales: &Scales,
    stretch: &Stretch,
    buffers: &Buffers,
) -> (f32, f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        let (student, teacher) = (V::splat(scales.student), V::splat(scales.teacher));
        let (student_log, teacher_log) = (V::splat(scales.student_log), V::splat(scales.teacher_log));
        let weight = V::splat(weight);
        let (mut values, mut slopes) = (zero, zero);
        let [mut first, mut second] = stretch.ahead;
        for index in (0..stretch.padded).step_by(V::LANES) {
            V::prefetch_far(first.0);
            V::prefetch_far(second.0);
            first.0 = first.0.wrapping_add(first.1 * V::LANES);
            second.0 = second.0.wrapping_add(second.1 * V::LANES);
            let p = V::load(buffers.teacher.add(index)).mul(teacher);
            let q = V::load(buffers.student.add(index)).mul(student);
            let (mut log_p, mut log_q) = (zero, zero);
            if LOGS {
                log_p = V::load(buffers.teacher_log.add(index)).add(teacher_log);
                log_q = V::load(buffers.student_log.add(index)).add(student_log);
            }
            let (d, h) = terms(divergence, Entries { p, q, log_p, log_q });
            values = values.add(d);
            slopes = slopes.add(h);
            let place = buffers.derivative.add(index);
            let before = if add { V::load(place) } else { zero };
            weight.fma(h, before).store(place);
        }
        (values.sum(), slopes.sum())
    }
}

/// The gradient at some entries. A function, not a closure: a closure would be compiled without the instructions.
#[inline(always)]
unsafe fn gradient_at<V: Vector, const MODE: u8, const PLAIN: bool>(
    [a, b, c, h, l]: [V; 5],
    buffers: &Buffers,
    index: usize,
) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        let student = V::load(buffers.student.add(index));
        let mut value = if MODE == REVERSE {
            V::load(buffers.difference.add(index)).fma(b, a).mul(student)
        } else if matches!(MODE, PAIR | ALL) {
            // A row without the reverse KL may have differences that are infinite.
            b.mul(V::load(buffers.difference.add(index))).zero_without(b).add(a).mul(student)
        } else {
            student.mul(a)
        };
        if matches!(MODE, FORWARD | PAIR | ALL) {
            value = V::load(buffers.teacher.add(index)).fma(c, value);
        }
        if matches!(MODE, POINT | LOGS | ALL) {
            value = V::load(buffers.derivative.add(index)).fma(h, value);
        }
        if PLAIN {
            value = V::load(buffers.plain.add(index)).fma(l, value);
        }
        value
    }
}

#[inline(always)]
unsafe fn gradient<V: Vector, T: Element, const MODE: u8, const PLAIN: bool>(
    coefficients: &Coefficients,
    buffers: &Buffers,
    label: Option<Label>,
    to: *mut T,
    count: usize,
) {
    // SAFETY: the caller's promise; buffers are padded, so a whole vector may be read past `count`.
    unsafe {
        let Coefficients { a, b, c, h, l } = *coefficients;
        let factors = [V::splat(a), V::splat(b), V::splat(-c), V::splat(h), V::splat(l)];
        let mut last = [0.0; WIDEST];
        // Before the buffers are overwritten, if they are where the gradient goes; not from what is written there, because
        // a narrow type would round twice.
        let mut label_value = 0.0;
        if let Some(label) = label {
            let lane = label.index % V::LANES;
            gradient_at::<V, MODE, PLAIN>(factors, buffers, label.index - lane).store(last.as_mut_ptr());
            label_value = last[lane] - label.amount;
        }
        let whole = count - count % V::LANES;
        for index in (0..whole).step_by(V::LANES) {
            T::store(gradient_at::<V, MODE, PLAIN>(factors, buffers, index), to.add(index));
        }
        if whole < count {
            gradient_at::<V, MODE, PLAIN>(factors, buffers, whole).store(last.as_mut_ptr());
            for index in whole..count {
                *to.add(index) = T::narrow(last[index - whole]);
            }
        }
        if let Some(label) = label {
            *to.add(label.index) = T::narrow(label_value);
        }
    }
}

/// Implements [`Passes`] for a vector type: the same loops, compiled with its instructions.
macro_rules! passes {
    ($name:ty $(, $features:literal)?) => {
        impl Passes for $name {
            $(#[target_feature(enable = $features)])?
            unsafe fn load<T: Element>(from: *const T, count: usize, to: *mut f32) -> f32 {
                // SAFETY: the caller's promise.
                unsafe { largest::<$name, T, true>(from, count, to) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn largest<T: Element>(from: *const T, count: usize) -> f32 {
                // SAFETY: the caller's promise; nothing is written.
                unsafe { largest::<$name, T, false>(from, count, std::ptr::null_mut()) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn exponentials<T: Element>(
                mode: Mode,
                with_plain: bool,
                task: &Exponents<T>,
                out: &Buffers,
            ) -> Sums {
                // SAFETY: the caller's promise.
                unsafe {
                    match (mode, with_plain) {
                        (Mode::Forward, false) => exponentials::<$name, T, FORWARD, false>(task, out),
                        (Mode::Reverse, false) => exponentials::<$name, T, REVERSE, false>(task, out),
                        (Mode::Pair, false) => exponentials::<$name, T, PAIR, false>(task, out),
                        (Mode::Point, false) => exponentials::<$name, T, POINT, false>(task, out),
                        (Mode::Logs, false) => exponentials::<$name, T, LOGS, false>(task, out),
                        (Mode::All, false) => exponentials::<$name, T, ALL, false>(task, out),
                        (Mode::Forward, true) => exponentials::<$name, T, FORWARD, true>(task, out),
                        (Mode::Reverse, true) => exponentials::<$name, T, REVERSE, true>(task, out),
                        (Mode::Pair, true) => exponentials::<$name, T, PAIR, true>(task, out),
                        (Mode::Point, true) => exponentials::<$name, T, POINT, true>(task, out),
                        (Mode::Logs, true) => exponentials::<$name, T, LOGS, true>(task, out),
                        (Mode::All, true) => exponentials::<$name, T, ALL, true>(task, out),
                    }
                }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn exponentials_of_one<T: Element>(task: &OneSide<T>, out: *mut f32) -> (f32, f32) {
                // SAFETY: the caller's promise.
                unsafe { exponentials_of_one::<$name, T>(task, out) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn scaled<T: Element>(factor: f32, from: *const f32, to: *mut T, count: usize) {
                // SAFETY: the caller's promise.
                unsafe { scaled::<$name, T>(factor, from, to, count) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn point(
                divergence: Divergence,
                weight: f32,
                add: bool,
                scales: &Scales,
                stretch: &Stretch,
                buffers: &Buffers,
            ) -> (f32, f32) {
                // SAFETY: the caller's promise.
                unsafe { point::<$name>(divergence, weight, add, scales, stretch, buffers) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn gradient<T: Element>(
                mode: Mode,
                with_plain: bool,
                coefficients: &Coefficients,
                buffers: &Buffers,
                label: Option<Label>,
                to: *mut T,
                count: usize,
            ) {
                // SAFETY: the caller's promise.
                unsafe {
                    let (c, b) = (coefficients, buffers);
                    match (mode, with_plain) {
                        (Mode::Forward, false) => gradient::<$name, T, FORWARD, false>(c, b, label, to, count),
                        (Mode::Reverse, false) => gradient::<$name, T, REVERSE, false>(c, b, label, to, count),
                        (Mode::Pair, false) => gradient::<$name, T, PAIR, false>(c, b, label, to, count),
                        (Mode::Point, false) => gradient::<$name, T, POINT, false>(c, b, label, to, count),
                        (Mode::Logs, false) => gradient::<$name, T, LOGS, false>(c, b, label, to, count),
                        (Mode::All, false) => gradient::<$name, T, ALL, false>(c, b, label, to, count),
                        (Mode::Forward, true) => gradient::<$name, T, FORWARD, true>(c, b, label, to, count),
                        (Mode::Reverse, true) => gradient::<$name, T, REVERSE, true>(c, b, label, to, count),
                        (Mode::Pair, true) => gradient::<$name, T, PAIR, true>(c, b, label, to, count),
                        (Mode::Point, true) => gradient::<$name, T, POINT, true>(c, b, label, to, count),
                        (Mode::Logs, true) => gradient::<$name, T, LOGS, true>(c, b, label, to, count),
                        (Mode::All, true) => gradient::<$name, T, ALL, true>(c, b, label, to, count),
                    }
                }
            }
        }
    };
}

passes!(super::portable::Portable);
#[cfg(target_arch = "x86_64")]
passes!(super::x86::Avx512, "avx512f,avx512bw,avx512dq,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
passes!(super::x86::Avx512<true>, "avx512f,avx512bw,avx512dq,avx512bf16,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
passes!(super::x86::Avx2, "avx2,fma,f16c");
