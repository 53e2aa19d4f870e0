//! How far decoded records lie from what was given, in units of the motion between neighbours.

/// Error of a codec relative to the displacement between neighbouring records (Euclidean norms over the whole record).
///
/// A record counts when it was stored as a delta and differs from its predecessor. Keyframes are exact.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CodecError {
    /// Largest relative error of a record.
    pub max: f64,
    /// Mean relative error of the records that count.
    pub mean: f64,
    /// How many records count.
    pub records: u64,
}

impl CodecError {
    /// Takes in the squared error of one record and its squared displacement.
    pub(super) fn record(&mut self, squared_error: f64, squared_displacement: f64) {
        if !(squared_displacement > 0.0 && squared_displacement.is_finite()) {
            return;
        }
        // Files keep finite numbers only; what overflows counts as the largest of them.
        let relative = (squared_error / squared_displacement).sqrt().min(f64::MAX);
        *self = self.merge(Self { max: relative, mean: relative, records: 1 });
    }

    /// The error of both sets of records together.
    pub fn merge(self, other: Self) -> Self {
        let records = self.records + other.records;
        if records == 0 {
            return Self::default();
        }
        let sum = self.mean * self.records as f64 + other.mean * other.records as f64;
        Self { max: self.max.max(other.max), mean: (sum / records as f64).min(f64::MAX), records }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_is_what_counting_together_gives() {
        let (mut all, mut left, mut right) = (CodecError::default(), CodecError::default(), CodecError::default());
        for (index, error) in [0.04, 0.01, 0.25, 0.0].into_iter().enumerate() {
            all.record(error, 1.0);
            if index < 2 { &mut left } else { &mut right }.record(error, 1.0);
        }
        let merged = left.merge(right);
        assert_eq!((merged.records, merged.max), (4, 0.5));
        assert!((merged.mean - 0.2).abs() < 1e-15 && (all.mean - 0.2).abs() < 1e-15);
        all.record(1.0, 0.0);
        assert_eq!(all.records, 4);
    }

    #[test]
    fn an_error_past_the_range_of_numbers_is_kept_as_the_largest() {
        let mut error = CodecError::default();
        error.record(1.0, 1e-320);
        error.record(f64::INFINITY, 1.0);
        error.record(1e300, 1e-300);
        assert_eq!(error, CodecError { max: f64::MAX, mean: f64::MAX, records: 3 });
    }
}
