//! The table of divergences. Adding one is a variant, its two elementwise functions in [`terms`], and a name in the binding.

use super::vector::{Vector, exp2_wide};

/// A separable divergence; see the Python types of the same names for what each is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divergence {
    /// KL(p || q).
    ForwardKL,
    /// KL(q || p).
    ReverseKL,
    /// beta KL(p || M) + (1 - beta) KL(q || M), M = beta p + (1 - beta) q.
    JensenShannon {
        /// The teacher's share of the mixture.
        beta: f32,
    },
    /// KL(p || alpha p + (1 - alpha) q).
    SkewKL {
        /// The teacher's share of the mixture, above 0.
        alpha: f32,
    },
    /// KL(q || (1 - alpha) p + alpha q).
    SkewReverseKL {
        /// The student's share of the mixture, above 0.
        alpha: f32,
    },
    /// sum |p - q| / 2.
    TotalVariation,
    /// (sum p^a q^(1 - a) - 1) / (a (a - 1)).
    Alpha {
        /// Neither 0 nor 1.
        a: f32,
    },
}

/// What a divergence is computed from at some entries.
#[derive(Clone, Copy)]
pub(super) struct Entries<V> {
    pub p: V,
    pub q: V,
    /// Base-2 logarithms; only where [`Divergence::needs_logs`].
    pub log_p: V,
    pub log_q: V,
}

/// A number above which mixtures of p and q lie unless both are 0.
const TINY: f32 = 1.0 / (1u128 << 125) as f32;

impl Divergence {
    /// Whether the value and the gradient follow from sums of the first pass alone.
    pub(super) fn is_linear(self) -> bool {
        matches!(self, Self::ForwardKL | Self::ReverseKL)
    }

    /// Whether tiny probabilities matter so much that their logarithms are needed.
    pub(super) fn needs_logs(self) -> bool {
        matches!(self, Self::Alpha { .. })
    }
}

/// `d` and `h` of a divergence that is not linear.
///
/// # Safety
/// The processor has the vector's instructions.
#[inline(always)]
pub(super) unsafe fn terms<V: Vector>(divergence: Divergence, e: Entries<V>) -> (V, V) {
    // SAFETY: the caller's promise.
    unsafe {
        let tiny = V::splat(TINY);
        let Entries { p, q, log_p, log_q } = e;
        match divergence {
            Divergence::JensenShannon { beta } => {
                let (share, rest) = (V::splat(beta), V::splat(1.0 - beta));
                let weighted_q = rest.mul(q);
                let mixture = tiny.max(share.fma(p, weighted_q));
                let inverse = mixture.reciprocal();
                let log_u = tiny.max(p.mul(inverse)).log();
                let h = weighted_q.mul(tiny.max(q.mul(inverse)).log());
                (share.mul(p).fma(log_u, h), h)
            }
            Divergence::SkewKL { alpha } => {
                let rest = V::splat(1.0 - alpha);
                let mixture = tiny.max(V::splat(alpha).fma(p, rest.mul(q)));
                let share = p.mul(mixture.reciprocal());
                let h = V::splat(0.0).sub(rest.mul(q).mul(share));
                (p.mul(tiny.max(share).log()), h)
            }
            Divergence::SkewReverseKL { alpha } => {
                let own = V::splat(alpha);
                let mixture = tiny.max(V::splat(1.0 - alpha).fma(p, own.mul(q)));
                let share = q.mul(mixture.reciprocal());
                let d = q.mul(tiny.max(share).log());
                (d, d.add(q.mul(V::splat(1.0).sub(own.mul(share)))))
            }
            Divergence::TotalVariation => {
                let (zero, half) = (V::splat(0.0), V::splat(0.5));
                let difference = q.sub(p);
                let opposite = zero.sub(difference);
                let half_q = half.mul(q);
                let rising = half_q.where_above(difference, zero, zero);
                let falling = half_q.where_above(opposite, zero, zero);
                // The product is 0, or not a number where the difference is none: comparisons would lose that.
                (half.mul(difference.max(opposite)), difference.fma(zero, rising.sub(falling)))
            }
            Divergence::Alpha { a } => {
                let (share, rest) = (V::splat(a), V::splat(1.0 - a));
                let power = exp2_wide(share.fma(log_p, rest.mul(log_q)));
                // Where both logarithms are minus infinity the entry does not count.
                let power = power.zero_below(log_p.max(log_q), V::splat(f32::MIN));
                let linear = share.fma(p, rest.mul(q));
                let d = power.sub(linear).mul(V::splat(1.0 / (a * (a - 1.0))));
                (d, q.sub(power).mul(V::splat(1.0 / a)))
            }
            // Their sums come from the first pass.
            Divergence::ForwardKL | Divergence::ReverseKL => (V::splat(0.0), V::splat(0.0)),
        }
    }
}
