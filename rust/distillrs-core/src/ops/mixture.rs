//! Posterior mean of a finite data set under Gaussian noise, and its derivative.
//!
//! Row x is `alpha y_i + n` with `n ~ N(0, variance I)`; `r_i` is the posterior probability of point i. The points pass
//! by tile by tile, packed both ways (points side by side for distances, features side by side for sums), and each row
//! keeps a running maximum, so no matrix of rows times points exists. Distances are sums of squared differences: the
//! expansion of the square would cancel where the noise is small. A tile that is too far from four rows to add
//! anything is left after its distances; where most are, the expansion with a bound of its error, which is half the
//! arithmetic, says so before. A row's result depends neither on the other rows nor on the thread count.

mod reach;
mod tiles;

use std::f64::consts::LOG2_E;

use self::reach::{Sieve, error_share, squared_length};
use self::tiles::{FEATURES_AT_ONCE, PADDING, QUAD, STEP, Tile, Tiles};
use super::Level;
use super::portable::Portable;
use super::vector::SMALLEST;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use crate::{Error, Result, parallel};

/// Values of a tile in one of its two packings: both stay in the second cache.
const TILE_VALUES: usize = 1 << 15;
const MOST_POINTS: usize = 256;
const MOST_ROWS: usize = 256;
/// Between two looks at signals, multiplications of one thread.
const WORK_AT_ONCE: usize = 1 << 31;

/// Rows and points; all are row after row.
#[derive(Debug, Clone, Copy)]
pub struct Mixture<'a> {
    /// `[rows, width]`.
    pub x: &'a [f32],
    /// `[rows]`.
    pub alpha: &'a [f64],
    /// `[rows]`: not negative.
    pub variance: &'a [f64],
    /// `[points, width]`.
    pub data: &'a [f32],
    /// `[points]`: not negative, not all 0.
    pub weights: Option<&'a [f64]>,
    /// Features of a row.
    pub width: usize,
}

/// Where the posterior goes.
#[derive(Debug)]
pub struct Posterior<'a> {
    /// `[rows, width]`.
    pub mean: &'a mut [f32],
    /// `[rows]`: the largest `-|x - alpha y|^2`.
    pub best: &'a mut [f64],
    /// `[rows]`: the sum of `weight exp((closeness - best) / (2 variance))`, weights relative to the largest.
    pub total: &'a mut [f64],
}

/// What a derivative is taken of and along.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// As [`posterior_mean`] gave it.
    pub mean: &'a [f32],
    /// As [`posterior_mean`] gave it.
    pub best: &'a [f64],
    /// As [`posterior_mean`] gave it.
    pub total: &'a [f64],
    /// `[rows, width + 1]`.
    pub direction: &'a [f64],
}

/// Posterior mean of every row. At variance 0 the nearest points count alone, equally near ones by their weights.
///
/// # Errors
/// [`Error::Argument`] for sizes that do not fit; whatever `check` returns.
pub fn posterior_mean(mixture: &Mixture<'_>, out: Posterior<'_>, check: &dyn Fn() -> Result<()>) -> Result<()> {
    posterior_at(Way::here(), mixture, out, check)
}

/// `Cov_r(f, f . direction)` of the features `f_i = (y_i - mean, |y_i - mean|^2)`, to `out` `[rows, width + 1]`.
///
/// # Errors
/// [`Error::Argument`] for sizes that do not fit; whatever `check` returns.
pub fn posterior_covariance(
    mixture: &Mixture<'_>,
    known: &Known<'_>,
    out: &mut [f64],
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    covariance_at(Way::here(), mixture, known, out, check)
}

/// How the loops run; the second does not change what comes out.
#[derive(Debug, Clone, Copy)]
struct Way {
    level: Level,
    sifts: bool,
}

impl Way {
    fn here() -> Self {
        Self { level: Level::here(), sifts: true }
    }
}

