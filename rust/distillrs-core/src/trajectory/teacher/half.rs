//! `f16` over its whole range, infinities included.

/// The nearest `f16`, ties to even; magnitudes from 65520 on become infinite.
pub(super) fn to_half(value: f64) -> u16 {
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7E00;
    }
    if magnitude >= 65520.0 {
        return sign | 0x7C00;
    }
    // Scaled by the spacing of the numbers around it, rounding is that of whole numbers; both scalings are exact.
    let exponent = magnitude.log2().floor().clamp(-14.0, 15.0) as i32;
    let exponent = if magnitude < exponent_value(exponent) { exponent - 1 } else { exponent }.max(-14);
    let units = (magnitude / exponent_value(exponent - 10)).round_ties_even() as u16;
    // A carry into the next exponent is the addition's own carry.
    sign | (units + if exponent == -14 { 0 } else { (exponent + 14) as u16 * 1024 })
}

fn exponent_value(exponent: i32) -> f64 {
    2.0f64.powi(exponent)
}

/// The smallest `f16` that is not below a number from 0 to 65504.
pub(super) fn to_half_above(value: f64) -> u16 {
    let code = to_half(value);
    if f64::from(from_half(code)) < value { code + 1 } else { code }
}

/// The value of an `f16`.
#[inline(always)]
pub(super) fn from_half(code: u16) -> f32 {
    let sign = u32::from(code & 0x8000) << 16;
    let rest = u32::from(code & 0x7FFF) << 13;
    // 2^112 moves the bias from 15 to 127 and normalises subnormal numbers, exactly.
    let finite = (f32::from_bits(rest) * f32::from_bits(0x7780_0000)).to_bits();
    let special = rest | 0x7F80_0000;
    f32::from_bits(sign | if rest >= 0x0F80_0000 { special } else { finite })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_and_neighbours_round_to_the_nearer() {
        for code in 0..0x7C00u16 {
            let value = f64::from(from_half(code));
            let exponent = i32::from(code >> 10);
            let mantissa = f64::from(code & 0x3FF);
            let expected = match exponent {
                0 => mantissa * 2.0f64.powi(-24),
                _ => (1024.0 + mantissa) * 2.0f64.powi(exponent - 25),
            };
            assert_eq!(value, expected, "{code:#x}");
            assert_eq!((to_half(value), to_half(-value)), (code, code | 0x8000));
            if code < 0x7BFF {
                let next = f64::from(from_half(code + 1));
                let middle = (value + next) / 2.0;
                assert_eq!(to_half(middle), code + (code & 1));
                assert_eq!(to_half(middle + (next - value) / 1024.0), code + 1);
                assert_eq!(to_half_above(value + (next - value) / 1024.0), code + 1);
                assert_eq!(to_half_above(value), code);
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        assert_eq!(from_half(0x7C00), f32::INFINITY);
        assert_eq!(from_half(0xFC00), f32::NEG_INFINITY);
        assert!(from_half(0x7E00).is_nan() && from_half(0xFC01).is_nan());
        assert_eq!((to_half(f64::NEG_INFINITY), to_half(-65520.0), to_half(65519.0)), (0xFC00, 0xFC00, 0x7BFF));
        assert!(from_half(to_half(f64::NAN)).is_nan());
    }
}
