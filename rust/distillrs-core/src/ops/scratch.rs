//! Memory of a thread, kept from call to call: new memory would cost more than the arithmetic in it.

use std::cell::RefCell;
use std::ptr;

use super::passes::{BLOCK, Buffers, Coefficients, Mode, WIDEST};

/// A cache line of values: buffers of them begin at one.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(#[expect(dead_code, reason = "used through pointers")] pub [f32; WIDEST]);

/// A row between its first and its last step.
pub(super) struct Slot {
    memory: Vec<Line>,
    pub padded: usize,
    vocabulary: usize,
    /// The row of the gradient itself, which takes the student's exponentials where it has their type: a stream less in
    /// the second cache. Null where it does not.
    gradient: *mut f32,
    /// Largest logits up to the end of each block: student's, teacher's.
    pub references: Vec<[f32; 2]>,
    /// Each block's coefficients of the gradient.
    pub coefficients: Vec<Coefficients>,
    pub pending: Option<Pending>,
}

/// What the last step needs beside the buffers.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    pub row: usize,
    pub with_plain: bool,
    pub label: Option<(usize, f32)>,
}

/// What a thread works in.
pub(super) struct Scratch {
    pub raw: Vec<Line>,
    pub slots: [Slot; 2],
}

impl Slot {
    const fn new() -> Self {
        Self {
            memory: Vec::new(),
            padded: 0,
            vocabulary: 0,
            gradient: ptr::null_mut(),
            references: Vec::new(),
            coefficients: Vec::new(),
            pending: None,
        }
    }

    /// Makes room for a row; `gradient` may be null, else it has room for the vocabulary.
    pub fn prepare(&mut self, mode: Mode, with_plain: bool, vocabulary: usize, gradient: *mut f32) {
        // Whole blocks apart, so that a stream's block begins at a line.
        self.padded = vocabulary.next_multiple_of(WIDEST);
        self.vocabulary = vocabulary;
        self.gradient = gradient;
        let streams = mode.streams() + usize::from(with_plain);
        let lines = streams * self.padded / WIDEST;
        if self.memory.len() < lines {
            self.memory = vec![Line([0.0; WIDEST]); lines];
        }
        let blocks = vocabulary.div_ceil(BLOCK);
        self.references.resize(blocks, [0.0; 2]);
        self.coefficients.resize(blocks, Coefficients::default());
    }

    /// The streams of a block. Those that the mode does not use point to memory that it does not touch.
    pub fn buffers(&mut self, mode: Mode, block: usize) -> Buffers {
        let (padded, base) = (self.padded, self.memory.as_mut_ptr().cast::<f32>());
        let stream = |index: usize| base.wrapping_add(index * padded + block * BLOCK);
        // Vectors beyond the last entry would be written into the next row.
        let is_whole = (block + 1) * BLOCK <= self.vocabulary || self.padded == self.vocabulary;
        let student =
            if self.gradient.is_null() || !is_whole { stream(0) } else { self.gradient.wrapping_add(block * BLOCK) };
        Buffers {
            student,
            teacher: stream(1),
            difference: stream(if mode == Mode::Reverse { 1 } else { 2 }),
            derivative: stream(if mode == Mode::All { 3 } else { 1 }),
            student_log: stream(mode.streams().saturating_sub(2)),
            teacher_log: stream(mode.streams() - 1),
            plain: stream(mode.streams()),
        }
    }
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> =
        const { RefCell::new(Scratch { raw: Vec::new(), slots: [Slot::new(), Slot::new()] }) };
}
