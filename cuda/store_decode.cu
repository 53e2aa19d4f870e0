// Packed rows of a teacher cache, as docs/teacher-cache-format.md lays them out; a warp unpacks one row.
//
// Bytes are looked at where the processor has not: a row that no encoder writes comes out as not-a-number, with ids 0.
#include "values.cuh"

constexpr int kWarps = 4;
// A step that stands for no probability, of this entry and those behind it.
constexpr unsigned kNothing = 255;

__device__ __forceinline__ unsigned bits_at(const unsigned char* from, unsigned bytes) {
  unsigned bits = 0;
  for (unsigned b = 0; b < bytes; ++b) bits |= unsigned(from[b]) << 8 * b;
  return bits;
}

__device__ __forceinline__ float single_at(const unsigned char* from) { return __uint_as_float(bits_at(from, 4)); }

__device__ __forceinline__ float half_at(const unsigned char* from) {
  return __half2float(__ushort_as_half((unsigned short)bits_at(from, 2)));
}

// Not-a-number is none.
__device__ __forceinline__ bool is_log_mass(float x) { return x <= 0.0f; }

// Row r lies at places[r], or at r without them; at -1 there is none, whose result weighs nothing. Ids go where there is
// memory for them.
extern "C" __global__ void __launch_bounds__(128) store_decode(
    const unsigned char* packed, const long long* places, long long rows, unsigned row_bytes, unsigned k,
    unsigned id_bits, unsigned vocabulary, int is_half, unsigned codes_at, unsigned head_at, unsigned tail_at,
    unsigned partitions_at, unsigned temperatures, long long* wide_ids, int* narrow_ids, float* log_probs, float* tail,
    float* partitions) {
  const unsigned lane = threadIdx.x % 32;
  const long long row = (long long)blockIdx.x * kWarps + threadIdx.x / 32;
  if (row >= rows) return;
  const long long place = places ? places[row] : row;
  const unsigned char* from = packed + place * row_bytes;
  bool is_wrong = false;
  float top = 0.0f, scale = 0.0f;
  if (place >= 0 && !is_half) {
    top = single_at(from + head_at);
    scale = half_at(from + head_at + 4);
    is_wrong = !is_log_mass(top) || !(scale >= 0.0f && scale < infinity());
  }
  unsigned steps = 0;
  bool is_over = false;
#pragma unroll 1
  for (unsigned first = 0; first < k; first += 32) {
    const unsigned entry = first + lane;
    const bool is_entry = entry < k && place >= 0;
    unsigned id = 0;
    float log_prob = -infinity();
    if (is_entry) {
      const unsigned bit = entry * id_bits, before = bit % 8;
      id = bits_at(from + bit / 8, (before + id_bits + 7) / 8) >> before & (1u << id_bits) - 1;
      is_wrong = is_wrong || id >= vocabulary;
    }
    if (is_half) {
      if (is_entry) {
        log_prob = half_at(from + codes_at + 2 * entry);
        is_wrong = is_wrong || !is_log_mass(log_prob);
      }
    } else {
      // The first entry is the top itself.
      const unsigned code = is_entry && entry > 0 ? from[codes_at + entry - 1] : 0;
      unsigned sum = code;
#pragma unroll
      for (int by = 1; by < 32; by *= 2) {
        const unsigned other = __shfl_up_sync(kAllLanes, sum, by);
        if (lane >= by) sum += other;
      }
      const unsigned ends = __ballot_sync(kAllLanes, code == kNothing);
      // Lanes up to this one.
      is_over = is_over || (ends & 0xffffffffu >> (31 - lane)) != 0;
      // In two roundings, as the processor does it.
      if (is_entry && !is_over) log_prob = __fsub_rn(top, __fmul_rn(scale, float(steps + sum)));
      steps += __shfl_sync(kAllLanes, sum, 31);
      is_over = is_over || ends != 0;
    }
    if (entry < k) {
      if (wide_ids) wide_ids[row * k + entry] = id;
      if (narrow_ids) narrow_ids[row * k + entry] = id;
      log_probs[row * k + entry] = log_prob;
    }
  }
  const float tail_mass = place >= 0 ? half_at(from + tail_at) : 0.0f;
  is_wrong = is_wrong || !is_log_mass(tail_mass);
  for (unsigned t = lane; t < temperatures; t += 32) {
    // That of temperature 1 is 0 and not stored.
    const float partition = t > 0 && place >= 0 ? single_at(from + partitions_at + 4 * (t - 1)) : 0.0f;
    is_wrong = is_wrong || !is_finite(partition);
    partitions[row * temperatures + t] = partition;
  }
  if (lane == 0) tail[row] = tail_mass;
  if (!__any_sync(kAllLanes, is_wrong)) return;
  // Each lane over what it wrote itself.
  const float nothing = __int_as_float(0x7fc00000);
  for (unsigned entry = lane; entry < k; entry += 32) {
    if (wide_ids) wide_ids[row * k + entry] = 0;
    if (narrow_ids) narrow_ids[row * k + entry] = 0;
    log_probs[row * k + entry] = nothing;
  }
  for (unsigned t = lane; t < temperatures; t += 32) partitions[row * temperatures + t] = nothing;
  if (lane == 0) tail[row] = nothing;
}
