//! The loops over a tile of points and four rows, compiled for each instruction set.

use crate::ops::vector::Vector;

/// Rows that a loop works on at once.
pub(super) const QUAD: usize = 4;

/// Points in a tile are a multiple of this: two of the widest vectors.
pub(super) const STEP: usize = 32;

/// Features are padded to a multiple of this.
pub(super) const PADDING: usize = 16;

/// Features whose squares are summed before the sum is added to those of the others: that keeps rounding small, and
/// their points in the first cache while all rows pass.
pub(super) const FEATURES_AT_ONCE: usize = 64;

/// A tile of points.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    /// Points, padded to a multiple of [`STEP`].
    pub points: usize,
    /// Features.
    pub width: usize,
    /// `[width][stride]`: points side by side.
    pub across: *const f32,
    /// Values between two features of `across`, and between two rows of what the loops write.
    pub stride: usize,
    /// `[points][padded]`: features side by side, padded with 0.
    pub along: *const f32,
    /// Values between two points of `along`, a multiple of [`PADDING`].
    pub padded: usize,
    /// `[points]`: 0 for padding.
    pub weights: *const f32,
    /// `[points]`: squared lengths.
    pub squares: *const f32,
}

/// Which points a row asks for: those with `slope x.y + scale |y|^2 + offset` of at least `limit`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    pub slope: f32,
    pub scale: f32,
    pub offset: f32,
    pub limit: f32,
}

/// Sums over a tile's points for one row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepSums {
    /// Of mass times squared distance from the mean.
    pub spread: f32,
    /// Of the steps.
    pub steps: f32,
    /// Of steps times squared distance from the mean.
    pub squares: f32,
}

/// The loops for one instruction set. All need the processor to have its instructions.
pub(super) trait Tiles {
    /// Takes `|x - alpha y|^2` over the features from `start` on, at most [`FEATURES_AT_ONCE`], off `[4][stride]` for
    /// four rows `[4][width]` and every point; with the first features what is there counts as 0.
    ///
    /// # Safety
    /// The tile's pointers and `x` are readable, `out` writable, for their sizes.
    unsafe fn closeness(tile: &Tile, x: *const f32, minus_alpha: [f32; QUAD], start: usize, out: *mut f32);

    /// Adds `x.y` over the features from `start` on, at most [`FEATURES_AT_ONCE`], to `[4][stride]` for four rows
    /// `[4][width]` and every point; with the first features what is there counts as 0.
    ///
    /// # Safety
    /// The tile's pointers and `x` are readable, `out` writable, for their sizes.
    unsafe fn products(tile: &Tile, x: *const f32, start: usize, out: *mut f32);

    /// Whether a point is within a row's reach, or may be for what is not a number, by their products `[points]`.
    ///
    /// # Safety
    /// The tile's pointers and the products are readable.
    unsafe fn reaches(tile: &Tile, products: *const f32, reach: Reach) -> bool;

    /// The largest closeness `[points]`, after points without weight got the lowest number.
    ///
    /// # Safety
    /// The tile's pointers are readable, `values` writable.
    unsafe fn largest(tile: &Tile, values: *mut f32) -> f32;

    /// `weight 2^(factor (closeness - best))` in place of closeness `[points]`; their sum.
    ///
    /// # Safety
    /// The tile's pointers are readable, `values` writable.
    unsafe fn masses(tile: &Tile, values: *mut f32, best: f32, factor: f32) -> f32;

    /// `sums = sums kept + masses @ along` for four rows `[4][stride]` and `[4][padded]`, at [`STEP`] columns from
    /// `column` on or those that are left.
    ///
    /// # Safety
    /// The tile's pointers and the masses are readable, `sums` writable.
    unsafe fn gather(tile: &Tile, masses: *const f32, kept: [f32; QUAD], sums: *mut f32, column: usize);

    /// Adds the part of the features from `start` on, at most [`FEATURES_AT_ONCE`], to `|y - mean|^2` and
    /// `first.(y - mean)` `[4][stride]` for four rows of means and directions `[4][width]`; with the first features what
    /// is there counts as 0.
    ///
    /// # Safety
    /// The tile's pointers, means and directions are readable, `squares` and `slopes` writable.
    unsafe fn slopes(
        tile: &Tile,
        means: *const f32,
        first: *const f32,
        start: usize,
        squares: *mut f32,
        slopes: *mut f32,
    );

    /// `mass (slope + second square)` in place of the masses `[points]`, and sums.
    ///
    /// # Safety
    /// All are readable for so many points, the masses writable.
    unsafe fn steps(points: usize, masses: *mut f32, squares: *const f32, slopes: *const f32, second: f32) -> StepSums;
}

