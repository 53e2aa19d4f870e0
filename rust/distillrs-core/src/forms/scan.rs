//! How many of one kind of parts to keep, and how many of another, within one budget.

use crate::{Error, Result};

/// Parts of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Kind<'a> {
    /// What keeping each is worth; finite, at least 0.
    pub values: &'a [f64],
    /// What keeping each costs.
    pub costs: &'a [u64],
    /// Whether it is kept in any case.
    pub required: &'a [bool],
}

impl Kind<'_> {
    fn check(&self, name: &str) -> Result<()> {
        if self.costs.len() != self.values.len() || self.required.len() != self.values.len() {
            let got = format!("{} costs, {} marks", self.costs.len(), self.required.len());
            return Err(Error::argument(name, got, format!("{} of each", self.values.len())));
        }
        let wrong = self.values.iter().position(|value| !(value.is_finite() && *value >= 0.0));
        wrong.map_or(Ok(()), |place| {
            Err(Error::argument(name, format_args!("{} in place {place}", self.values[place]), "finite values from 0"))
        })
    }

    /// What is required first, then by falling value; of equal ones the lower first.
    fn ranked(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.values.len()).collect();
        order.sort_by(|&left, &right| {
            let by_value = self.values[right].total_cmp(&self.values[left]);
            self.required[right].cmp(&self.required[left]).then(by_value)
        });
        order
    }

    /// Costs and values of the first 0, 1, ... in `order`.
    fn sums(&self, order: &[usize]) -> Vec<(u64, f64)> {
        let mut sum = (0u64, 0.0);
        let steps = order.iter().map(|&place| {
            sum = (sum.0.saturating_add(self.costs[place]), sum.1 + self.values[place]);
            sum
        });
        std::iter::once((0, 0.0)).chain(steps).collect()
    }
}

/// Which parts to keep: the best h of the first kind for some h, and as many of the best of the second as the rest of
/// `limit` pays for; of all h the one with the largest sum of values, the smallest of equal ones. Where all of a kind
/// cost the same, no other choice that keeps what is required is worth more.
///
/// Source: the search of Khaki and Plataniotis, "The Need for Speed: Pruning Transformers with One Recipe", ICLR 2024.
///
/// # Errors
/// [`Error::Argument`] for sizes that differ, values that are not finite or below 0, or a limit below what is required.
pub fn best_of_two_kinds(first: &Kind<'_>, second: &Kind<'_>, limit: u64) -> Result<(Vec<i64>, Vec<i64>)> {
    first.check("first")?;
    second.check("second")?;
    let (first_order, second_order) = (first.ranked(), second.ranked());
    let (first_sums, second_sums) = (first.sums(&first_order), second.sums(&second_order));
    let least = |kind: &Kind<'_>| kind.required.iter().filter(|&&mark| mark).count();
    let (first_least, second_least) = (least(first), least(second));
    let mut best: Option<(f64, usize, usize)> = None;
    for (kept, &(cost, value)) in first_sums.iter().enumerate().skip(first_least) {
        let Some(rest) = limit.checked_sub(cost) else { break };
        // Costs do not fall along the order, so the first that is too dear ends it.
        let paid = second_sums.partition_point(|&(cost, _)| cost <= rest) - 1;
        let total = value + second_sums[paid].1;
        if paid >= second_least && best.is_none_or(|(found, ..)| total > found) {
            best = Some((total, kept, paid));
        }
    }
    let Some((_, kept, paid)) = best else {
        let due = first_sums[first_least].0.saturating_add(second_sums[second_least].0);
        return Err(Error::argument("limit", limit, format!("at least {due}, what the required parts cost")));
    };
    let rising = |order: &[usize], count: usize| {
        let mut chosen: Vec<i64> = order[..count].iter().map(|&place| place as i64).collect();
        chosen.sort_unstable();
        chosen
    };
    Ok((rising(&first_order, kept), rising(&second_order, paid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subsets(kind: &Kind<'_>) -> Vec<(u64, f64)> {
        let all = (0..1u32 << kind.values.len()).filter_map(|subset| {
            let has = |place: usize| subset >> place & 1 == 1;
            let places = 0..kind.values.len();
            let kept: Vec<usize> = places.clone().filter(|&place| has(place)).collect();
            let is_allowed = places.clone().all(|place| has(place) || !kind.required[place]);
            let cost = kept.iter().map(|&place| kind.costs[place]).sum();
            is_allowed.then(|| (cost, kept.iter().map(|&place| kind.values[place]).sum()))
        });
        all.collect()
    }

    #[test]
    fn no_choice_of_parts_with_equal_costs_is_worth_more() {
        for case in 0u64..400 {
            let draw = |place: u64, high: u64| {
                let mut state = (case * 977 + place + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                state ^= state >> 31;
                state.wrapping_mul(0xBF58_476D_1CE4_E5B9) % high
            };
            let parts = |from: u64, count: u64| -> (Vec<f64>, Vec<bool>) {
                let values = (0..count).map(|place| draw(from + place, 9) as f64);
                (values.collect(), (0..count).map(|place| draw(from + 20 + place, 5) == 0).collect())
            };
            let (first_values, first_marks) = parts(100, draw(0, 6));
            let (second_values, second_marks) = parts(200, draw(1, 7));
            let first_costs = vec![1 + draw(2, 5); first_values.len()];
            let second_costs = vec![1 + draw(3, 3); second_values.len()];
            let first = Kind { values: &first_values, costs: &first_costs, required: &first_marks };
            let second = Kind { values: &second_values, costs: &second_costs, required: &second_marks };
            let limit = draw(4, 30);
            let mut best = None;
            for (cost, value) in subsets(&first) {
                for (other_cost, other_value) in subsets(&second) {
                    if cost + other_cost <= limit && best.is_none_or(|found| value + other_value > found) {
                        best = Some(value + other_value);
                    }
                }
            }
            let found = best_of_two_kinds(&first, &second, limit);
            let Ok((kept, paid)) = found else {
                assert!(best.is_none());
                continue;
            };
            let sum = |ids: &[i64], kind: &Kind<'_>| {
                assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
                let ids: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
                assert!((0..kind.required.len()).all(|place| !kind.required[place] || ids.contains(&place)));
                (ids.iter().map(|&id| kind.costs[id]).sum::<u64>(), ids.iter().map(|&id| kind.values[id]).sum::<f64>())
            };
            let (first_sum, second_sum) = (sum(&kept, &first), sum(&paid, &second));
            assert!(first_sum.0 + second_sum.0 <= limit);
            assert_eq!(Some(first_sum.1 + second_sum.1), best);
        }
    }

    #[test]
    fn wrong_arguments_are_refused() {
        let kind = Kind { values: &[1.0], costs: &[2], required: &[true] };
        let none = Kind { values: &[], costs: &[], required: &[] };
        assert!(best_of_two_kinds(&kind, &none, 1).unwrap_err().to_string().contains("at least 2"));
        let nan = Kind { values: &[f64::NAN], ..kind };
        assert!(best_of_two_kinds(&none, &nan, 9).unwrap_err().to_string().starts_with("second:"));
        let short = Kind { costs: &[], ..kind };
        assert!(best_of_two_kinds(&short, &none, 9).unwrap_err().to_string().starts_with("first:"));
    }
}
