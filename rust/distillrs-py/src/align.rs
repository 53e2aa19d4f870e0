use distillrs_core::Error;
use distillrs_core::align::{self, Boundary, Spans, Vocabulary};
use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;

use crate::error::{CoreResult, check_signals};
use crate::random::writable;
use crate::select::fill;

/// The values of a contiguous array, which may be large, without a copy.
fn view<'a, T: Element>(name: &str, buffer: &'a PyBuffer<T>) -> CoreResult<&'a [T]> {
    if !buffer.is_c_contiguous() {
        return Err(Error::argument(name, "a strided buffer", "a contiguous one").into());
    }
    if buffer.item_count() == 0 {
        return Ok(&[]);
    }
    // SAFETY: contiguous, `item_count` elements of type `T` (checked by `PyBuffer`), kept alive by `buffer`. Writing to
    // the array meanwhile from another thread is the caller's error; every index made of a value is checked.
    Ok(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<T>(), buffer.item_count()) })
}

/// Numbers the chunks of every row; fills `student_chunks`, `teacher_chunks` and `ends`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "settings and outputs of one call")]
pub fn token_chunks(
    py: Python<'_>,
    rows: usize,
    student_spans: PyBuffer<i64>,
    teacher_spans: PyBuffer<i64>,
    minimum: i64,
    boundary: Option<PyBuffer<f32>>,
    threshold: f32,
    student_chunks: PyBuffer<i64>,
    teacher_chunks: PyBuffer<i64>,
    ends: PyBuffer<i64>,
) -> CoreResult<()> {
    let student = view("student_spans", &student_spans)?;
    let teacher = view("teacher_spans", &teacher_spans)?;
    let log_probs = boundary.as_ref().map(|boundary| view("boundary", boundary)).transpose()?;
    let (student_chunks, teacher_chunks) = (writable(&student_chunks)?, writable(&teacher_chunks)?);
    let ends = writable(&ends)?;
    let (own, other) = (student_chunks.len() / rows.max(1), teacher_chunks.len() / rows.max(1));
    py.detach(|| {
        let boundary = log_probs.map(|log_probs| Boundary { log_probs, threshold });
        let student = Spans::new("student_spans", student, rows, own)?;
        let teacher = Spans::new("teacher_spans", teacher, rows, other)?;
        align::merge(&student, &teacher, minimum, boundary, student_chunks, teacher_chunks, ends, &check_signals)
    })?;
    Ok(())
}

/// The teacher's token with the same bytes for each token of the student; fills `teacher_ids`.
#[pyfunction]
pub fn shared_tokens(
    py: Python<'_>,
    student_bytes: PyBuffer<u8>,
    student_offsets: PyBuffer<i64>,
    teacher_bytes: PyBuffer<u8>,
    teacher_offsets: PyBuffer<i64>,
    teacher_ids: PyBuffer<i64>,
) -> CoreResult<()> {
    let student = (view("student", &student_bytes)?, view("student", &student_offsets)?);
    let teacher = (view("teacher", &teacher_bytes)?, view("teacher", &teacher_offsets)?);
    let found = py.detach(|| {
        let student = Vocabulary::new("student", student.0, student.1)?;
        let teacher = Vocabulary::new("teacher", teacher.0, teacher.1)?;
        Ok::<_, Error>(align::shared_tokens(&student, &teacher))
    })?;
    fill("teacher_ids", &teacher_ids, &found)
}
