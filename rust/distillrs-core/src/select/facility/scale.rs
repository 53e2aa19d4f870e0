//! What gains are rounded to.

use crate::select::exact::Unit;

/// The unit of the terms of gains, which are at most the largest limit: it follows the limits down, in steps.
pub(super) struct Scale {
    pub unit: Unit,
    most: f64,
}

impl Scale {
    /// For limits of at most `most`.
    pub(super) fn of(most: f64) -> Self {
        Self { unit: Unit::of(most), most }
    }

    /// Whether the largest gain of all says that the limits may have become far smaller.
    ///
    /// The point of the largest limit gains as much as that, so the largest gain is at least the largest limit.
    pub(super) fn may_fall(&self, gain: f64) -> bool {
        gain < self.most / 256.0
    }

    /// Takes a finer unit, if the largest limit allows for it; then what gains under the old one can be off.
    pub(super) fn fall(&mut self, largest_limit: f64, count: usize) -> Option<f64> {
        if largest_limit >= self.most / 256.0 {
            return None;
        }
        let off = self.unit.error(count);
        *self = Self::of(largest_limit);
        Some(off)
    }
}
