// The table of divergences: the two elementwise functions of each. With p the teacher and q the student, a divergence is
// the sum of d(log p, log q), and h = dd / d(log q). Adding one is a kind and a case here, and its row in Python's table.

enum Kind { kForwardKL, kReverseKL, kJensenShannon, kSkewKL, kSkewReverseKL, kTotalVariation, kAlpha };

// Divergences of one mixture.
constexpr int kMaxParts = 16;

// Above this lie mixtures of p and q, and their ratios, unless both are 0.
constexpr float kTiny = 2.350988701644575e-38f;

// The larger of both; not-a-number stays, which fmaxf would lose.
__device__ __forceinline__ float at_least_tiny(float x) { return x < kTiny ? kTiny : x; }

struct Event {
  float p, q;
  // To base 2.
  float log_p, log_q;
};

struct Term {
  float d, h;
};

// Whether the sums of d and h follow from those of the first pass over a row.
__device__ __forceinline__ bool is_linear(int kind) { return kind == kForwardKL || kind == kReverseKL; }

// d and h of a divergence that is not linear. Called, not inlined: a table in every round of an unrolled loop would not
// stay in the cache of instructions.
__device__ __attribute__((noinline)) Term point_term(int kind, float parameter, Event e) {
  const float rest = 1.0f - parameter;
  switch (kind) {
    case kJensenShannon: {
      const float weighted = rest * e.q;
      const float inverse = 1.0f / at_least_tiny(parameter * e.p + weighted);
      const float h = weighted * logf(at_least_tiny(e.q * inverse));
      return {parameter * e.p * logf(at_least_tiny(e.p * inverse)) + h, h};
    }
    case kSkewKL: {
      const float share = e.p / at_least_tiny(parameter * e.p + rest * e.q);
      return {e.p * logf(at_least_tiny(share)), -rest * e.q * share};
    }
    case kSkewReverseKL: {
      const float share = e.q / at_least_tiny(rest * e.p + parameter * e.q);
      const float d = e.q * logf(at_least_tiny(share));
      return {d, d + e.q * (1.0f - parameter * share)};
    }
    case kTotalVariation: {
      const float difference = e.q - e.p;
      const float h = difference > 0.0f ? e.q : difference < 0.0f ? -e.q : 0.0f * difference;
      return {0.5f * fabsf(difference), 0.5f * h};
    }
    default: {
      // Where both logarithms are minus infinity the entry does not count.
      const bool is_absent = e.log_p == -infinity() && e.log_q == -infinity();
      const float power = is_absent ? 0.0f : exp2f(parameter * e.log_p + rest * e.log_q);
      const float linear = parameter * e.p + rest * e.q;
      return {(power - linear) / (parameter * -rest), (e.q - power) / parameter};
    }
  }
}

// One row's divergences: parts whose weight is 0 take no part, not even where they are infinite.
struct Mixture {
  int parts;
  const int* kinds;
  const float* parameters;
  const float* weights;
  // Weights of the two linear ones, and whether there are others.
  float forward, reverse;
  bool has_points;

  // Of the others.
  __device__ __forceinline__ Term points(const Event& e) const {
    Term sum = {0.0f, 0.0f};
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {
      if (weights[part] == 0.0f || is_linear(kinds[part])) continue;
      const Term one = point_term(kinds[part], parameters[part], e);
      sum.d += weights[part] * one.d;
      sum.h += weights[part] * one.h;
    }
    return sum;
  }

  __device__ __forceinline__ Term all(const Event& e) const {
    Term sum = {0.0f, 0.0f};
    if (has_points) sum = points(e);
    if (forward != 0.0f) {
      sum.d += e.p == 0.0f ? 0.0f : forward * e.p * (e.log_p - e.log_q) * float(kLn2);
      sum.h -= forward * e.p;
    }
    if (reverse != 0.0f) {
      const float d = e.q == 0.0f ? 0.0f : e.q * (e.log_q - e.log_p) * float(kLn2);
      sum.d += reverse * d;
      sum.h += reverse * (d + e.q);
    }
    return sum;
  }
};

// The mixture of a row, in the block's memory.
__device__ __forceinline__ Mixture mixture_of(long long row, int parts, const int* kinds, const float* parameters,
                                              const double* weights, long long part_stride, long long row_stride) {
  __shared__ int row_kinds[kMaxParts];
  __shared__ float row_parameters[kMaxParts];
  __shared__ float row_weights[kMaxParts];
  // Threads may still read those of the row before.
  __syncthreads();
  if (threadIdx.x < parts) {
    row_kinds[threadIdx.x] = kinds[threadIdx.x];
    row_parameters[threadIdx.x] = parameters[threadIdx.x];
    row_weights[threadIdx.x] = float(weights[threadIdx.x * part_stride + row * row_stride]);
  }
  __syncthreads();
  Mixture mixture = {parts, row_kinds, row_parameters, row_weights, 0.0f, 0.0f, false};
#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
    if (row_weights[part] == 0.0f) continue;
    if (row_kinds[part] == kForwardKL)
      mixture.forward += row_weights[part];
    else if (row_kinds[part] == kReverseKL)
      mixture.reverse += row_weights[part];
    else
      mixture.has_points = true;
  }
  return mixture;
}
