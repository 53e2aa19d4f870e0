// Sums of a kernel over pairs of points, and of its slope times what a point of the pair changes; a block works on 32
// rows of the first set and a part of the second, whose tiles pass by. No matrix of rows times points exists.
//
// A kernel is a function of u, the squared distance or the product of two points. Distances are sums of squared
// differences, for which float is enough; sums over pairs are in double. ROWS and POINTS are the types of both sets.
#include "tiles.cuh"

enum Kind { kGaussian, kLaplacian, kNegativeDistance, kInverseMultiquadric, kPolynomial };

// One of the kernels, and its numbers: rates of a Gaussian's bandwidths, a distance's factor, scale and offset.
struct Kernel {
  int kind, degree, count;
  const double* numbers;

  __device__ __forceinline__ bool of_product() const { return kind == kPolynomial; }

  // (scale u + offset)^power
  __device__ __forceinline__ double polynomial(float u, int power) const {
    double base = numbers[0] * u + numbers[1], product = 1.0;
#pragma unroll 1
    for (; power > 0; power /= 2) {
      if (power % 2) product *= base;
      base *= base;
    }
    return product;
  }

  // sum_b exp(-rate_b u), or sum_b rate_b exp(-rate_b u)
  __device__ __forceinline__ double gaussian(float u, bool with_rate) const {
    double sum = 0.0;
#pragma unroll 1
    for (int k = 0; k < count; ++k) sum += (with_rate ? numbers[k] : 1.0) * expf(-u * float(numbers[k]));
    return sum;
  }
};

// The kernel's value, or its derivative: 0 where the points coincide and there is none. Called, not inlined: sixteen
// copies of it in an unrolled loop would take a minute to compile.
__device__ __attribute__((noinline)) double at(Kernel kernel, bool is_slope, float u) {
  const double* numbers = kernel.numbers;
  const float root = sqrtf(u), inverse_root = root == 0.0f ? 0.0f : 1.0f / root;
  switch (kernel.kind) {
    case kGaussian:
      return is_slope ? -kernel.gaussian(u, true) : kernel.gaussian(u, false);
    case kLaplacian: {
      const float value = expf(-root * float(numbers[0]));
      return is_slope ? -0.5 * numbers[0] * value * inverse_root : value;
    }
    case kNegativeDistance:
      return is_slope ? -0.5f * inverse_root : -root;
    case kInverseMultiquadric: {
      const double exponent = numbers[1] + (is_slope ? 1.0 : 0.0);
      const float value = expf(-float(exponent) * log1pf(u * float(numbers[0])));
      return is_slope ? -numbers[1] * numbers[0] * value : value;
    }
    default:
      return is_slope ? kernel.degree * numbers[0] * kernel.polynomial(u, kernel.degree - 1)
                      : kernel.polynomial(u, kernel.degree);
  }
}

// What a block works on.
struct Part {
  const ROWS* x;
  const POINTS* y;
  // Of points; none where all are 1.
  const double* weights;
  long long first_row, rows, end;
  unsigned width;

  // The thread's i-th, which may lie beyond the last.
  __device__ __forceinline__ long long row(int i) const { return first_row + down() + i; }

  __device__ __forceinline__ double weight(long long point) const { return weights ? weights[point] : 1.0; }

  __device__ __forceinline__ float of_row(long long row, unsigned feature) const {
    return row < rows && feature < width ? widen(x[row * width + feature]) : 0.0f;
  }

  __device__ __forceinline__ float of_point(long long point, unsigned feature) const {
    return point < end && feature < width ? widen(y[point * width + feature]) : 0.0f;
  }
};

