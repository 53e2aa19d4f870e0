// Rows of logits, and what the threads of a block make of them together.
//
// A block has a multiple of 32 threads, 512 at most, and works on one row at a time. Arithmetic is in float; what is
// summed over a block is summed in double, in an order that does not depend on anything but the number of threads.
#include "values.cuh"

constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / 32;
// Values that a thread asks memory for before it looks at the first: enough of them hide the way to memory and back.
constexpr int kChunk = 8;
constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

// Rows come in runs: `inner` of them `inner_stride` elements apart, the runs `outer_stride` apart.
template <class T>
__device__ __forceinline__ T* row_of(T* base, long long row, long long inner, long long outer_stride,
                                     long long inner_stride) {
  return base + row / inner * outer_stride + row % inner * inner_stride;
}

// Entries first, first + blockDim.x, ... of a row; minus infinity beyond its end.
template <class T>
__device__ __forceinline__ void load_chunk(const T* row, unsigned first, unsigned end, float (&values)[kChunk]) {
#pragma unroll
  for (int k = 0; k < kChunk; ++k) {
    const unsigned i = first + k * blockDim.x;
    values[k] = i < end ? widen(row[i]) : -infinity();
  }
}

// A reference that can be taken off: minus infinity of minus infinity would not be a number.
__device__ __forceinline__ float reference(float largest) { return largest == -infinity() ? 0.0f : largest; }

// The product; what is not finite stays so when the factor underflows.
__device__ __forceinline__ float shrunk(float value, float factor) {
  return factor == 0.0f && is_finite(value) ? 0.0f : factor == 0.0f ? value : value * factor;
}

// The largest over the block; not-a-number is passed over, the sums keep it.
__device__ __forceinline__ float block_max(float value) {
  __shared__ float largest[kMaxWarps];
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = value;
  __syncthreads();
  value = largest[0];
#pragma unroll 1
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) value = fmaxf(value, largest[warp]);
  __syncthreads();
  return value;
}

// The sums of `count` values over the block, for all threads.
template <int count>
__device__ __forceinline__ void block_sum(double (&values)[count]) {
  __shared__ double partial[kMaxWarps][count];
#pragma unroll
  for (int k = 0; k < count; ++k) {
    for (int step = 16; step > 0; step /= 2) values[k] += __shfl_xor_sync(kAllLanes, values[k], step);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32][k] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < count; ++k) {
    values[k] = 0.0;
#pragma unroll 1
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) values[k] += partial[warp][k];
  }
  __syncthreads();
}
