// Posterior of a finite data set under Gaussian noise, and its derivative; a block works on 32 rows and a part of the
// points, whose tiles pass by: closeness of rows and tile, masses relative to the largest so far, sums of the points by
// mass. No matrix of rows times points exists: the sums of a block are its own piece of global memory.
//
// Row x is alpha y + n with n ~ N(0, variance I). Everything is about `centre`, near the points' mean. Distances are sums of
// squared differences: the square's expansion would cancel where the noise is small. ROWS and POINTS are the types of x
// and data.
#include "tiles.cuh"

// Below every closeness; not minus infinity, as a difference of two of those is not a number.
constexpr float kLowest = -3.4028234663852886e38f;

// What a block works on.
struct Part {
  const ROWS* x;
  const POINTS* data;
  const float* centre;
  // Of points, relative to the largest; none where all are equal.
  const float* weights;
  long long first_row, rows, end;
  unsigned width;

  // The thread's i-th, which may lie beyond the last.
  __device__ __forceinline__ long long row(int i) const { return first_row + down() + i; }

  __device__ __forceinline__ float weight(long long point) const {
    return point >= end ? 0.0f : weights ? weights[point] : 1.0f;
  }

  __device__ __forceinline__ float at(long long point, unsigned feature) const {
    return point < end && feature < width ? widen(data[point * width + feature]) - centre[feature] : 0.0f;
  }
};

// One thread's rows.
struct Own {
  float minus_alpha[kQuad];
  // What makes a closeness an exponent of 2.
  float factor[kQuad];
};

__device__ __forceinline__ Own own_rows(const Part& part, const double* alpha, const float* factor) {
  Own own;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    const long long row = part.row(i);
    own.minus_alpha[i] = row < part.rows ? -float(alpha[row]) : 0.0f;
    own.factor[i] = row < part.rows ? factor[row] : 0.0f;
  }
  return own;
}

__device__ __forceinline__ void load_points(const Part& part, long long start, unsigned first, Tile& points) {
  const unsigned f = threadIdx.x % kFeatures;
#pragma unroll 4
  for (unsigned p = threadIdx.x / kFeatures; p < kPoints; p += kThreads / kFeatures)
    points[f][p] = part.at(start + p, first + f);
}

// -|x - alpha y|^2 of the thread's rows and points, and |y|^2 of these.
__device__ __forceinline__ void closeness(const Part& part, const Own& own, const double* alpha, long long start,
                                          RowTile& rows, Tile& points, Quads& found, float (&square)[kQuad]) {
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    square[j] = 0.0f;
#pragma unroll
    for (int i = 0; i < kQuad; ++i) found[i][j] = 0.0f;
  }
#pragma unroll 1
  for (unsigned first = 0; first < part.width; first += kFeatures) {
    // Threads may still read what was there.
    __syncthreads();
    load_points(part, start, first, points);
    const unsigned f = threadIdx.x % kFeatures;
    const float centre = first + f < part.width ? part.centre[first + f] : 0.0f;
#pragma unroll 4
    for (unsigned r = threadIdx.x / kFeatures; r < kRows; r += kThreads / kFeatures) {
      const long long row = part.first_row + r;
      float value = 0.0f;
      if (row < part.rows && first + f < part.width) {
        // In two steps, because alpha times the centre may be much larger than what is left.
        const float high = float(alpha[row]), low = float(alpha[row] - high);
        value = fmaf(-low, centre, fmaf(-high, centre, widen(part.x[row * part.width + first + f])));
      }
      rows[f][r] = value;
    }
    __syncthreads();
    // Apart from the sums of other features: fewer terms round less.
    Quads sums = {};
#pragma unroll 4
    for (int k = 0; k < kFeatures; ++k) {
      float y[kQuad];
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        y[j] = points[k][across() + kAcross * j];
        square[j] = fmaf(y[j], y[j], square[j]);
      }
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        const float x = rows[k][down() + i];
#pragma unroll
        for (int j = 0; j < kQuad; ++j) {
          const float apart = fmaf(own.minus_alpha[i], y[j], x);
          sums[i][j] = fmaf(-apart, apart, sums[i][j]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i)
#pragma unroll
      for (int j = 0; j < kQuad; ++j) found[i][j] += sums[i][j];
  }
}

