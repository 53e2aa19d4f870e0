//! Sums that are the same in any order, and so at any number of processes.
//!
//! A term is rounded to a multiple of a fixed fraction of the largest possible one, and those multiples are summed as
//! whole numbers, in three digits of 30 bits.

/// Most that a term can be, as a power of two, and with it what terms are rounded to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Unit {
    /// Times this, a term is at most 2^29.
    scale: f64,
}

/// One more than the largest digit.
const BASE: f64 = (1u64 << 30) as f64;

/// Adding it rounds a number of less than 2^51 to a whole one, whose value is in the lower bits.
const ROUND: f64 = (3u64 << 51) as f64;

/// The nearest whole number, and what is left.
#[inline(always)]
fn digit(value: f64) -> (i64, f64) {
    let shifted = value + ROUND;
    (shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i64, value - (shifted - ROUND))
}

impl Unit {
    /// For terms of at most `most`, at least 0, in magnitude.
    pub(super) fn of(most: f64) -> Self {
        let exponent = ((most.to_bits() >> 52) as i64 - 1023).clamp(-990, 1023);
        // most < 2^(exponent + 1).
        Self { scale: f64::from_bits(((1023 + 28 - exponent) as u64) << 52) }
    }

    /// Most that the sum of `count` terms is off, at least.
    pub(super) fn error(self, count: usize) -> f64 {
        count as f64 / BASE / BASE / self.scale
    }
}

/// A sum of terms of at most 2^32 in number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Exact(pub [i64; 3]);

impl Exact {
    #[inline(always)]
    pub(super) fn add(&mut self, term: f64, unit: Unit) {
        let mut rest = term * unit.scale;
        for sum in &mut self.0 {
            let (whole, left) = digit(rest);
            *sum += whole;
            rest = left * BASE;
        }
    }

    pub(super) fn value(self, unit: Unit) -> f64 {
        let [high, middle, low] = self.0.map(i128::from);
        ((high << 60) + (middle << 30) + low) as f64 / (BASE * BASE) / unit.scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Kind, Stream, Units, normal_f64};

    #[test]
    fn sums_are_right_and_do_not_depend_on_the_order() {
        let mut values = vec![0.0; 1000];
        let units = Units::Range { first: 0, count: 1 };
        normal_f64(Stream::new(1, "terms", 0, Kind::Normal), units, 1000, &mut values).unwrap();
        for scale in [1e-290, 1e-3, 1.0, 7e200, 1e306] {
            let terms: Vec<f64> = values.iter().map(|value| value * scale).collect();
            let most = terms.iter().fold(0.0, |most: f64, term| most.max(term.abs()));
            let unit = Unit::of(most);
            let sum = |terms: &mut dyn Iterator<Item = &f64>| {
                let mut sum = Exact::default();
                terms.for_each(|&term| sum.add(term, unit));
                sum
            };
            let forwards = sum(&mut terms.iter());
            assert_eq!(forwards, sum(&mut terms.iter().rev()));
            let expected: f64 = values.iter().sum::<f64>() * scale;
            assert!((forwards.value(unit) - expected).abs() <= 1e-13 * 1000.0 * scale);
            assert!(unit.error(1000) < 1e-20 * most && unit.error(1) > 0.0);
        }
    }

    #[test]
    fn whole_numbers_and_the_ends_of_the_range_are_exact() {
        for most in [0.0, 1.0, 3.0, f64::MIN_POSITIVE, f64::MAX] {
            let unit = Unit::of(most);
            let mut sum = Exact::default();
            sum.add(most, unit);
            assert_eq!(sum.value(unit), most);
        }
        let unit = Unit::of(1000.0);
        let mut sum = Exact::default();
        (0..=1000).for_each(|term| sum.add(f64::from(term), unit));
        assert_eq!(sum.value(unit), 500_500.0);
    }
}
