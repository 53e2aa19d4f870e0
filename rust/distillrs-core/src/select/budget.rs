//! The most valuable choice within a budget.

use crate::{Error, Result};

/// Bits of the table of decisions that are allowed, 4 GiB.
const MOST: u64 = 1 << 35;

/// Rows that rise: the items with the largest sum of values whose costs sum to at most `limit`; an item is taken at most
/// once. Of equally valuable choices the one is taken that has the lowest items. Bellman's dynamic programme over the
/// costs, exact: O(items * limit) time, one bit of memory for each pair.
///
/// # Errors
/// [`Error::Argument`] when the lengths differ, a value is not finite, or the table would exceed 2^35 bits; whatever
/// `check` returns.
pub fn budget(values: &[f64], costs: &[u64], limit: u64, check: &dyn Fn() -> Result<()>) -> Result<Vec<i64>> {
    if values.len() != costs.len() {
        return Err(Error::argument("costs", format_args!("{} costs", costs.len()), format!("{} costs", values.len())));
    }
    if let Some(row) = values.iter().position(|value| !value.is_finite()) {
        return Err(Error::argument("values", format_args!("{} in row {row}", values[row]), "finite values"));
    }
    // Items that never help or never fit take no row of the table; of the rest a common divisor of the costs is one unit.
    let useful: Vec<usize> = (0..values.len()).filter(|&item| values[item] > 0.0 && costs[item] <= limit).collect();
    let divisor = useful.iter().map(|&item| costs[item]).fold(0, greatest_common_divisor).max(1);
    let total = useful.iter().fold(0u64, |sum, &item| sum.saturating_add(costs[item]));
    let limit = limit.min(total) / divisor;
    if (limit + 1).checked_mul(useful.len() as u64).is_none_or(|bits| bits > MOST) {
        let got = format!("{limit} units of {divisor} for {} items", useful.len());
        return Err(Error::argument(
            "budget",
            got,
            format!("at most {MOST} pairs of an item and a unit: round the costs"),
        ));
    }
    let width = limit as usize + 1;
    let words = width.div_ceil(64);
    let mut best = vec![0.0; width];
    let mut is_taken = vec![0u64; words * useful.len()];
    // From the last item on, so that the way back meets the lowest first.
    for (place, &item) in useful.iter().enumerate().rev() {
        check()?;
        let cost = (costs[item] / divisor) as usize;
        let taken = &mut is_taken[place * words..(place + 1) * words];
        for room in (cost..width).rev() {
            let value = best[room - cost] + values[item];
            if value >= best[room] {
                best[room] = value;
                taken[room / 64] |= 1 << (room % 64);
            }
        }
    }
    let mut room = width - 1;
    let mut chosen = Vec::new();
    for (place, &item) in useful.iter().enumerate() {
        if is_taken[place * words + room / 64] >> (room % 64) & 1 == 1 {
            chosen.push(item as i64);
            room -= (costs[item] / divisor) as usize;
        }
    }
    Ok(chosen)
}

fn greatest_common_divisor(mut left: u64, mut right: u64) -> u64 {
    while right > 0 {
        (left, right) = (right, left % right);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_those_of_all_subsets() {
        for case in 0u64..300 {
            let draw = |place: u64, high: u64| {
                let mut state = (case * 131 + place + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                state ^= state >> 29;
                state.wrapping_mul(0xBF58_476D_1CE4_E5B9) % high
            };
            let count = draw(0, 9);
            let values: Vec<f64> = (0..count).map(|item| draw(10 + item, 7) as f64 - 1.0).collect();
            let costs: Vec<u64> = (0..count).map(|item| draw(30 + item, 6) * 2).collect();
            let limit = draw(1, 24);
            let mut best: (f64, Vec<i64>) = (f64::NEG_INFINITY, Vec::new());
            for subset in 0..1u32 << count {
                let items: Vec<usize> = (0..count as usize).filter(|item| subset >> item & 1 == 1).collect();
                let cost: u64 = items.iter().map(|&item| costs[item]).sum();
                let value: f64 = items.iter().map(|&item| values[item]).sum();
                let ids: Vec<i64> = items.iter().map(|&item| item as i64).collect();
                // Only items of some value are taken; of equal choices the one with the lowest items.
                if cost <= limit && items.iter().all(|&item| values[item] > 0.0) {
                    let is_lower = ids.iter().zip(&best.1).find(|(own, other)| own != other);
                    let comes_first = is_lower.map_or(ids.len() > best.1.len(), |(own, other)| own < other);
                    if value > best.0 || (value == best.0 && comes_first) {
                        best = (value, ids);
                    }
                }
            }
            assert_eq!(budget(&values, &costs, limit, &|| Ok(())).unwrap(), best.1, "{values:?} {costs:?} {limit}");
        }
    }

    #[test]
    fn large_costs_with_a_common_divisor_are_small() {
        let costs = [3 << 40, 2 << 40, 2 << 40];
        assert_eq!(budget(&[3.0, 2.0, 2.0], &costs, 4 << 40, &|| Ok(())).unwrap(), [1, 2]);
        assert_eq!(budget(&[1.0], &[0], 0, &|| Ok(())).unwrap(), [0]);
        for (values, costs, name) in [
            (&[1.0][..], &[1, 2][..], "costs:"),
            (&[f64::NAN], &[1], "values:"),
            (&[1.0, 1.0], &[1 << 40, 1 + (1 << 40)], "budget:"),
        ] {
            assert!(budget(values, costs, 1 << 41, &|| Ok(())).unwrap_err().to_string().starts_with(name));
        }
        assert!(budget(&[1.0], &[1], 1, &|| Err(Error::Interrupted)).is_err());
    }
}