#[inline(always)]
unsafe fn closeness<V: Vector>(tile: &Tile, x: *const f32, minus_alpha: [f32; QUAD], start: usize, out: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        let factors = minus_alpha.map(|value| V::splat(value));
        for point in (0..tile.points).step_by(2 * V::LANES) {
            let mut sums = [[zero; 2]; QUAD];
            for feature in start..tile.width.min(start + FEATURES_AT_ONCE) {
                let at = tile.across.add(feature * tile.stride + point);
                let points = [V::load(at), V::load(at.add(V::LANES))];
                for row in 0..QUAD {
                    let value = V::splat(*x.add(row * tile.width + feature));
                    for half in 0..2 {
                        let apart = points[half].fma(factors[row], value);
                        sums[row][half] = apart.fma(apart, sums[row][half]);
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (half, &sum) in sums.iter().enumerate() {
                    let to = out.add(row * tile.stride + point + half * V::LANES);
                    let before = if start == 0 { zero } else { V::load(to) };
                    before.sub(sum).store(to);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn products<V: Vector>(tile: &Tile, x: *const f32, start: usize, out: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        for point in (0..tile.points).step_by(2 * V::LANES) {
            let mut sums = [[zero; 2]; QUAD];
            for feature in start..tile.width.min(start + FEATURES_AT_ONCE) {
                let at = tile.across.add(feature * tile.stride + point);
                let points = [V::load(at), V::load(at.add(V::LANES))];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = V::splat(*x.add(row * tile.width + feature));
                    for (sum, points) in sums.iter_mut().zip(points) {
                        *sum = points.fma(value, *sum);
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (half, &sum) in sums.iter().enumerate() {
                    let to = out.add(row * tile.stride + point + half * V::LANES);
                    let before = if start == 0 { zero } else { V::load(to) };
                    before.add(sum).store(to);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn reaches<V: Vector>(tile: &Tile, products: *const f32, reach: Reach) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let (slope, scale) = (V::splat(reach.slope), V::splat(reach.scale));
        let (offset, limit, one) = (V::splat(reach.offset), V::splat(reach.limit), V::splat(1.0));
        let mut found = V::splat(0.0);
        for point in (0..tile.points).step_by(V::LANES) {
            let base = V::load(tile.squares.add(point)).fma(scale, offset);
            let closest = V::load(products.add(point)).fma(slope, base);
            found = found.add(one.zero_below(closest, limit));
        }
        found.largest() > 0.0
    }
}

#[inline(always)]
unsafe fn largest<V: Vector>(tile: &Tile, values: *mut f32) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (zero, lowest) = (V::splat(0.0), V::splat(f32::MIN));
        let mut best = lowest;
        for point in (0..tile.points).step_by(V::LANES) {
            let at = values.add(point);
            let value = V::load(at).where_above(V::load(tile.weights.add(point)), zero, lowest);
            value.store(at);
            best = best.max(value);
        }
        best.largest()
    }
}

#[inline(always)]
unsafe fn masses<V: Vector>(tile: &Tile, values: *mut f32, best: f32, factor: f32) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (best, factor) = (V::splat(best), V::splat(factor));
        let mut sum = V::splat(0.0);
        for point in (0..tile.points).step_by(V::LANES) {
            let at = values.add(point);
            let mass = V::load(at).sub(best).mul(factor).exp2().mul(V::load(tile.weights.add(point)));
            mass.store(at);
            sum = sum.add(mass);
        }
        sum.sum()
    }
}

#[inline(always)]
unsafe fn gather_columns<V: Vector, const N: usize>(
    tile: &Tile,
    masses: *const f32,
    kept: [f32; QUAD],
    sums: *mut f32,
    column: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = [[V::splat(0.0); N]; QUAD];
        for point in 0..tile.points {
            let at = tile.along.add(point * tile.padded + column);
            let mut points = [V::splat(0.0); N];
            for (part, value) in points.iter_mut().enumerate() {
                *value = V::load(at.add(part * V::LANES));
            }
            for (row, totals) in totals.iter_mut().enumerate() {
                let mass = V::splat(*masses.add(row * tile.stride + point));
                for (total, point) in totals.iter_mut().zip(points) {
                    *total = point.fma(mass, *total);
                }
            }
        }
        for (row, totals) in totals.iter().enumerate() {
            for (part, &total) in totals.iter().enumerate() {
                let to = sums.add(row * tile.padded + column + part * V::LANES);
                V::load(to).fma(V::splat(kept[row]), total).store(to);
            }
        }
    }
}

#[inline(always)]
unsafe fn gather<V: Vector>(tile: &Tile, masses: *const f32, kept: [f32; QUAD], sums: *mut f32, column: usize) {
    let (mut column, end) = (column, tile.padded.min(column + STEP));
    while column + 2 * V::LANES <= end {
        // SAFETY: the caller's promise; the columns are inside.
        unsafe { gather_columns::<V, 2>(tile, masses, kept, sums, column) };
        column += 2 * V::LANES;
    }
    while column < end {
        // SAFETY: as above: the padding is a multiple of every vector's length.
        unsafe { gather_columns::<V, 1>(tile, masses, kept, sums, column) };
        column += V::LANES;
    }
}

#[inline(always)]
unsafe fn slopes<V: Vector>(
    tile: &Tile,
    means: *const f32,
    first: *const f32,
    start: usize,
    squares: *mut f32,
    slopes: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        for point in (0..tile.points).step_by(V::LANES) {
            let mut square = [zero; QUAD];
            let mut slope = [zero; QUAD];
            for feature in start..tile.width.min(start + FEATURES_AT_ONCE) {
                let points = V::load(tile.across.add(feature * tile.stride + point));
                for row in 0..QUAD {
                    let apart = points.sub(V::splat(*means.add(row * tile.width + feature)));
                    square[row] = apart.fma(apart, square[row]);
                    slope[row] = apart.fma(V::splat(*first.add(row * tile.width + feature)), slope[row]);
                }
            }
            for row in 0..QUAD {
                let at = row * tile.stride + point;
                for (to, sum) in [(squares.add(at), square[row]), (slopes.add(at), slope[row])] {
                    let before = if start == 0 { zero } else { V::load(to) };
                    before.add(sum).store(to);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn steps<V: Vector>(
    points: usize,
    masses: *mut f32,
    squares: *const f32,
    slopes: *const f32,
    second: f32,
) -> StepSums {
    // SAFETY: the caller's promise.
    unsafe {
        let (zero, second) = (V::splat(0.0), V::splat(second));
        let (mut spread, mut total, mut weighted) = (zero, zero, zero);
        for point in (0..points).step_by(V::LANES) {
            let (mass, square) = (V::load(masses.add(point)), V::load(squares.add(point)));
            let slope = square.fma(second, V::load(slopes.add(point)));
            // A point without mass may lie anywhere, infinitely far away too.
            let step = mass.mul(slope).zero_without(mass);
            step.store(masses.add(point));
            spread = mass.mul(square).zero_without(mass).add(spread);
            total = total.add(step);
            weighted = step.mul(square).zero_without(mass).add(weighted);
        }
        StepSums { spread: spread.sum(), steps: total.sum(), squares: weighted.sum() }
    }
}

/// Implements the loops for a vector, compiled with features of the processor.
macro_rules! tiles {
    ($name:path $(, $features:literal)?) => {
        impl Tiles for $name {
            $(#[target_feature(enable = $features)])?
            unsafe fn closeness(tile: &Tile, x: *const f32, minus_alpha: [f32; QUAD], start: usize, out: *mut f32) {
                // SAFETY: the caller's promise.
                unsafe { closeness::<$name>(tile, x, minus_alpha, start, out) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn products(tile: &Tile, x: *const f32, start: usize, out: *mut f32) {
                // SAFETY: the caller's promise.
                unsafe { products::<$name>(tile, x, start, out) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn reaches(tile: &Tile, products: *const f32, reach: Reach) -> bool {
                // SAFETY: the caller's promise.
                unsafe { reaches::<$name>(tile, products, reach) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn largest(tile: &Tile, values: *mut f32) -> f32 {
                // SAFETY: the caller's promise.
                unsafe { largest::<$name>(tile, values) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn masses(tile: &Tile, values: *mut f32, best: f32, factor: f32) -> f32 {
                // SAFETY: the caller's promise.
                unsafe { masses::<$name>(tile, values, best, factor) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn gather(tile: &Tile, masses: *const f32, kept: [f32; QUAD], sums: *mut f32, column: usize) {
                // SAFETY: the caller's promise.
                unsafe { gather::<$name>(tile, masses, kept, sums, column) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn slopes(
                tile: &Tile,
                means: *const f32,
                first: *const f32,
                start: usize,
                squares: *mut f32,
                out: *mut f32,
            ) {
                // SAFETY: the caller's promise.
                unsafe { slopes::<$name>(tile, means, first, start, squares, out) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn steps(
                points: usize,
                masses: *mut f32,
                squares: *const f32,
                slopes: *const f32,
                second: f32,
            ) -> StepSums {
                // SAFETY: the caller's promise.
                unsafe { steps::<$name>(points, masses, squares, slopes, second) }
            }
        }
    };
}

tiles!(crate::ops::portable::Portable);
#[cfg(target_arch = "x86_64")]
tiles!(crate::ops::x86::Avx512, "avx512f,avx512bw,avx512dq,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
tiles!(crate::ops::x86::Avx2, "avx2,fma,f16c");
