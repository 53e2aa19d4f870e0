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

/// Which instructions the loops were compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Level {
    fn here() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if Self::avx512() {
                return Self::Avx512;
            }
            if Self::avx2() {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    #[cfg(target_arch = "x86_64")]
    fn avx512() -> bool {
        let is_wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        is_wide && is_x86_feature_detected!("avx512dq") && Self::avx2()
    }

    #[cfg(target_arch = "x86_64")]
    fn avx2() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
    }

    /// Every level that this machine has, for tests.
    #[cfg(test)]
    fn all() -> Vec<Self> {
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Self::avx2().then_some(Self::Avx2));
            levels.extend(Self::avx512().then_some(Self::Avx512));
        }
        levels
    }
}
