//! Bounds for all candidates after the first pick p, without a look at every pair.
//!
//! What point i saves by candidate j is `a = |x_i - p|^2 - |x_i - x_j|^2`, which is linear in x_i. So the moments of the
//! points give the sum of a and that of a^2 over i, and with n points the sum of what is positive of a is at most
//! `(sum a + sqrt(n sum a^2)) / 2`, by Cauchy and Schwarz.

use crate::parallel;
use crate::select::points::{Frame, Points};
use crate::select::reach::tasks;
use crate::simd::vectorised;

/// Sums of points' coordinates and of their products, in the kernel's coordinates.
pub(super) struct Moments {
    /// `[columns]`.
    pub sums: Vec<f64>,
    /// `[columns, columns]`.
    pub products: Vec<f64>,
}

/// Whether moments cost less than tiles do: they take a column for each pair of columns.
pub(super) fn pay(rows: usize, columns: usize) -> bool {
    columns <= 512 && 8 * columns <= rows
}

impl Moments {
    pub(super) fn of<T: Copy + Into<f64> + Send + Sync>(points: &Points<'_, T>, frame: &Frame) -> Self {
        let (rows, columns) = (points.rows(), points.columns());
        // A few parts, whatever the number of points: each has a product for every pair of columns.
        let part = rows.div_ceil(4).max(1);
        let ranges = (0..rows).step_by(part).map(|first| first..rows.min(first + part)).collect();
        let parts = parallel::map(ranges, |range: std::ops::Range<usize>| {
            let (mut sums, mut products) = (vec![0.0; columns], vec![0.0; columns * columns]);
            for id in range {
                let wide = in_frame(frame, points.row(id));
                for (&value, products) in wide.iter().zip(products.chunks_exact_mut(columns)) {
                    add_scaled(products, &wide, value);
                }
                add_scaled(&mut sums, &wide, 1.0);
            }
            (sums, products)
        });
        let (mut sums, mut products) = (vec![0.0; columns], vec![0.0; columns * columns]);
        for (own_sums, own_products) in parts {
            add_scaled(&mut sums, &own_sums, 1.0);
            add_scaled(&mut products, &own_products, 1.0);
        }
        Self { sums, products }
    }

    /// A bound of every candidate's gain.
    ///
    /// Args: the candidates, the first pick, the number of points that the moments are of, and most that a sum of scores
    /// over those can be off.
    pub(super) fn bounds<T: Copy + Into<f64> + Send + Sync>(
        &self,
        points: &Points<'_, T>,
        frame: &Frame,
        first: &[f64],
        count: usize,
        slack: f64,
    ) -> Vec<f64> {
        let dot = |left: &[f64], right: &[f64]| left.iter().zip(right).map(|(left, right)| left * right).sum::<f64>();
        let pick = in_frame(frame, first);
        let (n, scale) = (count as f64, frame.squared_scale());
        let found = parallel::map(tasks(points.rows()), |range| {
            let mut product = vec![0.0; points.columns()];
            let bound = |id: usize| {
                let row = in_frame(frame, points.row(id));
                let constant = dot(&pick, &pick) - dot(&row, &row);
                let difference: Vec<f64> = row.iter().zip(&pick).map(|(row, pick)| row - pick).collect();
                product.fill(0.0);
                for (&value, products) in difference.iter().zip(self.products.chunks_exact(points.columns())) {
                    add_scaled(&mut product, products, value);
                }
                let mean = dot(&difference, &self.sums);
                let first = 2.0 * mean + n * constant;
                let second = 4.0 * dot(&difference, &product) + 4.0 * constant * mean + n * constant * constant;
                let most = 0.5 * (first + (n * second.max(0.0)).sqrt());
                (most * (1.0 + 1e-6) + 2.0 * slack) / scale
            };
            range.map(bound).collect::<Vec<f64>>()
        });
        found.into_iter().flatten().collect()
    }
}

/// A point in the kernel's coordinates, as the kernel rounds them.
fn in_frame<T: Copy + Into<f64>>(frame: &Frame, point: &[T]) -> Vec<f64> {
    let mut row = vec![0.0; point.len()];
    frame.map(point, &mut row);
    row.into_iter().map(f64::from).collect()
}

vectorised! {
    fn add_scaled(sums: &mut [f64], values: &[f64], factor: f64) = add_scaled_body;
}

#[inline(always)]
fn add_scaled_body(sums: &mut [f64], values: &[f64], factor: f64) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += factor * value;
    }
}
