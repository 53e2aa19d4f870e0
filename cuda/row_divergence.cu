// Divergences between rows of logits with the gradient in the same launch; one block for each row.
//
// Three passes over a row, of which the first brings it from memory and the others find what the cache kept: sums of the
// exponentials (which give the Kullback-Leibler divergences), sums of d and h where another divergence asks for them, the
// gradient (h - q sum h) / T. STUDENT and TEACHER are the types of the logits.
#include "rows.cuh"
#include "divergences.cuh"

// Sums of a part of a row, relative to the largest logits of that part.
struct Sums {
  float student_max, teacher_max;
  float student, teacher;
  // Of the teacher's exponentials times the difference of the exponents, and of the student's times its opposite.
  float forward, reverse;
  // Of the student's exponentials at temperature 1.
  float plain;

  // Takes the sums to larger references.
  __device__ __forceinline__ void rebase(float new_student, float new_teacher, float student_factor,
                                         float teacher_factor) {
    const float student_step = (reference(student_max) - reference(new_student)) * student_factor;
    const float teacher_step = (reference(teacher_max) - reference(new_teacher)) * teacher_factor;
    const float apart = teacher_step - student_step;
    // Where nothing was summed the old reference means nothing.
    const float student_scale = student == 0.0f ? 0.0f : exp2f(student_step);
    const float teacher_scale = teacher == 0.0f ? 0.0f : exp2f(teacher_step);
    forward = teacher == 0.0f ? 0.0f : shrunk(forward + teacher * apart, teacher_scale);
    reverse = student == 0.0f ? 0.0f : shrunk(reverse - student * apart, student_scale);
    student = shrunk(student, student_scale);
    teacher = shrunk(teacher, teacher_scale);
    const float plain_step = (reference(student_max) - reference(new_student)) * float(kLog2E);
    plain = plain == 0.0f ? 0.0f : shrunk(plain, exp2f(plain_step));
    student_max = new_student;
    teacher_max = new_teacher;
  }
};

// What the gradient and the second pass need of a row, from one thread to all.
struct Shared {
  float student_log, teacher_log;
  float student_inverse, teacher_inverse, plain_inverse;
  float gain, slope, label_scale;
};

__device__ __forceinline__ Event event_of(float student_exponent, float teacher_exponent, const Shared& row) {
  // Products of exponentials and not exponentials of differences: a logarithm's rounding would shift all alike.
  return {exp2f(teacher_exponent) * row.teacher_inverse, exp2f(student_exponent) * row.student_inverse,
          teacher_exponent - row.teacher_log, student_exponent - row.student_log};
}

