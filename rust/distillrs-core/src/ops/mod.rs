//! Losses on rows of logits.
//!
//! A separable divergence is a sum over the vocabulary of `d(log p, log q)`, p the teacher and q the student. With
//! `h = dd / d(log q)` its gradient with respect to the student's logits at temperature T is
//! `(h - q sum h) / T`. Each row is read from memory once: its exponentials stay in a buffer that the processor's second
//! cache holds for most vocabularies, and the later passes work from there.

mod element;
mod events;
mod matrix;
mod mixture;
mod passes;
mod point;
mod portable;
mod ranking;
mod row_divergence;
mod row_statistics;
mod scratch;
mod sparse_divergence;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use element::{Bf16, Element, F16};
pub use matrix::{Layout, Matrix};
pub use mixture::{Known, Mixture, Posterior, posterior_covariance, posterior_mean};
pub use point::Divergence;
pub use ranking::{Ranking, plackett_luce};
pub use row_divergence::{Part, Problem, Weights, row_divergence};
pub use row_statistics::{Statistics, memory_pass, row_statistics};
pub use sparse_divergence::{SparseProblem, sparse_divergence};

use crate::host::Level;
