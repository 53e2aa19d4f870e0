//! MinHash: short signatures of sets whose agreement estimates their Jaccard index.
//!
//! Broder, "On the resemblance and containment of documents", 1997. Each of several random orders of all elements keeps
//! the least element of a set; two sets agree in that with the probability of their Jaccard index. Sets that agree in all
//! of a band's values are candidates for being similar (Leskovec, Rajaraman, Ullman, "Mining of massive datasets", 3.4).

use crate::random::{Kind, Stream, Units, integers};
use crate::simd::vectorised;
use crate::{Error, Result, parallel};

/// Signatures, `[sets, count]`: the elements of set i are `values[offsets[i]..offsets[i + 1]]`. That of an empty set is
/// the largest value throughout.
///
/// # Errors
/// [`Error::Argument`] for offsets that do not rise from 0 to the number of values, or no signature.
pub fn min_hash(values: &[i64], offsets: &[i64], count: usize, seed: u64) -> Result<Vec<u64>> {
    let is_rising = offsets.first() == Some(&0) && offsets.is_sorted();
    if !is_rising || offsets.last().is_none_or(|&last| last as u64 != values.len() as u64) {
        return Err(Error::argument("offsets", "other offsets", format!("rising ones from 0 to {}", values.len())));
    }
    if count == 0 {
        return Err(Error::argument("signatures", 0, "at least 1"));
    }
    let mut keys = vec![0; count];
    integers(
        Stream::new(seed, "min hash", 0, Kind::Integers),
        Units::Range { first: 0, count: 1 },
        count,
        1 << 63,
        &mut keys,
    )?;
    let keys: Vec<u64> = keys.into_iter().map(|key| mix(key as u64)).collect();
    let sets: Vec<_> = offsets.windows(2).map(|range| &values[range[0] as usize..range[1] as usize]).collect();
    let found = parallel::map(sets, |set| {
        let mut least = vec![u64::MAX; count];
        set.iter().for_each(|&element| lower(&mut least, &keys, mix(element as u64)));
        least
    });
    Ok(found.concat())
}

/// A permutation of 64 bits in which every bit depends on all (the finaliser of splitmix64).
#[inline(always)]
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

vectorised! {
    /// Lowers each value to the element's place in the order of its key.
    fn lower(least: &mut [u64], keys: &[u64], element: u64) = lower_body;
}

#[inline(always)]
fn lower_body(least: &mut [u64], keys: &[u64], element: u64) {
    for (least, key) in least.iter_mut().zip(keys) {
        *least = (*least).min(mix(element ^ key));
    }
}

/// Pairs of sets that agree in all values of some band, the lower first, in rising order, each once. `signatures` is
/// `[sets, count]`, cut into bands of `count / bands` values.
///
/// # Errors
/// [`Error::Argument`] when bands do not divide the signatures, or there are more than `most` pairs.
pub fn candidate_pairs(signatures: &[u64], count: usize, bands: usize, most: usize) -> Result<Vec<[i64; 2]>> {
    if count == 0 || bands == 0 || !count.is_multiple_of(bands) || !signatures.len().is_multiple_of(count) {
        return Err(Error::argument("bands", bands, format!("a divisor of {count}")));
    }
    let width = count / bands;
    let sets = signatures.len() / count;
    let found = parallel::map((0..bands).collect(), |band| {
        let part = |set: u32| &signatures[set as usize * count + band * width..][..width];
        let mut order: Vec<u32> = (0..sets as u32).collect();
        order.sort_by(|&left, &right| part(left).cmp(part(right)).then(left.cmp(&right)));
        let mut pairs = Vec::new();
        for group in order.chunk_by(|&left, &right| part(left) == part(right)) {
            if pairs.len().saturating_add(group.len().saturating_mul(group.len() - 1) / 2) > most {
                return None;
            }
            for (place, &left) in group.iter().enumerate() {
                pairs.extend(group[place + 1..].iter().map(|&right| [i64::from(left), i64::from(right)]));
            }
        }
        Some(pairs)
    });
    let mut all = Vec::new();
    for pairs in found {
        let Some(pairs) = pairs else { return Err(too_many(most)) };
        all.extend(pairs);
        all.sort_unstable();
        all.dedup();
        if all.len() > most {
            return Err(too_many(most));
        }
    }
    Ok(all)
}

fn too_many(most: usize) -> Error {
    Error::argument("most", most, "at least the number of pairs; fewer bands give fewer pairs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_estimates_the_jaccard_index() {
        let (left, right): (Vec<i64>, Vec<i64>) = ((0..60).collect(), (20..80).collect());
        let values = [left, right].concat();
        let count = 4096;
        let found = min_hash(&values, &[0, 60, 120, 120], count, 3).unwrap();
        let same = (0..count).filter(|&index| found[index] == found[count + index]).count();
        // 40 of 80 elements are common; five standard deviations.
        assert!((same as f64 / count as f64 - 0.5).abs() < 5.0 * (0.25 / count as f64).sqrt());
        assert!(found[2 * count..].iter().all(|&value| value == u64::MAX));
        assert_ne!(found, min_hash(&values, &[0, 60, 120, 120], count, 4).unwrap());
    }

    #[test]
    fn pairs_share_a_band() {
        let signatures = [1, 2, 3, 4, 1, 2, 9, 9, 8, 8, 3, 4, 7, 7, 7, 7];
        assert_eq!(candidate_pairs(&signatures, 4, 2, 9).unwrap(), [[0, 1], [0, 2]]);
        assert_eq!(candidate_pairs(&signatures, 4, 1, 9).unwrap(), [[0i64; 2]; 0]);
        assert!(candidate_pairs(&signatures, 4, 3, 9).unwrap_err().to_string().starts_with("bands"));
        assert!(candidate_pairs(&signatures, 4, 2, 1).unwrap_err().to_string().starts_with("most"));
        assert!(min_hash(&[1, 2], &[0, 1], 4, 0).is_err() && min_hash(&[1], &[0, 1], 0, 0).is_err());
    }
}
