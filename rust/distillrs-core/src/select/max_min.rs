//! Farthest-first picks of anything that has distances, texts among them.

use super::Picks;
use super::farthest::{Farthest, Refresh, Stale};
use crate::random::{Kind, Stream, Units, integers};
use crate::{Error, Result};

/// What [`max_min`] is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Apart {
    /// Number of picks.
    pub k: usize,
    /// The first pick; drawn without.
    pub start: Option<usize>,
    /// Seed of the drawn first pick.
    pub seed: u64,
}

/// Distance of two items by their places.
pub type Distance<'a> = dyn FnMut(usize, usize) -> Result<f64> + 'a;

/// Picks `k` of `count` items, each the one whose nearest pick is farthest, the lowest of equals. The gain of a pick is
/// its distance to the nearest pick before it, infinite for the first. `distance(item, pick)` is called only for items
/// whose last known distance could still win; it need not satisfy the triangle inequality. `check` is asked before every
/// pick whether to go on.
///
/// # Errors
/// [`Error::Argument`] when `k` exceeds the items, the start is no item, or a distance is negative or not a number;
/// whatever `distance` and `check` return.
pub fn max_min(
    count: usize,
    settings: &Apart,
    distance: &mut Distance<'_>,
    check: &dyn Fn() -> Result<()>,
) -> Result<Picks> {
    if settings.k > count {
        return Err(Error::argument("k", settings.k, format!("at most the number of items, {count}")));
    }
    if let Some(start) = settings.start.filter(|&start| start >= count) {
        return Err(Error::argument("start", start, format!("an item from 0 to {count} - 1")));
    }
    let mut picks = Picks::default();
    if settings.k == 0 {
        return Ok(picks);
    }
    let first = match settings.start {
        Some(start) => start,
        None => {
            let mut drawn = [0];
            let stream = Stream::new(settings.seed, "max-min start", 0, Kind::Integers);
            integers(stream, Units::Range { first: 0, count: 1 }, 1, count as u64, &mut drawn)?;
            drawn[0] as usize
        }
    };
    let mut items = Farthest::new(0, count);
    let mut seen = Seen { distance, picks: Vec::new(), check };
    let mut next = Some((first, f64::INFINITY));
    while let Some((id, gain)) = next {
        picks.ids.push(id as i64);
        picks.gains.push(gain);
        items.remove(id);
        seen.picks.push(id);
        if picks.ids.len() == settings.k {
            break;
        }
        check()?;
        next = items.next(seen.picks.len(), &mut seen)?.map(|best| (best.id, best.bound));
    }
    Ok(picks)
}

struct Seen<'a, 'b> {
    distance: &'a mut Distance<'b>,
    picks: Vec<usize>,
    check: &'a dyn Fn() -> Result<()>,
}

impl Refresh for Seen<'_, '_> {
    fn refresh(&mut self, stale: &mut [Stale], best: &Stale) -> Result<()> {
        (self.check)()?;
        // Distances cost far more than bookkeeping: the most promising first, and none for those that it beats.
        stale.sort_unstable_by(|left, right| right.bound.total_cmp(&left.bound).then(left.id.cmp(&right.id)));
        let mut best = *best;
        for item in stale {
            if !item.beats(&best) {
                continue;
            }
            for &pick in &self.picks[item.seen..] {
                let distance = (self.distance)(item.id, pick)?;
                if distance.is_nan() || distance < 0.0 {
                    let got = format!("{distance} between items {} and {pick}", item.id);
                    return Err(Error::argument("metric", got, "distances that are numbers, at least 0"));
                }
                item.bound = item.bound.min(distance);
            }
            item.seen = self.picks.len();
            if item.beats(&best) {
                best = *item;
            }
        }
        Ok(())
    }
}

