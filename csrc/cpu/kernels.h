// The loops of the passes over one block of a map: vector code, with no torch type in sight.
//
// Each kernel is a struct of what it reads and writes and `span`, which does a run of neighbouring
// elements. Pointers to elements (T) are to the block's first one; vectors (Wide<T>) are as long as
// a span, repeated where it covers several pixels.
#pragma once

#include "activations.h"

namespace effv2::cpu {

// `spans` runs of `length` elements, `stride` apart, and after them one of `tail` elements.
struct Block {
  int64_t spans, length, stride, tail;
};

// What normalises: z = scale y + shift.
template <typename W>
struct Norm {
  const W *mean, *scale, *shift;
};

// Reads y; adds y - pivot and its square to the two sums.
template <typename T>
struct Moments {
  using W = Wide<T>;
  const T* y;
  const W* pivot;
  W *sum, *square_sum;

  EFFV2_INLINE void span(None, int64_t at, int64_t count) const {
    EFFV2_VECTORISE
    for (int64_t i = 0; i < count; ++i) {
      const W centred = widened(y[at + i]) - pivot[i];
      sum[i] += centred;
      square_sum[i] += centred * centred;
    }
  }
};

// Reads y and, if there is one, the residual; writes out = act(z) factor + residual.
template <typename T>
struct BnAct {
  using W = Wide<T>;
  const T *y, *residual;
  T* out;
  const W *scale, *shift, *factor;

  template <typename Act>
  EFFV2_INLINE void span(Act, int64_t at, int64_t count) const {
    if (residual == nullptr) {
      EFFV2_VECTORISE
      for (int64_t i = 0; i < count; ++i) {
        store(&out[at + i], Act::value(scale[i] * widened(y[at + i]) + shift[i]) * factor[i]);
      }
    } else {
      EFFV2_VECTORISE
      for (int64_t i = 0; i < count; ++i) {
        const W value = Act::value(scale[i] * widened(y[at + i]) + shift[i]);
        store(&out[at + i], value * factor[i] + widened(residual[at + i]));
      }
    }
  }
};

// Reads y; adds act(z) to the sum.
template <typename T>
struct ActSum {
  using W = Wide<T>;
  const T* y;
  const W *scale, *shift;
  W* sum;

  template <typename Act>
  EFFV2_INLINE void span(Act, int64_t at, int64_t count) const {
    EFFV2_VECTORISE
    for (int64_t i = 0; i < count; ++i) {
      sum[i] += Act::value(scale[i] * widened(y[at + i]) + shift[i]);
    }
  }
};

// Reads grad and y; adds dz = (grad factor) act'(z) and dz (y - mean) to the two sums; writes
// dz out_scale to out if there is one, which may be grad.
template <typename T>
struct GradientSums {
  using W = Wide<T>;
  const T *grad, *y;
  T* out;
  Norm<W> norm;
  const W *factor, *out_scale;
  W *sum, *centred_sum;

  template <typename Act>
  EFFV2_INLINE W add(Act, int64_t at, int64_t i) const {
    const W value = widened(y[at + i]);
    const W z = norm.scale[i] * value + norm.shift[i];
    const W dz = Act::through(widened(grad[at + i]) * factor[i], z);
    sum[i] += dz;
    centred_sum[i] += dz * (value - norm.mean[i]);
    return dz;
  }

  template <typename Act>
  EFFV2_INLINE void span(Act act, int64_t at, int64_t count) const {
    if (out == nullptr) {
      EFFV2_VECTORISE
      for (int64_t i = 0; i < count; ++i) add(act, at, i);
    } else {
      EFFV2_VECTORISE
      for (int64_t i = 0; i < count; ++i) store(&out[at + i], add(act, at, i) * out_scale[i]);
    }
  }
};

// Reads grad and y; writes scale dz + slope (y - mean) + offset, dz = (grad factor + addend)
// act'(z), to out, which may be grad.
template <typename T>
struct Gradient {
  using W = Wide<T>;
  const T *grad, *y;
  T* out;
  Norm<W> norm;
  const W *factor, *addend, *slope, *offset;

  template <typename Act>
  EFFV2_INLINE void span(Act, int64_t at, int64_t count) const {
    EFFV2_VECTORISE
    for (int64_t i = 0; i < count; ++i) {
      const W value = widened(y[at + i]);
      const W z = norm.scale[i] * value + norm.shift[i];
      const W dz = Act::through(widened(grad[at + i]) * factor[i] + addend[i], z);
      const W statistics = slope[i] * (value - norm.mean[i]) + offset[i];
      store(&out[at + i], norm.scale[i] * dz + statistics);
    }
  }
};

// Reads grad and y; adds grad act(z), grad p, grad p (y - mean), p and p (y - mean) to the five
// sums, p = act'(z).
template <typename T>
struct GatedSums {
  using W = Wide<T>;
  const T *grad, *y;
  Norm<W> norm;
  W* sums[5];

  template <typename Act>
  EFFV2_INLINE void span(Act, int64_t at, int64_t count) const {
    W *value_sum = sums[0], *grad_sum = sums[1], *centred_grad_sum = sums[2];
    W *slope_sum = sums[3], *centred_slope_sum = sums[4];
    EFFV2_VECTORISE
    for (int64_t i = 0; i < count; ++i) {
      const W centred = widened(y[at + i]) - norm.mean[i];
      const W z = norm.scale[i] * widened(y[at + i]) + norm.shift[i];
      const W upstream = widened(grad[at + i]);
      const W slope = Act::slope(z);
      const W dz = Act::through(upstream, z);
      value_sum[i] += upstream * Act::value(z);
      grad_sum[i] += dz;
      centred_grad_sum[i] += dz * centred;
      slope_sum[i] += slope;
      centred_slope_sum[i] += slope * centred;
    }
  }
};

// The kernels over a block; a separate copy of the code for each vector extension, by run time.
#define EFFV2_DECLARE(T)                                                       \
  void run(const Block& block, const Moments<T>& kernel);                      \
  void run(const Block& block, Activation act, const BnAct<T>& kernel);        \
  void run(const Block& block, Activation act, const ActSum<T>& kernel);       \
  void run(const Block& block, Activation act, const GradientSums<T>& kernel); \
  void run(const Block& block, Activation act, const Gradient<T>& kernel);     \
  void run(const Block& block, Activation act, const GatedSums<T>& kernel);
EFFV2_DECLARE(float)
EFFV2_DECLARE(BFloat16)
EFFV2_DECLARE(double)
#undef EFFV2_DECLARE

// to[i] += from[i]
void add(const float* from, double* to, int64_t count);
void add(const double* from, double* to, int64_t count);

// Mean and sum of squared deviations of some values, for each channel.
struct Deviations {
  double *mean, *squares;
};

// Chan's rule: `to`, of `to_count` values, becomes that of the union with `from`, of `from_count`.
void merge(const Deviations& from, double from_count, const Deviations& to, double to_count,
           int64_t channels);

}  // namespace effv2::cpu
