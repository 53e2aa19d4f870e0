// Divergences of rows of logits from a teacher of which k entries and the mass of the rest are known; one block for each
// row.
//
// Both sides have k + 1 events: the entries, and all others together. With h_j the derivative by the logarithm of the
// student's probability Q_j of event j, the gradient at an entry v of event j is (h_j q_v / Q_j - q_v sum h) / T. Which
// columns are entries is kept as one bit each in the block's memory, `words` of 32. STUDENT is the type of the logits.
#include "rows.cuh"
#include "divergences.cuh"

struct Shared {
  float total_log, tail_log;
  float tail_h, slope, gain;
};

// A part of a log-sum-exp, exponents to base 2.
struct Exponentials {
  float largest, sum;

  __device__ __forceinline__ void raise(float now, float factor) {
    if (!(now > largest)) return;
    sum = sum == 0.0f ? 0.0f : shrunk(sum, exp2f((reference(largest) - reference(now)) * factor));
    largest = now;
  }
};

extern "C" __global__ void __launch_bounds__(512) sparse_divergence(
    const STUDENT* student, long long student_inner, long long student_outer_stride, long long student_inner_stride,
    STUDENT* gradient, long long gradient_inner, long long gradient_outer_stride, long long gradient_inner_stride,
    long long rows, unsigned columns, unsigned vocabulary, unsigned k, unsigned words, const long long* ids,
    const float* log_probs, const float* tail_log_mass, const double* temperatures, const double* scales,
    const int* kinds, const float* parameters, const double* weights, long long weight_part_stride,
    long long weight_row_stride, int parts, double* losses) {
  extern __shared__ unsigned is_entry[];
  __shared__ Shared shared_row;
  for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
    // The gradient may take the student's place: nothing is assumed about the two.
    const STUDENT* from = row_of(student, row, student_inner, student_outer_stride, student_inner_stride);
    STUDENT* to = gradient ? row_of(gradient, row, gradient_inner, gradient_outer_stride, gradient_inner_stride) : nullptr;
    const double scale = scales[row];
    if (scale == 0.0) {
      if (to)
        for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) narrow(0.0f, to + i);
      if (threadIdx.x == 0) losses[row] = 0.0;
      continue;
    }
    const long long* entries = ids + row * k;
    const float* guide = log_probs + row * k;
    const double temperature = temperatures[row];
    const float factor = float(kLog2E / temperature);
    const Mixture mixture =
        mixture_of(row, parts, kinds, parameters, weights, weight_part_stride, weight_row_stride);
    for (unsigned word = threadIdx.x; word < words; word += blockDim.x) is_entry[word] = 0;
    __syncthreads();
    bool is_wrong = false;
    for (unsigned j = threadIdx.x; j < k; j += blockDim.x) {
      const long long id = entries[j];
      is_wrong = is_wrong || id < -1 || id >= vocabulary;
      if (id >= 0 && id < vocabulary && guide[j] != -infinity()) atomicOr(&is_entry[id / 32], 1u << id % 32);
    }
    __syncthreads();

    // Apart, because one less the other would lose a small tail to rounding.
    Exponentials inside = {-infinity(), 0.0f}, outside = {-infinity(), 0.0f};
