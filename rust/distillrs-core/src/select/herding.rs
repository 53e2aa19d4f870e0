//! Herding: picks whose mean follows the mean of all points.
//!
//! Welling, "Herding dynamical weights to learn", 2009. The pick t + 1 brings the mean of the picks nearest to the mean
//! m of all: it is the argmin over x of `|(t + 1) m - S - x|`, S the sum of the picks before it, without replacement.

use super::Picks;
use super::compact::{Compact, LANES, reaching};
use super::points::{Frame, Points, squared_distance};
use crate::simd::vectorised;
use crate::{Error, Result, parallel};

/// Coordinates that one task scores; below, handing work over takes longer than the work.
const TASK: usize = 1 << 20;

/// Picks `k` points; deterministic at any thread count. The gain of a pick is the distance that the mean of the picks
/// up to it has from the mean of all: small is good. `check` is asked before every pick whether to go on.
///
/// # Errors
/// [`Error::Argument`] when `k` exceeds the number of points; whatever `check` returns.
pub fn herding<T>(points: &Points<'_, T>, k: usize, check: &dyn Fn() -> Result<()>) -> Result<Picks>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let (rows, columns) = (points.rows(), points.columns());
    if k > rows {
        return Err(Error::argument("k", k, format!("at most the number of points, {rows}")));
    }
    let mut picks = Picks::default();
    if k == 0 {
        return Ok(picks);
    }
    let frame = Frame::of(points);
    let mut targets = Compact::pack(rows, columns, |index, out| frame.map(points.row(index), out));
    let mean = points.mean();
    // Sum of the mean's differences to the picks: an offset of all points costs no digits of it.
    let mut owed = vec![0.0; columns];
    let mut wanted = vec![0.0; columns];
    let mut mapped = vec![0.0; columns];
    let mut is_picked = vec![false; rows];
    let mut scores = vec![[0f32; LANES]; targets.panels()];
    let panels = (TASK / (columns * LANES)).max(4).next_multiple_of(4);
    while picks.ids.len() < k {
        check()?;
        for ((out, owed), mean) in wanted.iter_mut().zip(&owed).zip(&mean) {
            *out = mean + owed;
        }
        frame.map(&wanted, &mut mapped);
        let tasks: Vec<_> = scores.chunks_mut(panels).enumerate().collect();
        parallel::for_each(tasks, |(task, out)| targets.scores(task * panels, &mapped, out));
        let reach = f64::from(largest(scores.as_flattened())) - 2.0 * targets.error_bound(&mapped);
        let mut nearest = (f64::INFINITY, rows);
        reaching(&scores, 0, (reach as f32).next_down(), |id, _| {
            if id < rows && !is_picked[id] {
                let squared = squared_distance(points.row(id), &wanted);
                if squared < nearest.0 {
                    nearest = (squared, id);
                }
            }
        });
        let id = nearest.1;
        is_picked[id] = true;
        targets.remove(id);
        for ((owed, mean), &value) in owed.iter_mut().zip(&mean).zip(points.row(id)) {
            *owed += mean - value.into();
        }
        picks.ids.push(id as i64);
        let off: f64 = owed.iter().map(|owed| owed * owed).sum();
        picks.gains.push(off.sqrt() / picks.ids.len() as f64);
    }
    Ok(picks)
}

vectorised! {
    /// The largest value.
    fn largest(values: &[f32]) -> f32 = largest_body;
}

#[inline(always)]
fn largest_body(values: &[f32]) -> f32 {
    let (chunks, _) = values.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (most, &value) in most.iter_mut().zip(chunk) {
            *most = if value > *most { value } else { *most };
        }
    }
    most.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Kind, Stream, Units, normal_f32};

    fn brute(points: &Points<'_, f32>, k: usize) -> Vec<i64> {
        let mean = points.mean();
        let mut owed = vec![0.0; points.columns()];
        let mut picks: Vec<i64> = Vec::new();
        for _ in 0..k {
            let wanted: Vec<f64> = mean.iter().zip(&owed).map(|(mean, owed)| mean + owed).collect();
            let free = (0..points.rows()).filter(|&id| !picks.contains(&(id as i64)));
            let distances: Vec<(f64, usize)> = free.map(|id| (squared_distance(points.row(id), &wanted), id)).collect();
            let best =
                distances.iter().copied().reduce(|best, next| if next.0 < best.0 { next } else { best }).unwrap();
            picks.push(best.1 as i64);
            for ((owed, mean), &value) in owed.iter_mut().zip(&mean).zip(points.row(best.1)) {
                *owed += mean - f64::from(value);
            }
        }
        picks
    }

    #[test]
    fn picks_are_those_of_all_distances() {
        for (rows, columns, k) in [(1, 1, 1), (40, 3, 40), (1000, 20, 60), (5000, 7, 30)] {
            let mut values = vec![0f32; rows * columns];
            let units = Units::Range { first: 0, count: 1 };
            normal_f32(Stream::new(rows as u64, "p", 0, Kind::Normal), units, rows * columns, &mut values).unwrap();
            let far: Vec<f32> = values.iter().map(|value| value + 1000.0).collect();
            let coarse: Vec<f32> = values.iter().map(|value| value.round()).collect();
            for values in [&values, &far, &coarse] {
                let points = Points::new("points", values, rows, columns).unwrap();
                let found = herding(&points, k, &|| Ok(())).unwrap();
                assert_eq!(found.ids, brute(&points, k));
            }
        }
    }

    #[test]
    fn all_points_have_the_mean_of_all() {
        let points = Points::new("points", &[0.0, 5.0, 1.0, -3.0], 4, 1).unwrap();
        let found = herding(&points, 4, &|| Ok(())).unwrap();
        assert!(found.gains[3].abs() < 1e-15 && found.gains[0] == 0.25);
        assert!(herding(&points, 5, &|| Ok(())).unwrap_err().to_string().starts_with("k:"));
        assert!(herding(&points, 1, &|| Err(Error::Interrupted)).is_err());
    }
}