fn posterior_at(way: Way, mixture: &Mixture<'_>, out: Posterior<'_>, check: &dyn Fn() -> Result<()>) -> Result<()> {
    let rows = mixture.rows()?;
    fits("out", [out.mean.len(), out.best.len(), out.total.len()], [rows * mixture.width, rows, rows])?;
    let points = Points::new(mixture, way.sifts);
    let size = mixture.rows_at_once();
    let blocks =
        out.mean.chunks_mut(size * mixture.width).zip(out.best.chunks_mut(size)).zip(out.total.chunks_mut(size));
    let mut tasks: Vec<_> = blocks.enumerate().collect();
    while !tasks.is_empty() {
        check()?;
        let rest = tasks.split_off(tasks.len().min(parallel::threads()));
        parallel::for_each(tasks, |(block, ((mean, best), total))| {
            let rows = Rows::new(mixture, &points, block * size, best.len());
            match way.level {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level says that the processor has the instructions.
                Level::Avx512 => unsafe { rows.mean::<Avx512>(mixture, &points, mean, best, total) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level says that the processor has the instructions.
                Level::Avx2 => unsafe { rows.mean::<Avx2>(mixture, &points, mean, best, total) },
                // SAFETY: no special instructions.
                Level::Portable => unsafe { rows.mean::<Portable>(mixture, &points, mean, best, total) },
            }
        });
        tasks = rest;
    }
    Ok(())
}

fn covariance_at(
    way: Way,
    mixture: &Mixture<'_>,
    known: &Known<'_>,
    out: &mut [f64],
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let (rows, width) = (mixture.rows()?, mixture.width);
    let sizes = [known.mean.len(), known.best.len(), known.total.len(), known.direction.len(), out.len()];
    fits("known", sizes, [rows * width, rows, rows, rows * (width + 1), rows * (width + 1)])?;
    let points = Points::new(mixture, way.sifts);
    let size = mixture.rows_at_once();
    let mut tasks: Vec<_> = out.chunks_mut(size * (width + 1)).enumerate().collect();
    while !tasks.is_empty() {
        check()?;
        let rest = tasks.split_off(tasks.len().min(parallel::threads()));
        parallel::for_each(tasks, |(block, out)| {
            let rows = Rows::new(mixture, &points, block * size, out.len() / (width + 1));
            match way.level {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level says that the processor has the instructions.
                Level::Avx512 => unsafe { rows.covariance::<Avx512>(mixture, &points, known, out) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level says that the processor has the instructions.
                Level::Avx2 => unsafe { rows.covariance::<Avx2>(mixture, &points, known, out) },
                // SAFETY: no special instructions.
                Level::Portable => unsafe { rows.covariance::<Portable>(mixture, &points, known, out) },
            }
        });
        tasks = rest;
    }
    Ok(())
}

fn fits<const N: usize>(name: &'static str, found: [usize; N], expected: [usize; N]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::argument(name, format!("{found:?} values"), format!("{expected:?}")))
}

impl Mixture<'_> {
    fn rows(&self) -> Result<usize> {
        let rows = self.alpha.len();
        if self.width == 0 || self.data.is_empty() || !self.data.len().is_multiple_of(self.width) {
            let got = format!("{} values", self.data.len());
            return Err(Error::argument("data", got, format!("a positive multiple of the {} features", self.width)));
        }
        fits("x", [self.x.len(), self.variance.len()], [rows * self.width, rows])?;
        if let Some(weights) = self.weights {
            fits("weights", [weights.len()], [self.data.len() / self.width])?;
        }
        Ok(rows)
    }

    /// Rows of a task: many, to pack the points rarely; fewer where that would take too long or leave threads idle.
    fn rows_at_once(&self) -> usize {
        let share = self.alpha.len().div_ceil(parallel::threads());
        let slow = WORK_AT_ONCE / self.data.len().max(1);
        share.min(slow).clamp(QUAD, MOST_ROWS).next_multiple_of(QUAD)
    }
}

/// What all rows need of the points.
struct Points {
    /// The weighted mean: about it sums round less.
    centre: Vec<f32>,
    /// The largest weight.
    heaviest: f64,
    /// Points in a tile.
    tile: usize,
    padded: usize,
    /// Whether tiles may be left by the expansion of the square; without it the result is the same.
    sifts: bool,
}

impl Points {
    fn new(mixture: &Mixture<'_>, sifts: bool) -> Self {
        let width = mixture.width;
        let mut sums = vec![0.0; width];
        let (mut mass, mut heaviest) = (0.0, 0f64);
        for (index, point) in mixture.data.chunks_exact(width).enumerate() {
            let weight = mixture.weights.map_or(1.0, |weights| weights[index]);
            if weight == 0.0 {
                continue;
            }
            mass += weight;
            heaviest = heaviest.max(weight);
            for (sum, &value) in sums.iter_mut().zip(point) {
                *sum += weight * f64::from(value);
            }
        }
        Self {
            centre: sums.iter().map(|sum| (sum / mass) as f32).collect(),
            heaviest,
            tile: (TILE_VALUES / width).clamp(STEP, MOST_POINTS) / STEP * STEP,
            padded: width.next_multiple_of(PADDING),
            sifts,
        }
    }
}

/// One of the two packings of a tile, and what is known of its points.
struct Packed {
    across: Vec<f32>,
    along: Vec<f32>,
    weights: Vec<f32>,
    squares: Vec<f32>,
}

impl Packed {
    fn new(mixture: &Mixture<'_>, points: &Points) -> Self {
        Self {
            across: vec![0.0; mixture.width * points.tile],
            along: vec![0.0; points.padded * points.tile],
            weights: vec![0.0; points.tile],
            squares: vec![0.0; points.tile],
        }
    }

    /// Packs the points from `start` on.
    fn pack(&mut self, mixture: &Mixture<'_>, points: &Points, start: usize) -> Tile {
        let (width, stride) = (mixture.width, points.tile);
        let rest = &mixture.data[start * width..];
        let count = (rest.len() / width).min(stride);
        let padded_points = count.next_multiple_of(STEP);
        for (index, point) in rest.chunks_exact(width).take(count).enumerate() {
            let row = &mut self.along[index * points.padded..][..width];
            for ((to, &value), &centre) in row.iter_mut().zip(point).zip(&points.centre) {
                *to = value - centre;
            }
            let weight = mixture.weights.map_or(1.0, |weights| weights[start + index] / points.heaviest);
            self.weights[index] = weight as f32;
            self.squares[index] = squared_length(&self.along[index * points.padded..][..points.padded]);
        }
        self.squares[count..padded_points].fill(0.0);
        self.along[count * points.padded..padded_points * points.padded].fill(0.0);
        self.weights[count..padded_points].fill(0.0);
        // Squares of cache lines, so that neither side is read or written one value per line.
        for first in (0..padded_points).step_by(16) {
            for feature in 0..width {
                let to = &mut self.across[feature * stride + first..][..16];
                for (offset, value) in to.iter_mut().enumerate() {
                    *value = self.along[(first + offset) * points.padded + feature];
                }
            }
        }
        Tile {
            points: padded_points,
            width,
            across: self.across.as_ptr(),
            stride,
            along: self.along.as_ptr(),
            padded: points.padded,
            weights: self.weights.as_ptr(),
            squares: self.squares.as_ptr(),
        }
    }
}

/// Some rows about the points' centre, padded to whole quads.
struct Rows {
    first: usize,
    count: usize,
    x: Vec<f32>,
    minus_alpha: Vec<f32>,
    /// What makes `-|x - alpha y|^2` an exponent of 2.
    factor: Vec<f32>,
    /// Squared lengths.
    squares: Vec<f64>,
}

impl Rows {
    fn new(mixture: &Mixture<'_>, points: &Points, first: usize, count: usize) -> Self {
        let (width, padded) = (mixture.width, count.next_multiple_of(QUAD));
        let mut rows = Self {
            first,
            count,
            x: vec![0.0; padded * width],
            minus_alpha: vec![0.0; padded],
            factor: vec![0.0; padded],
            squares: vec![0.0; padded],
        };
        for row in 0..count {
            let alpha = mixture.alpha[first + row];
            let from = &mixture.x[(first + row) * width..][..width];
            for ((to, &value), &centre) in rows.x[row * width..].iter_mut().zip(from).zip(&points.centre) {
                *to = (f64::from(value) - alpha * f64::from(centre)) as f32;
            }
            rows.squares[row] = rows.x[row * width..][..width].iter().map(|&value| f64::from(value).powi(2)).sum();
            rows.minus_alpha[row] = -alpha as f32;
            // Without noise a large finite number: every difference is decisive, equality stays.
            rows.factor[row] = (LOG2_E / (2.0 * mixture.variance[first + row])).min(1e38) as f32;
        }
        rows
    }

    /// Closeness of the rows of some quads and a tile's points, `[rows][stride]`.
    ///
    /// # Safety
    /// The processor has the instructions of `T`; the tile's memory is there.
    unsafe fn closeness<T: Tiles>(&self, tile: &Tile, quads: &[usize], values: &mut [f32]) {
        for start in (0..tile.width).step_by(FEATURES_AT_ONCE) {
            for &quad in quads {
                let minus_alpha = std::array::from_fn(|row| self.minus_alpha[quad + row]);
                let (x, out) = (&self.x[quad * tile.width..], &mut values[quad * tile.stride..]);
                // SAFETY: the slices hold a quad; the caller's promise.
                unsafe { T::closeness(tile, x.as_ptr(), minus_alpha, start, out.as_mut_ptr()) };
            }
        }
    }

    /// Leaves the quads that may have a point of the tile within reach; `best` gives a row's closeness to beat. `values`
    /// are for what it likes, `[rows][stride]`.
    ///
    /// # Safety
    /// The processor has the instructions of `T`; the tile's memory is there.
    unsafe fn sift<T: Tiles>(
        &self,
        tile: &Tile,
        quads: &mut Vec<usize>,
        values: &mut [f32],
        best: impl Fn(usize) -> Option<f32>,
    ) {
        for start in (0..tile.width).step_by(FEATURES_AT_ONCE) {
            for &quad in quads.iter() {
                let (x, out) = (&self.x[quad * tile.width..], &mut values[quad * tile.stride..]);
                // SAFETY: the slices hold a quad; the caller's promise.
                unsafe { T::products(tile, x.as_ptr(), start, out.as_mut_ptr()) };
            }
        }
        let share = error_share(tile.width);
        quads.retain(|&quad| {
            (quad..quad + QUAD).any(|row| {
                // Rows that are there to fill a quad ask for nothing.
                let Some(best) = best(row).filter(|_| row < self.count) else { return row < self.count };
                let reach = reach::of_row(self.minus_alpha[row], self.squares[row], self.factor[row], best, share);
                let products = values[row * tile.stride..].as_ptr();
                // SAFETY: the products are those of a row; the caller's promise.
                reach.is_none_or(|reach| unsafe { T::reaches(tile, products, reach) })
            })
        });
    }

    /// # Safety
    /// The processor has the instructions of `T`.
    unsafe fn mean<T: Tiles>(
        &self,
        mixture: &Mixture<'_>,
        points: &Points,
        mean: &mut [f32],
        best: &mut [f64],
        total: &mut [f64],
    ) {
        let (width, padded_rows) = (mixture.width, self.minus_alpha.len());
        let mut packed = Packed::new(mixture, points);
        let mut values = vec![0.0f32; padded_rows * points.tile];
        let mut sums = vec![0.0f32; padded_rows * points.padded];
        let mut bests = vec![f32::MIN; padded_rows];
        let mut totals = vec![0.0f64; padded_rows];
        let mut near = Vec::with_capacity(padded_rows / QUAD);
        let mut quads = Vec::with_capacity(padded_rows / QUAD);
        let mut sieve = Sieve::new(width, points.sifts);
        for start in (0..mixture.data.len() / width).step_by(points.tile) {
            let tile = packed.pack(mixture, points, start);
            quads.clear();
            quads.extend((0..padded_rows).step_by(QUAD));
            // SAFETY: the buffers have room for all rows and a tile; the caller's promise.
            unsafe {
                if sieve.is_due() {
                    let known = |row: usize| Some(bests[row]).filter(|&best| best > f32::MIN);
                    self.sift::<T>(&tile, &mut quads, &mut values, known);
                    sieve.learn(padded_rows / QUAD, quads.len());
                }
                self.closeness::<T>(&tile, &quads, &mut values);
                near.clear();
                for &quad in &quads {
                    let at = values.as_mut_ptr().add(quad * tile.stride);
                    let highest: [f32; QUAD] = std::array::from_fn(|row| T::largest(&tile, at.add(row * tile.stride)));
                    // Not-a-number is not below anything, so it is never left out.
                    let is_far = |row: usize| {
                        let best = bests[quad + row];
                        best > f32::MIN && (highest[row] - best) * self.factor[quad + row] < SMALLEST
                    };
                    if (0..QUAD).all(is_far) {
                        continue;
                    }
                    let kept: [f32; QUAD] = std::array::from_fn(|row| {
                        let (before, factor) = (bests[quad + row], self.factor[quad + row]);
                        let best = if highest[row] > before { highest[row] } else { before };
                        let kept = ((before - best) * factor).exp2();
                        bests[quad + row] = best;
                        let sum = T::masses(&tile, at.add(row * tile.stride), best, factor);
                        totals[quad + row] = totals[quad + row] * f64::from(kept) + f64::from(sum);
                        kept
                    });
                    near.push((quad, kept));
                }
                gather::<T>(&tile, &near, &values, &mut sums);
            }
        }
        for row in 0..self.count {
            best[row] = f64::from(bests[row]);
            total[row] = totals[row];
            let sums = &sums[row * points.padded..][..width];
            for ((to, &sum), &centre) in mean[row * width..].iter_mut().zip(sums).zip(&points.centre) {
                *to = (f64::from(sum) / totals[row] + f64::from(centre)) as f32;
            }
        }
    }

    /// # Safety
    /// The processor has the instructions of `T`.
    unsafe fn covariance<T: Tiles>(&self, mixture: &Mixture<'_>, points: &Points, known: &Known<'_>, out: &mut [f64]) {
        let (width, padded_rows) = (mixture.width, self.minus_alpha.len());
        let (mut means, mut firsts) = (vec![0.0f32; padded_rows * width], vec![0.0f32; padded_rows * width]);
        let (mut seconds, mut sizes) = (vec![0.0f32; padded_rows], vec![0.0f64; padded_rows]);
        for row in 0..self.count {
            let index = self.first + row;
            let direction = &known.direction[index * (width + 1)..][..width + 1];
            // Directions grow like 1 / variance^2, beyond what f32 holds.
            let size = direction.iter().fold(0f64, |size, value| if value.abs() <= size { size } else { value.abs() });
            sizes[row] = size;
            let scale = if size == 0.0 { 0.0 } else { 1.0 / size };
            for feature in 0..width {
                let mean = known.mean[index * width + feature];
                means[row * width + feature] = mean - points.centre[feature];
                firsts[row * width + feature] = (direction[feature] * scale) as f32;
            }
            seconds[row] = (direction[width] * scale) as f32;
        }
        let mut packed = Packed::new(mixture, points);
        let mut values = vec![0.0f32; padded_rows * points.tile];
        let (mut squares, mut slopes) = (values.clone(), values.clone());
        let mut sums = vec![0.0f32; padded_rows * points.padded];
        let mut totals = vec![[0.0f64; 3]; padded_rows];
        let mut near = Vec::with_capacity(padded_rows / QUAD);
        let mut quads = Vec::with_capacity(padded_rows / QUAD);
        let mut sieve = Sieve::new(width, points.sifts);
        for start in (0..mixture.data.len() / width).step_by(points.tile) {
            let tile = packed.pack(mixture, points, start);
            quads.clear();
            quads.extend((0..padded_rows).step_by(QUAD));
            // SAFETY: the buffers have room for all rows and a tile; the caller's promise.
            unsafe {
                if sieve.is_due() {
                    let known = |row: usize| known.best.get(self.first + row).map(|&best| best as f32);
                    self.sift::<T>(&tile, &mut quads, &mut values, known);
                    sieve.learn(padded_rows / QUAD, quads.len());
                }
                self.closeness::<T>(&tile, &quads, &mut values);
                near.clear();
                for &quad in &quads {
                    let at = values.as_mut_ptr().add(quad * tile.stride);
                    let mut mass = 0.0;
                    for row in 0..QUAD {
                        let values = at.add(row * tile.stride);
                        // Rows that are there to fill a quad take no part.
                        let best = known.best.get(self.first + quad + row).filter(|_| quad + row < self.count);
                        let Some(&best) = best else {
                            values.write_bytes(0, tile.points);
                            continue;
                        };
                        T::largest(&tile, values);
                        mass += T::masses(&tile, values, best as f32, self.factor[quad + row]);
                    }
                    if mass != 0.0 {
                        near.push((quad, [1.0; QUAD]));
                    }
                }
                for start in (0..width).step_by(FEATURES_AT_ONCE) {
                    for &(quad, _) in &near {
                        let (means, firsts) = (means.as_ptr().add(quad * width), firsts.as_ptr().add(quad * width));
                        let offset = quad * tile.stride;
                        let (squares, slopes) = (squares.as_mut_ptr().add(offset), slopes.as_mut_ptr().add(offset));
                        T::slopes(&tile, means, firsts, start, squares, slopes);
                    }
                }
                for row in near.iter().flat_map(|&(quad, _)| quad..quad + QUAD) {
                    let offset = row * tile.stride;
                    let (squares, slopes) = (squares.as_ptr().add(offset), slopes.as_ptr().add(offset));
                    let masses = values.as_mut_ptr().add(offset);
                    let found = T::steps(tile.points, masses, squares, slopes, seconds[row]);
                    for (total, value) in totals[row].iter_mut().zip([found.spread, found.steps, found.squares]) {
                        *total += f64::from(value);
                    }
                }
                gather::<T>(&tile, &near, &values, &mut sums);
            }
        }
        for row in 0..self.count {
            let total = known.total[self.first + row];
            let [spread, steps, squares] = totals[row].map(|value| value / total);
            let out = &mut out[row * (width + 1)..][..width + 1];
            for feature in 0..width {
                let product = f64::from(sums[row * points.padded + feature]) / total;
                out[feature] = sizes[row] * (product - steps * f64::from(means[row * width + feature]));
            }
            out[width] = sizes[row] * (squares - steps * spread);
        }
    }
}

/// Adds the points times their masses for the quads that are near, some columns at a time for all of them.
///
/// # Safety
/// The processor has the instructions of `T`; the tile's memory is there.
unsafe fn gather<T: Tiles>(tile: &Tile, near: &[(usize, [f32; QUAD])], masses: &[f32], sums: &mut [f32]) {
    for column in (0..tile.padded).step_by(STEP) {
        for &(quad, kept) in near {
            let (masses, sums) = (&masses[quad * tile.stride..], &mut sums[quad * tile.padded..]);
            // SAFETY: the slices hold a quad; the caller's promise.
            unsafe { T::gather(tile, masses.as_ptr(), kept, sums.as_mut_ptr(), column) };
        }
    }
}

#[cfg(test)]
mod tests;