#pragma unroll 1
    for (unsigned first = threadIdx.x; first < vocabulary; first += kChunk * blockDim.x) {
      float values[kChunk];
      load_chunk(from, first, vocabulary, values);
#pragma unroll
      for (int c = 0; c < kChunk; ++c) {
        const unsigned i = first + c * blockDim.x;
        if (i >= vocabulary) break;
        Exponentials& side = is_entry[i / 32] >> i % 32 & 1u ? inside : outside;
        side.raise(values[c], factor);
        side.sum += exp2f((values[c] - reference(side.largest)) * factor);
      }
    }
    const float inside_max = block_max(inside.largest), outside_max = block_max(outside.largest);
    inside.raise(inside_max, factor);
    outside.raise(outside_max, factor);
    double totals[3] = {inside.sum, outside.sum, is_wrong ? 1.0 : 0.0};
    block_sum(totals);
    const float largest = fmaxf(inside_max, outside_max);
    const float largest_reference = reference(largest);
    if (threadIdx.x == 0) {
      // Logarithms relative to the largest logit.
      const double inside_log = log2(totals[0]) + double(reference(inside_max) - largest_reference) * factor;
      const double outside_log = log2(totals[1]) + double(reference(outside_max) - largest_reference) * factor;
      const double high = fmax(inside_log, outside_log);
      const double total_log = high == -infinity() ? high : high + log2(exp2(inside_log - high) + exp2(outside_log - high));
      // An id that is no column makes the row not a number.
      shared_row.total_log = totals[2] > 0.0 ? __int_as_float(0x7fc00000) : float(total_log);
      shared_row.tail_log = float(outside_log - total_log);
    }
    __syncthreads();
    const float total_log = shared_row.total_log, tail_log = shared_row.tail_log;

    double sums[2] = {0.0, 0.0};
    Term tail = {0.0f, 0.0f};
    for (unsigned j = threadIdx.x; j < k; j += blockDim.x) {
      const long long id = entries[j];
      if (id < 0 || id >= vocabulary || guide[j] == -infinity()) continue;
      const float log_q = (widen(from[id]) - largest_reference) * factor - total_log, log_p = guide[j] * float(kLog2E);
      const Term one = mixture.all({exp2f(log_p), exp2f(log_q), log_p, log_q});
      sums[0] += one.d;
      sums[1] += one.h;
    }
    if (threadIdx.x == 0) {
      const float log_p = tail_log_mass[row] * float(kLog2E);
      tail = mixture.all({exp2f(log_p), exp2f(tail_log), log_p, tail_log});
      sums[0] += tail.d;
      sums[1] += tail.h;
    }
    block_sum(sums);
    if (threadIdx.x == 0) {
      losses[row] = scale * (totals[2] > 0.0 ? double(__int_as_float(0x7fc00000)) : sums[0]);
      shared_row.tail_h = tail.h;
      shared_row.slope = float(sums[1]);
      shared_row.gain = float(scale / temperature);
    }
    if (!to) continue;
    __syncthreads();
    const Shared values = shared_row;
#pragma unroll 1
    for (unsigned first = threadIdx.x; first < vocabulary; first += kChunk * blockDim.x) {
      float s[kChunk];
      load_chunk(from, first, vocabulary, s);
#pragma unroll
      for (int c = 0; c < kChunk; ++c) {
        const unsigned i = first + c * blockDim.x;
        // The entries follow: their logits are still needed.
        if (i >= vocabulary || is_entry[i / 32] >> i % 32 & 1u) continue;
        const float log_q = (s[c] - largest_reference) * factor - total_log;
        const float share = log_q == -infinity() ? 0.0f : exp2f(log_q - tail_log);
        narrow(values.gain * (share * values.tail_h - exp2f(log_q) * values.slope), to + i);
      }
    }
    // The loop above also loaded the entries' logits, whose place the gradient may take.
    __syncthreads();
    for (unsigned j = threadIdx.x; j < k; j += blockDim.x) {
      const long long id = entries[j];
      if (id < 0 || id >= vocabulary || guide[j] == -infinity()) continue;
      const float log_q = (widen(from[id]) - largest_reference) * factor - total_log, log_p = guide[j] * float(kLog2E);
      const float q = exp2f(log_q);
      narrow(values.gain * (mixture.all({exp2f(log_p), q, log_p, log_q}).h - q * values.slope), to + id);
    }
#pragma unroll 1
    for (unsigned i = vocabulary + threadIdx.x; i < columns; i += blockDim.x) narrow(0.0f, to + i);
  }
}