// The sum over the threads that share rows, for all of them.
__device__ __forceinline__ float sum_across(float value) {
#pragma unroll
  for (int step = kAcross / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Whether any thread's is true; called where no thread reads an earlier answer.
__device__ __forceinline__ bool any_of_block(bool value) {
  __shared__ int answers[kThreads / 32];
  const int answer = __any_sync(kAllLanes, value);
  if (threadIdx.x % 32 == 0) answers[threadIdx.x / 32] = answer;
  __syncthreads();
  int any = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) any |= answers[warp];
  return any != 0;
}

// sums = kept sums + masses @ points for the block's rows and all features.
__device__ __forceinline__ void gather(const Part& part, long long start, const float (&kept)[kQuad],
                                       const PairTile& masses, Tile& points, float* sums) {
#pragma unroll 1
  for (unsigned first = 0; first < part.width; first += kPoints) {
    Quads found = {};
#pragma unroll 1
    for (int half = 0; half < kPoints; half += kFeatures) {
      __syncthreads();
      const unsigned f = threadIdx.x % kPoints;
#pragma unroll 4
      for (unsigned p = threadIdx.x / kPoints; p < kFeatures; p += kThreads / kPoints)
        points[p][f] = part.at(start + half + p, first + f);
      __syncthreads();
#pragma unroll 4
      for (int p = 0; p < kFeatures; ++p) {
        float y[kQuad];
#pragma unroll
        for (int j = 0; j < kQuad; ++j) y[j] = points[p][across() + kAcross * j];
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
          const float mass = masses[half + p][down() + i];
#pragma unroll
          for (int j = 0; j < kQuad; ++j) found[i][j] = fmaf(mass, y[j], found[i][j]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (part.row(i) >= part.rows) continue;
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        const unsigned feature = first + across() + kAcross * j;
        if (feature >= part.width) continue;
        float* to = sums + part.row(i) * part.width + feature;
        *to = fmaf(*to, kept[i], found[i][j]);
      }
    }
  }
}

__device__ __forceinline__ Part part_of(const ROWS* x, const POINTS* data, const float* centre, const float* weights,
                                        long long rows, long long points, long long points_at_once, unsigned width) {
  const long long end = (blockIdx.y + 1) * points_at_once;
  return {x, data, centre, weights, (long long)blockIdx.x * kRows, rows, end < points ? end : points, width};
}

// With mass_i = weight_i 2^(factor (closeness_i - best)) over a part of the points: best, and the sums of mass, of mass
// |x - alpha y_i|^2, of mass |y_i|^2 and, added to what is there, of mass y_i.
extern "C" __global__ void __launch_bounds__(128, 4) mixture_posterior(
    const ROWS* x, const POINTS* data, const float* centre, const double* alpha, const float* factor,
    const float* weights, long long rows, long long points, long long points_at_once, unsigned width, float* sums,
    float* best, double* totals, double* distances, double* squares) {
  __shared__ Tile point_tile;
  __shared__ RowTile row_tile;
  __shared__ PairTile masses;
  const Part part = part_of(x, data, centre, weights, rows, points, points_at_once, width);
  const Own own = own_rows(part, alpha, factor);
  float highest[kQuad];
  double total[kQuad], distance[kQuad], square[kQuad];
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    highest[i] = kLowest;
    total[i] = distance[i] = square[i] = 0.0;
  }
#pragma unroll 1
  for (long long start = blockIdx.y * points_at_once; start < part.end; start += kPoints) {
    Quads close;
    float length[kQuad];
    closeness(part, own, alpha, start, row_tile, point_tile, close, length);
    float kept[kQuad];
    bool is_near = false;
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      float now = highest[i];
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        if (part.weight(start + across() + kAcross * j) == 0.0f) close[i][j] = kLowest;
        now = fmaxf(now, close[i][j]);
      }
#pragma unroll
      for (int step = kAcross / 2; step > 0; step /= 2) now = fmaxf(now, __shfl_xor_sync(kAllLanes, now, step));
      float mass_sum = 0.0f, distance_sum = 0.0f, square_sum = 0.0f;
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        const unsigned p = across() + kAcross * j;
        const float mass = part.weight(start + p) * exp2f((close[i][j] - now) * own.factor[i]);
        masses[p][down() + i] = mass;
        // Not-a-number is not 0.
        if (mass == 0.0f) continue;
        is_near = true;
        mass_sum += mass;
        distance_sum -= mass * close[i][j];
        square_sum += mass * length[j];
      }
      kept[i] = exp2f((highest[i] - now) * own.factor[i]);
      highest[i] = now;
      total[i] = total[i] * kept[i] + sum_across(mass_sum);
      distance[i] = distance[i] * kept[i] + sum_across(distance_sum);
      square[i] = square[i] * kept[i] + sum_across(square_sum);
    }
    // A tile too far from all rows to add anything brings no larger closeness either.
    if (any_of_block(is_near))
      gather(part, start, kept, masses, point_tile, sums + blockIdx.y * rows * width);
  }
  if (across() != 0) return;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    if (part.row(i) >= rows) continue;
    const long long place = blockIdx.y * rows + part.row(i);
    best[place] = highest[i];
    totals[place] = total[i];
    distances[place] = distance[i];
    squares[place] = square[i];
  }
}

