//! Which points are too far from a row to add anything, by the expansion of the square.
//!
//! `-|x - a y|^2 = 2 a x.y - |x|^2 - a^2 |y|^2` takes one operation for each feature where the difference takes two, but its
//! error is a share of `s = |x|^2 + a^2 |y|^2`, not of the distance. With u = 2^-24 and n features: the product's is at most
//! (64 + n/64 + 1) u s (sums of at most 64 features, then of those), that of `|y|^2` (n/16 + 17) u s, the last operations'
//! 6 u s, and the distance as it is formed from differences is off by (64 + n/64 + 3) u of itself, at most 2 s. What is
//! beyond reach by the expansion plus all of these is beyond it by the differences as well: leaving it changes no bit.

use super::tiles::{FEATURES_AT_ONCE, PADDING, Reach};
use crate::ops::vector::SMALLEST;

/// Fewer features than this are taken as they are: the rest of the work is as much.
const FEWEST_FEATURES: usize = 16;

/// Tiles between two looks at whether it pays where it did not.
const PAUSE: usize = 16;

/// Squared lengths of rows and limits are below this.
const LARGEST: f64 = 1e30;

/// What is added for numbers near the least.
const LEAST: f64 = 1e-30;

/// The error as a share of `|x|^2 + a^2 |y|^2`, rounded up.
pub(super) fn error_share(width: usize) -> f64 {
    let block = (FEATURES_AT_ONCE + width.div_ceil(FEATURES_AT_ONCE) + 8) as f64;
    (4.0 * block + (width / PADDING + 32) as f64) * 2.0f64.powi(-24)
}

/// Points that count for a row whose closest one so far is `best`; `None` where the expansion says nothing.
pub(super) fn of_row(minus_alpha: f32, squares: f64, factor: f32, best: f32, share: f64) -> Option<Reach> {
    let alpha = f64::from(-minus_alpha);
    // A hundred is what `SMALLEST` stands for; a little more for the rounding of that comparison.
    let limit = f64::from(best) + 1.001 * f64::from(SMALLEST) / f64::from(factor);
    let limit = limit - 1e-6 * limit.abs() - LEAST;
    let kept = 1.0 - share;
    let reach = Reach {
        slope: (2.0 * alpha) as f32,
        scale: (-alpha * alpha * kept) as f32,
        offset: (-squares * kept) as f32,
        limit: limit as f32,
    };
    // What overflows then is farther than the limit, and what is lost at the lower end is less than `LEAST`.
    let is_common = alpha == 0.0 || (1e-15..1e15).contains(&alpha.abs());
    (is_common && squares < LARGEST && limit > -LARGEST).then_some(reach)
}

/// The squared length of a point of whole vectors; not a number, which is within any reach, where it is near to overflow.
pub(super) fn squared_length(point: &[f32]) -> f32 {
    let mut sums = [0.0; PADDING];
    for values in point.as_chunks::<PADDING>().0 {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value * value;
        }
    }
    let length = sums.iter().sum();
    if length < 1e37 { length } else { f32::NAN }
}

/// Whether to sift the next tile.
#[derive(Debug)]
pub(super) struct Sieve {
    pays: bool,
    tile: usize,
    is_wide: bool,
}

impl Sieve {
    pub(super) fn new(width: usize, allowed: bool) -> Self {
        Self { pays: true, tile: 0, is_wide: allowed && width >= FEWEST_FEATURES }
    }

    /// Asked once for each tile.
    pub(super) fn is_due(&mut self) -> bool {
        self.tile += 1;
        // Nothing is known before the first.
        self.is_wide && (self.pays || self.tile.is_multiple_of(PAUSE))
    }

    /// How many quads there were, and how many are left: half of them pay for looking at all.
    pub(super) fn learn(&mut self, before: usize, left: usize) {
        self.pays = 2 * left <= before;
    }
}
