//! Logarithm, sine and cosine from additions, multiplications and one division.
//!
//! The C library's functions differ in the last bit between systems and between processors of one system; these give
//! the same bits everywhere, and the compiler turns loops over them into vector code. Series are cut where the next term
//! is below a quarter of the last bit.

/// Natural logarithm of a positive normal number.
///
/// `x = 2^e m` with `m` in [sqrt(1/2), sqrt(2)), then `ln m = 2 atanh((m - 1) / (m + 1))` by its power series.
#[inline(always)]
pub fn ln(x: f64) -> f64 {
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8; // its lower 32 bits are zero: products with exponents are exact
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const SQRT_HALF_BITS: u64 = 0x3FE6_A09E_667F_3BCD;
    let shifted = x.to_bits().wrapping_sub(SQRT_HALF_BITS);
    let exponent = (shifted as i64) >> 52;
    let mantissa = f64::from_bits(x.to_bits().wrapping_sub((exponent << 52) as u64));
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let z = s * s;
    let mut series = 1.0 / 21.0;
    for odd in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        series = series * z + 1.0 / odd;
    }
    let exponent = exponent as f64;
    exponent * LN_2_HIGH + (2.0 * s + (2.0 * s * z * series + exponent * LN_2_LOW))
}

/// Sine and cosine of `2 pi turns`, `turns` in [0, 1).
///
/// Quarter turns are taken off exactly; Taylor's series serve the rest, at most pi/4 from zero.
#[inline(always)]
pub fn sine_cosine_of_turns(turns: f64) -> (f64, f64) {
    let quarters = (4.0 * turns + 0.5) as i32;
    let x = (turns - 0.25 * f64::from(quarters)) * (2.0 * std::f64::consts::PI);
    let z = x * x;
    let (mut sine, mut cosine) = (1.0, 1.0);
    for even in [16.0, 14.0, 12.0, 10.0, 8.0, 6.0, 4.0, 2.0] {
        sine = 1.0 - sine * z * (1.0 / (even * (even + 1.0)));
        cosine = 1.0 - cosine * z * (1.0 / (even * (even - 1.0)));
    }
    let sine = x * sine;
    let (first, second) = if quarters & 1 == 0 { (sine, cosine) } else { (cosine, sine) };
    let sine_sign = if quarters & 2 == 0 { 1.0 } else { -1.0 };
    let cosine_sign = if (quarters + 1) & 2 == 0 { 1.0 } else { -1.0 };
    (sine_sign * first, cosine_sign * second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_agrees_with_the_systems_within_two_last_bits() {
        let mut x = 2f64.powi(-53);
        while x <= 1.0 {
            let (ours, theirs) = (ln(x), x.ln());
            assert!((ours - theirs).abs() <= 2.0 * f64::EPSILON * theirs.abs().max(1e-300), "{x}: {ours} {theirs}");
            x *= 1.000_37;
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn sine_and_cosine_agree_with_the_systems() {
        for index in 0..100_000 {
            let turns = f64::from(index) / 100_000.0;
            let (sine, cosine) = sine_cosine_of_turns(turns);
            let angle = 2.0 * std::f64::consts::PI * turns;
            // The angle itself is rounded: two last bits of 2 pi.
            assert!((sine - angle.sin()).abs() < 2e-15 && (cosine - angle.cos()).abs() < 2e-15, "{turns}");
        }
        assert_eq!(sine_cosine_of_turns(0.25), (1.0, 0.0));
        assert_eq!(sine_cosine_of_turns(0.5), (0.0, -1.0));
    }
}