// With delta = y - mean and step = mass (delta . first + |delta|^2 second), over a part of the points: the sums of step, of
// step |delta|^2, of mass |delta|^2 and, added to what is there, of step y. `mean` is about the centre.
extern "C" __global__ void __launch_bounds__(128, 4) mixture_covariance(
    const ROWS* x, const POINTS* data, const float* centre, const double* alpha, const float* factor,
    const float* weights, long long rows, long long points, long long points_at_once, unsigned width, const float* mean,
    const float* best, const float* first_direction, const float* second_direction, float* sums, double* steps,
    double* squares, double* spreads) {
  __shared__ Tile point_tile;
  __shared__ RowTile row_tile;
  __shared__ RowTile direction_tile;
  __shared__ PairTile step_tile;
  // Of steps, step |delta|^2 and mass |delta|^2; each row's are one thread's.
  __shared__ double found[3][kRows];
  const Part part = part_of(x, data, centre, weights, rows, points, points_at_once, width);
  const Own own = own_rows(part, alpha, factor);
  const float kept[kQuad] = {1.0f, 1.0f, 1.0f, 1.0f};
  float highest[kQuad], second[kQuad];
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    highest[i] = part.row(i) < rows ? best[part.row(i)] : 0.0f;
    second[i] = part.row(i) < rows ? second_direction[part.row(i)] : 0.0f;
    if (across() == 0) found[0][down() + i] = found[1][down() + i] = found[2][down() + i] = 0.0;
  }
#pragma unroll 1
  for (long long start = blockIdx.y * points_at_once; start < part.end; start += kPoints) {
    Quads mass;
    float length[kQuad];
    closeness(part, own, alpha, start, row_tile, point_tile, mass, length);
    bool is_near = false;
#pragma unroll
    for (int i = 0; i < kQuad; ++i)
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        const float weight = part.row(i) < rows ? part.weight(start + across() + kAcross * j) : 0.0f;
        const float apart = mass[i][j] - highest[i];
        mass[i][j] = weight == 0.0f ? 0.0f : weight * exp2f((apart > 0.0f ? 0.0f : apart) * own.factor[i]);
        is_near = is_near || mass[i][j] != 0.0f;
      }
    if (!any_of_block(is_near)) continue;
    Quads apart = {}, along = {};
#pragma unroll 1
    for (unsigned first = 0; first < width; first += kFeatures) {
      __syncthreads();
      load_points(part, start, first, point_tile);
      const unsigned f = threadIdx.x % kFeatures;
#pragma unroll 4
      for (unsigned r = threadIdx.x / kFeatures; r < kRows; r += kThreads / kFeatures) {
        const bool is_there = part.first_row + r < rows && first + f < width;
        const long long place = (part.first_row + r) * width + first + f;
        row_tile[f][r] = is_there ? mean[place] : 0.0f;
        direction_tile[f][r] = is_there ? first_direction[place] : 0.0f;
      }
      __syncthreads();
#pragma unroll 4
      for (int k = 0; k < kFeatures; ++k) {
        float y[kQuad];
#pragma unroll
        for (int j = 0; j < kQuad; ++j) y[j] = point_tile[k][across() + kAcross * j];
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
          const float middle = row_tile[k][down() + i], direction = direction_tile[k][down() + i];
#pragma unroll
          for (int j = 0; j < kQuad; ++j) {
            const float delta = y[j] - middle;
            apart[i][j] = fmaf(delta, delta, apart[i][j]);
            along[i][j] = fmaf(delta, direction, along[i][j]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      float step_sum = 0.0f, square_sum = 0.0f, spread_sum = 0.0f;
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        const float one = mass[i][j] == 0.0f ? 0.0f : mass[i][j] * fmaf(second[i], apart[i][j], along[i][j]);
        step_tile[across() + kAcross * j][down() + i] = one;
        if (mass[i][j] == 0.0f) continue;
        step_sum += one;
        square_sum += one * apart[i][j];
        spread_sum += mass[i][j] * apart[i][j];
      }
      step_sum = sum_across(step_sum);
      square_sum = sum_across(square_sum);
      spread_sum = sum_across(spread_sum);
      if (across() != 0) continue;
      found[0][down() + i] += step_sum;
      found[1][down() + i] += square_sum;
      found[2][down() + i] += spread_sum;
    }
    gather(part, start, kept, step_tile, point_tile, sums + blockIdx.y * rows * width);
  }
  if (across() != 0) return;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    if (part.row(i) >= rows) continue;
    const long long place = blockIdx.y * rows + part.row(i);
    steps[place] = found[0][down() + i];
    squares[place] = found[1][down() + i];
    spreads[place] = found[2][down() + i];
  }
}
