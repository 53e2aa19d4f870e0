//! A teacher's answers: rows of a few hundred bytes, one for each token or labelled view, in a store of documents.
//!
//! `docs/teacher-cache-format.md` and `docs/label-cache-format.md` describe the bytes and state the error of every field.

mod dense;
mod half;
#[doc(hidden)]
pub mod hostile;
mod layout;
mod pack;
mod rows;
mod select;
#[cfg(test)]
mod tests;
mod unpack;
#[cfg(target_arch = "x86_64")]
mod unpack_avx2;

pub use dense::{pack_dense, unpack_dense};
pub use layout::{LogProbCode, MAX_CLASSES, MAX_K, MAX_TEMPERATURES, MAX_VOCABULARY, RowLayout};
pub use pack::{SampledRows, TopKRows, pack_logits, pack_top_k};
pub use rows::{Conflict, DOCUMENT_LIMIT, Gathered, TOKEN_LIMIT, TeacherRows, WRITER_LIMIT};
pub use select::{BFloat16, Half, Logit, Logits};
pub use unpack::{Defect, Id, Target, unpack_reference, unpack_rows};
