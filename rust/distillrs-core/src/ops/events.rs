//! Divergences of a few events, in `f64`, from logarithms of their probabilities.

use super::point::Divergence;

/// `d` and `h` of one event; 0 where neither side has it.
pub(super) fn event(divergence: Divergence, log_p: f64, log_q: f64) -> (f64, f64) {
    if log_p == f64::NEG_INFINITY && log_q == f64::NEG_INFINITY {
        return (0.0, 0.0);
    }
    match divergence {
        Divergence::ForwardKL => {
            let p = log_p.exp();
            (weighted(p, log_p - log_q), -p)
        }
        Divergence::ReverseKL => {
            let q = log_q.exp();
            (weighted(q, log_q - log_p), weighted(q, log_q - log_p + 1.0))
        }
        Divergence::JensenShannon { beta } => {
            let beta = f64::from(beta);
            let log_m = log_mixture(log_p, log_q, beta);
            let own = (1.0 - beta) * weighted(log_q.exp(), log_q - log_m);
            (beta * weighted(log_p.exp(), log_p - log_m) + own, own)
        }
        Divergence::SkewKL { alpha } => {
            let alpha = f64::from(alpha);
            let (p, log_m) = (log_p.exp(), log_mixture(log_p, log_q, alpha));
            (weighted(p, log_p - log_m), -(1.0 - alpha) * weighted(p, (log_q - log_m).exp()))
        }
        Divergence::SkewReverseKL { alpha } => {
            let alpha = f64::from(alpha);
            let (q, ratio) = (log_q.exp(), log_q - log_mixture(log_p, log_q, 1.0 - alpha));
            (weighted(q, ratio), weighted(q, ratio + 1.0 - alpha * ratio.exp()))
        }
        Divergence::TotalVariation => {
            let (p, q) = (log_p.exp(), log_q.exp());
            // The signum of 0 is 1; there the derivative is taken as 0.
            let sign = if p == q { 0.0 } else { (q - p).signum() };
            ((p - q).abs() / 2.0, q * sign / 2.0)
        }
        Divergence::Alpha { a } => {
            let a = f64::from(a);
            let (p, q) = (log_p.exp(), log_q.exp());
            let power = (a * log_p + (1.0 - a) * log_q).exp();
            ((power - a * p - (1.0 - a) * q) / (a * (a - 1.0)), (q - power) / a)
        }
    }
}

/// The product; 0 where the weight is 0, whatever the value.
fn weighted(weight: f64, value: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { weight * value }
}

/// The logarithm of `share p + (1 - share) q`, for a share between 0 and 1.
fn log_mixture(log_p: f64, log_q: f64, share: f64) -> f64 {
    let (first, second) = (log_p + share.ln(), log_q + (-share).ln_1p());
    let (low, high) = if first < second { (first, second) } else { (second, first) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}