extern "C" __global__ void __launch_bounds__(512) row_divergence(
    const STUDENT* student, long long student_inner, long long student_outer_stride, long long student_inner_stride,
    const TEACHER* teacher, long long teacher_inner, long long teacher_outer_stride, long long teacher_inner_stride,
    STUDENT* gradient, long long gradient_inner, long long gradient_outer_stride, long long gradient_inner_stride,
    long long rows, unsigned columns, unsigned vocabulary, const double* student_temperature,
    const double* teacher_temperature, const double* divergence_scale, const double* label_scale,
    const long long* labels, const int* kinds, const float* parameters, const double* weights,
    long long weight_part_stride, long long weight_row_stride, int parts, double* losses, double* divergences) {
  __shared__ Shared shared_row;
  for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
    // The gradient may take the student's place: nothing is assumed about the two.
    const STUDENT* from = row_of(student, row, student_inner, student_outer_stride, student_inner_stride);
    const TEACHER* guide = row_of(teacher, row, teacher_inner, teacher_outer_stride, teacher_inner_stride);
    STUDENT* to = gradient ? row_of(gradient, row, gradient_inner, gradient_outer_stride, gradient_inner_stride) : nullptr;
    const double scale = divergence_scale[row], cross_scale = label_scale[row];
    if (scale == 0.0 && cross_scale == 0.0) {
      if (to)
        for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) narrow(0.0f, to + i);
      if (threadIdx.x == 0) losses[row] = divergences[row] = 0.0;
      continue;
    }
    const Mixture mixture =
        mixture_of(row, parts, kinds, parameters, weights, weight_part_stride, weight_row_stride);
    const double temperature = student_temperature[row];
    const float student_factor = float(kLog2E / temperature), teacher_factor = float(kLog2E / teacher_temperature[row]);
    const bool with_plain = cross_scale != 0.0 && temperature != 1.0;
    const long long label = cross_scale != 0.0 ? labels[row] : 0;
    const bool is_label = label >= 0 && label < vocabulary;
    float label_logit = 0.0f;
    if (threadIdx.x == 0 && cross_scale != 0.0) label_logit = is_label ? widen(from[label]) : __int_as_float(0x7fc00000);

    Sums sums = {-infinity(), -infinity(), 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
    for (unsigned first = threadIdx.x; first < vocabulary; first += kChunk * blockDim.x) {
      float s[kChunk], t[kChunk];
      load_chunk(from, first, vocabulary, s);
      load_chunk(guide, first, vocabulary, t);
      float student_max = sums.student_max, teacher_max = sums.teacher_max;
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        student_max = fmaxf(student_max, s[k]);
        teacher_max = fmaxf(teacher_max, t[k]);
      }
      if (student_max > sums.student_max || teacher_max > sums.teacher_max)
        sums.rebase(student_max, teacher_max, student_factor, teacher_factor);
      const float student_reference = reference(student_max), teacher_reference = reference(teacher_max);
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        const float x = (s[k] - student_reference) * student_factor, y = (t[k] - teacher_reference) * teacher_factor;
        const float a = exp2f(x), b = exp2f(y);
        sums.student += a;
        sums.teacher += b;
        sums.forward += b == 0.0f ? 0.0f : b * (y - x);
        sums.reverse += a == 0.0f ? 0.0f : a * (x - y);
        if (with_plain) sums.plain += exp2f((s[k] - student_reference) * float(kLog2E));
      }
    }
    const float student_max = block_max(sums.student_max), teacher_max = block_max(sums.teacher_max);
    sums.rebase(student_max, teacher_max, student_factor, teacher_factor);
    double totals[5] = {sums.student, sums.teacher, sums.forward, sums.reverse, sums.plain};
    block_sum(totals);
    if (threadIdx.x == 0) {
      shared_row.student_log = float(log2(totals[0]));
      shared_row.teacher_log = float(log2(totals[1]));
      shared_row.student_inverse = float(1.0 / totals[0]);
      shared_row.teacher_inverse = float(1.0 / totals[1]);
      shared_row.plain_inverse = with_plain ? float(1.0 / totals[4]) : 0.0f;
    }
    __syncthreads();

    const float student_reference = reference(student_max), teacher_reference = reference(teacher_max);
    double point[2] = {0.0, 0.0};
    if (mixture.has_points) {
      Term sum = {0.0f, 0.0f};
#pragma unroll 1
      for (unsigned first = threadIdx.x; first < vocabulary; first += kChunk * blockDim.x) {
        float s[kChunk], t[kChunk];
        load_chunk(from, first, vocabulary, s);
        load_chunk(guide, first, vocabulary, t);
#pragma unroll
        for (int k = 0; k < kChunk; ++k) {
          if (first + k * blockDim.x >= vocabulary) break;
          const Event e = event_of((s[k] - student_reference) * student_factor,
                                   (t[k] - teacher_reference) * teacher_factor, shared_row);
          const Term one = mixture.points(e);
          sum.d += one.d;
          sum.h += one.h;
        }
      }
      point[0] = sum.d;
      point[1] = sum.h;
      block_sum(point);
    }

    if (threadIdx.x == 0) {
      const double apart = log2(totals[0]) - log2(totals[1]);
      const double forward = kLn2 * (totals[2] / totals[1] + apart), reverse = kLn2 * (totals[3] / totals[0] - apart);
      double divergence = point[0], slope = point[1] - mixture.forward;
      // Not where the weight is 0: the divergence may be infinite.
      if (mixture.forward != 0.0f) divergence += mixture.forward * forward;
      if (mixture.reverse != 0.0f) {
        divergence += mixture.reverse * reverse;
        slope += mixture.reverse * (reverse + 1.0);
      }
      double loss = scale == 0.0 ? 0.0 : scale * divergence;
      if (cross_scale != 0.0) loss += cross_scale * (student_max + log(totals[with_plain ? 4 : 0]) - label_logit);
      losses[row] = loss;
      divergences[row] = divergence;
      shared_row.gain = float(scale / temperature);
      shared_row.slope = float(slope);
      shared_row.label_scale = float(cross_scale);
    }
    if (!to) continue;
    __syncthreads();
    const Shared values = shared_row;
#pragma unroll 1
    for (unsigned first = threadIdx.x; first < vocabulary; first += kChunk * blockDim.x) {
      float s[kChunk], t[kChunk];
      load_chunk(from, first, vocabulary, s);
      load_chunk(guide, first, vocabulary, t);
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        const unsigned i = first + k * blockDim.x;
        if (i >= vocabulary) break;
        const Event e = event_of((s[k] - student_reference) * student_factor,
                                 (t[k] - teacher_reference) * teacher_factor, values);
        float slope = 0.0f;
        if (scale != 0.0) slope = values.gain * (mixture.all(e).h - e.q * values.slope);
        if (cross_scale != 0.0) {
          const float soft =
              with_plain ? exp2f((s[k] - student_reference) * float(kLog2E)) * values.plain_inverse : e.q;
          slope += values.label_scale * (soft - (i == label ? 1.0f : 0.0f));
        }
        narrow(slope, to + i);
      }
    }
#pragma unroll 1
    for (unsigned i = vocabulary + threadIdx.x; i < columns; i += blockDim.x) narrow(0.0f, to + i);
  }
}