/// Fewest insertions, deletions and replacements of characters that turn one text into the other.
///
/// Myers, "A fast bit-vector algorithm for approximate string matching based on dynamic programming", 1999: a column of
/// the table is held as the bits of its rising and of its falling steps, 64 rows to a word.
pub fn levenshtein(left: &[char], right: &[char]) -> usize {
    let (pattern, text) = if left.len() <= right.len() { (left, right) } else { (right, left) };
    if pattern.is_empty() {
        return text.len();
    }
    let words = pattern.len().div_ceil(64);
    let mut places: std::collections::HashMap<char, Vec<u64>> = std::collections::HashMap::new();
    for (index, &character) in pattern.iter().enumerate() {
        places.entry(character).or_insert_with(|| vec![0; words])[index / 64] |= 1 << (index % 64);
    }
    let nowhere = vec![0; words];
    let (mut rising, mut falling) = (vec![u64::MAX; words], vec![0u64; words]);
    let mut score = pattern.len();
    for character in text {
        let equal = places.get(character).unwrap_or(&nowhere);
        // The table's first row rises by one with every character.
        let (mut up, mut down) = (1, 0);
        for word in 0..words {
            let last = if word + 1 == words { (pattern.len() - 1) % 64 } else { 63 };
            let (plus, minus) = (rising[word], falling[word]);
            let vertical = equal[word] | minus;
            let matches = equal[word] | down;
            let horizontal = ((matches & plus).wrapping_add(plus) ^ plus) | matches;
            let (rises, falls) = (minus | !(horizontal | plus), plus & horizontal);
            let (next_up, next_down) = (rises >> last & 1, falls >> last & 1);
            let (rises, falls) = (rises << 1 | up, falls << 1 | down);
            rising[word] = falls | !(vertical | rises);
            falling[word] = rises & vertical;
            (up, down) = (next_up, next_down);
        }
        score = score + up as usize - down as usize;
    }
    score
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(left: &[char], right: &[char]) -> usize {
        let mut row: Vec<usize> = (0..=right.len()).collect();
        for (index, own) in left.iter().enumerate() {
            let mut diagonal = row[0];
            row[0] = index + 1;
            for (place, other) in right.iter().enumerate() {
                let replaced = diagonal + usize::from(own != other);
                diagonal = row[place + 1];
                row[place + 1] = replaced.min(diagonal + 1).min(row[place] + 1);
            }
        }
        row[right.len()]
    }

    #[test]
    fn edit_distances_are_those_of_the_table() {
        let units = Units::Range { first: 0, count: 1 };
        for (case, (first, second)) in
            [(0, 0), (0, 5), (1, 1), (10, 12), (63, 70), (64, 64), (65, 200), (130, 129), (300, 20)]
                .into_iter()
                .enumerate()
        {
            for letters in [2, 5, 30] {
                let mut drawn = vec![0i64; first + second];
                let stream = Stream::new(case as u64, "letters", letters, Kind::Integers);
                integers(stream, units, first + second, letters, &mut drawn).unwrap();
                let text: Vec<char> = drawn.iter().map(|&value| char::from(b'a' + value as u8)).collect();
                let (left, right) = text.split_at(first);
                assert_eq!(levenshtein(left, right), table(left, right), "{case} {letters}");
            }
        }
    }

    #[test]
    fn picks_are_the_farthest_and_few_distances_are_asked_for() {
        let values: Vec<f64> = (0..500).map(|index| f64::from(index * 7919 % 1009)).collect();
        let mut asked = 0;
        let mut distance = |left: usize, right: usize| {
            asked += 1;
            Ok((values[left] - values[right]).abs())
        };
        let settings = Apart { k: 60, start: Some(3), seed: 0 };
        let found = max_min(500, &settings, &mut distance, &|| Ok(())).unwrap();
        assert!(asked < 500 * 59 / 2);
        let mut nearest = vec![f64::INFINITY; 500];
        for (&id, &gain) in found.ids.iter().zip(&found.gains) {
            assert_eq!(gain, nearest[id as usize]);
            let most = nearest.iter().copied().fold(0.0, f64::max);
            assert_eq!(
                nearest.iter().position(|&near| near == most),
                if most.is_finite() { Some(id as usize) } else { Some(0) }
            );
            for (near, value) in nearest.iter_mut().zip(&values) {
                *near = near.min((value - values[id as usize]).abs());
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = Apart { k: 2, start: Some(0), seed: 0 };
        let refused = |settings: Apart, value: f64| {
            max_min(3, &settings, &mut |_, _| Ok(value), &|| Ok(())).unwrap_err().to_string()
        };
        assert!(refused(Apart { k: 4, ..base }, 0.0).starts_with("k:"));
        assert!(refused(Apart { start: Some(3), ..base }, 0.0).starts_with("start:"));
        assert!(refused(base, f64::NAN).starts_with("metric:") && refused(base, -1.0).starts_with("metric:"));
        assert!(max_min(3, &base, &mut |_, _| Err(Error::Interrupted), &|| Ok(())).is_err());
    }
}
