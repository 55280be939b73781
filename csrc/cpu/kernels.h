// The loops of the passes over one block of a map: vector code, with no torch type in sight.
//
// Each kernel is a struct of what it reads and writes and `spans`, which does `kSpans` runs of
// `count` neighbouring elements, `stride` apart. Pointers to elements (T) are to the block's first
// one; vectors (Wide<T>) are as long as a span, repeated where it covers several pixels. Kernels
// that sum take several spans at once, so that a sum is loaded and stored once for all of them.
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
  static constexpr int kSpansAtOnce = 4;
  const T* y;
  const W* pivot;
  W *sum, *square_sum;

  template <int kSpans>
  EFFV2_INLINE void spans(None, int64_t at, int64_t stride, int64_t count) const {
    EFFV2_VECTORISE
    for (int64_t i = 0; i < count; ++i) {
      W total = 0, square_total = 0;
      for (int s = 0; s < kSpans; ++s) {
        const W centred = widened(y[at + s * stride + i]) - pivot[i];
        total += centred;
        square_total += centred * centred;
      }
      sum[i] += total;
      square_sum[i] += square_total;
    }
  }
};

// Reads y and, if there is one, the residual; writes out = act(z) factor + residual.
template <typename T>
struct BnAct {
  using W = Wide<T>;
  static constexpr int kSpansAtOnce = 1;
  const T *y, *residual;
  T* out;
  const W *scale, *shift, *factor;

  template <int kSpans, typename Act>
  EFFV2_INLINE void spans(Act, int64_t at, int64_t stride, int64_t count) const {
    if (residual == nullptr) {
      EFFV2_VECTORISE
      for (int64_t i = 0; i < count; ++i) {
        const W value = Act::value(scale[i] * widened(y[at + i]) + shift[i]);
        out[at + i] = rounded<T>(value * factor[i]);
      }
    } else {
      EFFV2_VECTORISE
      for (int64_t i = 0; i < count; ++i) {
        const W value = Act::value(scale[i] * widened(y[at + i]) + shift[i]);
        out[at + i] = rounded<T>(value * factor[i] + widened(residual[at + i]));
      }
    }
  }
};

// Reads y; adds act(z) to the sum.
template <typename T>
struct ActSum {
  using W = Wide<T>;
  static constexpr int kSpansAtOnce = 4;
  const T* y;
  const W *scale, *shift;
  W* sum;

  template <int kSpans, typename Act>
  EFFV2_INLINE void spans(Act, int64_t at, int64_t stride, int64_t count) const {
    EFFV2_VECTORISE
    for (int64_t i = 0; i < count; ++i) {
      W total = 0;
      for (int s = 0; s < kSpans; ++s) {
        total += Act::value(scale[i] * widened(y[at + s * stride + i]) + shift[i]);
      }
      sum[i] += total;
    }
  }
};

// What the first of two passes over a gradient writes to out.
enum class Writes { kNothing, kDz, kDy };

// Reads grad and y; adds dz = (grad factor) act'(z) and dz (y - mean) to the two sums; writes dz,
// or dy = scale dz, to out, which may be grad. If dz is kept for a second pass, the sums are of
// what is kept, as rounded: what statistics take from dz must cancel in a map's sum.
template <typename T>
struct GradientSums {
  using W = Wide<T>;
  static constexpr int kSpansAtOnce = 2;
  const T *grad, *y;
  T* out;
  Writes writes;
  Norm<W> norm;
  const W* factor;
  W *sum, *centred_sum;

  template <int kSpans, Writes kWrites, typename Act>
  EFFV2_INLINE void add(Act, int64_t at, int64_t stride, int64_t count) const {
    EFFV2_VECTORISE
    for (int64_t i = 0; i < count; ++i) {
      W total = 0, centred_total = 0;
      for (int s = 0; s < kSpans; ++s) {
        const int64_t element = at + s * stride + i;
        const W value = widened(y[element]);
        const W z = norm.scale[i] * value + norm.shift[i];
        const W dz = Act::through(widened(grad[element]) * factor[i], z);
        if (kWrites == Writes::kDz) out[element] = rounded<T>(dz);
        if (kWrites == Writes::kDy) out[element] = rounded<T>(norm.scale[i] * dz);
        total += dz;
        centred_total += dz * (value - norm.mean[i]);
      }
      sum[i] += total;
      centred_sum[i] += centred_total;
    }
  }

  template <int kSpans, typename Act>
  EFFV2_INLINE void spans(Act act, int64_t at, int64_t stride, int64_t count) const {
    switch (writes) {
      case Writes::kNothing:
        return add<kSpans, Writes::kNothing>(act, at, stride, count);
      case Writes::kDz:
        return add<kSpans, Writes::kDz>(act, at, stride, count);
      case Writes::kDy:
        return add<kSpans, Writes::kDy>(act, at, stride, count);
    }
  }
};

// Reads grad and y; writes scale (dz - offset - slope (y - mean)), dz = (grad factor + addend)
// act'(z), to out, which may be grad. In this order, in which dz and what is taken from it are
// exact: they can cancel.
template <typename T>
struct Gradient {
  using W = Wide<T>;
  static constexpr int kSpansAtOnce = 1;
  const T *grad, *y;
  T* out;
  Norm<W> norm;
  const W *factor, *addend, *slope, *offset;

  template <int kSpans, typename Act>
  EFFV2_INLINE void spans(Act, int64_t at, int64_t stride, int64_t count) const {
    EFFV2_VECTORISE
    for (int64_t i = 0; i < count; ++i) {
      const W value = widened(y[at + i]);
      const W z = norm.scale[i] * value + norm.shift[i];
      const W dz = Act::through(widened(grad[at + i]) * factor[i] + addend[i], z);
      const W statistics = slope[i] * (value - norm.mean[i]);
      out[at + i] = rounded<T>(norm.scale[i] * (dz - offset[i] - statistics));
    }
  }
};

// Reads grad and y; adds grad act(z), grad p, grad p (y - mean), p and p (y - mean) to the five
// sums, p = act'(z).
template <typename T>
struct GatedSums {
  using W = Wide<T>;
  static constexpr int kSpansAtOnce = 2;
  const T *grad, *y;
  Norm<W> norm;
  W* sums[5];

  template <int kSpans, typename Act>
  EFFV2_INLINE void spans(Act, int64_t at, int64_t stride, int64_t count) const {
    W *value_sum = sums[0], *grad_sum = sums[1], *centred_grad_sum = sums[2];
    W *slope_sum = sums[3], *centred_slope_sum = sums[4];
    EFFV2_VECTORISE
    for (int64_t i = 0; i < count; ++i) {
      W value_total = 0, grad_total = 0, centred_grad_total = 0;
      W slope_total = 0, centred_slope_total = 0;
      for (int s = 0; s < kSpans; ++s) {
        const int64_t element = at + s * stride + i;
        const W centred = widened(y[element]) - norm.mean[i];
        const W z = norm.scale[i] * widened(y[element]) + norm.shift[i];
        const W upstream = widened(grad[element]);
        const W slope = Act::slope(z);
        const W dz = Act::through(upstream, z);
        value_total += upstream * Act::value(z);
        grad_total += dz;
        centred_grad_total += dz * centred;
        slope_total += slope;
        centred_slope_total += slope * centred;
      }
      value_sum[i] += value_total;
      grad_sum[i] += grad_total;
      centred_grad_sum[i] += centred_grad_total;
      slope_sum[i] += slope_total;
      centred_slope_sum[i] += centred_slope_total;
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
