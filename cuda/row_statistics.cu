// Log-sum-exp, entropy, most likely entry and the k largest entries of rows of logits; one block for each row.
//
// The k largest are found by counting: the digits of the k-th largest key, eight bits at a time, then all keys from it on,
// sorted in the block's memory. A key is the logit in an order that unsigned numbers have too, then the place backwards, so
// that no two are equal and the first of equal logits comes first. LOGITS is the type of the logits.
#include "rows.cuh"

constexpr int kMaxTop = 1024;

// Larger for larger numbers; equal for both zeros; largest for what is not a number.
__device__ __forceinline__ unsigned order_of(float x) {
  if (x != x) return 0xffffffffu;
  const unsigned bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ unsigned long long key_of(float x, unsigned place) {
  return (unsigned long long)order_of(x) << 32 | (0xffffffffu - place);
}

__device__ __forceinline__ unsigned long long block_max_key(unsigned long long key) {
  __shared__ unsigned long long largest[kMaxWarps];
  for (int step = 16; step > 0; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAllLanes, key, step);
    key = other > key ? other : key;
  }
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = key;
  __syncthreads();
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) key = largest[warp] > key ? largest[warp] : key;
  __syncthreads();
  return key;
}

// What is known of the k-th largest key: its digits under the mask, and how many of those that agree in them are wanted.
struct Threshold {
  unsigned long long prefix, mask;
  unsigned wanted;
};

// The next digit, by the first warp: bins from the largest digit on, until enough keys are counted.
__device__ __forceinline__ void next_digit(const unsigned* counts, int shift, Threshold* threshold, bool* is_done) {
  const int lane = threadIdx.x;
  unsigned own = 0;
  for (int bin = 0; bin < 8; ++bin) own += counts[255 - 8 * lane - bin];
  unsigned before = own;
  for (int step = 1; step < 32; step *= 2) {
    const unsigned other = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += other;
  }
  before -= own;
  const unsigned wanted = threshold->wanted;
  // All lanes have read what one of them is about to change.
  __syncwarp();
  if (before >= wanted || before + own < wanted) return;
  for (int bin = 0; bin < 8; ++bin) {
    const unsigned digit = 255 - 8 * lane - bin, count = counts[digit];
    if (before + count >= wanted) {
      threshold->prefix |= (unsigned long long)digit << shift;
      threshold->mask |= 0xffull << shift;
      threshold->wanted = wanted - before;
      *is_done = count == wanted - before;
      return;
    }
    before += count;
  }
}

template <class T>
__device__ __forceinline__ void largest_entries(const T* from, unsigned vocabulary, unsigned k, long long* to) {
  __shared__ unsigned counts[256];
  __shared__ unsigned long long found[kMaxTop];
  __shared__ Threshold threshold;
  __shared__ bool is_done;
  __shared__ unsigned filled;
  if (threadIdx.x == 0) {
    threshold = {0, 0, k};
    is_done = false;
    filled = 0;
  }
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (unsigned bin = threadIdx.x; bin < 256; bin += blockDim.x) counts[bin] = 0;
    __syncthreads();
    if (is_done) break;
    const Threshold known = threshold;
    for (unsigned i = threadIdx.x; i < vocabulary; i += blockDim.x) {
      const unsigned long long key = key_of(widen(from[i]), i);
      if ((key & known.mask) == known.prefix) atomicAdd(&counts[key >> shift & 0xff], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 32) next_digit(counts, shift, &threshold, &is_done);
    __syncthreads();
  }
  const Threshold known = threshold;
  for (unsigned i = threadIdx.x; i < vocabulary; i += blockDim.x) {
    const unsigned long long key = key_of(widen(from[i]), i);
    if ((key & known.mask) >= known.prefix) found[atomicAdd(&filled, 1u)] = key;
  }
  unsigned padded = 1;
  while (padded < k) padded *= 2;
  for (unsigned i = k + threadIdx.x; i < padded; i += blockDim.x) found[i] = 0;
  __syncthreads();
  // A bitonic sort, largest first.
  for (unsigned size = 2; size <= padded; size *= 2)
    for (unsigned step = size / 2; step > 0; step /= 2) {
      for (unsigned i = threadIdx.x; i < padded; i += blockDim.x) {
        const unsigned other = i ^ step;
        if (other < i) continue;
        const unsigned long long a = found[i], b = found[other];
        if ((a < b) == ((i & size) == 0)) {
          found[i] = b;
          found[other] = a;
        }
      }
      __syncthreads();
    }
  for (unsigned i = threadIdx.x; i < k; i += blockDim.x) to[i] = 0xffffffffu - (unsigned)found[i];
  // The next row writes what this one still reads.
  __syncthreads();
}

extern "C" __global__ void __launch_bounds__(512) row_statistics(
    const LOGITS* logits, long long logits_inner, long long logits_outer_stride, long long logits_inner_stride,
    long long rows, unsigned vocabulary, const double* temperature, double* logsumexp, double* entropy, long long* argmax, unsigned k,
    long long* top) {
  for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
    const LOGITS* from = row_of(logits, row, logits_inner, logits_outer_stride, logits_inner_stride);
    const double factor = kLog2E / temperature[row];
    float largest = -infinity(), sum = 0.0f, moment = 0.0f;
    unsigned long long best = 0;
#pragma unroll 1
    for (unsigned first = threadIdx.x; first < vocabulary; first += kChunk * blockDim.x) {
      float values[kChunk];
      load_chunk(from, first, vocabulary, values);
      float now = largest;
#pragma unroll
      for (int c = 0; c < kChunk; ++c) now = fmaxf(now, values[c]);
      if (now > largest) {
        const float step = (reference(largest) - reference(now)) * float(factor);
        const float scale = sum == 0.0f ? 0.0f : exp2f(step);
        moment = sum == 0.0f ? 0.0f : shrunk(moment + sum * step, scale);
        sum = shrunk(sum, scale);
        largest = now;
      }
#pragma unroll
      for (int c = 0; c < kChunk; ++c) {
        const unsigned i = first + c * blockDim.x;
        if (i >= vocabulary) break;
        const float x = (values[c] - reference(largest)) * float(factor), weight = exp2f(x);
        sum += weight;
        moment += weight == 0.0f ? 0.0f : weight * x;
        const unsigned long long key = key_of(values[c], i);
        best = key > best ? key : best;
      }
    }
    const float common = block_max(largest);
    const float step = (reference(largest) - reference(common)) * float(factor);
    const float scale = sum == 0.0f ? 0.0f : exp2f(step);
    double totals[2] = {shrunk(sum, scale), sum == 0.0f ? 0.0f : shrunk(moment + sum * step, scale)};
    block_sum(totals);
    best = block_max_key(best);
    if (threadIdx.x == 0) {
      logsumexp[row] = kLn2 * (common * factor + log2(totals[0]));
      entropy[row] = kLn2 * (log2(totals[0]) - totals[1] / totals[0]);
      argmax[row] = 0xffffffffu - (unsigned)best;
    }
    if (k > 0) largest_entries(from, vocabulary, k, top + row * k);
  }
}