// u of the thread's rows and points.
__device__ __forceinline__ void measure(const Part& part, bool of_product, long long start, RowTile& rows, Tile& points,
                                        Quads& found) {
#pragma unroll
  for (int i = 0; i < kQuad; ++i)
#pragma unroll
    for (int j = 0; j < kQuad; ++j) found[i][j] = 0.0f;
#pragma unroll 1
  for (unsigned first = 0; first < part.width; first += kFeatures) {
    // Threads may still read what was there.
    __syncthreads();
    const unsigned f = threadIdx.x % kFeatures;
#pragma unroll 4
    for (unsigned p = threadIdx.x / kFeatures; p < kPoints; p += kThreads / kFeatures)
      points[f][p] = part.of_point(start + p, first + f);
#pragma unroll 4
    for (unsigned r = threadIdx.x / kFeatures; r < kRows; r += kThreads / kFeatures)
      rows[f][r] = part.of_row(part.first_row + r, first + f);
    __syncthreads();
    // Apart from the sums of other features: fewer terms round less.
    Quads sums = {};
#pragma unroll 4
    for (int k = 0; k < kFeatures; ++k) {
      float y[kQuad];
#pragma unroll
      for (int j = 0; j < kQuad; ++j) y[j] = points[k][across() + kAcross * j];
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        const float x = rows[k][down() + i];
#pragma unroll
        for (int j = 0; j < kQuad; ++j) {
          const float apart = x - y[j];
          sums[i][j] = of_product ? fmaf(x, y[j], sums[i][j]) : fmaf(apart, apart, sums[i][j]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i)
#pragma unroll
      for (int j = 0; j < kQuad; ++j) found[i][j] += sums[i][j];
  }
}

// Added to `sums`, of the block's rows and all features: of slope (x - y), of -slope y where u is a product.
__device__ __forceinline__ void gather(const Part& part, bool of_product, long long start, const PairTile& slopes,
                                       Tile& points, double* sums) {
#pragma unroll 1
  for (unsigned first = 0; first < part.width; first += kPoints) {
    Quads found = {}, x;
#pragma unroll
    for (int i = 0; i < kQuad; ++i)
#pragma unroll
      for (int j = 0; j < kQuad; ++j)
        x[i][j] = of_product ? 0.0f : part.of_row(part.row(i), first + across() + kAcross * j);
#pragma unroll 1
    for (int half = 0; half < kPoints; half += kFeatures) {
      // Also for the slopes, which other threads have written.
      __syncthreads();
      const unsigned f = threadIdx.x % kPoints;
#pragma unroll 4
      for (unsigned p = threadIdx.x / kPoints; p < kFeatures; p += kThreads / kPoints)
        points[p][f] = part.of_point(start + half + p, first + f);
      __syncthreads();
      const int count = part.end - start - half < kFeatures ? int(part.end - start - half) : kFeatures;
#pragma unroll 4
      for (int p = 0; p < count; ++p) {
        float y[kQuad];
#pragma unroll
        for (int j = 0; j < kQuad; ++j) y[j] = points[p][across() + kAcross * j];
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
          const float slope = slopes[half + p][down() + i];
#pragma unroll
          for (int j = 0; j < kQuad; ++j) found[i][j] = fmaf(slope, x[i][j] - y[j], found[i][j]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (part.row(i) >= part.rows) continue;
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        const unsigned feature = first + across() + kAcross * j;
        if (feature < part.width) sums[part.row(i) * part.width + feature] += found[i][j];
      }
    }
  }
}

__device__ __forceinline__ Part part_of(const ROWS* x, const POINTS* y, const double* weights, long long rows,
                                        long long points, long long points_at_once, unsigned width) {
  const long long end = (blockIdx.y + 1) * points_at_once;
  return {x, y, weights, (long long)blockIdx.x * kRows, rows, end < points ? end : points, width};
}

// sum_j weight_j k(x_i, y_j) over each part of the points.
extern "C" __global__ void __launch_bounds__(128, 4) energy_values(
    const ROWS* x, const POINTS* y, const double* weights, long long rows, long long points, long long points_at_once,
    unsigned width, int kind, int degree, const double* numbers, int count, double* sums) {
  __shared__ Tile point_tile;
  __shared__ RowTile row_tile;
  const Part part = part_of(x, y, weights, rows, points, points_at_once, width);
  const Kernel kernel = {kind, degree, count, numbers};
  double total[kQuad] = {};
#pragma unroll 1
  for (long long start = blockIdx.y * points_at_once; start < part.end; start += kPoints) {
    Quads u;
    measure(part, kernel.of_product(), start, row_tile, point_tile, u);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      const long long point = start + across() + kAcross * j;
      if (point >= part.end) continue;
      const double weight = part.weight(point);
#pragma unroll
      for (int i = 0; i < kQuad; ++i) total[i] += weight * at(kernel, false, u[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
#pragma unroll
    for (int step = kAcross / 2; step > 0; step /= 2) total[i] += __shfl_xor_sync(kAllLanes, total[i], step);
    if (across() == 0 && part.row(i) < rows) sums[blockIdx.y * rows + part.row(i)] = total[i];
  }
}

// Added to `sums`, which each part has of its own: sum_j weight_j k'(u_ij) (x_i - y_j), or -y_j for a product.
extern "C" __global__ void __launch_bounds__(128, 4) energy_slopes(
    const ROWS* x, const POINTS* y, const double* weights, long long rows, long long points, long long points_at_once,
    unsigned width, int kind, int degree, const double* numbers, int count, double* sums) {
  __shared__ Tile point_tile;
  __shared__ RowTile row_tile;
  __shared__ PairTile slopes;
  const Part part = part_of(x, y, weights, rows, points, points_at_once, width);
  const Kernel kernel = {kind, degree, count, numbers};
#pragma unroll 1
  for (long long start = blockIdx.y * points_at_once; start < part.end; start += kPoints) {
    Quads u;
    measure(part, kernel.of_product(), start, row_tile, point_tile, u);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      const unsigned p = across() + kAcross * j;
      const double weight = start + p < part.end ? part.weight(start + p) : 0.0;
#pragma unroll
      for (int i = 0; i < kQuad; ++i)
        slopes[p][down() + i] = start + p < part.end ? float(weight * at(kernel, true, u[i][j])) : 0.0f;
    }
    gather(part, kernel.of_product(), start, slopes, point_tile, sums + blockIdx.y * rows * width);
  }
}
